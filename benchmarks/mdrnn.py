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
from utils.devices import choose_device, fast_precision, training_precision
from utils.frames import pixels_to_unit
from utils.graphs import recorded

BATCH_SIZE, SEQ_LEN = 16, 32  # the defaults of trainmdrnn.py
Latents = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]  # z, the next z


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

    # The earlier way, batched well: the fastest encoder, at its best batch size.
    encoder = inference_encoder(Encoder(), device, fast)
    frames = torch.from_numpy(read_episode(files[0].path).observations).to(device)
    anew_model, anew_optimizer = trainer()
    _, _, *others = windows[0]  # actions and rewards that go with the latents encoded anew

    def encode(rows: torch.Tensor, at_a_time: int) -> torch.Tensor:
        """Frames' numbers (T, N) -> z (T, N, 32)."""
        with torch.inference_mode():
            parts = [
                encoder(pixels_to_unit(frames[part], fast))
                for part in rows.flatten().split(at_a_time)
            ]
            mu, logsigma = (torch.cat(outputs) for outputs in zip(*parts, strict=True))
            z = sample_latent(mu, logsigma).view(*rows.shape, -1)
        return z.clone()  # outside of inference mode, so that training may use it

    def apart(rows: torch.Tensor, at_a_time: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As earlier implementations do: the frames, then the next ones, 31 of 32 a second time."""
        return encode(rows[:-1], at_a_time), encode(rows[1:], at_a_time)

    def once(rows: torch.Tensor, at_a_time: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Each of a window's 33 frames once: what the earlier way could have done at best."""
        z = encode(rows, at_a_time)
        return z[:-1], z[1:]

    def training_anew(latents_of: Latents, at_a_time: int) -> Callable[[], int]:
        """What trains on four batches; `latents_of` encodes the frames of N windows (33, N)."""
        step = recorded(
            lambda rows: train_on(
                anew_model, anew_optimizer, *latents_of(rows, at_a_time), *others
            ),
            device,
        )

        def train_anew() -> int:
            for _ in range(4):
                starts = torch.randint(0, len(frames) - SEQ_LEN - 1, (BATCH_SIZE,), device=device)
                step(starts + torch.arange(SEQ_LEN + 1, device=device)[:, None])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return 4 * BATCH_SIZE * SEQ_LEN

        return train_anew

    whole = BATCH_SIZE * (SEQ_LEN + 1)
    anew = {
        f"{name}, {n} at a time": training_anew(latents_of, n)
        for name, latents_of in (
            ("frames and next ones encoded anew", apart),
            ("each frame encoded anew once", once),
        )
        for n in ((whole,) if device.type == "cuda" else (32, 64, 128, whole))
    }
    rates = median_rates({"ours": ours, "bare": bare} | anew, repeats)
    stage = f"MDN-RNN training, batch {BATCH_SIZE}"

    def against(name: str) -> Row:
        best = max((way for way in anew if way.startswith(f"{name},")), key=rates.get)
        return row(stage, rates["ours"], best, rates[best], "transitions/s", ">= 10")

    return [
        against("frames and next ones encoded anew"),
        against("each frame encoded anew once"),
        row(stage, rates["ours"], "bare step", rates["bare"], "transitions/s", ">= 0.9"),
    ]
