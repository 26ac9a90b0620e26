"""VAE training from files, against the model's step on a batch that is already in memory."""

import numpy as np
import torch

from benchmarks.measure import Row, median_rates, row
from benchmarks.setting import dataset
from data.episodes import list_episodes
from data.loaders import FRAME_BYTES, FrameLoader
from models.vae import VAE, vae_loss
from trainvae import make_optimizer, run_epoch
from utils.devices import choose_device, fast_precision, training_precision
from utils.frames import pixels_to_unit
from utils.graphs import recorded

BATCH_SIZE = 32  # the default of trainvae.py


def bare_step(device: torch.device, precision: torch.dtype, steps: int):
    """`steps` times forward, backward and optimizer step on one batch in memory; frames done."""
    model = VAE().to(device).train()
    optimizer = make_optimizer(model)
    frames = torch.randint(0, 256, (BATCH_SIZE, 64, 64, 3), dtype=torch.uint8, device=device)
    x = pixels_to_unit(frames)

    def step() -> None:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            reconstruction, mu, logsigma = model(x)
        loss = sum(vae_loss(reconstruction, x, mu, logsigma))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    step = recorded(step, device)

    def work() -> int:
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return steps * BATCH_SIZE

    return work


def measure(repeats: int) -> list[Row]:
    device = choose_device("auto")
    precision = training_precision(device)
    # A GPU needs an epoch long enough that the recording of its step does not count.
    files = list_episodes(dataset())[: 32 if device.type == "cuda" else 4]
    # So small a buffer that every epoch reads the files, as it does for a large data set; on a GPU
    # they are kept wherever they fit in its memory.
    buffer = 2 * max(file.length for file in files) * FRAME_BYTES
    loader = FrameLoader(files, BATCH_SIZE, device, shuffle=True, buffer_bytes=buffer)
    model = VAE().to(device)
    optimizer = make_optimizer(model)

    def ours() -> int:
        generator = np.random.default_rng(0)
        run_epoch(model, loader, generator, device, precision, "train", optimizer)
        return len(loader)

    steps = len(loader) // BATCH_SIZE
    # Where bfloat16 is emulated a step takes ten times as long, and a few of them tell enough.
    steps_bfloat16 = steps if fast_precision(device) == torch.bfloat16 else min(steps, 8)
    rates = median_rates(
        {
            "ours": ours,
            "float32": bare_step(device, torch.float32, steps),
            "bfloat16": bare_step(device, torch.bfloat16, steps_bfloat16),
        },
        repeats,
    )
    best = max(("float32", "bfloat16"), key=rates.get)
    kept = "frames kept on the GPU" if loader.fits else "files read in every epoch"
    stage = f"VAE training, batch {BATCH_SIZE}, {kept}"
    against = f"bare step in {best}"
    return [row(stage, rates["ours"], against, rates[best], "frames/s", ">= 0.93")]
