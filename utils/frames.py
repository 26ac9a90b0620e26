"""The one way from the frames of an environment or a data set to the 64x64 frames of V."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64


def to_64(frames: Tensor) -> Tensor:
    """Frames (N, H, W, 3) uint8 -> (N, 64, 64, 3) uint8 on the same device.

    Resampled with the antialiased bilinear (triangle) filter. On the CPU that is what
    Pillow's `BILINEAR` does, with which the public checkpoints were trained: bit for bit for
    96x96 frames, within 1 for other sizes. On a GPU it is computed in float and rounded.
    Frames that are 64x64 already are returned as they are. Raises ValueError for anything
    that is not a batch of uint8 RGB frames.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"frames must be (N, H, W, 3) uint8, not {tuple(frames.shape)} {frames.dtype}"
        )
    if frames.shape[1:3] == (SIZE, SIZE) or len(frames) == 0:
        return frames if len(frames) else frames.new_empty((0, SIZE, SIZE, 3))
    # (N, H, W, 3) in memory is (N, 3, H, W) in channels_last order: a view, no copy.
    planes = frames.permute(0, 3, 1, 2)
    on_cpu = frames.device.type == "cpu"
    resized = F.interpolate(
        planes if on_cpu else planes.float(), size=(SIZE, SIZE), mode="bilinear", antialias=True
    )
    if not on_cpu:
        resized = resized.round().clamp(0, 255).to(torch.uint8)
    return resized.permute(0, 2, 3, 1).contiguous()


def pixels_to_unit(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Frames (N, 64, 64, 3) uint8 -> (N, 3, 64, 64) in [0, 1], channels_last in memory."""
    return frames.permute(0, 3, 1, 2).to(dtype).div_(255)


def unit_to_pixels(frames: Tensor) -> Tensor:
    """Frames (N, 3, 64, 64) in [0, 1], as V decodes them -> (N, 64, 64, 3) uint8."""
    return (frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).contiguous()
