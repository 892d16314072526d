"""The detection loss that belongs to a model's head and hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from data.loader import Batch
from engine.config.hyp import Hyp
from losses import SimOTAAuxLoss, SimOTALoss, YOLOv5Loss, YOLOv8Loss, scale_gains
from models.heads.anchor import AnchorHead, IAuxDetect
from models.heads.anchor_free import AnchorFreeDetect
from models.yolo import Model
from utils.device import images_to_device
from utils.errors import UserError
from utils.logging import LOGGER

LEAST_ANCHOR_FREE_BOX_GAIN = 1.0


def build_criteria(
    model: Model, hyp: Hyp, image_size: int, label_smoothing: float, device: torch.device
) -> tuple[nn.Module, nn.Module]:
    """The loss for training and the one for validation; the same module where the head gives the same maps in both.

    A head with auxiliary maps has them in training alone. `loss_ota` chooses matching by optimal transport; a file
    that does not say means it for YOLOv7, as upstream.

    Args:
        model: chooses by its head.
        hyp: gains as in the file.
        image_size: of the training, in pixels.
        label_smoothing: 0 to 1.
        device: where the losses go.
    """
    losses = _losses(model, hyp, image_size, label_smoothing)
    return losses[0].to(device), losses[-1].to(device)


def _losses(model: Model, hyp: Hyp, image_size: int, label_smoothing: float) -> tuple[nn.Module, ...]:
    head = model.head
    strides = [float(s) for s in model.stride]
    if isinstance(head, AnchorFreeDetect):
        if hyp.box < LEAST_ANCHOR_FREE_BOX_GAIN:
            LOGGER.warning(f"box: {hyp.box} is a gain for anchor heads; use hyp/scratch.v8.yaml for this model")
        return (
            YOLOv8Loss(
                strides,
                model.nc,
                reg_max=head.reg_max,
                box=hyp.box,
                cls=hyp.cls,
                dfl=hyp.dfl,
                enlarge_small_boxes=bool(hyp.enlarge_small_boxes),
            ),
        )
    if not isinstance(head, AnchorHead) or head.no != 5 + model.nc:  # the binned boxes of IBin have more outputs
        raise UserError(
            f"no loss is known for the head {type(head).__name__}, so the model cannot be trained; "
            "give --cfg a model that ends in Detect, IDetect, IAuxDetect or YOLOv8's head"
        )
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
    transport = model.family == "yolov7" if hyp.loss_ota is None else bool(hyp.loss_ota)
    if isinstance(head, IAuxDetect):
        return (
            SimOTAAuxLoss(head.anchors, strides, model.nc, **settings),
            SimOTALoss(head.anchors, strides, model.nc, **settings),
        )
    loss_class = SimOTALoss if transport else YOLOv5Loss
    return (loss_class(head.anchors, strides, model.nc, **settings),)


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
