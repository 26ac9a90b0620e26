"""Peak resident memory of VAE training on 1,000 episodes, of a worker and of the generator."""

import subprocess
import sys
import time

import psutil

from benchmarks.controller import POPULATION, SAMPLES
from benchmarks.measure import Row, peak_memory, row, start_script
from benchmarks.setting import CORES, experiment, folder, many_episodes

MIB = 2**20


def watch(script: subprocess.Popen, seconds: float) -> tuple[float, float]:
    """Peak MiB of a script and of its largest child in its first `seconds`; then it is ended."""
    parent = child = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end and script.poll() is None:
        parent = max(parent, peak_memory(script.pid))
        for process in psutil.Process(script.pid).children():
            try:
                child = max(child, peak_memory(process.pid))
            except (RuntimeError, FileNotFoundError, ProcessLookupError):
                continue  # it ended in between
        time.sleep(0.5)
    script.kill()
    script.wait()
    return parent / MIB, child / MIB


def measure() -> list[Row]:
    empty, _ = watch(
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]), seconds=2
    )
    # Two halves of the buffer are in memory after the first has been used up.
    vae, _ = watch(
        start_script(
            *("trainvae.py", "--logdir", folder() / "memory", "--rootdir", many_episodes(1000)),
            *("--nosamples", "--epochs", 1),
        ),
        seconds=150,
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
