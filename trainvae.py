"""Train V, the variational autoencoder, on the frames of a data set.

    python trainvae.py --logdir exp_dir

Writes `logdir/vae/best.tar` and `checkpoint.tar` after each epoch, and two pictures to
`logdir/vae/samples/`: frames decoded from the prior, and originals over reconstructions.
"""

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.episodes import describe_episodes, list_episodes, split_readable
from data.loaders import FrameLoader
from models.logdir import write_config
from models.vae import LATENT_SIZE, VAE, vae_loss
from utils import ranks
from utils.checkpoint import set_aside
from utils.cli import (
    add_device,
    add_logdir,
    add_noreload,
    add_rootdir,
    add_seed,
    dispensable,
    natural_int,
    positive_float,
    positive_int,
    run_script,
    script_parser,
)
from utils.curves import Curves
from utils.devices import choose_device, describe, training_precision, use_available_cores
from utils.fitting import Fitting, require_finite, seed_epoch
from utils.frames import pixels_to_unit
from utils.graphs import recorded
from utils.spinning import share_cores


def parse_arguments() -> Namespace:
    parser = script_parser("Train V, the variational autoencoder.")
    add_logdir(parser)
    add_rootdir(parser)
    parser.add_argument("--epochs", type=positive_int, default=1000, help="epochs at most")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="frames in a batch")
    parser.add_argument(
        "--learning-rate", type=positive_float, default=1e-3, help="of Adam, at the beginning"
    )
    parser.add_argument(
        "--low-rate-from",
        type=natural_int,
        default=0,
        help="from this epoch on, train at a fifth of the learning rate, so that the last epochs "
        "take out the noise of the steps; 0: never",
    )
    parser.add_argument(
        "--latent-size", type=positive_int, default=LATENT_SIZE, help="numbers in a latent z"
    )
    add_seed(parser, "initial weights, data order, flips and samples of z")
    add_device(parser)
    add_noreload(parser)
    parser.add_argument("--nosamples", action="store_true", help="do not write pictures")
    return parser.parse_args()


