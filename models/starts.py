"""Where a dream begins: a real frame's z, and the frames and actions before it.

They come from `logdir/latents/`, which M's training made, or from the small `mdrnn/starts.npz` of a
logdir that was given away.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.mdrnn import MDRNN
from utils.cli import UserError
from utils.files import atomic_write
from utils.streams import stream

WARM_UP = 40  # frames before the start at most, by which M's state gets warm


class Start(NamedTuple):
    """Frames of an episode up to the one where the dream begins; `actions[t]` led to `mu[t]`."""

    mu: np.ndarray  # (L, 32) float32, L <= WARM_UP + 1
    actions: np.ndarray  # (L, 3) float32


class Starts:
    """The starts of a logdir, by seed. Raises UserError where it has none.

    `encoder` is the fingerprint of V's encoder, because the latents of another one are no use.
    """

    def __init__(self, logdir: Path, encoder: str):
        self.stored, self.episodes = self._find(logdir, encoder)
        if not self.there(logdir, encoder):
            raise UserError(
                f"{logdir}: a dream begins at a real frame, and there are neither latents nor "
                f"{self.stored}; run `python trainmdrnn.py --logdir {logdir} --include_reward`"
            )
        self.kept: list[Start] | None = None

    @staticmethod
    def _find(logdir: Path, encoder: str) -> tuple[Path, list[Path]]:
        folders = sorted((logdir / "latents").glob(f"{encoder[:16]}-*"))
        episodes = sorted(folders[0].rglob("*.npz")) if folders else []
        return logdir / "mdrnn" / "starts.npz", episodes

    @classmethod
    def there(cls, logdir: Path, encoder: str) -> bool:
        """Whether a logdir has any."""
        stored, episodes = cls._find(logdir, encoder)
        return bool(episodes) or stored.exists()

    def files(self) -> list[Path]:
        """The files that the starts are drawn from."""
        return self.episodes or [self.stored]

    def draw(self, seed: int) -> Start:
        """The start of the dream with this seed: any frame of any episode."""
        generator = stream("dream's start", seed)
        if not self.episodes:
            starts = self._read_stored()
            return starts[generator.integers(len(starts))]
        path = self.episodes[generator.integers(len(self.episodes))]
        try:
            with np.load(path, allow_pickle=False) as npz:
                mu, actions = npz["mu"], npz["actions"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} is damaged ({error}); run trainmdrnn.py again, which makes it anew"
            ) from None
        end = int(generator.integers(len(mu))) + 1
        begin = max(0, end - 1 - WARM_UP)
        return Start(mu[begin:end], actions[begin:end])

    def write(self, path: Path, n: int) -> None:
        """Store n starts in one file, of some 6 kB each."""
        starts = [self.draw(seed) for seed in range(n)]
        arrays = {
            "lengths": np.array([len(start.mu) for start in starts]),
            "mu": np.concatenate([start.mu for start in starts]),
            "actions": np.concatenate([start.actions for start in starts]),
        }
        with atomic_write(path) as file:
            np.savez_compressed(file, **arrays)

    def _read_stored(self) -> list[Start]:
        if self.kept is None:
            try:
                with np.load(self.stored, allow_pickle=False) as npz:
                    ends = npz["lengths"].cumsum()[:-1]
                    parts = (np.split(npz[name], ends) for name in ("mu", "actions"))
                    self.kept = [Start(*start) for start in zip(*parts, strict=True)]
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise UserError(f"{self.stored} is damaged ({error}); export it again") from None
        return self.kept


def warm_up(mdrnn: MDRNN, start: Start) -> tuple[Tensor, Tensor, Tensor]:
    """z, h and c at the start, (32,), (256,) and (256,): M's state after all before it."""
    mu, actions = (torch.from_numpy(x) for x in start)
    if len(mu) == 1:
        nothing = torch.zeros(mdrnn.hidden_size)
        return mu[-1], nothing, nothing
    inputs = torch.cat([actions[1:], mu[:-1]], dim=1)
    _, (h, c) = mdrnn.rnn(inputs[:, None])
    return mu[-1], h[0, 0], c[0, 0]
