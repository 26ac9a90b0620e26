"""How speed grows with workers, environments and data."""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

import numpy as np
import torch

from benchmarks.controller import evaluation, parameters
from benchmarks.measure import Row, medians, row
from benchmarks.setting import CORES, dataset, experiment, simulator
from data.episodes import list_episodes
from data.loaders import FrameLoader
from envs.parallel import load_agent
from envs.rollouts import AgentPolicy, play
from envs.simulator import make_simulator
from models.vae import VAE
from trainvae import make_optimizer, run_epoch
from utils.learning import choose_device, fast_precision, training_precision

# The first steps of an episode, in which CarRacing zooms in and draws slowly, are left out here.
ZOOM = 60


def environments_rate(n: int) -> float:
    """Steps a second of one worker on one thread with n environments."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    device = choose_device("auto")
    agent = load_agent(experiment(), device, fast_precision(device))
    turns = ZOOM + max(100, 2000 // n)
    done, clock = [], []

    class Enough(Exception):
        """Ends the rollouts when there is enough to measure."""

    def watch(ids, *_) -> None:
        done.append(len(ids))
        clock.append(time.perf_counter())
        if len(clock) > turns:
            raise Enough

    # More episodes than are driven at a time, in case that one ends early.
    environments = make_simulator(simulator(), list(range(2 * n)))
    with suppress(Enough):
        play(environments, 2 * n, n, AgentPolicy(agent, torch.from_numpy(parameters(2 * n))), watch)
    environments.close()
    torch.set_num_threads(threads)
    return sum(done[ZOOM:]) / (clock[-1] - clock[ZOOM - 1])


def epoch_seconds(episodes: int) -> float:
    """Seconds of an epoch of VAE training, the reading of the files included."""
    device = choose_device("auto")
    loader = FrameLoader(list_episodes(dataset())[:episodes], 32, device, shuffle=True)
    model = VAE().to(device)
    optimizer = make_optimizer(model)
    generator = np.random.default_rng(0)
    start = time.perf_counter()
    run_epoch(model, loader, generator, device, training_precision(device), "train", optimizer)
    return time.perf_counter() - start


def measure(repeats: int) -> list[Row]:
    rows = []

    def grow(stage: str, unit: str, measured: dict[int, Callable[[], float]]) -> None:
        """A row for each size, against the first."""
        values = medians(measured, repeats)
        first = min(values)
        for size, value in values.items():
            rows.append(row(stage.format(size), value, stage.format(first), values[first], unit))

    with ExitStack() as pools:
        # The workers share all cores among them: one alone computes with as many threads.
        rates = {n: pools.enter_context(evaluation(n, 16, 4)) for n in sorted({1, 2, CORES})}
        grow("controller on all cores, {} workers", "steps/s", rates)
    grow(
        "controller, {} environments a worker",
        "steps/s",
        {n: partial(environments_rate, n) for n in (1, 8, 32, 128)},
    )
    epoch_seconds(1)  # warms up
    grow("VAE epoch, {} episodes", "s", {n: partial(epoch_seconds, n) for n in (2, 4, 8)})
    return rows
