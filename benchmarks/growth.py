"""How speed grows with workers, environments and data."""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

import numpy as np
import torch

from benchmarks.controller import evaluation, parameters
from benchmarks.measure import Row, medians, row
from benchmarks.setting import CORES, dataset, experiment
from data.episodes import list_episodes
from data.loaders import FRAME_BYTES, FrameLoader
from envs.rollouts import play
from envs.simulator import MAX_STEPS, Simulator
from models.agent import AgentPolicy
from models.logdir import load_agent
from models.vae import VAE
from trainvae import make_optimizer, run_epoch
from utils.devices import choose_device, fast_precision, training_precision

# The steps of an episode that are measured, the same for any number of environments: in the first
# ones CarRacing zooms in and draws slowly.
FROM, TO = 60, 160
LEAST = 16  # episodes, one group after the other where few run together


def environments_rate(n: int) -> float:
    """Steps a second of one worker on one thread with n environments."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    device = choose_device("auto")
    agent = load_agent(experiment(), device, fast_precision(device))
    controllers = torch.from_numpy(parameters(max(n, LEAST)))

    class Enough(Exception):
        """Ends the rollouts when there is enough to measure."""

    steps, seconds = 0, 0.0
    for first in range(0, len(controllers), n):
        done, clock = [], []

        def watch(ids, *_, done=done, clock=clock) -> None:
            done.append(len(ids))
            clock.append(time.perf_counter())
            if len(clock) == TO:
                raise Enough

        environments = Simulator(list(range(first, first + n)))
        policy = AgentPolicy(agent, controllers[first : first + n])
        with suppress(Enough):
            play(environments, n, n, policy, watch)
        environments.close()
        steps += sum(done[FROM:])
        seconds += clock[-1] - clock[FROM - 1]
    torch.set_num_threads(threads)
    return steps / seconds


def epoch_seconds(episodes: int) -> float:
    """Seconds of an epoch of VAE training, the reading of the files included.

    The buffer has room for eight episodes: a CPU keeps four, and reads more of them in halves.
    """
    device = choose_device("auto")
    files = list_episodes(dataset())[:episodes]
    loader = FrameLoader(files, 32, device, shuffle=True, buffer_bytes=8 * MAX_STEPS * FRAME_BYTES)
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
    grow("VAE epoch, {} episodes", "s", {n: partial(epoch_seconds, n) for n in (2, 4, 8, 16)})
    return rows
