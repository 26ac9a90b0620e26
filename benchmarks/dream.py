"""Driving in dreams, against driving in the real closed loop."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.controller import evaluation, parameters
from benchmarks.measure import Row, medians, row
from benchmarks.setting import CORES, experiment
from envs.parallel import run_rollouts, start_workers
from envs.simulated_carracing import Dreaming
from models.logdir import agent_digest

POPULATION, DREAMS, SAMPLES = 32, 12, 3
HOW = Dreaming(temperature=1.15, horizon=400)


@contextmanager
def dreams() -> Iterator[Callable[[], float]]:
    """What measures steps a second of one generation in dreams, with workers that are warm."""
    logdir = experiment()
    models, seeds = agent_digest(logdir), list(range(DREAMS))
    count = POPULATION * DREAMS
    with start_workers(logdir, torch.device("cpu"), CORES, count, models) as pool:

        def rate() -> float:
            start = time.perf_counter()
            lengths = run_rollouts(pool, parameters(POPULATION), seeds, dream=HOW)[1]
            return int(np.sum(lengths)) / (time.perf_counter() - start)

        rate()
        yield rate


def measure(repeats: int) -> list[Row]:
    with dreams() as ours, evaluation(CORES, POPULATION, SAMPLES) as real:
        rates = medians({"dream": ours, "real": real}, repeats)
    stage = f"dream, {POPULATION} x {DREAMS} of {HOW.horizon} steps"
    against = f"the real closed loop, {POPULATION} x {SAMPLES} rollouts"
    return [row(stage, rates["dream"], against, rates["real"], "steps/s", ">= 20")]
