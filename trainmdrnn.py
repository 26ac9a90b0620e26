"""Train M, the MDN-RNN, on the latents that V makes of a data set.

    python trainmdrnn.py --logdir exp_dir

Needs `logdir/vae/best.tar`. Writes `logdir/mdrnn/best.tar` and `checkpoint.tar` after each
epoch, and the latents of all episodes, once, to `logdir/latents/`.
"""

import copy
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.ahead import ahead, describe_ahead, describe_returns, replayed_returns
from data.episodes import EpisodeFile, describe_episodes, list_episodes, split_episodes
from data.latents import LatentEpisode, Latents, encode_episodes
from data.loaders import WindowLoader
from models.logdir import load_vae, weights_digest, write_config
from models.mdrnn import HIDDEN_SIZE, MDRNN, mdrnn_losses
from models.vae import sample_latent
from utils import ranks
from utils.checkpoint import load_checkpoint, load_weights, set_aside
from utils.cli import (
    UserError,
    add_device,
    add_logdir,
    add_noreload,
    add_rootdir,
    add_seed,
    positive_float,
    positive_int,
    run_script,
    script_parser,
)
from utils.curves import Curves
from utils.devices import (
    choose_device,
    describe,
    fast_precision,
    training_precision,
    use_available_cores,
)
from utils.fitting import Fitting, require_finite, seed_epoch
from utils.graphs import recorded
from utils.spinning import share_cores


def parse_arguments() -> Namespace:
    parser = script_parser("Train M, the MDN-RNN.")
    add_logdir(parser)
    add_rootdir(parser)
    parser.add_argument("--epochs", type=positive_int, default=30, help="epochs at most")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="windows in a batch")
    parser.add_argument(
        "--learning-rate",
        type=positive_float,
        default=4e-3,
        help="of RMSprop, at the beginning; it falls along a cosine, to nothing after --epochs",
    )
    parser.add_argument("--seq-len", type=positive_int, default=32, help="transitions in a window")
    parser.add_argument(
        "--hidden-size", type=positive_int, default=HIDDEN_SIZE, help="units of the LSTM"
    )
    parser.add_argument("--include_reward", action="store_true", help="predict the reward as well")
    add_seed(parser, "initial weights, windows and samples of z")
    add_device(parser)
    add_noreload(parser)
    return parser.parse_args()


def make_optimizer(model: MDRNN, learning_rate: float = 4e-3) -> torch.optim.RMSprop:
    """For a model that is on its device already: on a GPU the steps can be recorded."""
    on_gpu = next(model.parameters()).is_cuda
    return torch.optim.RMSprop(model.parameters(), learning_rate, alpha=0.9, capturable=on_gpu)


AHEAD_EVERY = 5  # epochs between looks at how well M predicts many steps ahead

ADVICE = "Check the VAE's losses, or start again with --noreload and another --seed"


def run_epoch(
    model: MDRNN,
    loader: WindowLoader,
    generator: np.random.Generator,
    precision: torch.dtype,
    include_reward: bool,
    label: str,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, float]:
    """One pass over the loader, training if there is an optimizer; the mean of each term."""
    training = optimizer is not None
    model.train(training)
    device = loader.table.device
    names = ["loss", "gmm", "bce", *(["mse"] if include_reward else [])]
    totals = torch.zeros(len(names), device=device)
    seen = 0
    windows = len(loader.starts(np.random.default_rng(0)))

    def step(rows: Tensor, weight: Tensor) -> None:
        window = loader.look_up(rows)
        # z is drawn from V's posterior afresh each time, so that M cannot overfit to one.
        latents = sample_latent(window["mu"], window["logsigma"])
        z, next_z = latents[:-1], latents[1:]
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            prediction = model(window["actions"], z)
        terms = mdrnn_losses(
            prediction, next_z, window["rewards"], window["terminals"], include_reward
        )
        if training:
            optimizer.zero_grad(set_to_none=True)
            (terms["loss"] * weight).backward()
            optimizer.step()
        values = torch.stack([terms[name] for name in names]).detach()
        totals.add_(values * z.shape[1] * (weight > 0))

    if ranks.count() == 1:
        step = recorded(step, device)
    with (
        torch.set_grad_enabled(training),
        tqdm(
            total=windows, unit="window", desc=label, mininterval=0.5, disable=ranks.rank() > 0
        ) as bar,
    ):
        batches = ranks.weighted(loader.rows(generator), device, together=training)
        for batch, (rows, weight, size) in enumerate(batches):
            step(rows, weight)
            seen += size
            bar.update(size)
            if batch % 50 == 49:  # reading the loss makes a GPU wait, so not at every batch
                so_far = {n: total / seen for n, total in zip(names, totals.tolist(), strict=True)}
                require_finite(so_far["loss"], label, ADVICE)
                bar.set_postfix({name: f"{value:.3f}" for name, value in so_far.items()})
        means = dict(zip(names, ranks.means(totals, seen), strict=True))
        bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
    require_finite(means["loss"], label, ADVICE)
    return means


def check_vae(folder: Path, digest: str) -> None:
    """Raise UserError where the training in `folder` was of the latents of another V."""
    for path in (folder / "checkpoint.tar", folder / "best.tar"):
        if path.exists():
            trained_with = load_checkpoint(path).get("options", {}).get("vae", digest)
            if trained_with != digest:
                raise UserError(
                    f"{path}: the VAE is not the one that this M was trained with; put that one "
                    "back, or use --noreload to start afresh"
                )


