"""The frozen teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import DistillError
from .taps import Tap, unwrap


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
        scaling: how much larger than the student it sees the images.
    """

    def __init__(
        self, model: nn.Module, tap: Tap, half: bool | None = None, scaling: ImageScaling | None = None
    ) -> None:
        self.model = model
        self.tap = tap
        self.scaling = scaling
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
            images: (N, 3, H, W), normalised as the student saw them; the teacher sees them in its own size, on its own
                device.
            with_head: False lets the network stop after its last tapped layer.
        """
        if any(module.training for module in self._modules):
            self.model.eval()
        if self.scaling is not None:
            images = self.scaling(images)
        # no_grad and not inference_mode, whose tensors cannot be saved for the student's backward pass.
        with torch.autocast(self.device.type, enabled=False):
            output, features = self.tap.run(self.model, _moved(images, self.device).to(self.dtype), with_head)
        predictions = raw_maps(output) if with_head else []
        return [_moved(p, images.device) for p in predictions], [_moved(f, images.device) for f in features]


class ImageScaling:
    """The size at which a teacher sees the images.

    Args:
        student_size: side, or longer side, of the student's images in pixels, as the training is set up.
        teacher_size: that of the teacher's; other sizes of the student's (multi-scale, rectangular batches) change it
            in proportion.
        stride: the teacher's sizes are multiples of it.

    Raises:
        DistillError: the teacher's size is no multiple of the stride.
    """

    def __init__(self, student_size: int, teacher_size: int, stride: int) -> None:
        if teacher_size <= 0 or teacher_size % stride:
            raise DistillError(
                f"the teacher's image size is {teacher_size}; expected a multiple of its largest stride, {stride}"
            )
        self.factor = teacher_size / student_size
        self.stride = stride

    def size(self, image_hw: Sequence[int]) -> tuple[int, int]:
        """Height and width at the teacher of images of this height and width at the student."""
        height, width = (max(1, round(side * self.factor / self.stride)) * self.stride for side in image_hw)
        return height, width

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) images in the teacher's size, by bilinear interpolation."""
        return resized(images, self.size(images.shape[2:]))


def image_scaling(teacher: nn.Module, image_hw: tuple[int, int], teacher_size: int | None) -> ImageScaling | None:
    """How the teacher's images are resized; None where they are as large as the student's."""
    if teacher_size is None or teacher_size == max(image_hw):
        return None
    strides = getattr(unwrap(teacher), "stride", None)
    stride = 32 if strides is None else int(torch.as_tensor(strides).max())
    return ImageScaling(max(image_hw), teacher_size, stride)


def resized(maps: Tensor, to_hw: Sequence[int]) -> Tensor:
    """(N, C, H, W) maps brought to other rows and columns bilinearly; the very maps where they have them already."""
    if tuple(maps.shape[2:]) == tuple(to_hw):
        return maps
    return F.interpolate(maps, size=tuple(to_hw), mode="bilinear", align_corners=False)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Without waiting where that is safe: a copy to the host could be read before it is there."""
    return tensor.to(device, non_blocking=device.type == "cuda")


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
