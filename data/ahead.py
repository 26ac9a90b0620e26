"""How far M is from reality: its own predictions, many steps ahead, on held-out episodes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.latents import LatentEpisode
from models.mdrnn import MDRNN, Prediction, draw_latent, mixture_mean
from models.starts import WARM_UP

AHEAD = (1, 5, 15, 50)  # steps
REPLAYED = 200  # steps of a return
WINDOWS = 128  # at most


class Window(NamedTuple):
    """Parts of N episodes: WARM_UP frames that M is shown, and T that it is not."""

    mu: Tensor  # (WARM_UP + T, N, 32)
    actions: Tensor  # (WARM_UP + T, N, 3), which led to mu
    rewards: Tensor  # (WARM_UP + T, N)


def windows(episodes: list[LatentEpisode], steps: int) -> Window | None:
    """Up to WINDOWS of them, spread evenly over all episodes; None where all are too short."""
    length = WARM_UP + steps
    places = [
        (episode, start)
        for episode in episodes
        for start in range(0, len(episode.mu) - length + 1, steps)
    ]
    if not places:
        return None
    chosen = np.unique(np.linspace(0, len(places) - 1, WINDOWS).round().astype(int))
    parts = []
    for field in Window._fields:
        cut = [getattr(e, field)[s : s + length] for e, s in (places[i] for i in chosen)]
        parts.append(torch.from_numpy(np.stack(cut, axis=1).astype(np.float32)))
    return Window(*parts)


@torch.inference_mode()
def replay(
    mdrnn: MDRNN, window: Window, draw: Callable[[Prediction], Tensor]
) -> tuple[Tensor, Tensor]:
    """M shown a window's first WARM_UP frames, and then only the actions: (T, N, 32), (T, N).

    These are what it says of latents and rewards of the other T frames; `draw` makes a latent of
    a prediction.
    """
    inputs = torch.cat([window.actions[1:WARM_UP], window.mu[: WARM_UP - 1]], dim=-1)
    _, (h, c) = mdrnn.rnn(inputs)
    z, h, c = window.mu[WARM_UP - 1], h[0], c[0]
    latents, rewards = [], []
    for action in window.actions[WARM_UP:]:
        h, c = mdrnn.step(action, z, h, c)
        prediction = mdrnn.predict(h)
        z = draw(prediction)
        latents.append(z)
        rewards.append(prediction.reward)
    return torch.stack(latents), torch.stack(rewards)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def ahead(mdrnn: MDRNN, episodes: list[LatentEpisode], with_rewards: bool) -> dict[str, float]:
    """Errors, as root mean squares, after each number of AHEAD steps of M's own expectations.

    Of a latent beside those of the last one that was shown, and of the reward of that step beside
    those of the mean reward. Empty where the episodes are too short.
    """
    window = windows(episodes, AHEAD[-1])
    if window is None:
        return {}
    latents, rewards = replay(mdrnn, window, mixture_mean)
    real, last = window.mu[WARM_UP:], window.mu[WARM_UP - 1]
    of_reward, mean = window.rewards[WARM_UP:], window.rewards.mean()
    errors = {}
    for steps in AHEAD:
        t = steps - 1
        errors[f"latent/{steps}"] = rms(latents[t] - real[t])
        errors[f"copied/{steps}"] = rms(last - real[t])
        if with_rewards:
            errors[f"reward/{steps}"] = rms(rewards[t] - of_reward[t])
            errors[f"mean_reward/{steps}"] = rms(mean - of_reward[t])
    return errors


def replayed_returns(mdrnn: MDRNN, episodes: list[LatentEpisode]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N,) of REPLAYED steps: of the dream, at temperature 1, and real, same actions."""
    window = windows(episodes, REPLAYED)
    if window is None:
        return np.empty(0), np.empty(0)
    generator = torch.Generator().manual_seed(0)
    n, size = window.mu.shape[1:]

    def draw(prediction: Prediction) -> Tensor:
        uniform = torch.rand(n, generator=generator)
        return draw_latent(prediction, 1.0, uniform, torch.randn(n, size, generator=generator))

    _, rewards = replay(mdrnn, window, draw)
    return rewards.sum(0).numpy(), window.rewards[WARM_UP:].sum(0).numpy()


def describe_ahead(errors: dict[str, float]) -> str:
    """`ahead`'s errors on a line."""

    def of(name: str) -> str:
        return " ".join(f"{errors[f'{name}/{steps}']:.3g}" for steps in AHEAD)

    line = f"{' '.join(map(str, AHEAD))} steps ahead: latent {of('latent')} (copied {of('copied')})"
    if f"reward/{AHEAD[0]}" in errors:
        line += f", reward {of('reward')} (mean reward {of('mean_reward')})"
    return line


def describe_returns(dreamt: np.ndarray, real: np.ndarray) -> str:
    """`replayed_returns` on a line: bias and correlation."""
    correlation = np.corrcoef(dreamt, real)[0, 1] if len(real) > 1 else np.nan
    return (
        f"{len(real)} replays of {REPLAYED} steps: return {dreamt.mean():.1f} in the dream, "
        f"{real.mean():.1f} real, correlation {correlation:.2f}"
    )
