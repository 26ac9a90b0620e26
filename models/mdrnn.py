"""M: an LSTM with a mixture density output (paper, section 2.2 and appendix A.2)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vae import LATENT_SIZE

ACTION_SIZE = 3
HIDDEN_SIZE = 256
MIXTURES = 5


class Prediction(NamedTuple):
    """What M says of the next step; every leading shape is (T, N)."""

    mu: Tensor  # (T, N, K, 32) mean of each component
    logsigma: Tensor  # (T, N, K, 32) log standard deviation of each component
    logpi: Tensor  # (T, N, K) log of the mixture weights, shared by all latent dimensions
    reward: Tensor  # (T, N)
    terminal: Tensor  # (T, N) logit


class MDRNN(nn.Module):
    """LSTM(256) on (action, z), and a linear layer to the parameters of the mixture."""

    def __init__(
        self,
        latent_size: int = LATENT_SIZE,
        action_size: int = ACTION_SIZE,
        hidden_size: int = HIDDEN_SIZE,
        mixtures: int = MIXTURES,
    ):
        super().__init__()
        self.latent_size, self.hidden_size, self.mixtures = latent_size, hidden_size, mixtures
        self.rnn = nn.LSTM(action_size + latent_size, hidden_size)
        self.gmm_linear = nn.Linear(hidden_size, (2 * latent_size + 1) * mixtures + 2)

    def forward(self, actions: Tensor, latents: Tensor) -> Prediction:
        """Actions (T, N, 3) and latents (T, N, 32) -> predictions of the T next latents.

        The hidden state starts at zero.
        """
        hidden, _ = self.rnn(torch.cat([actions, latents], dim=-1))
        return self.predict(hidden)

    def predict(self, hidden: Tensor) -> Prediction:
        """Hidden states (..., 256) -> the mixture over the next z, its reward and terminal.

        In float32 whatever the precision before, because likelihoods need it.
        """
        out = self.gmm_linear(hidden).float()
        size, k = self.latent_size, self.mixtures
        # One split, not a slice for each: the gradient of a slice is as large as `out`.
        mu, logsigma, pi, reward, terminal = out.split([k * size, k * size, k, 1, 1], dim=-1)
        return Prediction(
            mu=mu.unflatten(-1, (k, size)),
            logsigma=logsigma.unflatten(-1, (k, size)),
            logpi=F.log_softmax(pi, dim=-1),
            reward=reward.squeeze(-1),
            terminal=terminal.squeeze(-1),
        )

    def step(self, action: Tensor, latent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the LSTM: action (N, 3), latent (N, 32), h and c (N, 256) -> new h and c.

        The same equations as `torch.nn.LSTM`; written out because a call of the sequence
        model with T = 1 costs several times as much in a rollout.
        """
        rnn = self.rnn
        x = torch.cat([action, latent], dim=-1)
        gates = torch.addmm(rnn.bias_ih_l0, x, rnn.weight_ih_l0.T)
        gates += torch.addmm(rnn.bias_hh_l0, h, rnn.weight_hh_l0.T)
        i, f, g, o = gates.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


def mixture_mean(prediction: Prediction) -> Tensor:
    """What M expects the next latent to be, (..., 32)."""
    return (prediction.logpi.exp().unsqueeze(-1) * prediction.mu).sum(-2)


def draw_latent(
    prediction: Prediction, temperature: float, uniform: Tensor, normal: Tensor
) -> Tensor:
    """A next latent out of the mixture, (N, 32): a component, then its noise (paper, section 4).

    `prediction` has leading shape (N,), `uniform` (N,) is in [0, 1) and `normal` (N, 32) standard
    normal. The temperature divides the logits and multiplies the variances.
    """
    weights = (prediction.logpi / temperature).softmax(-1)
    component = (uniform[:, None] >= weights.cumsum(-1)).sum(-1).clamp(max=weights.shape[-1] - 1)
    rows = torch.arange(len(component), device=component.device)
    sigma = prediction.logsigma[rows, component].exp() * temperature**0.5
    return prediction.mu[rows, component] + sigma * normal


def mixture_nll(prediction: Prediction, target: Tensor) -> Tensor:
    """-log p(target) under the mixture, a scalar: the mean over time and batch.

    target (T, N, 32) is the next latent. p(z) = sum_k pi_k prod_d N(z_d; mu_kd, sigma_kd):
    one weight a component for all dimensions (Bishop 1994, eq. 22 and 23). The sum over k is
    taken in the log domain, so that far targets give a large loss instead of inf.
    """
    deviations = (target.unsqueeze(-2) - prediction.mu) * (-prediction.logsigma).exp()
    log_components = -(  # (T, N, K)
        0.5 * deviations.square().sum(-1)
        + prediction.logsigma.sum(-1)
        + 0.5 * target.shape[-1] * math.log(2 * math.pi)
    )
    return -torch.logsumexp(prediction.logpi + log_components, dim=-1).mean()


def mdrnn_losses(
    prediction: Prediction,
    next_latents: Tensor,
    rewards: Tensor,
    terminals: Tensor,
    include_reward: bool,
) -> dict[str, Tensor]:
    """M's loss and its terms, scalars: means over time and batch.

    next_latents (T, N, 32), rewards (T, N), terminals (T, N) in {0, 1}. The sum of the
    terms is divided by the number of predicted values, 32 + 1 [+ 1], as in the known
    PyTorch reimplementation, so that losses can be compared.
    """
    terms = {
        "gmm": mixture_nll(prediction, next_latents),
        "bce": F.binary_cross_entropy_with_logits(prediction.terminal, terminals),
    }
    values = next_latents.shape[-1] + 1
    if include_reward:
        terms["mse"] = F.mse_loss(prediction.reward, rewards)
        values += 1
    return {"loss": sum(terms.values()) / values, **terms}
