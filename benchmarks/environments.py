"""Bare environments, against EnvPool where somebody installed it, and Gymnasium unmodified."""

import importlib.util
import warnings
from functools import partial

import gymnasium as gym
import numpy as np

from benchmarks.measure import Row, medians, rate_in_processes, row
from benchmarks.setting import CORES, plans
from envs.simulator import MAX_STEPS, Simulator

ENVIRONMENTS = 16  # of a process, where the closed loop's limit is measured


def step_bare(index: int, clock, n: int) -> int:
    """An episode of brownian actions in each of n environments; returns steps of all.

    Whole episodes, and a restart of those that end early: CarRacing zooms in from the whole track
    in its first steps and draws them slowly, so that any shorter time would be of another mix.
    """
    actions, ids = plans(n), np.arange(n)
    environments = Simulator([1000 * index + k for k in range(n)])
    environments.reset(ids)  # compiles, or loads, what draws
    clock()
    environments.reset(ids)
    for t in range(MAX_STEPS):
        _, _, terminated, truncated = environments.step(ids, actions[t])
        ended = ids[terminated | truncated]
        if len(ended) and t < MAX_STEPS - 1:
            environments.reset(ended)
    return n * MAX_STEPS


def step_gymnasium(index: int, clock) -> int:
    """The same in one of Gymnasium's environments, unmodified."""
    env = gym.make("CarRacing-v3")
    actions = plans(1)[:, 0]
    clock()
    env.reset(seed=index)
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return MAX_STEPS


def step_envpool(index: int, clock) -> int:
    """The same in one of EnvPool's environments, on one thread."""
    import envpool

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of Gymnasium, about float precision
        env = envpool.make(
            "CarRacing-v3",
            env_type="gymnasium",
            num_envs=1,
            num_threads=1,
            seed=index,
            max_episode_steps=MAX_STEPS,
        )
    actions = plans(1)
    clock()
    env.reset()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated[0] or truncated[0]:
            env.reset()
    return MAX_STEPS


def bare_rate() -> float:
    """Steps a second of a process on each core, without an agent: the closed loop's limit."""
    return rate_in_processes(CORES, step_bare, (ENVIRONMENTS,))


def measure(repeats: int) -> list[Row]:
    single = partial(rate_in_processes, 1)
    work = {
        "ours": partial(single, step_bare, (1,)),
        "gymnasium": partial(single, step_gymnasium),
        "all ours": bare_rate,
        "all gymnasium": partial(rate_in_processes, CORES, step_gymnasium),
    }
    if importlib.util.find_spec("envpool") is not None:
        work["envpool"] = partial(single, step_envpool)
    else:
        print("EnvPool is not installed: no row for it")
    rates = medians(work, repeats)
    stage, stages = "bare environments, one thread", f"bare environments, {CORES} processes"
    rows = []
    if "envpool" in rates:
        rows.append(row(stage, rates["ours"], "EnvPool", rates["envpool"], "steps/s", ">= 2"))
    rows.append(
        row(stage, rates["ours"], "Gymnasium unmodified", rates["gymnasium"], "steps/s", ">= 20")
    )
    everywhere = f"Gymnasium unmodified, {CORES} processes"
    rows.append(row(stages, rates["all ours"], everywhere, rates["all gymnasium"], "steps/s"))
    return rows
