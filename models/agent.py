"""V, M and C as one batched policy: what drives in training and in testing alike."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.controller import act_batch
from models.inference import inference_encoder
from models.mdrnn import MDRNN
from models.vae import Encoder
from utils.frames import pixels_to_unit, to_64
from utils.graphs import recorded

# On the CPU a car's turn is the same to the last bit whatever else is in the batch, if there are
# so many in it: products of fewer rows add up in another order.
ROWS = 4

# The action box: steering in [-1, 1], gas and brake in [0, 1].
ACTION_LOW = torch.tensor([-1.0, 0.0, 0.0])
ACTION_HIGH = torch.tensor([1.0, 1.0, 1.0])


class Agent:
    """The closed loop of the paper's figure 8 for N cars at a time, each with its own controller.

    Holds the encoder of V and the LSTM of M, and no decoder; without an M, h is empty.
    `precision` is the type in which the encoder computes; everything behind mu is float32.
    `squash` says how raw actions get into the action box: see `act`.
    """

    def __init__(
        self,
        encoder: Encoder,
        mdrnn: MDRNN | None,
        device: torch.device,
        precision: torch.dtype,
        squash: bool = False,
    ):
        self.device = device
        self.encoder = inference_encoder(encoder, device, precision)
        self.mdrnn = None if mdrnn is None else mdrnn.to(device).eval()
        self.latent_size = encoder.fc_mu.out_features
        self.precision, self.squash = precision, squash
        self.low, self.high = ACTION_LOW.to(device), ACTION_HIGH.to(device)

    def initial_state(self, n: int) -> tuple[Tensor, Tensor]:
        """h and c at the beginning of an episode, (n, 256) each, or (n, 0): zeros."""
        shape = (n, 0 if self.mdrnn is None else self.mdrnn.hidden_size)
        return torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device)

    def observe(self, frames: Tensor) -> Tensor:
        """Frames (N, H, W, 3) uint8 of any size -> mu (N, 32)."""
        return self.encoder.mean(pixels_to_unit(to_64(frames), self.precision))

    def act(self, parameters: Tensor, mu: Tensor, h: Tensor) -> Tensor:
        """Controllers (N, P), mu (N, 32), h (N, 256 or 0) -> actions (N, 3) in the action box.

        Clipped to it; or, with `squash`, the tanh of the steering and the sigmoid of gas
        and brake (paper, appendix A.3).
        """
        raw = act_batch(parameters, mu, h)
        if self.squash:
            return torch.cat([raw[:, :1].tanh(), raw[:, 1:].sigmoid()], dim=1)
        return raw.clamp(self.low, self.high)

    @torch.inference_mode()
    def step(
        self, frames: Tensor, parameters: Tensor, h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One turn of the loop: what is seen, what is done, what is remembered.

        Frames (N, H, W, 3) uint8, parameters (N, P), h and c (N, 256), without an M (N, 0), all
        on the agent's device -> actions (N, 3), new h and c. M's input is the action that is
        executed, in the action box.
        """
        mu = self.observe(frames)
        action = self.act(parameters, mu, h)
        if self.mdrnn is not None:
            h, c = self.mdrnn.step(action, mu, h, c)
        return action, h, c


class AgentPolicy:
    """An Agent at the wheel of n episodes, each with its own controller and hidden state.

    In a dream, whose observations are [z h] (n, 288), it has nothing to see or to remember.
    """

    def __init__(self, agent: Agent, parameters: Tensor):
        """parameters (n, P): the controller of each episode."""
        self.agent = agent
        self.parameters = parameters.to(agent.device, torch.float32)
        self.h, self.c = agent.initial_state(len(parameters))
        self.all_frames: Tensor | None = None  # on a GPU, of all n, in pinned memory
        # Not a method of this object: it would keep itself, and the GPU's memory, until a garbage
        # collection.
        turn = partial(turn_in_place, agent, self.parameters, self.h, self.c)
        self.recorded_turn = recorded(turn, agent.device)

    def __call__(self, ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
        if frames.ndim == 2:
            return self._in_dream(ids, frames)
        if self.agent.device.type == "cuda":
            return self._on_gpu(ids, frames)
        n, rows = len(ids), np.resize(ids, -(-len(ids) // ROWS) * ROWS)
        seen = torch.from_numpy(np.resize(frames, (len(rows), *frames.shape[1:])))
        rows = torch.from_numpy(rows)
        actions, h, c = self.agent.step(seen, self.parameters[rows], self.h[rows], self.c[rows])
        self.h[rows], self.c[rows] = h, c
        return actions[:n].numpy()

    def inputs(self, ids: np.ndarray, frames: np.ndarray) -> Tensor:
        """What the controllers see: [z h] (n, 288), or z alone (n, 32)."""
        size, h = self.agent.latent_size, self.h[torch.from_numpy(ids)]
        seen = torch.from_numpy(np.ascontiguousarray(frames)).to(self.agent.device)
        if frames.ndim == 2:  # a dream gives both
            return seen[:, : size + h.shape[1]]
        return torch.cat([self.agent.observe(seen), h], dim=1)

    def _in_dream(self, ids: np.ndarray, observed: np.ndarray) -> np.ndarray:
        z, h = self.inputs(ids, observed).tensor_split([self.agent.latent_size], dim=1)
        parameters = self.parameters[torch.from_numpy(ids).to(self.agent.device)]
        return self.agent.act(parameters, z, h).cpu().numpy()

    def _on_gpu(self, ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """All n episodes in every step, those that have ended too, so that one recording serves."""
        device, n = self.agent.device, len(self.parameters)
        if self.all_frames is None:  # pinned, so that the copy does not hold up the CPU
            self.all_frames = torch.zeros(n, *frames.shape[1:], dtype=torch.uint8, pin_memory=True)
        self.all_frames.numpy()[ids] = frames
        running = np.zeros((n, 1), bool)
        running[ids] = True
        actions = self.recorded_turn(
            self.all_frames.to(device, non_blocking=True), torch.from_numpy(running).to(device)
        )
        return actions.cpu().numpy()[ids]


@torch.no_grad()
def turn_in_place(
    agent: Agent, parameters: Tensor, h: Tensor, c: Tensor, frames: Tensor, running: Tensor
) -> Tensor:
    """One turn of the loop for the episodes that are `running` (n, 1), the others' state stays.

    Frames (n, H, W, 3) and controllers (n, P) -> actions (n, 3); h and c (n, 256) in place.
    """
    actions, new_h, new_c = agent.step(frames, parameters, h, c)
    h.copy_(torch.where(running, new_h, h))
    c.copy_(torch.where(running, new_c, c))
    return actions
