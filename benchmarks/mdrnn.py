"""MDN-RNN training on cached latents, against encoding anew and against the bare step."""

from collections.abc import Callable
from functools import partial
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
from trainmdrnn import make_optimizer, run_epoch
from utils.frames import pixels_to_unit
from utils.graphs import recorded
from utils.learning import choose_device, fast_precision, training_precision

BATCH_SIZE, SEQ_LEN = 16, 32  # the defaults of trainmdrnn.py
Latents = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # of frames: z, the next z


def measure(repeats: int) -> list[Row]:
    device = choose_device("auto")
    fast, precision = fast_precision(device), training_precision(device)
    # A GPU needs an epoch long enough that the recording of its step does not count.
    files = list_episodes(many_episodes(512 if device.type == "cuda" else 64))
    latents = encode_episodes(files, Encoder(), folder() / "mdrnn", device, fast)
    loader = WindowLoader(list(latents.values()), BATCH_SIZE, SEQ_LEN, device, shuffle=True)
    transitions = len(loader.starts(np.random.default_rng(0))) * SEQ_LEN

    def trainer():
        model = MDRNN().to(device)
        return model, make_optimizer(model)

    model, optimizer = trainer()

    def ours() -> int:
        generator = np.random.default_rng(0)
        run_epoch(model, loader, generator, precision, False, "train", optimizer)
        return transitions

    def train_on(model, optimizer, z, next_z, actions, rewards, terminals) -> None:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            prediction = model(actions, z)
        terms = mdrnn_losses(prediction, next_z, rewards, terminals, False)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        optimizer.step()

    bare_step = recorded(partial(train_on, *trainer()), device)
    windows = []
    for rows in islice(loader.rows(np.random.default_rng(1)), 64):
        window = loader.look_up(rows)
        drawn = sample_latent(window["mu"], window["logsigma"])
        others = (window["actions"], window["rewards"], window["terminals"])
        windows.append((drawn[:-1], drawn[1:], *others))
    steps = -(-transitions // (BATCH_SIZE * SEQ_LEN))

    def bare() -> int:
        for inputs in islice(cycle(windows), steps):
            bare_step(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return steps * BATCH_SIZE * SEQ_LEN

    # The earlier way, batched well: the fastest encoder, all windows of a batch in one call.
    encoder = inference_encoder(Encoder(), device, fast)
    frames = torch.from_numpy(read_episode(files[0].path).observations).to(device)
    anew_model, anew_optimizer = trainer()
    _, _, *others = windows[0]  # actions and rewards that go with the latents encoded anew

    def encode(rows: torch.Tensor) -> torch.Tensor:
        """Frames' numbers (T, N) -> z (T, N, 32)."""
        with torch.inference_mode():
            x = pixels_to_unit(frames[rows.flatten()], fast)
            mu, logsigma = (part.float() for part in encoder(x))
            z = sample_latent(mu, logsigma).view(*rows.shape, -1)
        return z.clone()  # outside of inference mode, so that training may use it

    def training_anew(latents_of: Latents) -> Callable[[], int]:
        """What trains on eight batches; `latents_of` encodes the frames of N windows (33, N)."""
        step = recorded(
            lambda rows: train_on(anew_model, anew_optimizer, *latents_of(rows), *others), device
        )

        def train_anew() -> int:
            for _ in range(8):
                starts = torch.randint(0, len(frames) - SEQ_LEN - 1, (BATCH_SIZE,), device=device)
                step(starts + torch.arange(SEQ_LEN + 1, device=device)[:, None])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return 8 * BATCH_SIZE * SEQ_LEN

        return train_anew

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
            "apart": training_anew(apart),
            "once": training_anew(once),
        },
        repeats,
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
