"""Play episodes of CarRacing in one process, and write them."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.episodes import Episode, write_episode
from data.policies import RANDOM_POLICIES, burst_plan
from envs.rollouts import Policy, play
from envs.simulator import MAX_STEPS, Simulator, environment
from envs.tracks import track_seeds
from models.agent import AgentPolicy
from models.logdir import (
    Driving,
    agent_digest,
    load_agent,
    stage_controller,
    weights_digest,
)
from models.parcel import unpack
from utils.devices import choose_device, fast_precision
from utils.frames import SIZE, to_64
from utils.streams import stream

# Episodes that one process plays in lockstep: 12 MB of frames each.
BATCH = 8

# (episode numbers, seed) -> the policy for these episodes
PolicyMaker = Callable[[list[int], int], Policy]


def random_policy(name: str) -> PolicyMaker:
    """One of RANDOM_POLICIES; the actions of episode k are drawn from (seed, k)."""

    def make(numbers: list[int], seed: int) -> Policy:
        # They do not depend on the frames: all are drawn beforehand.
        plans = np.stack(
            [RANDOM_POLICIES[name](MAX_STEPS, stream("actions", seed, k)) for k in numbers]
        )
        steps = np.zeros(len(numbers), np.int64)

        def act(ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
            actions = plans[ids, steps[ids]]
            steps[ids] += 1
            return actions

        return act

    return make


class Driver(NamedTuple):
    """A trained controller, read once for all processes: a training may go on beside them."""

    logdir: Path
    weights: np.ndarray  # (P,) float32
    driving: Driving
    models: str  # the fingerprint of V and M
    digest: str  # the fingerprint of all that drives


def load_driver(logdir: Path, stage: str = "ctrl", last: bool = False) -> Driver:
    """The controller of `logdir`: "ctrl", or "dream", which was trained in dreams.

    The best one, or the mean of the last generation. Raises UserError where it is missing.
    """
    _, controller, driving, _ = stage_controller(logdir, stage, last)
    models = agent_digest(logdir, driving)
    digest = f"{models}-{weights_digest(controller)[:16]}"
    return Driver(logdir, controller.flat_parameters().numpy(), driving, models, digest)


def controller_policy(driver: Driver, noise: float, bursts: float = 0.0) -> PolicyMaker:
    """A trained controller, on the CPU.

    Each episode drives with its own variation, as CMA-ES samples candidates: Gaussian noise
    of this standard deviation, drawn from (seed, k), is added to the weights. In a share `bursts`
    of the steps a random walk drives instead, for half a second or so at a time; not with squashed
    actions.
    """
    device = choose_device("cpu")
    precision = fast_precision(device)
    agent = load_agent(driver.logdir, device, precision, driver.driving, driver.models)
    weights = torch.from_numpy(driver.weights)

    def make(numbers: list[int], seed: int) -> Policy:
        draws = [stream("noise", seed, k).standard_normal(len(weights)) for k in numbers]
        policy = AgentPolicy(agent, weights + noise * torch.from_numpy(np.stack(draws)))
        if not bursts:
            return policy
        own = policy.parameters.clone()
        plans = [burst_plan(MAX_STEPS, bursts, stream("bursts", seed, k)) for k in numbers]
        taken, walks = (torch.from_numpy(np.stack(part)) for part in zip(*plans, strict=True))
        steps = torch.zeros(len(numbers), dtype=torch.int64)
        # A controller of no weights, whose biases are the action, so that M sees what is done.
        walking = torch.zeros_like(own)

        def act(ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
            rows = torch.from_numpy(ids)
            t = steps[rows]
            walking[rows, -3:] = walks[rows, t]
            now = taken[rows, t][:, None]
            policy.parameters[rows] = torch.where(now, walking[rows], own[rows])
            steps[rows] += 1
            return policy(ids, frames)

        return act

    return make


def play_episodes(
    paths: dict[int, Path],
    make_policy: PolicyMaker,
    seed: int,
    patience: int = 0,
    wrote: Callable[[int, int], None] | None = None,
    alive: Callable[[], None] | None = None,
) -> None:
    """Play the episodes numbered by the keys of `paths` together and write each to its path.

    Episode k depends on (policy, seed, patience, k) alone: its track and its
    randomness are drawn from (seed, k). With `patience` it ends after so many steps without a
    new tile. `wrote(k, T)` is called for each file that is complete, and `alive()` at each step.
    """
    numbers = sorted(paths)
    n = len(numbers)
    observations = np.empty((n, MAX_STEPS, SIZE, SIZE, 3), np.uint8)
    executed = np.empty((n, MAX_STEPS, 3), np.float32)
    rewards = np.empty((n, MAX_STEPS), np.float32)
    terminals = np.zeros((n, MAX_STEPS), bool)
    steps = np.zeros(n, np.int64)

    def watch(ids, actions, frames, step_rewards, terminated, truncated) -> None:
        if alive is not None:
            alive()
        t = steps[ids]
        observations[ids, t] = to_64(torch.from_numpy(frames)).numpy()
        executed[ids, t] = actions
        rewards[ids, t] = step_rewards
        terminals[ids, t] = terminated
        steps[ids] += 1
        for i in ids[terminated | truncated]:
            end = steps[i]
            write_episode(
                paths[numbers[i]],
                Episode(
                    observations[i, :end], executed[i, :end], rewards[i, :end], terminals[i, :end]
                ),
            )
            if wrote is not None:
                wrote(numbers[i], int(end))

    tracks = [track_seeds("data", 1, seed, k)[0] for k in numbers]
    environments = Simulator(tracks)
    play(environments, n, n, make_policy(numbers, seed), watch, patience)
    environments.close()


def setup_worker(
    index: int,
    policy: str,
    seed: int,
    patience: int,
    driver: Driver | None = None,
    noise: float = 0.0,
    bursts: float = 0.0,
):
    """What a worker process does with a unit, a dict of episode numbers and their paths."""
    torch.set_num_threads(1)
    make = random_policy(policy) if driver is None else controller_policy(driver, noise, bursts)

    def work(paths: dict[int, Path], report) -> None:
        play_episodes(paths, make, seed, patience, lambda k, steps: report((k, steps)), report)

    return work


def setup_elsewhere(
    index: int,
    packed: bytes | None,
    policy: str,
    seed: int,
    patience: int,
    driver: Driver | None,
    noise: float,
    bursts: float,
):
    """`setup_worker` on a machine of a Ray cluster: it reports (k, T, the file) of an episode.

    What drives is in `packed`, by `models.parcel.pack`.
    """
    environment()
    if driver is not None:
        driver = driver._replace(logdir=unpack(packed))
    work = setup_worker(index, policy, seed, patience, driver, noise, bursts)

    def work_here(paths: dict[int, Path], report) -> None:
        with tempfile.TemporaryDirectory() as folder:
            here = {k: Path(folder, f"{k}.npz") for k in paths}

            def send(content: tuple[int, int] | None = None) -> None:
                if content is not None:
                    report((*content, here[content[0]].read_bytes()))

            work(here, send)

    return work_here
