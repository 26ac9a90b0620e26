"""Clocks, medians and rows: what the stages of the benchmark share."""

import multiprocessing as mp
import os
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from utils.cli import UserError

ROOT = Path(__file__).resolve().parent.parent
SHORT = 2  # repeats that short work has more, for its rates vary more


class Row(NamedTuple):
    """One line of the table; `ratio` is ours over the other one's, `target` what it should be."""

    stage: str
    ours: float
    against: str
    other: float
    unit: str
    ratio: float
    target: str


def row(stage: str, ours: float, against: str, other: float, unit: str, target: str = "") -> Row:
    return Row(stage, ours, against, other, unit, ours / other, target)


def median_rates(work: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median rate of each of several pieces of work, taken in turn on the same machine.

    Each callable does its work once and returns how much it did (frames, steps). The work is
    short: the first round warms up and does not count, and there are SHORT more than `repeats`.
    """
    rates: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + SHORT + 1):
        for name, do in work.items():
            start = time.perf_counter()
            amount = do()
            if repeat:
                rates[name].append(amount / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def medians(rates: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median of each of several rates, measured in turn; each callable measures one."""
    rounds = [{name: rate() for name, rate in rates.items()} for _ in range(repeats)]
    return {name: statistics.median(r[name] for r in rounds) for name in rates}


def fastest(rates: dict[str, Callable[[], float]]) -> str:
    """Name of the fastest of several ways. Its rate is to be measured again: the highest of
    several rates is too high by chance."""
    return max(rates, key=lambda name: rates[name]())


def rate_in_processes(
    count: int, target: Callable[..., int], arguments: tuple = (), seconds: float = 5.0
) -> float:
    """Sum of the rates of `count` processes that run together.

    `target(index, clock, *arguments)` sets itself up, calls `clock()` once to wait for the
    others, works (until `clock()` is False, where it does not know how long) and returns how
    much it did in that time.
    """
    context = mp.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    processes = [
        context.Process(
            target=_timed, args=(index, target, arguments, barrier, results, seconds), daemon=True
        )
        for index in range(count)
    ]
    for process in processes:
        process.start()
    rates = []
    while len(rates) < count:
        try:
            rates.append(results.get(timeout=1))
        except queue.Empty:
            if any(process.exitcode for process in processes):
                barrier.abort()  # the others wait for it
                raise UserError("a process of the benchmark failed; see above") from None
    for process in processes:
        process.join()
    return sum(rates)


def _timed(index, target, arguments, barrier, results, seconds) -> None:
    start = None

    def clock() -> bool:
        nonlocal start
        if start is None:
            barrier.wait()
            start = time.perf_counter()
            return True
        return time.perf_counter() - start < seconds

    amount = target(index, clock, *arguments)
    results.put(amount / (time.perf_counter() - start))


def peak_memory(pid: int) -> int:
    """Peak resident memory of a running process, in bytes (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no VmHWM")


def start_script(script: str, *arguments: object) -> subprocess.Popen:
    """One of the repository's scripts in a process of its own; only its errors are shown."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"TQDM_DISABLE": "1"},
    )
