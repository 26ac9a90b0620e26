"""Bare environments: EnvPool in its best split into processes and threads, against Gymnasium."""

import functools
from functools import partial

import numpy as np

from benchmarks.measure import Row, fastest, medians, rate_in_processes, row
from benchmarks.setting import CORES, plans, simulator
from envs.simulator import make_simulator

# CarRacing zooms in from the whole track in the first steps of an episode, and draws them slowly.
# They are one in twenty of an episode, but would be most of a short measurement.
ZOOM = 60


def step_bare(index: int, clock, name: str, n: int, threads: int) -> int:
    """Step n environments with brownian actions, restarting those that end; returns steps."""
    actions = plans(n)
    environments = make_simulator(name, [1000 * index + k for k in range(n)], threads)
    ids = np.arange(n)
    environments.reset(ids)
    steps = 0
    for t in range(10**9):
        if t >= ZOOM and not clock():
            return steps
        _, _, terminated, truncated = environments.step(ids, actions[t % 1000])
        ended = ids[terminated | truncated]
        if len(ended):
            environments.reset(ended)
        steps += n if t >= ZOOM else 0


@functools.cache
def best_split() -> tuple[str, partial]:
    """The fastest split into processes and threads, and what measures its steps a second."""
    envpool = simulator() == "envpool"
    splits = {
        f"{processes} processes x {threads} threads x {n} environments": partial(
            rate_in_processes, processes, step_bare, (simulator(), n, threads), seconds=4
        )
        for processes, threads in ({(CORES, 1), (1, CORES)} if envpool else {(CORES, 1)})
        for n in ((8, 16, 32) if envpool else (1,))
    }
    best = fastest(splits)
    return best, splits[best]


def measure() -> list[Row]:
    split, bare_rate = best_split()
    gymnasium = partial(rate_in_processes, CORES, step_bare, ("gymnasium", 1, 1), seconds=4)
    rates = medians({"bare": bare_rate, "gymnasium": gymnasium})
    stage = f"bare environments ({simulator()}, {split})"
    against = f"gymnasium, {CORES} processes"
    return [row(stage, rates["bare"], against, rates["gymnasium"], "steps/s", ">= 7")]
