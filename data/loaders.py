"""Batches for training: frames for V, windows of latents for M."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from data.episodes import BadEpisode, EpisodeFile, read_episode, warn_skipped
from data.latents import Latents
from utils.cli import UserError
from utils.frames import SIZE

# What a FrameLoader holds at most, in bytes of uint8 frames; half of it is in use while the
# other half is read. 87,000 frames.
BUFFER_BYTES = 2**30
FRAME_BYTES = SIZE * SIZE * 3


class FrameLoader:
    """Batches of single frames out of many episodes, in bounded memory.

    An epoch takes the episodes in random order, reads as many as fit in half the buffer,
    draws their frames in random order, and reads the next half in the background meanwhile.
    Every frame comes once an epoch. A data set that fits in half the buffer, on a GPU in
    a third of its free memory, is read once and kept. Frames stay uint8 and lie on `device`.
    """

    def __init__(
        self,
        files: list[EpisodeFile],
        batch_size: int,
        device: torch.device,
        shuffle: bool,
        buffer_bytes: int = BUFFER_BYTES,
    ):
        self.files, self.batch_size, self.device = files, batch_size, device
        self.shuffle = shuffle
        self.half = buffer_bytes // 2
        whole = sum(file.length for file in files) * FRAME_BYTES
        room = self.half
        if device.type == "cuda":  # takes a third of its free memory at most, kept or in two halves
            room = torch.cuda.mem_get_info(device)[0] // 3
            self.half = min(self.half, room // 2)
        self.fits = whole <= room
        self._kept: Tensor | None = None
        self._bad: dict[str, str] = {}

    def __len__(self) -> int:
        """Frames in an epoch."""
        return sum(file.length for file in self.files if file.name not in self._bad)

    def epoch(self, generator: np.random.Generator) -> Iterator[Tensor]:
        """Batches (B, 64, 64, 3) uint8 on the device; the last one may be smaller.

        `generator` draws the order when the loader shuffles.
        """
        chunks = self._chunks(generator)
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._read, chunks[0])
            left_over: Tensor | None = None
            for i in range(len(chunks)):
                frames = coming.result()
                if i + 1 < len(chunks):
                    coming = reader.submit(self._read, chunks[i + 1])
                order = None
                if self.shuffle:  # on the device once, not a copy to wait for at each batch
                    order = torch.from_numpy(generator.permutation(len(frames))).to(self.device)
                left_over = yield from self._batches(frames, order, left_over)
            if left_over is not None and len(left_over):
                yield left_over

    def sample(self, n: int) -> Tensor:
        """n frames (n, 64, 64, 3) uint8 on the device, spread evenly over the first half buffer."""
        frames = self._read(self._chunks(np.random.default_rng(0))[0])
        return frames[torch.linspace(0, len(frames) - 1, n, device=frames.device).long()]

    def _batches(self, frames: Tensor, order: Tensor | None, left_over: Tensor | None):
        """Full batches out of one half of the buffer; returns the frames that are left over."""
        first = 0
        if left_over is not None and len(left_over):
            first = min(self.batch_size - len(left_over), len(frames))
            joined = torch.cat([left_over, self._take(frames, order, 0, first)])
            if len(joined) < self.batch_size:
                return joined
            yield joined
        for start in range(first, len(frames), self.batch_size):
            batch = self._take(frames, order, start, start + self.batch_size)
            if len(batch) < self.batch_size:
                return batch.clone()
            yield batch
        return None

    def _take(self, frames: Tensor, order: Tensor | None, start: int, stop: int) -> Tensor:
        if order is None:
            return frames[start:stop]
        return frames.index_select(0, order[start:stop])

    def _chunks(self, generator: np.random.Generator) -> list[list[EpisodeFile]]:
        """The epoch's episodes in groups of at most half the buffer (one episode at least)."""
        if self.fits:
            return [self.files]
        order = generator.permutation(len(self.files)) if self.shuffle else range(len(self.files))
        chunks, size = [], self.half
        for i in order:
            file = self.files[i]
            if size + file.length * FRAME_BYTES > self.half:
                chunks.append([])
                size = 0
            chunks[-1].append(file)
            size += file.length * FRAME_BYTES
        return chunks

    def _read(self, chunk: list[EpisodeFile]) -> Tensor:
        """The frames of some episodes, (N, 64, 64, 3) uint8 on the device."""
        if self._kept is not None:
            return self._kept
        length = sum(file.length for file in chunk)
        shape = (length, SIZE, SIZE, 3)
        buffer = torch.empty(shape, dtype=torch.uint8, device=self.device)
        end, bad = 0, []
        for file in chunk:
            try:
                observations = read_episode(file.path).observations
            except BadEpisode as reason:
                if file.name not in self._bad:
                    bad.append((file.name, str(reason)))
                continue
            place = buffer[end : end + len(observations)]
            if self.device.type == "cpu":
                # numpy copies: torch would do it with a second team of OpenMP threads beside the
                # training's, and where there are more threads than cores none of them spins any
                # more, but all go to sleep at every barrier (the training is a sixth slower).
                place.numpy()[:] = observations
            else:
                place.copy_(torch.from_numpy(observations))
            end += len(observations)
        if bad:
            self._bad.update(bad)
            warn_skipped(bad)
            if len(self._bad) == len(self.files):
                raise UserError("none of the episodes can be read; generate them again")
        frames = buffer[:end]
        if self.fits:
            self._kept = frames
        return frames


