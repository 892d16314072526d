"""Small losses, maps and boxes for the tests of the losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.reference_losses import reference_simota, reference_yolov5, reference_yolov8
from losses import SimOTAAuxLoss, SimOTALoss, YOLOv5Loss, YOLOv8Loss

LOSSES: dict[str, type[nn.Module]] = {
    "yolov5": YOLOv5Loss,
    "simota": SimOTALoss,
    "simota_aux": SimOTAAuxLoss,
    "yolov8": YOLOv8Loss,
}
STRIDES = (8, 16)
NUM_CLASSES = 3
ANCHORS = torch.tensor([[[10.0, 13], [16, 30]], [[30, 61], [62, 45]]]) / torch.tensor(STRIDES)[:, None, None]
REFERENCES = {
    "yolov5": reference_yolov5,
    "simota": reference_simota,
    "simota_aux": reference_simota,
    "yolov8": reference_yolov8,
}


def make_loss(name: str, num_classes: int = NUM_CLASSES, **settings: Any) -> nn.Module:
    if name == "yolov8":
        return YOLOv8Loss(STRIDES, num_classes, **settings)
    return LOSSES[name](ANCHORS, STRIDES, num_classes, **settings)


def make_maps(
    name: str,
    images: int = 3,
    hw: tuple[int, int] = (64, 96),
    dtype: torch.dtype = torch.float32,
    num_classes: int = NUM_CLASSES,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    grids = [(hw[0] // stride, hw[1] // stride) for stride in STRIDES]
    shapes: list[tuple[int, ...]] = [(images, 2, *grid, 5 + num_classes) for grid in grids]
    if name == "simota_aux":
        shapes *= 2
    if name == "yolov8":
        shapes = [(images, 64 + num_classes, *grid) for grid in grids]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def make_targets(boxes: int, images: tuple[int, ...] = (0, 2)) -> Tensor:
    """Random boxes of some images, image after image."""
    generator = torch.Generator().manual_seed(boxes)
    targets = torch.rand(boxes * len(images), 6, generator=generator)
    targets[:, 0] = torch.tensor(images).repeat_interleave(boxes)
    targets[:, 1] = (targets[:, 1] * NUM_CLASSES).floor()
    targets[:, 4:] = 0.02 + 0.7 * targets[:, 4:] ** 2
    return targets


def value_and_gradients(loss: nn.Module, maps: list[Tensor], targets: Tensor) -> list[Tensor]:
    total, _ = loss(maps, targets)
    return [total.detach(), *torch.autograd.grad(total, maps)]
