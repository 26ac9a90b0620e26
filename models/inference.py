"""V's encoder where it is not trained: for driving and for the latents of a data set."""

import copy

import torch
from torch import Tensor

from models.vae import Encoder


class PackedEncoder(Encoder):
    """An encoder for inference alone in bfloat16 on the CPU: the same results, sooner.

    oneDNN wants a convolution's weights in an order of its own. `nn.Conv2d` brings them into it
    in every call, and the ReLU is another pass over the output; here they are put in order once
    and the ReLU is part of the convolution, by the operators with which torch.compile does it.
    """

    def __init__(self, encoder: Encoder):
        super().__init__(encoder.fc_mu.out_features)
        self.to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_(False).eval()
        self.load_state_dict(encoder.state_dict())
        self.packed = []
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            order = (conv.padding, conv.stride, conv.dilation, conv.groups)
            weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *order)
            self.packed.append((weight, conv.bias, *order))

    def features(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, 64, 64) in [0, 1], bfloat16 -> features (N, 1024)."""
        x = frames
        for layer in self.packed:
            x = torch.ops.mkldnn._convolution_pointwise(x, *layer, "relu", [], "")
        return x.flatten(1)


def inference_encoder(encoder: Encoder, device: torch.device, precision: torch.dtype) -> Encoder:
    """A copy of the encoder for inference alone, on `device` in `precision`.

    In bfloat16 on the CPU it is packed, which gains the more the fewer frames there are. In
    float32 that would be slower for many frames.
    """
    if device.type == "cpu" and precision == torch.bfloat16:
        return PackedEncoder(encoder)
    encoder = copy.deepcopy(encoder).to(device, precision, memory_format=torch.channels_last)
    return encoder.requires_grad_(False).eval()
