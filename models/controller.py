"""C: a linear map from (z, h) to the action (paper, section 2.3)."""

import torch
from torch import Tensor, nn

from models.mdrnn import ACTION_SIZE, HIDDEN_SIZE
from models.vae import LATENT_SIZE

# Of the paper's controller, which sees z and h.
PARAMETERS = (LATENT_SIZE + HIDDEN_SIZE + 1) * ACTION_SIZE


class Controller(nn.Module):
    """a = W [z h] + b: 867 parameters for CarRacing, 99 where it sees z alone."""

    def __init__(
        self,
        latent_size: int = LATENT_SIZE,
        hidden_size: int = HIDDEN_SIZE,
        action_size: int = ACTION_SIZE,
    ):
        super().__init__()
        self.fc = nn.Linear(latent_size + hidden_size, action_size)

    def forward(self, latent: Tensor, h: Tensor) -> Tensor:
        """Latent (N, 32) and h (N, 256) -> raw actions (N, 3), not yet in the action box."""
        return self.fc(torch.cat([latent, h], dim=-1))

    def flat_parameters(self) -> Tensor:
        """The weights, row by row, and then the biases as one vector (P,), P = 867 or 99."""
        return nn.utils.parameters_to_vector(self.parameters()).detach()

    def load_flat(self, parameters: Tensor) -> "Controller":
        """The inverse of `flat_parameters`: takes a vector (P,), returns itself."""
        nn.utils.vector_to_parameters(parameters, self.parameters())
        return self


def act_batch(parameters: Tensor, latent: Tensor, h: Tensor) -> Tensor:
    """Each row's own controller in one batched product.

    parameters (N, P) in the order of `Controller.flat_parameters`, latent (N, 32),
    h (N, 256), or (N, 0) where there is no memory -> raw actions (N, 3).
    """
    x = torch.cat([latent, h], dim=-1)
    weight = parameters[:, :-ACTION_SIZE].view(len(x), ACTION_SIZE, x.shape[-1])
    bias = parameters[:, -ACTION_SIZE:]
    return torch.baddbmm(bias.unsqueeze(-1), weight, x.unsqueeze(-1)).squeeze(-1)