def long_enough(files: list[EpisodeFile], seq_len: int) -> list[EpisodeFile]:
    """The episodes that have a window of `seq_len` transitions; says how many have none.

    Raises UserError where fewer than two have one.
    """
    long = [file for file in files if file.length > seq_len]
    if len(long) < 2:
        longest = max(file.length for file in files)
        raise UserError(
            f"--seq-len {seq_len}: {len(long)} of {len(files)} episodes are longer than that, and "
            f"two are needed (the longest has {longest} frames)"
        )
    if len(long) < len(files):
        print(
            f"{len(files) - len(long)} of {len(files)} episodes are not longer than --seq-len "
            f"{seq_len} and are not used"
        )
    return long


def report(path: Path, model: MDRNN, held_out: list[LatentEpisode], include_reward: bool) -> None:
    """Say how far the dream of the best M is from reality."""
    load_weights(model, path)
    errors = ahead(model, held_out, include_reward)
    if errors:
        print(f"{path}: {describe_ahead(errors)}")
    else:
        print(f"{path}: the held-out episodes are too short to look ahead")
    if include_reward:
        dreamt, real = replayed_returns(model, held_out)
        if len(real):
            print(f"{path}: {describe_returns(dreamt, real)}")


def train(args: Namespace) -> None:
    """All epochs, from the last one that is stored."""
    vae = ranks.from_first(lambda: load_vae(args.logdir))
    device = choose_device(args.device)
    precision = training_precision(device)
    print(describe(device, precision))
    files = list_episodes(args.rootdir)
    split_episodes(files)  # too few are an error before anything is encoded
    files = long_enough(files, args.seq_len)
    ranks.require_same(f"the episodes in {args.rootdir}", describe_episodes(files))

    folder = args.logdir / "mdrnn"
    digest = weights_digest(vae.encoder)[:16]
    if not args.noreload and not ranks.rank():
        check_vae(folder, digest)

    def encoded(part: list[EpisodeFile]) -> dict[str, Latents]:
        return encode_episodes(part, vae.encoder, args.logdir, device, fast_precision(device))

    own = encoded(ranks.share(files))
    readable = set(ranks.gathered(list(own)))
    train_files, test_files = split_episodes([file for file in files if file.name in readable])
    own_train, own_test = ranks.share(train_files), ranks.share(test_files)
    others = [file for file in own_train + own_test if file.name not in own]
    if others:  # of another rank's share before the split, which are here where it wrote them here
        own |= encoded(others)
    train_latents, test_latents = ([own[f.name] for f in part] for part in (own_train, own_test))
    print(f"{args.rootdir}: {len(train_files)} episodes to train on, {len(test_files)} held out")

    if args.noreload and not ranks.rank():
        set_aside(folder)
    options = {
        "seed": args.seed,
        "batch-size": args.batch_size,
        "learning-rate": args.learning_rate,
        "seq-len": args.seq_len,
        "hidden-size": args.hidden_size,
        "include_reward": args.include_reward,
        "vae": digest,
    }
    episodes = {
        "to train on": describe_episodes(train_files),
        "held out": describe_episodes(test_files),
    }
    ranks.require_same(f"the episodes in {args.rootdir}", str(episodes))
    torch.manual_seed(args.seed)
    model = MDRNN(vae.latent_size, hidden_size=args.hidden_size).to(device)
    forward = ranks.wrapped(model)
    optimizer = make_optimizer(model, args.learning_rate)
    heads = "latents, terminals" + (", rewards" if args.include_reward else "")
    fitting = Fitting(folder, model, optimizer, options, episodes, heads)
    batch_size = ranks.share_of_batch(args.batch_size, len(train_files))
    train_loader, test_loader = (
        WindowLoader(part, batch_size, args.seq_len, device, shuffle)
        for part, shuffle in ((train_latents, True), (test_latents, False))
    )

    def train_losses(epoch: int) -> dict[str, float]:
        generator = seed_epoch("M's epoch", args.seed, epoch)
        return run_epoch(
            forward,
            train_loader,
            generator,
            precision,
            args.include_reward,
            f"epoch {epoch}",
            optimizer,
        )

    def test_losses(epoch: int, label: str) -> dict[str, float]:
        generator = seed_epoch("M's test", args.seed, epoch)
        return run_epoch(forward, test_loader, generator, precision, args.include_reward, label)

    def rate(epoch: int) -> float:
        return args.learning_rate * (1 + math.cos(math.pi * (epoch - 1) / args.epochs)) / 2

    held_out = ranks.gathered([latents.read() for latents in test_latents])

    def look_ahead(epoch: int, curves: Curves) -> None:
        if epoch % AHEAD_EVERY == 0:
            errors = ahead(copy.deepcopy(model).cpu().eval(), held_out, args.include_reward)
            if errors:
                print(f"epoch {epoch}: {describe_ahead(errors)}")
            curves.add({f"ahead/{name}": value for name, value in errors.items()}, epoch)

    fitting.resume()  # raises where options contradict, before anything is written
    if not ranks.rank():
        write_config(folder, args, episodes)
    fitting.run(args.epochs, train_losses, test_losses, look_ahead, rate)
    if not ranks.rank():
        report(
            folder / "best.tar", copy.deepcopy(model).cpu().eval(), held_out, args.include_reward
        )


def main() -> None:
    args = parse_arguments()
    use_available_cores()
    with ranks.joined(args), ranks.exclusive(args.logdir, "mdrnn"), share_cores():
        train(args)


if __name__ == "__main__":
    run_script(main)
