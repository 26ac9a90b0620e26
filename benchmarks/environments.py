"""Bare environments: EnvPool in its best split into processes and threads, against Gymnasium."""

import functools

import numpy as np

from benchmarks.measure import Row, rate_in_processes, row
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
def bare_rate() -> tuple[float, str]:
    """Steps a second of the fastest split, and its description."""
    if simulator() == "gymnasium":
        return rate_in_processes(CORES, step_bare, ("gymnasium", 1, 1)), f"{CORES} processes"
    splits = {
        f"{processes} processes x {threads} threads x {n} environments": (processes, threads, n)
        for processes, threads in {(CORES, 1), (1, CORES)}
        for n in (8, 16, 32)
    }
    rates = {
        name: rate_in_processes(processes, step_bare, ("envpool", n, threads), seconds=4)
        for name, (processes, threads, n) in splits.items()
    }
    best = max(rates, key=rates.get)
    return rates[best], best


def measure() -> list[Row]:
    rate, split = bare_rate()
    gymnasium = rate_in_processes(CORES, step_bare, ("gymnasium", 1, 1))
    stage = f"bare environments ({simulator()}, {split})"
    return [row(stage, rate, f"gymnasium, {CORES} processes", gymnasium, "steps/s", ">= 7")]
