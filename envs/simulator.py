"""A batch of CarRacing-v3 environments, EnvPool's or Gymnasium's, behind one interface."""

import importlib.util
import os
import warnings
from copy import copy

import numpy as np

from utils.cli import UserError

MAX_STEPS = 1000  # the time limit of CarRacing-v3, in frames of 1/50 s


def choose_simulator(name: str) -> str:
    """Resolve `--simulator auto`, and say on one line what was taken and why.

    Raises UserError when EnvPool is asked for where it is not installed.
    """
    installed = importlib.util.find_spec("envpool") is not None
    if name == "envpool" and not installed:
        raise UserError(
            "--simulator envpool: EnvPool is not installed (it has wheels for Linux and for "
            "macOS on arm64); use --simulator gymnasium"
        )
    if name != "auto":
        return name
    if installed:
        print("simulator: envpool (installed; about four times as fast as gymnasium)")
        return "envpool"
    print("simulator: gymnasium (EnvPool is not installed)")
    return "gymnasium"


class EnvPoolSimulator:
    """One episode of CarRacing-v3 for each seed, simulated by EnvPool.

    Episodes are named by their index in `seeds`. `reset` starts some of them, `step` moves
    some of those that have started and not ended; nothing else advances.
    """

    def __init__(self, seeds: list[int], threads: int = 1):
        import envpool

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of Gymnasium, about float precision
            self._pool = envpool.make(
                "CarRacing-v3",
                env_type="gymnasium",
                num_envs=len(seeds),
                num_threads=threads,
                seed=list(seeds),
                max_episode_steps=MAX_STEPS,
            )

    def reset(self, ids: np.ndarray) -> np.ndarray:
        """Start the episodes `ids` (n,) and return their first frames (n, 96, 96, 3) uint8."""
        frames, info = self._pool.reset(ids.astype(np.int32))
        return _in_order(ids, info["env_id"], frames)[0]

    def step(
        self, ids: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Execute actions (n, 3) float32 in the running episodes `ids` (n,).

        Returns frames (n, 96, 96, 3) uint8, rewards (n,) float32, terminated (n,) bool (the
        lap is done or the playfield was left) and truncated (n,) bool (the time limit).
        """
        frames, rewards, terminated, truncated, info = self._pool.step(
            actions.astype(np.float32, copy=False), ids.astype(np.int32)
        )
        return _in_order(ids, info["env_id"], frames, rewards, terminated, truncated)

    def end(self, ids: np.ndarray) -> None:
        """Say that the episodes `ids` (n,) are driven no further. Each has its own place here."""

    def close(self) -> None:
        self._pool.close()


def _in_order(ids: np.ndarray, received: np.ndarray, *arrays: np.ndarray) -> tuple:
    """EnvPool's answers in the order of `ids`, whatever order they arrived in."""
    if np.array_equal(ids, received):
        return arrays
    order = np.empty(len(ids), np.int64)
    order[np.argsort(ids, kind="stable")] = np.argsort(received, kind="stable")
    return tuple(array[order] for array in arrays)


class GymnasiumSimulator:
    """The same interface over Gymnasium's CarRacing-v3, one environment after the other.

    Its frames are drawn by envs.carracing, pixel for pixel the same. With `render_mode`
    ("human" or "rgb_array") the episodes can be viewed.
    """

    def __init__(self, seeds: list[int], render_mode: str | None = None):
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        self._seeds = seeds
        self._render_mode = render_mode
        self._envs = {}  # episode -> its environment
        self._ended = []  # episodes whose environment the next one may take

    def reset(self, ids: np.ndarray) -> np.ndarray:
        """See EnvPoolSimulator.reset."""
        frames = []
        for i in ids.tolist():
            if i in self._envs:
                self._ended = [other for other in self._ended if other != i]
            elif self._ended:
                self._envs[i] = self._envs.pop(self._ended.pop())
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of pygame, about its own imports
                    self._envs[i] = self._make()
            frames.append(self._envs[i].reset(seed=self._seeds[i])[0])
        return np.stack(frames)

    def _make(self):
        import gymnasium as gym

        from envs.carracing import SwiftCarRacing

        spec = copy(gym.spec("CarRacing-v3"))
        spec.entry_point = SwiftCarRacing
        return gym.make(
            spec,
            render_mode=self._render_mode,
            max_episode_steps=MAX_STEPS,
            disable_env_checker=True,
        )

    def step(
        self, ids: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """See EnvPoolSimulator.step."""
        results = []
        for i, action in zip(ids.tolist(), actions, strict=True):
            frame, reward, terminated, truncated, _ = self._envs[i].step(action)
            results.append((frame, reward, terminated, truncated))
        frames, rewards, terminated, truncated = zip(*results, strict=True)
        return (
            np.stack(frames),
            np.array(rewards, np.float32),
            np.array(terminated, bool),
            np.array(truncated, bool),
        )

    def end(self, ids: np.ndarray) -> None:
        """Say that the episodes `ids` (n,) are driven no further: the next ones take their place.

        They can be looked at until then.
        """
        self._ended += ids.tolist()

    def picture(self, i: int) -> np.ndarray:
        """What a spectator of episode i sees, (400, 600, 3) uint8."""
        return self._envs[i].render()

    def unwrapped(self, i: int):
        """Gymnasium's CarRacing of episode i, which knows its track and its car."""
        return self._envs[i].unwrapped

    def close(self) -> None:
        for env in self._envs.values():
            env.close()


def make_simulator(
    name: str, seeds: list[int], threads: int = 1
) -> EnvPoolSimulator | GymnasiumSimulator:
    """One episode for each seed (n,), simulated by "envpool" (on `threads`) or "gymnasium"."""
    return EnvPoolSimulator(seeds, threads) if name == "envpool" else GymnasiumSimulator(seeds)
