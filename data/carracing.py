"""Play episodes of CarRacing with a random policy, in one process, and write them."""

from pathlib import Path

import numpy as np
import torch

from data.episodes import Episode, write_episode
from data.policies import POLICIES
from envs.rollouts import play
from envs.simulator import MAX_STEPS, make_simulator
from envs.tracks import track_seeds
from utils.frames import SIZE, to_64


def play_episodes(
    paths: dict[int, Path], policy: str, seed: int, simulator: str, wrote=None
) -> None:
    """Play the episodes numbered by the keys of `paths` together and write each to its path.

    Episode k depends on (policy, seed, simulator, k) alone: its track and its actions are
    drawn from (seed, k). `wrote(k, T)` is called for each file that is complete.
    """
    numbers = sorted(paths)
    n = len(numbers)
    # The actions of a random policy do not depend on the frames: all are drawn beforehand.
    plans = [POLICIES[policy](MAX_STEPS, np.random.default_rng([seed, k])) for k in numbers]
    observations = np.empty((n, MAX_STEPS, SIZE, SIZE, 3), np.uint8)
    rewards = np.empty((n, MAX_STEPS), np.float32)
    terminals = np.zeros((n, MAX_STEPS), bool)
    steps = np.zeros(n, np.int64)

    def act(ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return np.stack([plans[i][steps[i]] for i in ids])

    def watch(ids, actions, frames, step_rewards, terminated, truncated) -> None:
        t = steps[ids]
        observations[ids, t] = to_64(torch.from_numpy(frames)).numpy()
        rewards[ids, t] = step_rewards
        terminals[ids, t] = terminated
        steps[ids] += 1
        for i in ids[terminated | truncated]:
            end = steps[i]
            write_episode(
                paths[numbers[i]],
                Episode(
                    observations[i, :end], plans[i][:end], rewards[i, :end], terminals[i, :end]
                ),
            )
            if wrote is not None:
                wrote(numbers[i], int(end))

    tracks = [track_seeds("data", 1, seed, k)[0] for k in numbers]
    environments = make_simulator(simulator, tracks)
    play(environments, n, n, act, watch)
    environments.close()
