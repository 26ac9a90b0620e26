"""Bare environments: EnvPool in its best split into processes and threads, against Gymnasium."""

import functools
from functools import partial

import gymnasium as gym
import numpy as np

from benchmarks.measure import Row, fastest, medians, rate_in_processes, row
from benchmarks.setting import CORES, plans, simulator
from envs.simulator import MAX_STEPS, make_simulator


def step_bare(index: int, clock, name: str, n: int, threads: int, steps: int = MAX_STEPS) -> int:
    """Step n environments through so many steps of brownian actions; returns steps of all.

    Whole episodes, and a restart of those that end early: CarRacing zooms in from the whole track
    in its first steps and draws them slowly, so that any shorter time would be of another mix.
    """
    actions = plans(n, steps)
    environments = make_simulator(name, [1000 * index + k for k in range(n)], threads)
    ids = np.arange(n)
    clock()
    environments.reset(ids)
    for t in range(steps):
        _, _, terminated, truncated = environments.step(ids, actions[t])
        ended = ids[terminated | truncated]
        if len(ended) and t < steps - 1:
            environments.reset(ended)
    return n * steps


def step_gymnasium(index: int, clock) -> int:
    """An episode of Gymnasium's environment as it comes; returns steps."""
    env = gym.make("CarRacing-v3")
    actions = plans(1)[:, 0]
    clock()
    env.reset(seed=index)
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return len(actions)


@functools.cache
def best_split() -> tuple[str, partial]:
    """The fastest split into processes and threads, and what measures its steps a second."""
    envpool = simulator() == "envpool"
    splits = {
        f"{processes} processes x {threads} threads x {n * threads} environments": (
            partial(rate_in_processes, processes, step_bare),
            (simulator(), n * threads, threads),
        )
        for processes, threads in ({(CORES, 1), (1, CORES)} if envpool else {(CORES, 1)})
        for n in ((16, 32, 64) if envpool else (1,))
    }
    # A quarter of an episode is of another mix, but of the same one for all splits.
    best = fastest({s: partial(do, (*how, MAX_STEPS // 4)) for s, (do, how) in splits.items()})
    do, how = splits[best]
    return best, partial(do, how)


def measure(repeats: int) -> list[Row]:
    split, bare_rate = best_split()
    rates = medians(
        {
            "bare": bare_rate,
            "swift": partial(rate_in_processes, CORES, step_bare, ("gymnasium", 1, 1)),
            "gymnasium": partial(rate_in_processes, CORES, step_gymnasium),
        },
        repeats,
    )
    stage = f"bare environments ({simulator()}, {split})"
    swift = f"Gymnasium as driven here, {CORES} processes"
    against = (f"gymnasium, {CORES} processes", rates["gymnasium"], "steps/s")
    return [row(stage, rates["bare"], *against, ">= 7"), row(swift, rates["swift"], *against)]
