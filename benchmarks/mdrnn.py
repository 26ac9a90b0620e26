"""MDN-RNN training on cached latents, against encoding anew and against the bare step."""

from collections.abc import Callable
from itertools import cycle, islice

import numpy as np
import torch

from benchmarks.measure import Row, median_rates, row
from benchmarks.setting import folder, many_episodes
from data.episodes import list_episodes, read_episode
from data.latents import encode_episodes
from data.loaders import WindowLoader
from models.inference import inference_encoder
from models.mdrnn import MDRNN, mdrnn_losses
from models.vae import Encoder, sample_latent
from trainmdrnn import run_epoch
from utils.frames import pixels_to_unit
from utils.learning import choose_device, fast_precision, recurrent_precision

BATCH_SIZE, SEQ_LEN = 16, 32  # the defaults of trainmdrnn.py


def measure() -> list[Row]:
    device = choose_device("auto")
    fast, precision = fast_precision(device), recurrent_precision(device)
    files = list_episodes(many_episodes(64))
    latents = encode_episodes(files, Encoder(), folder() / "mdrnn", device, fast)
    loader = WindowLoader(list(latents.values()), BATCH_SIZE, SEQ_LEN, device, shuffle=True)
    transitions = len(loader.starts(np.random.default_rng(0))) * SEQ_LEN

    def trainer():
        model = MDRNN().to(device)
        return model, torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.9)

    model, optimizer = trainer()

    def ours() -> int:
        generator = np.random.default_rng(0)
        run_epoch(model, loader, generator, precision, False, "train", optimizer)
        return transitions

    def train_on(model, optimizer, z, next_z, window) -> None:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            prediction = model(window["actions"], z)
        terms = mdrnn_losses(prediction, next_z, window["rewards"], window["terminals"], False)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        optimizer.step()

    bare_model, bare_optimizer = trainer()
    windows = []
    for window in islice(loader.epoch(np.random.default_rng(1)), 64):
        drawn = sample_latent(window["mu"], window["logsigma"])
        windows.append((drawn[:-1], drawn[1:], window))
    steps = -(-transitions // (BATCH_SIZE * SEQ_LEN))

    def bare() -> int:
        for z, next_z, window in islice(cycle(windows), steps):
            train_on(bare_model, bare_optimizer, z, next_z, window)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return steps * BATCH_SIZE * SEQ_LEN

    # The earlier way, batched well: the fastest encoder, all windows of a batch in one call.
    encoder = inference_encoder(Encoder(), device, fast)
    frames = torch.from_numpy(read_episode(files[0].path).observations).to(device)
    anew_model, anew_optimizer = trainer()
    _, _, window = windows[0]  # its actions and rewards go with the latents encoded anew

    def encode(rows: torch.Tensor) -> torch.Tensor:
        """Frames' numbers (T, N) -> z (T, N, 32)."""
        with torch.inference_mode():
            x = pixels_to_unit(frames[rows.flatten()], fast)
            mu, logsigma = (part.float() for part in encoder(x))
            z = sample_latent(mu, logsigma).view(*rows.shape, -1)
        return z.clone()  # outside of inference mode, so that training may use it

    def train_anew(latents_of: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> int:
        """Eight batches; `latents_of` makes z and the next z of the frames of N windows (33, N)."""
        for _ in range(8):
            starts = torch.randint(0, len(frames) - SEQ_LEN - 1, (BATCH_SIZE,), device=device)
            rows = starts + torch.arange(SEQ_LEN + 1, device=device)[:, None]
            train_on(anew_model, anew_optimizer, *latents_of(rows), window)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 8 * BATCH_SIZE * SEQ_LEN

    def apart(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As earlier implementations do: the frames, then the next ones, 31 of 32 a second time."""
        return encode(rows[:-1]), encode(rows[1:])

    def once(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each of a window's 33 frames once: what the earlier way could have done at best."""
        z = encode(rows)
        return z[:-1], z[1:]

    rates = median_rates(
        {
            "ours": ours,
            "bare": bare,
            "apart": lambda: train_anew(apart),
            "once": lambda: train_anew(once),
        }
    )
    stage = f"MDN-RNN training, batch {BATCH_SIZE}"
    unit = "transitions/s"
    return [
        row(
            stage, rates["ours"], "frames and next ones encoded anew", rates["apart"], unit, ">= 10"
        ),
        row(stage, rates["ours"], "each frame encoded anew once", rates["once"], unit, ">= 10"),
        row(stage, rates["ours"], "bare step", rates["bare"], unit, ">= 0.9"),
    ]
