"""Encode a data set once: mu and logsigma of every frame, kept in the logdir.

`logdir/latents/<digest of the encoder>-<its precision>/<name of the episode>` holds one npz for
each episode. With another encoder, or in another precision, they are made anew, and the earlier
ones removed after that; an episode whose file changed is encoded again.
"""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.episodes import BadEpisode, Episode, EpisodeFile, read_episode, warn_skipped
from models.inference import inference_encoder, tell_if_not_packed
from models.logdir import weights_digest
from models.vae import Encoder
from utils import ranks
from utils.cli import dispensable
from utils.files import atomic_write
from utils.frames import pixels_to_unit

# Frames at a time, by device and precision: the packed encoder of bfloat16 is fastest where few
# frames stay in a core's caches; in float32 the layers' cost of each call counts more.
BATCH_SIZE = {
    ("cpu", torch.bfloat16): 32,
    ("cpu", torch.float32): 128,
    ("cuda", torch.bfloat16): 256,
    ("cuda", torch.float32): 256,
}


class LatentEpisode(NamedTuple):
    """An episode as V sees it."""

    mu: np.ndarray  # (T, 32) float32
    logsigma: np.ndarray  # (T, 32) float32
    actions: np.ndarray  # (T, 3) float32
    rewards: np.ndarray  # (T,) float32
    terminals: np.ndarray  # (T,) bool


class Latents(NamedTuple):
    """Where the latents of an episode are."""

    path: Path
    length: int  # T

    def read(self) -> LatentEpisode:
        with np.load(self.path, allow_pickle=False) as npz:
            return LatentEpisode(*(npz[key] for key in LatentEpisode._fields))


def encode_episodes(
    files: list[EpisodeFile],
    encoder: Encoder,
    logdir: Path,
    device: torch.device,
    precision: torch.dtype,
) -> dict[str, Latents]:
    """The latents of all readable episodes by name, from the cache or encoded now.

    `precision` is the type in which the encoder computes. Episodes that cannot be read are
    left out with one warning.
    """
    name = f"{weights_digest(encoder)[:16]}-{str(precision).removeprefix('torch.')}"
    cache = logdir / "latents" / name
    latents = {file.name: Latents(cache / file.name, file.length) for file in files}
    missing = [file for file in files if not _is_cached(latents[file.name], file.path)]
    if not missing:
        print(f"latents: all {len(files)} episodes are in {cache}")
        _drop_others(cache)
        return latents
    there = len(files) - len(missing)
    print(f"latents: {there} episodes are in {cache}, {len(missing)} are encoded now")

    tell_if_not_packed(device)
    encoder = inference_encoder(encoder, device, precision)

    def make(file: EpisodeFile) -> int | BadEpisode:
        try:
            episode = read_episode(file.path)
        except BadEpisode as reason:
            return reason
        latent = _encode(episode, encoder, device, precision)
        _write_cached(cache / file.name, file.path, latent)
        return len(latent.mu)

    # A thread for each core takes an episode from disk to disk, computing alone: one network on
    # all cores would wait at every layer for the core that is unpacking the next episode.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        min(threads, len(missing)), initializer=torch.set_num_threads, initargs=(1,)
    )
    bad = []
    try:
        frames, quiet = sum(f.length for f in missing), ranks.rank() > 0
        with tqdm(total=frames, unit="frame", desc="encoding", disable=quiet) as bar:
            for file, made in zip(missing, pool.map(make, missing), strict=True):
                bar.update(file.length)
                if isinstance(made, BadEpisode):
                    bad.append((file.name, str(made)))
                    del latents[file.name]
                else:
                    latents[file.name] = Latents(cache / file.name, made)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what the pool's threads set is also every new thread's
    if bad:
        warn_skipped(bad)
    if latents:
        _drop_others(cache)
    return latents


@torch.inference_mode()
def _encode(
    episode: Episode, encoder: Encoder, device: torch.device, precision: torch.dtype
) -> LatentEpisode:
    mus, logsigmas = [], []
    # Nearly equal parts: a small last one would take longer for each of its frames.
    parts = -(-len(episode.observations) // BATCH_SIZE[device.type, precision])
    for frames in torch.from_numpy(episode.observations).tensor_split(parts):
        mu, logsigma = encoder(pixels_to_unit(frames.to(device), precision))
        mus.append(mu.cpu())
        logsigmas.append(logsigma.cpu())
    return LatentEpisode(torch.cat(mus).numpy(), torch.cat(logsigmas).numpy(), *episode[1:])


def _drop_others(cache: Path) -> None:
    """Remove the latents of other encoders and precisions, and say so; the first rank does."""
    if ranks.rank():
        return
    for other in cache.parent.iterdir():
        if other.name == cache.name or not re.fullmatch(r"[0-9a-f]{16}(-\w+)?", other.name):
            continue
        print(f"latents: {other} is of another VAE, or of another precision, and is removed")
        with dispensable(f"{other}: room"):
            if other.is_symlink():
                other.unlink()
            else:
                shutil.rmtree(other)


def _source(path: Path) -> np.ndarray:
    """What tells that an episode's file has not changed: size and time, (2,) int64."""
    status = path.stat()
    return np.array([status.st_size, status.st_mtime_ns], np.int64)


def _write_cached(path: Path, source: Path, latent: LatentEpisode) -> None:
    # A file that a crash of the machine leaves torn is made again.
    with atomic_write(path, durable=False) as file:
        np.savez(file, source=_source(source), **latent._asdict())


def _is_cached(latents: Latents, source: Path) -> bool:
    """Whether the latents of this very episode are there, and can be read to their end."""
    if not latents.path.exists():
        return False
    try:
        with np.load(latents.path, allow_pickle=False) as npz:
            if not np.array_equal(npz["source"], _source(source)):
                return False
        return len(latents.read().mu) == latents.length
    except Exception as error:  # damaged bytes make the reader fail in any way there is
        print(f"latents: {latents.path} is damaged ({error}) and is made again")
        return False
