"""Bare environments: EnvPool in its best split into processes and threads, against Gymnasium."""

import functools
import statistics
from functools import partial

import numpy as np

from benchmarks.measure import Row, fastest, rate_in_processes, row
from benchmarks.setting import CORES, plans, simulator
from envs.simulator import make_simulator


def step_bare(index: int, clock, name: str, n: int, threads: int) -> int:
    """Step n environments with brownian actions, restarting those that end; returns steps."""
    actions = plans(n)
    environments = make_simulator(name, [1000 * index + k for k in range(n)], threads)
    ids = np.arange(n)
    environments.reset(ids)
    steps, t = 0, 0
    clock()
    while clock():
        _, _, terminated, truncated = environments.step(ids, actions[t % 1000])
        ended = ids[terminated | truncated]
        if len(ended):
            environments.reset(ended)
        steps += n
        t += 1
    return steps


@functools.cache
def bare_rate() -> tuple[str, float]:
    """The fastest split into processes and threads, and its steps a second."""
    splits = {(CORES, 1), (1, CORES)} if simulator() == "envpool" else {(CORES, 1)}
    return fastest(
        {
            f"{processes} processes x {threads} threads x {n} environments": partial(
                rate_in_processes, processes, step_bare, (simulator(), n, threads), seconds=4
            )
            for processes, threads in splits
            for n in ((8, 16, 32) if simulator() == "envpool" else (1,))
        }
    )


def measure() -> list[Row]:
    split, rate = bare_rate()
    gymnasium = statistics.median(
        rate_in_processes(CORES, step_bare, ("gymnasium", 1, 1), seconds=4) for _ in range(3)
    )
    stage = f"bare environments ({simulator()}, {split})"
    return [row(stage, rate, f"gymnasium, {CORES} processes", gymnasium, "steps/s", ">= 7")]
