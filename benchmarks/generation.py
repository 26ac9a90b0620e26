"""Data generation, to files on disk, against bare stepping."""

import shutil

from benchmarks.environments import bare_rate
from benchmarks.measure import Row, median_rates, row
from benchmarks.setting import CORES, folder, generation_units, simulator
from data.episodes import list_episodes
from data.generation_script import setup_worker
from utils.workers import WorkerPool


def measure() -> list[Row]:
    rootdir = folder() / "generated"
    with WorkerPool(CORES, setup_worker, ("brown", 0, simulator()), folder() / "logs") as pool:

        def generate() -> int:
            shutil.rmtree(rootdir, ignore_errors=True)
            list(pool.run(generation_units(rootdir)))
            return sum(file.length for file in list_episodes(rootdir))

        rate = median_rates({"ours": generate}, repeats=3)["ours"]
    _, limit = bare_rate()
    stage = f"data generation, {CORES} processes"
    return [row(stage, rate, "bare environments", limit, "frames/s", ">= 0.7")]
