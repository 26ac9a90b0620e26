"""Data generation, to files on disk, against bare stepping."""

import shutil
import time

from benchmarks.environments import bare_rate
from benchmarks.measure import Row, medians, row
from benchmarks.setting import CORES, folder, generation_units, generators
from data.episodes import list_episodes


def measure(repeats: int) -> list[Row]:
    rootdir = folder() / "generated"
    with generators() as pool:

        def generate() -> float:
            shutil.rmtree(rootdir, ignore_errors=True)
            start = time.perf_counter()
            list(pool.run(generation_units(rootdir)))
            seconds = time.perf_counter() - start
            return sum(file.length for file in list_episodes(rootdir)) / seconds

        generate()  # the first round starts the workers
        rates = medians({"ours": generate, "bare": bare_rate}, repeats)
    stage = f"data generation, {CORES} processes"
    return [row(stage, rates["ours"], "bare environments", rates["bare"], "frames/s", ">= 0.6")]
