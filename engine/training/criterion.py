"""The detection loss that belongs to a model's head and hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from data.loader import Batch
from engine.config.hyp import Hyp
from losses import SimOTAAuxLoss, SimOTALoss, YOLOv5Loss, YOLOv8Loss, scale_gains
from losses.anchor_based import AnchorLoss
from models.yolo import Model
from utils.device import images_to_device
from utils.errors import UserError
from utils.logging import LOGGER

LEAST_ANCHOR_FREE_BOX_GAIN = 1.0

Build = Callable[[Model, Hyp, int, float], tuple[nn.Module, ...]]
"""(model, gains as in the file, image size, label smoothing) -> losses."""


def build_criteria(
    model: Model, hyp: Hyp, image_size: int, label_smoothing: float, device: torch.device
) -> tuple[nn.Module, nn.Module]:
    """The loss for training and the one for validation; the same module where the head gives the same maps in both.

    A head with auxiliary maps has them in training alone. `loss_ota` chooses matching by optimal transport; a file
    that does not say leaves it to the family, as upstream.

    Args:
        model: its head names the loss.
        hyp: gains as in the file.
        image_size: of the training, in pixels.
        label_smoothing: 0 to 1.
        device: where the losses go.
    """
    losses = _losses(model, hyp, image_size, label_smoothing)
    return losses[0].to(device), losses[-1].to(device)


def _losses(model: Model, hyp: Hyp, image_size: int, label_smoothing: float) -> tuple[nn.Module, ...]:
    name = model.head.loss
    if name not in LOSSES:
        raise UserError(
            f"no loss is known for the head {type(model.head).__name__}, so the model cannot be trained; "
            "give --cfg a model that ends in Detect, IDetect, IAuxDetect or YOLOv8's head"
        )
    if name in ("anchor_ratio", "simota") and hyp.loss_ota is not None:
        name = "simota" if hyp.loss_ota else "anchor_ratio"
    return LOSSES[name](model, hyp, image_size, label_smoothing)


def _task_aligned(model: Model, hyp: Hyp, image_size: int, label_smoothing: float) -> tuple[nn.Module, ...]:
    if hyp.box < LEAST_ANCHOR_FREE_BOX_GAIN:
        LOGGER.warning(f"box: {hyp.box} is a gain for anchor heads; use hyp/scratch.v8.yaml for this model")
    settings: dict[str, Any] = {"box": hyp.box, "cls": hyp.cls, "dfl": hyp.dfl, "reg_max": model.head.bins}
    return (YOLOv8Loss(model.stride, model.nc, enlarge_small_boxes=bool(hyp.enlarge_small_boxes), **settings),)


def _by_anchors(*kinds: type[AnchorLoss]) -> Build:
    """Builds losses over the same anchors: one, or those of training and of validation."""

    def build(model: Model, hyp: Hyp, image_size: int, label_smoothing: float) -> tuple[nn.Module, ...]:
        head: Any = model.head
        box, cls, obj = scale_gains(hyp.box, hyp.cls, hyp.obj, head.num_levels, model.nc, image_size)
        settings: dict[str, Any] = {
            "box": box,
            "cls": cls,
            "obj": obj,
            "cls_pw": hyp.cls_pw,
            "obj_pw": hyp.obj_pw,
            "anchor_t": hyp.anchor_t,
            "fl_gamma": hyp.fl_gamma,
            "label_smoothing": label_smoothing,
        }
        return tuple(kind(head.anchors, model.stride, model.nc, **settings) for kind in kinds)

    return build


LOSSES: dict[str, Build] = {
    "anchor_ratio": _by_anchors(YOLOv5Loss),
    "simota": _by_anchors(SimOTALoss),
    "simota_auxiliary": _by_anchors(SimOTAAuxLoss, SimOTALoss),
    "task_aligned": _task_aligned,
}
"""By the name that a head gives in `loss`: what it is trained with, and what it is validated with if that differs."""


def loss_by_batch(
    model: Model, hyp: Hyp, image_size: int, device: torch.device, labels: Callable[[Tensor], Tensor] | None = None
) -> Callable[[nn.Module, Batch], Tensor]:
    """(model, batch) -> its detection loss, with the statistics of BatchNorm as they are: for Taylor importance.

    Args:
        model: chooses the loss.
        hyp: gains as in the file.
        image_size: of the training, in pixels.
        device: where the model is.
        labels: makes the model's labels of a batch's, where its classes are others.
    """
    from pruning import PruneError
    from pruning.pruner import run_for_outputs

    criterion, _ = build_criteria(model, hyp, image_size, 0.0, device)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        predictions = run_for_outputs(network, images_to_device(batch.images, device))
        value, _ = criterion(predictions, labels(batch.targets) if labels else batch.targets)
        if not value.isfinite():
            raise PruneError("the detection loss is not finite on training images; check the model and its data")
        return value

    return loss
