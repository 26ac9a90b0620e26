"""Controller evaluation, against one environment at a time and against its own limit."""

import statistics
from functools import partial

import numpy as np
import torch

from benchmarks.environments import bare_rate
from benchmarks.measure import Row, fastest, median_rates, rate_in_processes, row
from benchmarks.setting import CORES, experiment, simulator
from envs.parallel import load_agent, run_rollouts, start_workers
from envs.simulator import GymnasiumSimulator
from envs.tracks import track_seeds
from models.controller import PARAMETERS
from utils.learning import choose_device, fast_precision

POPULATION, SAMPLES = 32, 4


def parameters(n: int) -> np.ndarray:
    """Random controllers (n, 867), as CMA-ES draws its first ones."""
    return 0.1 * np.random.default_rng(0).standard_normal((n, PARAMETERS)).astype(np.float32)


def one_at_a_time(index: int, clock, logdir) -> int:
    """The same agent with Gymnasium, a single environment; returns steps."""
    torch.set_num_threads(1)
    device = choose_device("auto")
    agent = load_agent(logdir, device, fast_precision(device))
    environments = GymnasiumSimulator([index])
    ids = np.array([0])
    frames = environments.reset(ids)
    h, c = agent.initial_state(1)
    controller = torch.from_numpy(parameters(1)).to(device)
    steps = 0
    clock()
    while clock():
        actions, h, c = agent.step(torch.from_numpy(frames).to(device), controller, h, c)
        frames, _, terminated, truncated = environments.step(ids, actions.cpu().numpy())
        steps += 1
        if terminated[0] or truncated[0]:
            frames = environments.reset(ids)
    return steps


def agent_steps(index: int, clock, logdir, n: int, threads: int) -> int:
    """The agent's step alone, on n frames in memory; returns frames."""
    torch.set_num_threads(threads)
    device = choose_device("auto")
    agent = load_agent(logdir, device, fast_precision(device))
    frames = torch.randint(0, 256, (n, 96, 96, 3), dtype=torch.uint8)
    controllers = torch.from_numpy(parameters(n)).to(device)
    h, c = agent.initial_state(n)
    steps = 0
    agent.step(frames.to(device), controllers, h, c)
    clock()
    while clock():
        actions, h, c = agent.step(frames.to(device), controllers, h, c)
        actions.cpu()
        steps += n
    return steps


def evaluation_rate(workers: int, population: int, samples: int, repeats: int) -> float:
    """Steps a second of one generation's rollouts, with workers that are warm."""
    seeds = track_seeds("train", samples, 0, 1)
    device = choose_device("auto")
    with start_workers(experiment(), simulator(), device, workers, population * samples) as pool:

        def generation() -> int:
            return int(run_rollouts(pool, parameters(population), seeds)[1].sum())

        return median_rates({"ours": generation}, repeats)["ours"]


def measure() -> list[Row]:
    ours = evaluation_rate(CORES, POPULATION, SAMPLES, repeats=3)
    single = statistics.median(
        rate_in_processes(CORES, one_at_a_time, (experiment(),), seconds=4) for _ in range(3)
    )
    _, bare = bare_rate()
    _, agent = fastest(
        {
            f"{processes} x {threads} x {n}": partial(
                rate_in_processes, processes, agent_steps, (experiment(), n, threads), seconds=3
            )
            for processes, threads in {(CORES, 1), (1, CORES)}
            for n in (32, 64, 128)
        }
    )
    stage = f"controller evaluation, {POPULATION} x {SAMPLES} rollouts"
    limit = 1 / (1 / bare + 1 / agent)
    against = f"1 / (1 / {bare:.0f} environment + 1 / {agent:.0f} agent)"
    return [
        row(stage, ours, f"one at a time, gymnasium, {CORES} processes", single, "steps/s", ">= 5"),
        row(stage, ours, against, limit, "steps/s", ">= 0.9"),
    ]