class WindowLoader:
    """Windows of `seq_len` transitions out of encoded episodes, all in memory on `device`.

    Each episode of T steps has T - 1 transitions, and ceil((T - 1) / seq_len) windows that
    cover them all; in training the inner windows are shifted at random each epoch.
    """

    def __init__(
        self,
        episodes: list[Latents],
        batch_size: int,
        seq_len: int,
        device: torch.device,
        shuffle: bool,
    ):
        self.batch_size, self.seq_len, self.shuffle = batch_size, seq_len, shuffle
        self.lengths = np.array([episode.length for episode in episodes], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])[:-1]
        if episodes and not (self.lengths > seq_len).any():
            raise UserError(
                f"--seq-len {seq_len}: no episode is longer than that "
                f"(the longest has {self.lengths.max(initial=0)} frames)"
            )

        # All of a frame in one row, (N, 69) with 32 latents, so that a window is one look-up.
        # Filled one episode after the other, so that a data set is in memory once.
        latent_size = episodes[0].read().mu.shape[1] if episodes else 0
        self.sizes = [latent_size, latent_size, 3, 1, 1]
        self.table = torch.empty(int(self.lengths.sum()), sum(self.sizes), device=device)
        for offset, length, episode in zip(self.offsets, self.lengths, episodes, strict=True):
            rows = np.column_stack(episode.read()).astype(np.float32)
            self.table[offset : offset + length] = torch.from_numpy(rows)

    def starts(self, generator: np.random.Generator) -> np.ndarray:
        """First frame of each window of an epoch, (W,), counted through all episodes."""
        windows = [np.empty(0, np.int64)]
        for offset, length in zip(self.offsets, self.lengths, strict=True):
            last = length - 1 - self.seq_len  # the latest start that has all its transitions
            if last < 0:
                continue
            n = -(-(length - 1) // self.seq_len)
            starts = np.linspace(0, last, n).round().astype(np.int64)
            if self.shuffle and n > 2:
                shift = generator.integers(-(self.seq_len // 2), self.seq_len // 2 + 1, size=n - 2)
                starts[1:-1] = np.clip(starts[1:-1] + shift, 0, last)
            windows.append(offset + starts)
        windows = np.concatenate(windows)
        return generator.permutation(windows) if self.shuffle else windows

    def rows(self, generator: np.random.Generator) -> Iterator[Tensor]:
        """An epoch's batches of windows as numbers of frames (seq_len + 1, B), for `look_up`.

        The last one may be smaller.
        """
        device = self.table.device
        starts = torch.from_numpy(self.starts(generator)).to(device)
        steps = torch.arange(self.seq_len + 1, device=device)[:, None]
        for begin in range(0, len(starts), self.batch_size):
            yield starts[None, begin : begin + self.batch_size] + steps

    def look_up(self, rows: Tensor) -> dict[str, Tensor]:
        """A batch of windows, given the numbers of its frames (seq_len + 1, B).

        Keys: `mu` and `logsigma` (seq_len + 1, B, 32) of all frames of a window, and of each
        transition from frame t to t + 1 the `actions` (seq_len, B, 3), taken on frame t and
        stored with t + 1, and the `rewards` and `terminals` (seq_len, B) of t + 1.
        """
        window = self.table.index_select(0, rows.flatten()).view(*rows.shape, -1)
        mu, logsigma, actions, rewards, terminals = window.split(self.sizes, dim=-1)
        return {
            "mu": mu,
            "logsigma": logsigma,
            "actions": actions[1:],
            "rewards": rewards[1:, :, 0],
            "terminals": terminals[1:, :, 0],
        }
