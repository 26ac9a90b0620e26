"""Peak resident memory of VAE training on 1,000 episodes, of a worker and of the generator."""

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.controller import POPULATION, SAMPLES
from benchmarks.measure import ROOT, Row, peak_memory, row, start_script
from benchmarks.setting import CORES, experiment, folder, many_episodes
from data.episodes import list_episodes, split_readable
from data.loaders import FrameLoader
from models.vae import VAE
from trainvae import make_optimizer, run_epoch
from utils.cli import UserError
from utils.devices import choose_device, training_precision

MIB = 2**20


def watch(
    script: subprocess.Popen, seconds: float, to_its_end: bool = False
) -> tuple[float, float]:
    """Peak MiB of a script and of its largest child in its first `seconds`; then it is ended.

    Raises UserError where it failed, or was not done in that time although it should be.
    """
    parent = child = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end and script.poll() is None:
        try:
            parent = max(parent, peak_memory(script.pid))
            for process in psutil.Process(script.pid).children():
                child = max(child, peak_memory(process.pid))
        except (RuntimeError, FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            pass  # one of them ended in between
        time.sleep(0.5)
    code = script.poll()
    script.kill()
    script.wait()
    if code not in (None, 0):
        raise UserError(f"{script.args[1]} ended with exit code {code}; see above")
    if to_its_end and code is None:
        raise UserError(f"{script.args[1]} was not done after {seconds:.0f} s")
    return parent / MIB, child / MIB


class Sparse:
    """A loader that reads and prepares everything, and gives every hundredth batch."""

    def __init__(self, loader: FrameLoader):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader) // 100

    def epoch(self, generator: np.random.Generator) -> Iterator[torch.Tensor]:
        return islice(self.loader.epoch(generator), 0, None, 100)


def vae_epoch(rootdir: Path) -> None:
    """An epoch of V on a data set, held-out episodes included, with every hundredth batch."""
    device = choose_device("auto")
    precision = training_precision(device)
    model = VAE().to(device)
    optimizer = make_optimizer(model)
    for files, used in zip(split_readable(list_episodes(rootdir)), (optimizer, None), strict=True):
        loader = FrameLoader(files, 32, device, shuffle=used is not None)
        run_epoch(model, Sparse(loader), np.random.default_rng(0), device, precision, "epoch", used)


def measure(_: int) -> list[Row]:
    if not Path("/proc/self/status").exists():
        raise UserError("peak memory is read from Linux's /proc; leave this stage out with --only")
    empty, _ = watch(
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]), seconds=2
    )
    vae, _ = watch(
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.memory", str(many_episodes(1000))], cwd=ROOT
        ),
        seconds=600,
        to_its_end=True,
    )
    _, worker = watch(
        start_script(
            *("traincontroller.py", "--logdir", experiment(), "--noreload"),
            *("--pop-size", POPULATION, "--n-samples", SAMPLES),
        ),
        seconds=45,
    )
    _, generator = watch(
        start_script(
            *("data/generation_script.py", "--rootdir", folder() / "generator"),
            *("--threads", CORES, "--rollouts", 200),
        ),
        seconds=40,
    )
    against = "an empty process"
    return [
        row("peak memory, VAE training on 1,000 episodes", vae, against, empty, "MiB", "+ 3072"),
        row("peak memory, one controller worker", worker, against, empty, "MiB"),
        row("peak memory, one generator process", generator, against, empty, "MiB"),
    ]


if __name__ == "__main__":
    vae_epoch(Path(sys.argv[1]))
