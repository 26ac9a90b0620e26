"""The episode format (npz): write, read, check, list and split. Nobody else opens an episode.

An episode of T steps is a compressed npz with
    observations (T, 64, 64, 3) uint8   observations[t] is the frame seen after actions[t]
    actions      (T, 3) float32         steering, gas, brake, as they were executed
    rewards      (T,) float32
    terminals    (T,) bool              the episode ended by itself, not by the time limit
so the transition t -> t + 1 is (observations[t], actions[t + 1], rewards[t + 1],
terminals[t + 1], observations[t + 1]). Public data sets of this form are read as well: frames
of any size, sub-folders, and the actions of a whole plan where the episode ended before it (those
that nothing followed are dropped).
"""

import hashlib
import io
import math
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import deflate
import numpy as np
import torch

from utils.cli import UserError
from utils.files import atomic_write
from utils.frames import to_64

# Level 3 of zlib is twice as fast as NumPy's level 6 on these frames, for files a third larger.
# Level 1 is hardly faster than 3, and its files are a quarter larger and slower to inflate.
LEVEL = 3

# At least what the header of a npy array takes: numpy refuses one of more than 10,000 characters.
HEADER_BYTES = 2**16

KEYS = ("observations", "actions", "rewards", "terminals")


class Episode(NamedTuple):
    """One episode in memory; see the module's description."""

    observations: np.ndarray  # (T, 64, 64, 3) uint8
    actions: np.ndarray  # (T, 3) float32
    rewards: np.ndarray  # (T,) float32
    terminals: np.ndarray  # (T,) bool


class BadEpisode(Exception):
    """A file that is not a usable episode; the message says why."""


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """An episode's file, which takes its name when all is written.

    Raises UserError where that is impossible: a full disk, a folder that is read-only.
    """
    try:
        with atomic_write(path) as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}); the episodes that are "
            "complete are kept: make room and run the same command again"
        ) from None


