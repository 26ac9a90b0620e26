"""Encoding a data set to latents on disk, against the encoder's forward pass alone.

First against V's encoder as it is trained, then against the one that does the encoding
(on a CPU `models.inference.PackedEncoder`, in float32 packed for few frames only).
"""

import shutil

import torch

from benchmarks.measure import Row, median_rates, row
from benchmarks.setting import folder, many_episodes
from data.episodes import list_episodes
from data.latents import encode_episodes
from models.inference import inference_encoder
from models.vae import Encoder
from utils.frames import pixels_to_unit
from utils.learning import choose_device, fast_precision


def measure(repeats: int) -> list[Row]:
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

    plain = Encoder().to(device, precision, memory_format=torch.channels_last).eval()
    inference = inference_encoder(encoder, device, precision)

    def forward(model: Encoder, batch_size: int):
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

    limits = {
        f"{name}, batch {n}": forward(model, n)
        for name, model in (("encoder alone", plain), ("encoder for inference alone", inference))
        for n in (32, 64, 128, 256, 512, *((1024, 2048, 4096) if device.type == "cuda" else ()))
    }
    rates = median_rates({"ours": ours} | limits, repeats)

    def against(name: str, target: str) -> Row:
        best = max((limit for limit in limits if limit.startswith(f"{name},")), key=rates.get)
        return row("encoding a data set", rates["ours"], best, rates[best], "frames/s", target)

    return [against("encoder alone", ">= 0.9"), against("encoder for inference alone", ">= 0.9")]
