"""Checkpoints: torch-saved dicts, written atomically and read without running any code.

A stage's folder, `logdir/<stage>`, holds `checkpoint.tar`, the latest state, from which a
training goes on, and `best.tar`, the best model so far, which the next stage reads.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import nn

from utils.cli import UserError, first_line
from utils.files import atomic_write
from utils.learning import EarlyStopping

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


def stage_weights(logdir: Path, stage: str, command: str) -> Path:
    """The path of an earlier stage's `best.tar`.

    Raises UserError that names the stage's command where it is missing.
    """
    path = logdir / stage / "best.tar"
    if not path.exists():
        raise UserError(f"{path} does not exist; run `{command} --logdir {logdir}` first")
    return path


def save_epoch(
    folder: Path,
    epoch: int,
    loss: float,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    stopping: EarlyStopping,
    options: dict,
    about: dict[str, str],
) -> None:
    """The end of an epoch of V or M: `checkpoint.tar`, and `best.tar` if `loss` is the best.

    `best.tar` comes first: a process that is killed between the two does this epoch again
    and writes the same. `about` has what a reader should know: the episodes "to train on" and
    "held out", and what "heads" were trained.
    """
    state = {
        "epoch": epoch,
        "state_dict": model.state_dict(),
        "precision": loss,  # the name that public checkpoints have for the test loss
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "earlystopping": stopping.state_dict(),
        "options": options,
        "about": about,
    }
    if stopping.bad_epochs == 0:
        save_checkpoint(folder / "best.tar", state)
    save_checkpoint(folder / "checkpoint.tar", state)


def resume_epochs(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    stopping: EarlyStopping,
    options: dict,
    about: dict[str, str],
) -> tuple[int, bool]:
    """Load the latest state of V or M; says what was found.

    Returns the epochs that are done, and whether the loss to beat was measured on other held-out
    episodes than those of `about`: then `measure_best` has to follow. Where there is only a
    `best.tar`, or a checkpoint of another program with the same tensor names, its weights and epoch
    are taken and the optimizer starts anew. Raises UserError when `options` contradict those of the
    stored training.
    """
    path = next((p for p in (folder / "checkpoint.tar", folder / "best.tar") if p.exists()), None)
    if path is None:
        return 0, False
    state = load_weights(model, path)
    epoch = int(state.get("epoch", 0))
    if "options" not in state:
        print(f"{path}: weights of epoch {epoch}; the optimizer starts anew")
        return epoch, True
    check_options(path, state["options"], options)
    for stored_group, group in zip(
        state["optimizer"]["param_groups"], optimizer.param_groups, strict=True
    ):
        stored_group["capturable"] = group["capturable"]  # is of the device, not of the training
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    stopping.load_state_dict(state["earlystopping"])
    print(f"{path}: continuing after epoch {epoch}; best test loss {stopping.best:.4f}")
    before = state.get("about", {})  # of an earlier version, which held out others: nothing
    for part in ("to train on", "held out"):
        was, now = before.get(part, "others"), about[part]
        if was != now:
            print(f"{path}: the episodes {part} were {was}, and are {now}")
    return epoch, before.get("held out") != about["held out"]


def measure_best(
    folder: Path,
    model: nn.Module,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau,
    stopping: EarlyStopping,
    test: Callable[[], float],
) -> None:
    """Make the loss to beat that of `best.tar` on the episodes that are held out now.

    `test` measures that of the model. A loss that was measured elsewhere could never be beaten, or
    by a worse model.
    """
    path, best = folder / "best.tar", float("inf")
    if path.exists():
        latest = copy.deepcopy(model.state_dict())
        load_weights(model, path)
        best = test()
        model.load_state_dict(latest)
        print(f"{path}: test loss {best:.4f} on the episodes that are held out here")
    stopping.best, stopping.bad_epochs = best, 0
    scheduler.best, scheduler.num_bad_epochs = best, 0


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
