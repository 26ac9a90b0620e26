"""Controller evaluation, against one environment at a time and against its own limit."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import gymnasium as gym
import numpy as np
import torch

from benchmarks.environments import bare_rate
from benchmarks.measure import Row, fastest, medians, rate_in_processes, row
from benchmarks.setting import CORES, experiment
from envs.parallel import run_rollouts, start_workers
from envs.simulator import MAX_STEPS
from envs.tracks import track_seeds
from models.agent import AgentPolicy
from models.controller import PARAMETERS
from models.logdir import agent_digest, load_agent
from utils.devices import choose_device, fast_precision
from utils.graphs import WARM_UP

POPULATION, SAMPLES = 32, 4


def parameters(n: int) -> np.ndarray:
    """Random controllers (n, 867), as CMA-ES draws its first ones."""
    return 0.1 * np.random.default_rng(0).standard_normal((n, PARAMETERS)).astype(np.float32)


def one_at_a_time(index: int, clock, logdir) -> int:
    """The same agent with Gymnasium, one whole episode in a single environment; returns steps."""
    torch.set_num_threads(1)
    device = choose_device("auto")
    agent = load_agent(logdir, device, fast_precision(device))
    env = gym.make("CarRacing-v3")
    frame, _ = env.reset(seed=index)
    controller = torch.from_numpy(parameters(CORES)[index : index + 1])
    policy, ids = AgentPolicy(agent, controller), np.arange(1)
    for _ in range(1 + WARM_UP):
        policy(ids, frame[None])
    clock()
    for _ in range(MAX_STEPS):
        frame, _, terminated, truncated, _ = env.step(policy(ids, frame[None])[0])
        if terminated or truncated:
            frame, _ = env.reset()
            policy.h.zero_()
            policy.c.zero_()
    return MAX_STEPS


def agent_steps(index: int, clock, logdir, n: int, threads: int) -> int:
    """The agent's step alone, on n frames in memory; returns frames."""
    torch.set_num_threads(threads)
    device = choose_device("auto")
    agent = load_agent(logdir, device, fast_precision(device))
    frames = torch.randint(0, 256, (n, 96, 96, 3), dtype=torch.uint8)
    controllers = torch.from_numpy(parameters(n)).to(device)
    if device.type == "cuda":  # recorded, which is many times as fast as calling agent.step
        policy, ids = AgentPolicy(agent, controllers), np.arange(n)
        seen = frames.numpy()

        def step() -> None:
            policy(ids, seen)
    else:
        h, c = agent.initial_state(n)

        def step() -> None:
            nonlocal h, c
            _, h, c = agent.step(frames, controllers, h, c)

    for _ in range(1 + WARM_UP):
        step()
    steps = 0
    clock()
    while clock():
        step()
        steps += n
    return steps


@contextmanager
def evaluation(workers: int, population: int, samples: int) -> Iterator[Callable[[], float]]:
    """What measures steps a second of one generation's rollouts, with workers that are warm."""
    seeds = track_seeds("train", samples, 0, 1)
    device = choose_device("auto")
    models = agent_digest(experiment())
    with start_workers(experiment(), device, workers, population * samples, models) as pool:

        def rate() -> float:
            start = time.perf_counter()
            steps = int(run_rollouts(pool, parameters(population), seeds)[1].sum())
            return steps / (time.perf_counter() - start)

        # So that every worker has started.
        run_rollouts(pool, parameters(2 * workers), seeds[:1])
        yield rate


def measure(repeats: int) -> list[Row]:
    measure_agent = partial(rate_in_processes, target=agent_steps, seconds=3)
    gpu = choose_device("auto").type == "cuda"
    agents = {
        f"{processes} x {threads} x {n}": partial(
            measure_agent, processes, arguments=(experiment(), n, threads)
        )
        for processes, threads in ({(1, CORES)} if gpu else {(CORES, 1), (1, CORES)})
        for n in ((64, 256, 1024) if gpu else (16, 32, 64, 128))
    }
    single = partial(rate_in_processes, CORES, one_at_a_time, (experiment(),))
    with evaluation(CORES, POPULATION, SAMPLES) as ours:
        rates = medians(
            {
                "ours": ours,
                "single": single,
                "bare": bare_rate,
                "agent": agents[fastest(agents)],
            },
            repeats,
        )
    stage = f"controller evaluation, {POPULATION} x {SAMPLES} rollouts"
    limit = 1 / (1 / rates["bare"] + 1 / rates["agent"])
    against = f"1 / (1 / {rates['bare']:.0f} environment + 1 / {rates['agent']:.0f} agent)"
    single = f"one at a time, gymnasium, {CORES} processes"
    return [
        row(stage, rates["ours"], single, rates["single"], "steps/s", ">= 5"),
        row(stage, rates["ours"], against, limit, "steps/s", ">= 0.9"),
    ]
