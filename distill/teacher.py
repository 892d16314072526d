"""The frozen teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import DistillError
from .taps import Tap


class FrozenTeacher:
    """Holds a teacher so that nothing can train it.

    It is no module and so appears in no module tree: `train()`, `to()`, `parameters()` and `state_dict()` of whoever
    holds it never reach the network. Should its mode have been changed through another parent, it is put back before
    each use, so BatchNorm never computes batch statistics and no buffer ever changes.

    Args:
        model: the teacher. It is put in evaluation mode, its parameters stop requiring gradients and their `.grad` is
            dropped; with `half`, it is converted in place.
        tap: where its features are read.
        half: run in half precision; None means yes on a CUDA device and no elsewhere.
    """

    def __init__(self, model: nn.Module, tap: Tap, half: bool | None = None) -> None:
        self.model = model
        self.tap = tap
        self._modules = tuple(model.modules())
        parameter = next(model.parameters(), None)
        if parameter is None:
            raise DistillError("the teacher has no parameters; load its weights first")
        self.device = parameter.device
        model.eval().requires_grad_(False)
        model.zero_grad(set_to_none=True)
        on_cuda = self.device.type == "cuda"
        if half if half is not None else on_cuda:
            model.half()
        if on_cuda:
            model.to(memory_format=torch.channels_last)
        self.dtype = next(model.parameters()).dtype

    @torch.no_grad()
    def __call__(self, images: Tensor, with_head: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Raw head maps (empty without the head) and tapped features, without gradients, on the images' device.

        Args:
            images: (N, 3, H, W), normalised as the student saw them.
            with_head: False lets the network stop after its last tapped layer.
        """
        if any(module.training for module in self._modules):
            self.model.eval()
        # no_grad and not inference_mode, whose tensors cannot be saved for the student's backward pass.
        with torch.autocast(self.device.type, enabled=False):
            output, features = self.tap.run(self.model, images.to(self.device, self.dtype), with_head)
        predictions = raw_maps(output) if with_head else []
        return [p.to(images.device) for p in predictions], [f.to(images.device) for f in features]


def raw_maps(output: object) -> list[Tensor]:
    """The raw head maps in a detector's output: the list itself, or the list in `(decoded, raw)`.

    Raises:
        DistillError: neither form is there.
    """
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], list | tuple):
        output = output[1]
    if isinstance(output, list | tuple) and output and all(isinstance(item, Tensor) for item in output):
        return list(output)
    raise DistillError(
        f"the network's output is {type(output).__name__}; a loss on the output needs raw head maps or (decoded, raw)"
    )
