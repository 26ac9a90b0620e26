"""How speed grows with workers, environments and data."""

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
    first = None
    for workers in sorted({1, CORES}):
        rate = evaluation_rate(workers, 16, 4, repeats=1)
        first = first or rate
        rows.append(row(f"controller, {workers} workers", rate, "1 worker", first, "steps/s"))
    first = None
    for n in (1, 8, 32, 128):
        rate = environments_rate(n)
        first = first or rate
        rows.append(
            row(f"controller, {n} environments a worker", rate, "1 environment", first, "steps/s")
        )
    first = None
    epoch_seconds(1)
    for episodes in (2, 4, 8):
        seconds = epoch_seconds(episodes)
        first = first or seconds
        rows.append(row(f"VAE epoch, {episodes} episodes", seconds, "2 episodes", first, "s"))
    return rows
