"""The random policies that explore the track."""

import numpy as np

from models.agent import ACTION_HIGH, ACTION_LOW

LOW, HIGH = ACTION_LOW.numpy(), ACTION_HIGH.numpy()


def brownian(steps: int, generator: np.random.Generator, dt: float = 1 / 50) -> np.ndarray:
    """Actions (steps, 3) float32 of a random walk: what was done before is likely done again.

    a[0] is uniform in the action box, a[t + 1] = clip(a[t] + sqrt(dt) * N(0, 1)), with
    dt in seconds (one frame of CarRacing).
    """
    noise = np.sqrt(dt) * generator.standard_normal((steps, 3))
    actions = np.empty((steps, 3))
    actions[0] = generator.uniform(LOW, HIGH)
    for t in range(1, steps):
        actions[t] = np.clip(actions[t - 1] + noise[t], LOW, HIGH)
    return actions.astype(np.float32)


def white(steps: int, generator: np.random.Generator) -> np.ndarray:
    """Actions (steps, 3) float32, each uniform in the action box and independent."""
    return generator.uniform(LOW, HIGH, (steps, 3)).astype(np.float32)


BURST = 20  # steps of the random walk at a time, on average


def burst_plan(
    steps: int, share: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Where a random walk takes the wheel, (steps,) bool, and its actions (steps, 3) float32.

    Bursts are of geometric length, as are the times between them. Each is another walk.
    """
    taken, walks = np.zeros(steps, bool), np.zeros((steps, 3), np.float32)
    between = BURST * (1 - share) / share
    t = int(generator.geometric(1 / max(between, 1)))
    while t < steps:
        end = min(steps, t + int(generator.geometric(1 / BURST)))
        taken[t:end], walks[t:end] = True, brownian(end - t, generator)
        t = end + int(generator.geometric(1 / max(between, 1)))
    return taken, walks


RANDOM_POLICIES = {"brown": brownian, "white": white}
