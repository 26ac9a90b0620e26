"""What a GPU does again and again, recorded once as a CUDA graph and replayed."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Calls before the recording, in which libraries choose their algorithms and optimizers make
# their state; both would be in the recording otherwise.
WARM_UP = 3


def recorded(step: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`step` as it is on the CPU; on a GPU, `step` as a RecordedStep."""
    return RecordedStep(step, device) if device.type == "cuda" else step


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all recordings on a GPU: cuBLAS keeps memory for each stream that it sees."""
    return torch.cuda.Stream(device)


class RecordedStep:
    """A step on the GPU `device` that is replayed as a whole instead of launched kernel by kernel.

    With the small batches of this method a GPU is done with a kernel long before Python has
    launched the next one. `step` takes tensors, returns a tensor, a dict of them or None, and
    must not wait for the GPU. It is called WARM_UP times and then recorded; from
    then on inputs are copied into those of the recording, and what is returned is overwritten
    by the next call. Inputs of other shapes than the recorded ones, such as a last batch, are
    computed by `step` itself. Numbers that are no tensors, such as a learning rate, stay what
    they were: record anew when they change.
    """

    def __init__(self, step: Callable[..., Any], device: torch.device):
        self.step, self.device = step, device
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: Any = None
        self.side = side_stream(device)

    def __call__(self, *inputs: Tensor) -> Any:
        if self.graph is None and self.calls < WARM_UP:
            self.calls += 1
            # On another stream, as the recording is: autograd remembers its leaves' stream.
            self.side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.side), warnings.catch_warnings():
                # An optimizer that is to be recorded warns that it is not: it will be.
                warnings.filterwarnings("ignore", "This instance was constructed with capturable")
                outputs = self.step(*inputs)
            torch.cuda.current_stream(self.device).wait_stream(self.side)
            return outputs
        if self.graph is None:
            self._record(inputs)
        if any(own.shape != new.shape for own, new in zip(self.inputs, inputs, strict=True)):
            return self.step(*inputs)
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile: one reads the next frames to the GPU.
        recording = torch.cuda.graph(graph, stream=self.side, capture_error_mode="thread_local")
        with torch.cuda.device(self.device), recording:
            self.outputs = self.step(*self.inputs)
        self.graph = graph
