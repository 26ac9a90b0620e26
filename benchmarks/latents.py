"""Encoding a data set to latents on disk, against the encoder's forward pass alone.

First against V's encoder as it is trained, then against the one that does the encoding
(on a CPU `models.inference.PackedEncoder`, in float32 packed for few frames only), each at its
best batch size, on all cores together or on each core for itself, whichever is faster.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks.measure import Row, median_rates, row
from benchmarks.setting import folder, many_episodes
from data.episodes import list_episodes
from data.latents import encode_episodes
from models.inference import inference_encoder
from models.vae import Encoder
from utils.devices import choose_device, fast_precision
from utils.frames import pixels_to_unit


def forward(
    model: Encoder,
    device: torch.device,
    precision: torch.dtype,
    batch_size: int,
    streams: int,
    total: int,
) -> Callable[[], int]:
    """The encoder on some `total` frames, in so many threads that share the cores out."""
    x = torch.randint(0, 256, (batch_size, 64, 64, 3), dtype=torch.uint8, device=device)
    x = pixels_to_unit(x, precision)
    turns = max(4, total // batch_size // streams)

    @torch.inference_mode()
    def stream(_: int) -> None:
        for _ in range(turns):
            model(x)

    def work() -> int:
        if streams == 1:
            stream(0)
        else:
            threads = torch.get_num_threads()
            with ThreadPoolExecutor(streams, None, torch.set_num_threads, (1,)) as pool:
                list(pool.map(stream, range(streams)))
            torch.set_num_threads(threads)  # what the streams set is every new thread's
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return streams * turns * batch_size

    return work


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

    gpu = device.type == "cuda"
    ways = {
        f"{name}, {streams} x batch {n}": (model, device, precision, n, streams)
        for name, model in (("encoder alone", plain), ("encoder for inference alone", inference))
        for n in ((64, 256, 1024, 2048, 4096) if gpu else (8, 16, 32, 64, 128, 256, 512))
        for streams in ({1} if gpu else {1, torch.get_num_threads()})
    }
    tried = median_rates({way: forward(*arguments, 4096) for way, arguments in ways.items()}, 1)
    limits = [
        max((way for way in ways if way.startswith(f"{name},")), key=tried.get)
        for name in ("encoder alone", "encoder for inference alone")
    ]
    # Measured again, for the highest of several rates is too high by chance.
    work = {way: forward(*ways[way], 16_384) for way in limits}
    rates = median_rates({"ours": ours} | work, repeats)
    return [
        row("encoding a data set", rates["ours"], way, rates[way], "frames/s", ">= 0.9")
        for way in limits
    ]
