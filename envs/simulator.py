"""Episodes of Gymnasium's CarRacing-v3, in batches."""

import fcntl
import functools
import os
import warnings
from contextlib import suppress

import numpy as np

MAX_STEPS = 1000  # the time limit of CarRacing-v3, in frames of 1/50 s
SIZE = 96  # of its frames, in pixels


class Simulator:
    """One episode of CarRacing-v3 for each seed, one environment after the other.

    Episodes are named by their index in `seeds`. `reset` starts some of them, `step` moves
    some of those that have started and not ended; nothing else advances. With `render_mode`
    ("human" or "rgb_array") they can be viewed.
    """

    def __init__(self, seeds: list[int], render_mode: str | None = None):
        self._seeds = seeds
        self._render_mode = render_mode
        self._envs = {}  # episode -> its environment
        self._steps = {}  # episode -> steps since its start
        self._ended = []  # episodes whose environment the next one may take

    @property
    def max_steps(self) -> int:
        """The time limit of an episode."""
        return MAX_STEPS

    def reset(self, ids: np.ndarray) -> np.ndarray:
        """Start the episodes `ids` (n,) and return their first frames (n, 96, 96, 3) uint8."""
        frames = []
        for i in ids.tolist():
            if i in self._envs:
                self._ended = [other for other in self._ended if other != i]
            elif self._ended:
                self._envs[i] = self._envs.pop(self._ended.pop())
            else:
                self._envs[i] = self._make()
            frames.append(self._envs[i].reset(seed=self._seeds[i])[0])
            self._steps[i] = 0
        return np.stack(frames)

    def _make(self):
        return environment()(render_mode=self._render_mode)

    def step(
        self, ids: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Execute actions (n, 3) float32 in the running episodes `ids` (n,).

        Returns frames (n, 96, 96, 3) uint8, rewards (n,) float32, terminated (n,) bool (the
        lap is done or the playfield was left) and truncated (n,) bool (the time limit).
        """
        n = len(ids)
        frames, rewards = np.empty((n, SIZE, SIZE, 3), np.uint8), np.empty(n, np.float32)
        terminated, truncated = np.empty(n, bool), np.empty(n, bool)
        for k, (i, action) in enumerate(zip(ids.tolist(), actions, strict=True)):
            rewards[k], terminated[k] = self._envs[i].move(action)
            self._steps[i] += 1
            truncated[k] = self._steps[i] >= MAX_STEPS
        # After all have moved: what moves and what draws push each other out of the caches.
        for k, i in enumerate(ids.tolist()):
            frames[k] = self._envs[i].frame()
        return frames, rewards, terminated, truncated

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
        return self._envs[i]

    def close(self) -> None:
        for env in self._envs.values():
            env.close()


@functools.cache
def environment() -> type:
    """The class of the environments: Gymnasium's, with our drawing where that is the same.

    Compiles the drawing where that was not done before, and says on a line where Gymnasium draws
    instead, and why. A script calls it before its workers do, so that not each of them compiles.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pygame, about its own imports
        from gymnasium.envs.box2d.car_racing import CarRacing

    class GymnasiumCarRacing(CarRacing):
        """Gymnasium's own, with the two halves of a step that `Simulator` calls."""

        def move(self, action: np.ndarray) -> tuple[float, bool]:
            _, reward, terminated, _, _ = self.step(action)
            return reward, terminated

        def frame(self) -> np.ndarray:
            return self.state

    try:
        with open(__file__) as file:
            with suppress(OSError):  # of a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)  # so that one of several processes compiles
            from envs.carracing import DrawnCarRacing, difference

            why = difference()
    except Exception as error:  # whatever another version does not have, or cannot compile
        lines = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if not why:
        return DrawnCarRacing
    print(
        f"frames: drawn by Gymnasium itself, which takes ten times as long ({why}); the versions "
        "in constraints.txt are those that were tested",
        flush=True,
    )
    return GymnasiumCarRacing
