"""Devices, precision and threads: where and how a script computes."""

import functools
import os

import torch

from utils.cli import OTHER_DEVICE, UserError, first_line, gpu_is_full
from utils.cores import available_cores


def choose_device(name: str) -> torch.device:
    """The device for `--device NAME`; `auto` takes a GPU where there is one that works.

    Raises UserError for a device that does not exist or does not work.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        why = why_no_gpu(torch.device("cuda"))
        if why is None:
            return torch.device("cuda")
        print(f"device: the CPU, for the GPU cannot be used ({why})")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; use auto, cpu or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: not supported; use auto, cpu or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: {torch.cuda.device_count()} GPUs are visible here "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); "
            "use --device cpu or change CUDA_VISIBLE_DEVICES"
        )
    # GPUs are counted by another library than the one that computes.
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: there is a GPU, but this torch ({torch.__version__}) cannot use "
            "its driver; use --device cpu, update the driver or install another torch"
        )
    why = why_no_gpu(device) if device.type == "cuda" else None
    if why is not None:
        raise UserError(f"--device {name}: {why}; {OTHER_DEVICE}")
    return device


@functools.cache
def why_no_gpu(device: torch.device) -> str | None:
    """What CUDA says at the first use of a GPU, or None where it computes.

    A GPU can be there, and lack kernels in this torch, be broken, or be held by others. One that is
    only full works: that is for the one to mend who filled it.
    """
    try:
        torch.ones(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        if not gpu_is_full(error):
            return first_line(error)
    return None


def use_available_cores() -> None:
    """Let torch compute on no more threads than there are cores: it does not know of quotas."""
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


def fast_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes with it natively, float32 elsewhere."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return torch.bfloat16 if native else torch.float32


def training_precision(device: torch.device) -> torch.dtype:
    """The type in which V and M are trained: float32 on a GPU, `fast_precision` elsewhere.

    On a GPU a small batch's conversions to bfloat16 and back take more of V's step than they
    save; and under autocast, cuDNN's LSTM computes in float16 whatever type was asked for, in
    which M's small gradients vanish. Convolutions and the LSTM use TF32 where the GPU has it.
    """
    return torch.float32 if device.type == "cuda" else fast_precision(device)


def describe(device: torch.device, precision: torch.dtype) -> str:
    """One line about where a script computes, for the terminal."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    threads = f"{torch.get_num_threads()} threads"
    return f"device: {device} ({name}, {threads}), {str(precision).removeprefix('torch.')}"
