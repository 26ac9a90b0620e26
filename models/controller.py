"""C: a linear map from (z, h) to the action (paper, section 2.3)."""

import numpy as np
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


def even_basis(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Steps of a controller's parameters that change its actions evenly, as a basis (P, P).

    `mean` (D,) and `covariance` K (D, D) are those of what it sees, x = [z h]. Random weights
    change the actions where x varies most: the first four of 288 principal components have three
    quarters of the variance, while such things as the car's speed are told by the smaller ones. So
    the weights of an action are y (K + v I)^(-1/2), with v the mean variance of a component, on
    x - mean: the components that vary more than v change the actions alike, and the others as their
    weights allow. With standard normal y each raw action varies with a standard deviation of 1.
    Parameters are in the order of `Controller.flat_parameters`.
    """
    size = len(mean)
    variances, axes = np.linalg.eigh(covariance)
    scale = (variances.clip(0) + variances.mean()) ** -0.5
    block = np.zeros((size + 1, size + 1))  # y of an action -> its weights and bias
    block[:size, :size] = (axes * scale) @ axes.T
    block[:size, size] = -block[:size, :size] @ mean
    block[size, size] = 1
    block /= np.sqrt((scale**2 * variances).sum() + 1)
    blocks = np.kron(np.eye(ACTION_SIZE), block)
    columns = np.arange(ACTION_SIZE * (size + 1)).reshape(ACTION_SIZE, size + 1)
    return blocks[:, np.concatenate([columns[:, :size].ravel(), columns[:, size]])]
