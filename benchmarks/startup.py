"""From the start of traincontroller.py to its first environment step, against importing torch."""

import shutil
import statistics
import subprocess
import sys
import time

from benchmarks.measure import SHORT, Row, row, start_script
from benchmarks.setting import experiment, folder
from utils.cli import UserError

FIRST_STEP = "first step"  # what a worker writes to its log (envs/parallel.py)


def seconds_to_first_step() -> float:
    logdir = folder() / "startup"
    shutil.rmtree(logdir, ignore_errors=True)
    # Without what another stage may have left there: the logs of workers, a training of C.
    shutil.copytree(experiment(), logdir, ignore=shutil.ignore_patterns("tmp", "ctrl*"))
    log = logdir / "tmp" / "worker_0.log"
    start = time.perf_counter()
    script = start_script("traincontroller.py", "--logdir", logdir)
    while not (log.exists() and FIRST_STEP in log.read_text()):
        if script.poll() is not None:
            raise UserError("traincontroller.py ended before its first step; see above")
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    script.kill()
    script.wait()
    return seconds


def seconds_to_import_torch() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - start


def measure(repeats: int) -> list[Row]:
    pairs = [
        (seconds_to_first_step(), seconds_to_import_torch()) for _ in range(repeats + SHORT + 1)
    ][1:]
    ours, importing = (statistics.median(column) for column in zip(*pairs, strict=True))
    return [row("start to first step", ours, "import torch", importing, "s", "< 3")]
