"""Checkpoints: torch-saved dicts, written atomically and read without running any code.

A stage's folder, `logdir/<stage>`, holds `checkpoint.tar`, the latest state, from which a
training goes on, and `best.tar`, the best model so far, which the next stage reads.
"""

import time
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import nn

from utils.cli import UserError, first_line
from utils.files import atomic_write

# Public checkpoints hold their losses as NumPy scalars; these are the harmless parts of one.
_NUMPY_SCALARS = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np._core.multiarray.scalar,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` to `path`, atomically. Raises UserError where that is impossible."""
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError of its zip writer.
        raise UserError(f"{path} could not be written ({error}); what was there is kept") from error


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint onto the CPU with `weights_only=True`.

    Raises UserError when it is missing, truncated, not a checkpoint, or holds anything
    but tensors and plain data.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnpicklingError:
        raise UserError(
            f"{path} is no checkpoint of tensors and plain data, so it was not loaded and nothing "
            "in it was run; put back a good copy or train again with --noreload"
        ) from None
    except Exception as error:  # damaged bytes make the reader fail in any way there is
        raise UserError(
            f"{path} is damaged or not a checkpoint ({first_line(error)}); "
            "put back a good copy or train again with --noreload"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a checkpoint")
    return state


def load_weights(module: nn.Module, path: Path, part: str = "") -> dict:
    """Load the `state_dict` of the checkpoint at `path` into `module`; returns the checkpoint.

    `part` is the prefix of a sub-module when only that is wanted ("encoder."). Raises
    UserError when names or shapes do not fit.
    """
    state = load_checkpoint(path)
    weights = state.get("state_dict")
    if not isinstance(weights, dict):
        raise UserError(f"{path} has no state_dict: it is not a checkpoint of this program")
    weights = {name.removeprefix(part): w for name, w in weights.items() if name.startswith(part)}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise UserError(f"{path} is of another model: {lines[0] if lines else error}") from None
    return state


def set_aside(folder: Path) -> None:
    """`--noreload`: keep a stage's folder under a dated name and say so."""
    if folder.exists():
        kept = folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        n = 1
        while kept.exists():
            n += 1
            kept = folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-{n}")
        folder.rename(kept)
        print(f"--noreload: the earlier {folder} is kept as {kept}")


def check_options(path: Path, stored: dict, asked: dict) -> None:
    """Raise UserError for an option that contradicts the training stored at `path`."""

    def said(name: str, value) -> str:
        if isinstance(value, bool):
            return f"with --{name}" if value else f"without --{name}"
        return f"with --{name} {value}"

    for name, value in asked.items():
        if name in stored and stored[name] != value:
            raise UserError(
                f"{said(name, value).removeprefix('with ')}: the training in {path} was begun "
                f"{said(name, stored[name])}; use that, or --noreload to start afresh"
            )