def flip_some(frames: Tensor) -> Tensor:
    """Frames (N, 64, 64, 3), each mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(frames), device=frames.device) < 0.5
    return torch.where(mirrored[:, None, None, None], frames.flip(2), frames)


def make_optimizer(model: VAE, learning_rate: float = 1e-3) -> torch.optim.Adam:
    """For a model that is on its device already: on a GPU the steps can be recorded."""
    on_gpu = next(model.parameters()).is_cuda
    return torch.optim.Adam(model.parameters(), learning_rate, fused=True, capturable=on_gpu)


LOW_RATE = 1 / 5  # of the learning rate, with --low-rate-from

ADVICE = "Use a smaller --learning-rate with --noreload"


def run_epoch(
    model: VAE,
    loader: FrameLoader,
    generator: np.random.Generator,
    device: torch.device,
    precision: torch.dtype,
    label: str,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, float]:
    """One pass over the loader, training if there is an optimizer; the mean losses a frame."""
    training = optimizer is not None
    model.train(training)
    totals = torch.zeros(3, device=device)
    seen = 0

    def step(frames: Tensor, weight: Tensor) -> None:
        x = pixels_to_unit(flip_some(frames) if training else frames)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            reconstruction, mu, logsigma = model(x)
        squared_error, kl = vae_loss(reconstruction, x, mu, logsigma)
        loss = squared_error + kl
        if training:
            optimizer.zero_grad(set_to_none=True)
            (loss * weight).backward()
            optimizer.step()
        terms = torch.stack([loss, squared_error, kl]).detach()
        totals.add_(terms * len(frames) * (weight > 0))

    if ranks.count() == 1:
        step = recorded(step, device)
    with (
        torch.set_grad_enabled(training),
        tqdm(
            total=len(loader), unit="frame", desc=label, mininterval=0.5, disable=ranks.rank() > 0
        ) as bar,
    ):
        batches = ranks.weighted(loader.epoch(generator), device, together=training)
        for batch, (frames, weight, size) in enumerate(batches):
            step(frames, weight)
            seen += size
            bar.update(size)
            if batch % 50 == 49:  # reading the loss makes a GPU wait, so not at every batch
                so_far = totals[0].item() / seen
                require_finite(so_far, label, ADVICE)
                bar.set_postfix(loss=f"{so_far:.2f}")
        means = ranks.means(totals, seen)
        bar.set_postfix(loss=f"{means[0]:.2f}")
    require_finite(means[0], label, ADVICE)
    return dict(zip(("loss", "squared_error", "kl"), means, strict=True))


@torch.no_grad()
def write_pictures(
    model: VAE, originals: Tensor, samples: Path, epoch: int, curves: Curves
) -> None:
    """A grid of 64 frames decoded from the prior, and one of originals over reconstructions.

    originals (N, 64, 64, 3) uint8; rows of 8 originals each have their reconstructions
    in the row below. They go to the folder `samples` and to TensorBoard.
    """
    # Not at the top: it takes as long as torch, and a mistake in an option should be shown at once.
    from torchvision.utils import make_grid, save_image

    model.eval()
    device = next(model.parameters()).device
    from_prior = model.decoder(torch.randn(64, model.latent_size, device=device))
    x = pixels_to_unit(originals)
    reconstructions = model.decoder(model.encoder.mean(x))
    rows = [
        pair for a, b in zip(x.split(8), reconstructions.split(8), strict=True) for pair in (a, b)
    ]
    samples.mkdir(exist_ok=True)
    for name, title, frames in (
        ("sample", "prior", from_prior),
        ("reconstruction", "originals over reconstructions", torch.cat(rows)),
    ):
        grid = make_grid(frames, nrow=8).cpu()
        save_image(grid, samples / f"{name}_{epoch}.png")
        curves.add_picture(title, grid, epoch)


def train(args: Namespace) -> None:
    """All epochs, from the last one that is stored."""
    device = choose_device(args.device)
    precision = training_precision(device)
    print(describe(device, precision))
    train_files, test_files = split_readable(list_episodes(args.rootdir))
    print(f"{args.rootdir}: {len(train_files)} episodes to train on, {len(test_files)} held out")

    folder = args.logdir / "vae"
    if args.noreload and not ranks.rank():
        set_aside(folder)
    options = {
        "seed": args.seed,
        "batch-size": args.batch_size,
        "learning-rate": args.learning_rate,
        "low-rate-from": args.low_rate_from,
        "latent-size": args.latent_size,
    }
    episodes = {
        "to train on": describe_episodes(train_files),
        "held out": describe_episodes(test_files),
    }
    ranks.require_same(f"the episodes in {args.rootdir}", str(episodes))
    torch.manual_seed(args.seed)
    model = VAE(args.latent_size).to(device)
    forward = ranks.wrapped(model)
    optimizer = make_optimizer(model, args.learning_rate)
    fitting = Fitting(folder, model, optimizer, options, episodes)
    batch_size = ranks.share_of_batch(args.batch_size, len(train_files))
    train_loader = FrameLoader(ranks.share(train_files), batch_size, device, shuffle=True)
    test_loader = FrameLoader(ranks.share(test_files), batch_size, device, shuffle=False)
    originals = None if args.nosamples or ranks.rank() else test_loader.sample(32)

    def train_losses(epoch: int) -> dict[str, float]:
        if 0 < args.low_rate_from <= epoch:
            for group in optimizer.param_groups:
                if not group.get("lowered"):  # stored with the optimizer, so that it is done once
                    group["lr"] *= LOW_RATE
                    group["lowered"] = True
        generator = seed_epoch("V's epoch", args.seed, epoch)
        label = f"epoch {epoch}"
        return run_epoch(forward, train_loader, generator, device, precision, label, optimizer)

    def test_losses(epoch: int, label: str) -> dict[str, float]:
        generator = seed_epoch("V's test", args.seed, epoch)
        return run_epoch(forward, test_loader, generator, device, precision, label)

    def show(epoch: int, curves: Curves) -> None:
        with dispensable(f"{folder / 'samples'}: the pictures of epoch {epoch}"):
            write_pictures(model, originals, folder / "samples", epoch, curves)

    fitting.resume()  # raises where options contradict, before anything is written
    if not ranks.rank():
        write_config(folder, args, episodes)
    fitting.run(args.epochs, train_losses, test_losses, None if args.nosamples else show)


def main() -> None:
    args = parse_arguments()
    use_available_cores()
    with ranks.joined(args), ranks.exclusive(args.logdir, "vae"), share_cores():
        train(args)


if __name__ == "__main__":
    run_script(main)
