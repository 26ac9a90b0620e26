"""What workers on other machines need of a logdir, as bytes: V, M, and where dreams begin."""

import fcntl
import hashlib
import io
import os
import shutil
import tempfile
import time
import zipfile
from pathlib import Path

import torch

from models.logdir import load_vae, weights_digest
from models.starts import Starts
from utils.checkpoint import load_checkpoint
from utils.cli import UserError

# Of a checkpoint; the optimizer's state is three times as large.
NEEDED = ("epoch", "state_dict", "heads", "about")


def pack(logdir: Path, dreams: bool = False) -> bytes:
    """The weights of V and M in a logdir, with `dreams` also the frames where they begin."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as parcel:
        for stage in ("vae", "mdrnn"):
            path = logdir / stage / "best.tar"
            if path.exists():
                weights, state = io.BytesIO(), load_checkpoint(path)
                torch.save({key: state[key] for key in NEEDED if key in state}, weights)
                # Without a date, so that the same weights are the same parcel.
                parcel.writestr(zipfile.ZipInfo(f"{stage}/best.tar"), weights.getvalue())
        if dreams:
            starts = Starts(logdir, weights_digest(load_vae(logdir).encoder))
            for path in starts.files():
                parcel.write(path, path.relative_to(logdir))
    return file.getvalue()


def unpack(packed: bytes) -> Path:
    """The folder of this user on this machine with what `pack` took; made where it is not yet.

    Those that were not used for a week are removed. Raises UserError where it is another user's.
    """
    own = Path(tempfile.gettempdir()) / f"world-models-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid():
        raise UserError(f"{own} is another user's; set TMPDIR to a folder of your own")
    folder = own / hashlib.sha256(packed).hexdigest()[:32]
    whole = folder / "whole"
    with open(own / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of a machine start together
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            with zipfile.ZipFile(io.BytesIO(packed)) as parcel:
                parcel.extractall(folder)
        whole.touch()
        for other in own.glob("*/whole"):
            if other.stat().st_mtime < time.time() - 7 * 24 * 3600:
                shutil.rmtree(other.parent, ignore_errors=True)
    return folder
