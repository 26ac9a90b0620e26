"""What workers on other machines need of a logdir, as bytes: V, M, and where dreams begin."""

import hashlib
import io
import os
import tempfile
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
                parcel.writestr(f"{stage}/best.tar", weights.getvalue())
        if dreams:
            starts = Starts(logdir, weights_digest(load_vae(logdir).encoder))
            for path in starts.files():
                parcel.write(path, path.relative_to(logdir))
    return file.getvalue()


def unpack(packed: bytes) -> Path:
    """The folder of this user on this machine with what `pack` took; made where it is not yet.

    Raises UserError where it is another user's.
    """
    own = Path(tempfile.gettempdir()) / f"world-models-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid():
        raise UserError(f"{own} is another user's; set TMPDIR to a folder of your own")
    folder = own / hashlib.sha256(packed).hexdigest()[:32]
    if not folder.exists():
        new = Path(tempfile.mkdtemp(dir=own))
        with zipfile.ZipFile(io.BytesIO(packed)) as parcel:
            parcel.extractall(new)
        try:
            new.rename(folder)
        except OSError:  # another worker of this machine was as quick
            if not folder.exists():
                raise
    return folder
