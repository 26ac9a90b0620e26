"""The one rollout loop: in data generation, in training and in testing."""

from collections.abc import Callable

import numpy as np

# (episodes (n,), frames (n, H, W, 3) uint8) -> actions (n, 3) float32
Policy = Callable[[np.ndarray, np.ndarray], np.ndarray]
# (episodes, actions, frames after them, rewards, terminated, truncated), all (n, ...)
Watcher = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


def play(
    simulator,
    n: int,
    slots: int,
    policy: Policy,
    watch: Watcher | None = None,
    patience: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Play the n episodes of a simulator, at most `slots` at a time, in lockstep.

    A slot whose episode ended takes the next one at once. Which episodes run together
    depends on their lengths alone, so the same call gives the same returns.
    Returns the returns (n,) float64 and the lengths (n,) int64 of the episodes, in frames.
    With `patience`, an episode without a new tile for so many steps ends (`watch` sees it
    truncated), and its steps up to the time limit are booked at -0.1 each in its return. An
    episode in which an action or a reward is NaN or infinite ends there and returns NaN.
    """
    returns, lengths = np.zeros(n), np.zeros(n, np.int64)
    last_tile = np.zeros(n, np.int64)  # the step of an episode's last positive reward
    ids = np.arange(min(n, slots))
    started = len(ids)
    frames = simulator.reset(ids)
    while len(ids):
        actions = policy(ids, frames)
        failed = ~np.isfinite(actions).all(axis=1)
        frames, rewards, terminated, truncated = simulator.step(ids, np.nan_to_num(actions))
        failed |= ~np.isfinite(rewards)
        rewards[failed] = np.nan
        returns[ids] += rewards
        lengths[ids] += 1
        last_tile[ids[rewards > 0]] = lengths[ids[rewards > 0]]
        if patience:
            running = ~(terminated | truncated | failed)
            stuck = running & (lengths[ids] - last_tile[ids] >= patience)
            returns[ids[stuck]] -= 0.1 * (simulator.max_steps - lengths[ids[stuck]])
            truncated = truncated | stuck
        if watch is not None:
            watch(ids, actions, frames, rewards, terminated, truncated)
        going = ~(terminated | truncated | failed)
        if not going.all():
            simulator.end(ids[~going])
            new = np.arange(started, min(n, started + int((~going).sum())))
            started += len(new)
            ids, frames = ids[going], frames[going]
            if len(new):
                ids, frames = (
                    np.concatenate([ids, new]),
                    np.concatenate([frames, simulator.reset(new)]),
                )
    return returns, lengths
