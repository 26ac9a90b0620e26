"""V: the convolutional variational autoencoder (paper, section 2.1 and appendix A.1).

`relu_` works in place: a layer's output is too large for the caches, and a second copy of it
costs a fifth of the encoder's time on one thread.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT_SIZE = 32


class Encoder(nn.Module):
    """Four stride-2 convolutions, then two linear layers for the Gaussian q(z | frame)."""

    def __init__(self, latent_size: int = LATENT_SIZE):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 4, stride=2)
        self.conv2 = nn.Conv2d(32, 64, 4, stride=2)
        self.conv3 = nn.Conv2d(64, 128, 4, stride=2)
        self.conv4 = nn.Conv2d(128, 256, 4, stride=2)
        self.fc_mu = nn.Linear(2 * 2 * 256, latent_size)
        self.fc_logsigma = nn.Linear(2 * 2 * 256, latent_size)

    def features(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, 64, 64) in [0, 1] -> features (N, 1024)."""
        x = F.relu_(self.conv1(frames))  # (N, 32, 31, 31)
        x = F.relu_(self.conv2(x))  # (N, 64, 14, 14)
        x = F.relu_(self.conv3(x))  # (N, 128, 6, 6)
        x = F.relu_(self.conv4(x))  # (N, 256, 2, 2)
        return x.flatten(1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (N, 3, 64, 64) in [0, 1] -> mu (N, 32), logsigma (N, 32)."""
        x = self.features(frames).to(self.fc_mu.weight.dtype)
        return self.fc_mu(x), self.fc_logsigma(x)

    def mean(self, frames: Tensor) -> Tensor:
        """Only mu (N, 32) of frames (N, 3, 64, 64): what the controller sees."""
        return self.fc_mu(self.features(frames).to(self.fc_mu.weight.dtype))


class Decoder(nn.Module):
    """A linear layer, then four stride-2 transposed convolutions."""

    def __init__(self, latent_size: int = LATENT_SIZE):
        super().__init__()
        self.fc1 = nn.Linear(latent_size, 1024)
        self.deconv1 = nn.ConvTranspose2d(1024, 128, 5, stride=2)
        self.deconv2 = nn.ConvTranspose2d(128, 64, 5, stride=2)
        self.deconv3 = nn.ConvTranspose2d(64, 32, 6, stride=2)
        self.deconv4 = nn.ConvTranspose2d(32, 3, 6, stride=2)

    def forward(self, z: Tensor) -> Tensor:
        """Latents (N, 32) -> frames (N, 3, 64, 64) in [0, 1]."""
        x = F.relu_(self.fc1(z))  # (N, 1024), the channels of a 1x1 image
        # A transposed convolution of a 1x1 image is a matrix product, and much faster as one.
        weight, bias = self.deconv1.weight, self.deconv1.bias
        x = (x @ weight.flatten(1)).unflatten(1, weight.shape[1:]) + bias[:, None, None]
        x = F.relu_(x).contiguous(memory_format=torch.channels_last)  # (N, 128, 5, 5)
        x = F.relu_(self.deconv2(x))  # (N, 64, 13, 13)
        x = F.relu_(self.deconv3(x))  # (N, 32, 30, 30)
        return torch.sigmoid(self.deconv4(x))


class VAE(nn.Module):
    """Encoder and decoder with the reparametrised sample between them."""

    def __init__(self, latent_size: int = LATENT_SIZE):
        super().__init__()
        self.latent_size = latent_size
        self.encoder = Encoder(latent_size)
        self.decoder = Decoder(latent_size)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (N, 3, 64, 64) in [0, 1] -> reconstruction (same), mu and logsigma (N, 32)."""
        mu, logsigma = self.encoder(frames)
        return self.decoder(sample_latent(mu, logsigma)), mu, logsigma


def sample_latent(mu: Tensor, logsigma: Tensor) -> Tensor:
    """z = mu + sigma * epsilon with epsilon ~ N(0, I); all of the same shape."""
    return mu + logsigma.exp() * torch.randn_like(mu)


def vae_loss(
    reconstruction: Tensor, frames: Tensor, mu: Tensor, logsigma: Tensor
) -> tuple[Tensor, Tensor]:
    """The two terms of V's loss, each a scalar: the mean over the N frames of a batch.

    Squared error summed over the pixels of a frame, and KL(N(mu, sigma) || N(0, I))
    summed over the latent dimensions (Kingma and Welling 2014, appendix B).
    """
    squared_error = (reconstruction.float() - frames).square().sum() / len(frames)
    mu, logsigma = mu.float(), logsigma.float()
    kl = -0.5 * (1 + 2 * logsigma - mu.square() - (2 * logsigma).exp()).sum() / len(frames)
    return squared_error, kl
