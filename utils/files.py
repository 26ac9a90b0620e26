"""Files that are complete or absent, and folders that one process at a time writes to."""

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.cli import UserError

TEMPORARY = ".tmp"


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
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def exclusive(folder: Path, what: str) -> Iterator[None]:
    """Let one process at a time do `what` in `folder`; the second one gets a UserError.

    The lock is the kernel's: it ends with the process, however that ended.
    """
    path = folder / f".{what}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115 (errors of the body are not ours to catch)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is running the stage {what} there; "
                "wait for its end, or use another folder"
            ) from None
        yield
