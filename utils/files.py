"""Files that are complete or absent, and folders that one process at a time writes to."""

import errno
import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.cli import UserError

TEMPORARY = ".tmp"

# What a file system answers that cannot do what it is asked for.
NOT_SUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only when the block ended without an error.

    A process that is killed in between leaves at most a file that ends in `.tmp`, which
    nothing reads and the next write of `path` removes; an error removes it at once, and what
    was at `path` stays. One process at a time writes a path. `durable` waits for the disk, so that
    this holds as well where the machine itself stops.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}"):
        stale.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            yield file
            if durable:
                file.flush()
                _sync(file)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)  # a write or a sync does not know it
        raise


def _sync(file: BinaryIO) -> None:
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:  # of file systems that have none, which is no failure
            raise


@contextmanager
def exclusive(folder: Path, what: str) -> Iterator[None]:
    """Let one process at a time do `what` in `folder`; the second one gets a UserError.

    The lock is the kernel's: it ends with the process, however that ended. Where the file system
    has none (NFS, Lustre and FUSE, as they may be mounted), a line says so.
    """
    path = folder / f".{what}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # that of another user will do, too
            lock = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written to: {error.strerror}") from None
    with os.fdopen(lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is running the stage {what} there; "
                "wait for its end, or use another folder"
            ) from None
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise UserError(f"{path} cannot be locked: {error.strerror}") from None
            print(
                f"{folder}: its file system has no locks ({error.strerror}), so nothing here keeps "
                f"another process from running the stage {what} there: see to it that none does"
            )
        yield
