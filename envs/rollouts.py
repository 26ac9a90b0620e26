"""The one rollout loop: in data generation, in training and in testing."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from envs.simulator import MAX_STEPS
from models.agent import Agent
from utils.graphs import recorded

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
            returns[ids[stuck]] -= 0.1 * (MAX_STEPS - lengths[ids[stuck]])
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


class AgentPolicy:
    """An Agent at the wheel of n episodes, each with its own controller and hidden state."""

    def __init__(self, agent: Agent, parameters: Tensor):
        """parameters (n, P): the controller of each episode."""
        self.agent = agent
        self.parameters = parameters.to(agent.device, torch.float32)
        self.h, self.c = agent.initial_state(len(parameters))
        self.everyone: Tensor | None = None  # on a GPU, all n frames, in pinned memory
        # Not a method of this object: it would keep itself, and the GPU's memory, until a garbage
        # collection.
        turn = partial(turn_in_place, agent, self.parameters, self.h, self.c)
        self.recorded_turn = recorded(turn, agent.device)

    def __call__(self, ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
        if self.agent.device.type == "cuda":
            return self._on_gpu(ids, frames)
        rows = torch.from_numpy(ids)
        seen = torch.from_numpy(np.ascontiguousarray(frames))
        actions, h, c = self.agent.step(seen, self.parameters[rows], self.h[rows], self.c[rows])
        self.h[rows], self.c[rows] = h, c
        return actions.numpy()

    def _on_gpu(self, ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """All n episodes in every step, also those not under way, so that one recording serves."""
        device, n = self.agent.device, len(self.parameters)
        if self.everyone is None:  # pinned, so that the copy does not hold up the CPU
            self.everyone = torch.zeros(n, *frames.shape[1:], dtype=torch.uint8, pin_memory=True)
        self.everyone.numpy()[ids] = frames
        underway = np.zeros((n, 1), bool)
        underway[ids] = True
        actions = self.recorded_turn(
            self.everyone.to(device, non_blocking=True), torch.from_numpy(underway).to(device)
        )
        return actions.cpu().numpy()[ids]


@torch.no_grad()
def seen_in_driving(
    agent: Agent, parameters: Tensor, simulator, patience: int = 0
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean (D,) and covariance (D, D) of [z h], what n controllers (n, P) see in n episodes.

    Without an M of z alone. Each controller drives one episode of the simulator. The third is
    the number of frames in all.
    """
    policy = AgentPolicy(agent, parameters)
    frames_seen, total, squares = 0, 0.0, 0.0

    def noting(ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
        nonlocal frames_seen, total, squares
        mu = agent.observe(torch.from_numpy(np.ascontiguousarray(frames)).to(agent.device))
        seen = torch.cat([mu, policy.h[torch.from_numpy(ids)]], dim=1).double().cpu().numpy()
        frames_seen += len(seen)
        total = total + seen.sum(axis=0)
        squares = squares + seen.T @ seen
        return policy(ids, frames)

    play(simulator, len(parameters), len(parameters), noting, patience=patience)
    mean = total / frames_seen
    return mean, squares / frames_seen - np.outer(mean, mean), frames_seen


@torch.no_grad()
def turn_in_place(
    agent: Agent, parameters: Tensor, h: Tensor, c: Tensor, frames: Tensor, underway: Tensor
) -> Tensor:
    """One turn of the loop for the episodes that are `underway` (n, 1), the others' state stays.

    Frames (n, H, W, 3) and controllers (n, P) -> actions (n, 3); h and c (n, 256) in place.
    """
    actions, new_h, new_c = agent.step(frames, parameters, h, c)
    h.copy_(torch.where(underway, new_h, h))
    c.copy_(torch.where(underway, new_c, c))
    return actions
