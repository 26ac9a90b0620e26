"""What C sees, z and h: their mean and covariance, in the data and in driving."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.rollouts import play
from envs.simulated_carracing import Dream, Dreaming, load_world
from envs.simulator import Simulator
from models.agent import Agent, AgentPolicy
from models.logdir import Driving, load_agent, load_models, weights_digest
from models.starts import Starts, warm_up
from utils.cli import UserError
from utils.devices import fast_precision

LOOKS = 2000  # frames that are looked at in the data


class Seen(NamedTuple):
    """Moments of x = [z h], or of z alone without an M."""

    mean: np.ndarray  # (D,) float64
    covariance: np.ndarray  # (D, D)
    steps: int  # of the environment that this took


@torch.no_grad()
def seen_in_data(logdir: Path, driving: Driving) -> Seen | None:
    """Of V and M at random frames of the data, which some controller or policy has driven.

    None in a logdir with no latents and no starts of dreams.
    """
    encoder, mdrnn = load_models(logdir, driving)
    digest = weights_digest(encoder)
    if not Starts.there(logdir, digest):
        return None
    starts = Starts(logdir, digest)
    if mdrnn is None:
        return _moments([torch.from_numpy(starts.draw(i).mu[-1:]) for i in range(LOOKS)], 0)
    states = [warm_up(mdrnn, starts.draw(seed)) for seed in range(LOOKS)]
    return _moments([torch.cat([z, h])[None] for z, h, _ in states], 0)


def seen_by_candidates(
    logdir: Path,
    device: torch.device,
    driving: Driving,
    models: str,
    candidates: np.ndarray,
    tracks: list[int],
    patience: int,
    dream: Dreaming | None,
) -> Seen:
    """Of controllers (n, P), each of which drives one of n tracks, real or dreamt.

    `models` is the fingerprint of the V and M that they drive with.
    """
    agent = load_agent(logdir, device, fast_precision(device), driving, models)
    simulator = Simulator(tracks) if dream is None else Dream(load_world(logdir), tracks, dream)
    return seen_in_driving(agent, torch.from_numpy(candidates), simulator, patience)


@torch.no_grad()
def seen_in_driving(agent: Agent, parameters: Tensor, simulator, patience: int = 0) -> Seen:
    """Of n controllers (n, P), each of which drives one of the n episodes of `simulator`.

    Every fourth frame is taken.
    """
    policy = AgentPolicy(agent, parameters)
    seen: list[Tensor] = []
    step = 0

    def noting(ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
        nonlocal step
        if step % 4 == 0:
            seen.append(policy.inputs(ids, frames).cpu())
        step += 1
        return policy(ids, frames)

    try:
        _, lengths = play(simulator, len(parameters), len(parameters), noting, patience=patience)
    finally:
        simulator.close()
    return _moments(seen, int(lengths.sum()))


def _moments(seen: list[Tensor], steps: int) -> Seen:
    """Of rows (n, D). Raises UserError where all look alike."""
    x = torch.cat(seen).double().numpy()
    covariance = np.cov(x, rowvar=False, bias=True)
    if not covariance.trace() > 0:
        raise UserError("z and h are constant or NaN: V or M are broken; train them again")
    return Seen(x.mean(axis=0), covariance, steps)
