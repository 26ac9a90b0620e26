"""Where a dream begins: a real frame's z, and the frames and actions before it.

They come from `logdir/latents/`, which M's training made, or from the small `mdrnn/starts.npz` of a
logdir that was given away.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

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
        self.stored = logdir / "mdrnn" / "starts.npz"
        folders = sorted((logdir / "latents").glob(f"{encoder[:16]}-*"))
        self.episodes = sorted(folders[0].rglob("*.npz")) if folders else []
        if not self.episodes and not self.stored.exists():
            raise UserError(
                f"{logdir}: a dream begins at a real frame, and there are neither latents nor "
                f"{self.stored}; run `python trainmdrnn.py --logdir {logdir} --include_reward`"
            )
        self.kept: list[Start] | None = None

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
