"""How speed grows with workers, environments and data."""

import statistics
import time
from contextlib import suppress

import numpy as np
import torch

from benchmarks.controller import evaluation_rate, parameters
from benchmarks.measure import Row, row
from benchmarks.setting import CORES, dataset, experiment, simulator
from data.episodes import list_episodes
from data.loaders import FrameLoader
from envs.parallel import load_agent
from envs.rollouts import AgentPolicy, play
from envs.simulator import make_simulator
from models.vae import VAE
from trainvae import run_epoch
from utils.learning import choose_device, fast_precision


def environments_rate(n: int) -> float:
    """Steps a second of one worker on one thread with n environments."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    device = choose_device("auto")
    agent = load_agent(experiment(), device, fast_precision(device))
    steps = max(40, 4000 // n)
    clock = []

    class Enough(Exception):
        """Ends the rollouts when there is enough to measure."""

    def watch(*_) -> None:
        clock.append(time.perf_counter())
        if len(clock) > steps:
            raise Enough

    environments = make_simulator(simulator(), list(range(n)))
    with suppress(Enough):
        play(environments, n, n, AgentPolicy(agent, torch.from_numpy(parameters(n))), watch)
    environments.close()
    torch.set_num_threads(threads)
    skip = steps // 10  # the first steps warm up
    return n * (len(clock) - 1 - skip) / (clock[-1] - clock[skip])


def epoch_seconds(episodes: int) -> float:
    """Seconds of an epoch of VAE training, the reading of the files included."""
    device = choose_device("auto")
    loader = FrameLoader(list_episodes(dataset())[:episodes], 32, device, shuffle=True)
    model = VAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    generator = np.random.default_rng(0)
    start = time.perf_counter()
    run_epoch(model, loader, generator, device, fast_precision(device), "train", optimizer)
    return time.perf_counter() - start


def measure() -> list[Row]:
    rows = []

    def grow(stage: str, unit: str, sizes: list[int], measured) -> None:
        """A row for each size, against the first: medians of three rounds over all sizes."""
        rounds = [[measured(size) for size in sizes] for _ in range(3)]
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        against = stage.format(sizes[0])
        for size, value in zip(sizes, medians, strict=True):
            rows.append(row(stage.format(size), value, against, medians[0], unit))

    workers = sorted({1, CORES})
    grow("controller, {} workers", "steps/s", workers, lambda n: evaluation_rate(n, 16, 4, 1))
    grow("controller, {} environments a worker", "steps/s", [1, 8, 32, 128], environments_rate)
    epoch_seconds(1)  # warms up
    grow("VAE epoch, {} episodes", "s", [2, 4, 8], epoch_seconds)
    return rows
