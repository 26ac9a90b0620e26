"""Encoding a data set to latents on disk, against the encoder's forward pass alone."""

import shutil

import torch

from benchmarks.measure import Row, median_rates, row
from benchmarks.setting import folder, many_episodes
from data.episodes import list_episodes
from data.latents import encode_episodes
from models.vae import Encoder
from utils.frames import pixels_to_unit
from utils.learning import choose_device, fast_precision


def measure() -> list[Row]:
    device = choose_device("auto")
    precision = fast_precision(device)
    files = list_episodes(many_episodes(64))
    frames = sum(file.length for file in files)
    encoder = Encoder()
    logdir = folder() / "latents"

    def ours() -> int:
        shutil.rmtree(logdir, ignore_errors=True)
        encode_episodes(files, encoder, logdir, device, precision)
        return frames

    def forward(batch_size: int):
        model = Encoder().to(device, precision, memory_format=torch.channels_last).eval()
        x = torch.randint(0, 256, (batch_size, 64, 64, 3), dtype=torch.uint8, device=device)
        x = pixels_to_unit(x, precision)

        @torch.inference_mode()
        def work() -> int:
            for _ in range(16_384 // batch_size):
                model(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return 16_384

        return work

    sizes = (64, 128, 256, 512)
    rates = median_rates({"ours": ours} | {f"batch {n}": forward(n) for n in sizes})
    best = max((f"batch {n}" for n in sizes), key=rates.get)
    against = f"encoder alone, {best}"
    return [row("encoding a data set", rates["ours"], against, rates[best], "frames/s", ">= 0.9")]
