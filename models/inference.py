"""V's encoder where it is not trained: for driving and for the latents of a data set."""

import copy

import torch
from torch import Tensor

from models.vae import Encoder

# The most frames that the packed encoder takes in float32. It gains less the more frames there are:
# with 128 of them some percent (AVX2), or nothing (AVX-512, where it is slower).
FEW_FRAMES = 64


class PackedEncoder(Encoder):
    """An encoder for inference alone on the CPU: the same results, faster.

    oneDNN wants a convolution's weights in an order of its own. `nn.Conv2d` brings them into it
    in every call, which is most of the time of a single frame, and the ReLU is another pass over
    the output; here they are put in order once and the ReLU is part of the convolution, by the
    operators with which torch.compile does it.
    """

    def __init__(self, encoder: Encoder, precision: torch.dtype):
        super().__init__(encoder.fc_mu.out_features)
        self.load_state_dict(encoder.state_dict())
        for_inference(self, precision)
        self.packed = []
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            order = (conv.padding, conv.stride, conv.dilation, conv.groups)
            weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *order)
            self.packed.append((weight, conv.bias, *order))

    def features(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, 64, 64) in [0, 1], in the encoder's precision -> features (N, 1024)."""
        if frames.dtype == torch.float32 and len(frames) > FEW_FRAMES:
            return super().features(frames)
        x = frames
        for layer in self.packed:
            x = torch.ops.mkldnn._convolution_pointwise(x, *layer, "relu", [], "")
        return x.flatten(1)


def for_inference(encoder: Encoder, precision: torch.dtype) -> Encoder:
    """The encoder itself, its convolutions in `precision` and its outputs in float32.

    mu in bfloat16 would be a third more off than the convolutions alone make it, for no time.
    """
    for conv in (encoder.conv1, encoder.conv2, encoder.conv3, encoder.conv4):
        conv.to(precision, memory_format=torch.channels_last)
    return encoder.requires_grad_(False).eval()


def can_pack() -> bool:
    """Whether this torch has the operators of PackedEncoder, which are not of its public ones."""
    names = ("_reorder_convolution_weight", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )


def tell_if_not_packed(device: torch.device) -> None:
    """Say on a line where the CPU has to do with the slower encoder, and why."""
    if device.type == "cpu" and not can_pack():
        print(f"V's encoder: not packed, for torch {torch.__version__} has no oneDNN for it here")


def inference_encoder(encoder: Encoder, device: torch.device, precision: torch.dtype) -> Encoder:
    """A copy of the encoder for inference alone, on `device` in `precision`.

    On the CPU it is packed, where torch can do that.
    """
    if device.type == "cpu" and can_pack():
        return PackedEncoder(encoder, precision)
    return for_inference(copy.deepcopy(encoder).to(device), precision)
