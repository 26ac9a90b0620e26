"""V, M and C as one batched policy: what drives in training and in testing alike."""

from typing import NamedTuple

import torch
from torch import Tensor

from models.controller import act_batch
from models.inference import inference_encoder
from models.mdrnn import HIDDEN_SIZE, MDRNN
from models.vae import Encoder
from utils.frames import pixels_to_unit, to_64

# The action box: steering in [-1, 1], gas and brake in [0, 1].
ACTION_LOW = torch.tensor([-1.0, 0.0, 0.0])
ACTION_HIGH = torch.tensor([1.0, 1.0, 1.0])


class Driving(NamedTuple):
    """What a controller is trained with, beyond the weights of V and M."""

    memory: str = "trained"  # M's LSTM; or "untrained": random weights; or "none": z alone
    memory_seed: int = 0  # of the random weights
    actions: str = "clip"  # raw actions clipped to the box; or "squash": tanh and sigmoid


DEFAULT = Driving()


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
        self.precision, self.squash = precision, squash
        self.low, self.high = ACTION_LOW.to(device), ACTION_HIGH.to(device)

    def initial_state(self, n: int) -> tuple[Tensor, Tensor]:
        """h and c at the beginning of an episode, (n, 256) each, or (n, 0): zeros."""
        shape = (n, 0 if self.mdrnn is None else HIDDEN_SIZE)
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