def write_episode(path: Path, episode: Episode) -> None:
    """Write a compressed npz atomically; `np.load(path, allow_pickle=False)` reads it.

    Raises as `writing` does.
    """
    with (
        writing(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as npz,
    ):
        for key in KEYS:
            with npz.open(f"{key}.npy", "w") as member:
                array = np.ascontiguousarray(getattr(episode, key))
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_episode(path: Path) -> Episode:
    """Read and check an episode; frames of another size are resized to 64x64.

    Raises BadEpisode for a file that is no usable episode.
    """
    arrays = _read_arrays(path, KEYS)
    _check(arrays["observations"], {key: arrays[key] for key in KEYS[1:]})
    observations = to_64(torch.from_numpy(arrays["observations"])).numpy()
    return Episode(observations, *_clean(arrays, len(observations)))


def check_episode(path: Path) -> tuple[int, int]:
    """T of an episode whose headers and signals are in order, and the check sum of its frames.

    These are not unpacked. Raises BadEpisode where something is wrong.
    """
    length = episode_length(path)
    _clean(_read_arrays(path, KEYS[1:]), length)
    with _open(path) as npz:
        return length, npz.getinfo("observations.npy").CRC


def _read_arrays(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    with _open(path) as npz:
        return {key: _unpack(npz, key) for key in keys}


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive that has all KEYS; whatever goes wrong in the block is raised as BadEpisode."""
    try:
        with zipfile.ZipFile(path) as npz:
            missing = [key for key in KEYS if f"{key}.npy" not in npz.namelist()]
            if missing:
                raise BadEpisode(f"has no {', '.join(missing)}")
            yield npz
    except BadEpisode:
        raise
    except Exception as error:  # damaged bytes make the readers fail in any way there is
        raise BadEpisode(str(error).splitlines()[0] if str(error) else "cannot be read") from error


def _unpack(npz: zipfile.ZipFile, key: str) -> np.ndarray:
    """One array of an archive.

    What is deflated, libdeflate inflates straight from the file: 4 ms for 1000 frames, where
    np.load takes 14.
    """
    info = npz.getinfo(f"{key}.npy")
    encrypted = info.flag_bits & 1
    if info.compress_type != zipfile.ZIP_DEFLATED or encrypted:
        data = bytearray(npz.read(info))  # which says what is wrong with it, if anything
    else:
        npz.fp.seek(info.header_offset)
        name_size, extra_size = struct.unpack("<26x2H", npz.fp.read(30))
        npz.fp.seek(name_size + extra_size, os.SEEK_CUR)
        data = deflate.deflate_decompress(npz.fp.read(info.compress_size), info.file_size)
        if len(data) != info.file_size or deflate.crc32(data) != info.CRC:
            raise BadEpisode(f"{key} has a wrong check sum")
    member = io.BytesIO(memoryview(data)[:HEADER_BYTES])
    shape, fortran_order, dtype = _read_header(member, key)
    array = np.frombuffer(data, dtype, math.prod(shape), member.tell())
    return array.reshape(shape, order="F" if fortran_order else "C")


def _read_header(member: BinaryIO, key: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of the npy array that is read; raises BadEpisode for pickled ones."""
    version = np.lib.format.read_magic(member)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise BadEpisode(f"{key} is of an unknown npy version {version}")
    shape, fortran_order, dtype = read(member)
    if dtype.hasobject:
        raise BadEpisode(f"{key} is an array of Python objects")
    return shape, fortran_order, dtype


def episode_length(path: Path) -> int:
    """T of an episode, from the headers of its arrays: nothing is decompressed.

    Raises BadEpisode where keys, shapes or types are wrong; `check_episode` looks at actions
    and rewards, and `read_episode` at the frames as well.
    """
    headers = {}
    with _open(path) as npz:
        for key in KEYS:
            with npz.open(f"{key}.npy") as member:
                shape, _, dtype = _read_header(member, key)
                # A broadcast scalar: shape and type of the array, none of its memory.
                headers[key] = np.broadcast_to(np.zeros((), dtype), shape)
    _check(headers["observations"], {key: headers[key] for key in KEYS[1:]})
    return len(headers["observations"])


def _check(observations: np.ndarray, signals: dict[str, np.ndarray]) -> None:
    """Raise BadEpisode where shapes or types are not those of the format."""
    if observations.dtype != np.uint8 or observations.ndim != 4 or observations.shape[3] != 3:
        raise BadEpisode(
            f"observations are {observations.shape} {observations.dtype}, not (T, H, W, 3) uint8"
        )
    length = len(observations)
    if length == 0 or 0 in observations.shape:
        raise BadEpisode("has no frames")
    actions, rewards, terminals = (signals[key] for key in KEYS[1:])
    if actions.ndim != 2 or actions.shape[1] != 3 or actions.dtype.kind not in "fiu":
        raise BadEpisode(f"actions are {actions.shape} {actions.dtype}, not (T, 3) float")
    if rewards.ndim != 1 or rewards.dtype.kind not in "fiu":
        raise BadEpisode(f"rewards are {rewards.shape} {rewards.dtype}, not (T,) float")
    if terminals.ndim != 1 or terminals.dtype.kind not in "bfiu":
        raise BadEpisode(f"terminals are {terminals.shape} {terminals.dtype}, not (T,) bool")
    if len(actions) < length or len(rewards) != length:
        raise BadEpisode(f"{length} frames, but {len(actions)} actions and {len(rewards)} rewards")
    if len(terminals) != length:
        raise BadEpisode(f"{length} frames, but {len(terminals)} terminals")


def _clean(arrays: dict[str, np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions, rewards and terminals of `length` steps in the format's types."""
    actions = arrays["actions"][:length].astype(np.float32)
    rewards = arrays["rewards"].astype(np.float32)
    if not np.isfinite(actions).all():
        raise BadEpisode("has actions that are NaN or infinite")
    if not np.isfinite(rewards).all():
        raise BadEpisode("has rewards that are NaN or infinite")
    return actions, rewards, arrays["terminals"].astype(bool)


class EpisodeFile(NamedTuple):
    """An episode on disk whose headers and signals are in order."""

    path: Path
    name: str  # relative to the root, with forward slashes
    length: int  # T
    checksum: int  # of its frames


def list_episodes(rootdir: Path) -> list[EpisodeFile]:
    """All usable episodes below `rootdir`, sorted by name.

    Files that are none are left out with one warning that counts and names them. Raises
    UserError when the folder is missing or nothing usable is in it.
    """
    files, bad = find_episodes(rootdir)
    if bad:
        warn_skipped(bad)
    return files


def find_episodes(rootdir: Path) -> tuple[list[EpisodeFile], list[tuple[str, str]]]:
    """The usable episodes below `rootdir`, and (name, reason) of those that are not.

    Raises as `list_episodes` does, whose order this is.
    """
    if rootdir.exists() and not rootdir.is_dir():
        raise UserError(f"--rootdir {rootdir} is no folder; give the folder around the episodes")
    if not rootdir.is_dir():
        raise UserError(
            f"--rootdir {rootdir} does not exist; "
            f"run `python data/generation_script.py --rootdir {rootdir}` first"
        )
    files, bad = [], []
    for path in _each_once(rootdir, bad):
        relative = path.relative_to(rootdir).as_posix()
        try:
            length, checksum = check_episode(path)
            files.append(EpisodeFile(path, relative, length, checksum))
        except BadEpisode as reason:
            bad.append((relative, str(reason)))
    if not files:
        if bad:
            warn_skipped(bad)
        raise UserError(
            f"--rootdir {rootdir} holds no usable episode; "
            f"run `python data/generation_script.py --rootdir {rootdir}` first"
        )
    return sorted(files, key=lambda file: file.name), bad


def read_signals(file: EpisodeFile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions (T, 3), rewards (T,) and terminals (T,) of an episode; its frames stay packed."""
    return _clean(_read_arrays(file.path, KEYS[1:]), file.length)


def _each_once(rootdir: Path, bad: list[tuple[str, str]]) -> Iterator[Path]:
    """All npz files below a folder, also by links, but no file and no folder by two names.

    An episode under a second name could be trained on and held out. Where there is a choice, a file
    goes by the name that leads over fewer links. Folders that cannot be read are added to `bad`.
    """
    seen = set()

    def new(path: Path) -> bool:
        try:
            status = path.stat()
        except OSError:  # is reported where it is read
            return True
        # Some file systems have no numbers for their files.
        identity = (status.st_dev, status.st_ino) if status.st_ino else path.resolve()
        return not (identity in seen or seen.add(identity))

    files, folders, links = [], [rootdir], []
    while folders or links:
        folder = folders.pop(0) if folders else links.pop(0)
        if not new(folder):
            continue
        try:
            inside = sorted(folder.iterdir())
        except PermissionError as error:  # lost+found, for one
            if folder == rootdir:
                raise
            bad.append((folder.relative_to(rootdir).as_posix(), error.strerror))
            continue
        for path in inside:
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif path.suffix == ".npz" and not path.name.startswith("."):
                files.append(path)
    for path in sorted(files, key=Path.is_symlink):
        if new(path):
            yield path


def warn_skipped(bad: list[tuple[str, str]]) -> None:
    """One warning for all (name, reason) that are skipped."""
    shown = "; ".join(f"{name}: {reason}" for name, reason in sorted(bad)[:10])
    more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
    warnings.warn(f"skipped {len(bad)} unusable episodes ({shown}{more})", stacklevel=3)


def split_episodes(files: list[EpisodeFile]) -> tuple[list[EpisodeFile], list[EpisodeFile]]:
    """Training and held-out episodes: about a tenth held out, at least one.

    An episode's side depends on its own name alone, so it stays when others come or go. Only
    where all would be on one side, in sets of a few episodes, they are told apart by comparing
    them. Raises UserError when there are fewer than two.
    """
    if len(files) < 2:
        raise UserError(
            "there is only one usable episode, and one must be held out; generate at least two"
        )
    held_out = {file.name for file in files if _is_held_out(file.name)}
    if len(held_out) in (0, len(files)):
        by_hash = sorted(files, key=lambda file: hashlib.sha256(file.name.encode()).digest())
        held_out = {file.name for file in by_hash[: max(1, len(files) // 10)]}
    elif len(held_out) > len(files) / 4:
        print(f"{len(held_out)} of {len(files)} episodes are held out: by number, see README")
    return (
        [file for file in files if file.name not in held_out],
        [file for file in files if file.name in held_out],
    )


def _is_held_out(name: str) -> bool:
    """Every tenth by its number, from the 9th on; by its name where that has no number.

    Its folder is no part of the number: it may tell how many processes there were.
    """
    numbered = re.fullmatch(r"(?:.*/)?rollout_(\d+)\.npz", name)
    if numbered:
        return int(numbered[1]) % 10 == 9
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10 == 0


def describe_episodes(files: list[EpisodeFile]) -> str:
    """How many episodes there are, and a fingerprint of their frames, whatever their names."""
    digest = hashlib.sha256(repr(sorted((file.checksum, file.length) for file in files)).encode())
    return f"{len(files)} episodes ({digest.hexdigest()[:8]})"


def split_readable(files: list[EpisodeFile]) -> tuple[list[EpisodeFile], list[EpisodeFile]]:
    """`split_episodes` with held-out episodes that can all be read to their last frame.

    Those that cannot are left out with a warning, and others are held out in their place.
    """
    while True:
        training, held_out = split_episodes(files)
        bad = []
        for file in held_out:
            try:
                read_episode(file.path)
            except BadEpisode as reason:
                bad.append((file.name, str(reason)))
        if not bad:
            return training, held_out
        warn_skipped(bad)
        names = {name for name, _ in bad}
        files = [file for file in files if file.name not in names]
