"""The model that a training starts with: from a yaml, a checkpoint or an interrupted run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from checkpoints.checkpoint import (
    Checkpoint,
    TransferReport,
    fitted_model,
    fitted_yaml,
    load_checkpoint,
    transfer_weights,
)
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.inference.class_order import start_from_names, take_classes
from models.yolo import Model
from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.names import class_order


def build_model(options: TrainOptions, hyp: Hyp, nc: int, names: Sequence[str]) -> Model:
    """The model to train: from a yaml, from a checkpoint, or a yaml's architecture with a checkpoint's weights.

    Raises:
        UsageError: neither --cfg nor --weights is given.
        UserError: a file is missing or not understood, or not a single tensor of the checkpoint fits.
    """
    if not options.weights and not options.cfg:
        raise UsageError(
            "nothing to train: give --cfg (an architecture, from scratch) or --weights (a checkpoint to start from)"
        )
    checkpoint = load_checkpoint(options.weights, architecture=not options.cfg) if options.weights else None
    source: Any = options.cfg or (fitted_yaml(checkpoint) if checkpoint else None)
    model = Model(source, ch=3, nc=nc, anchors=hyp.anchors)
    if model.yaml["ch"] != 3:
        raise UserError(f"{options.cfg or options.weights} is for images of {model.yaml['ch']} channels; set `ch: 3`")
    model.names = list(names)
    if checkpoint:
        load_start(model, checkpoint, keep_anchors=not (options.cfg or hyp.anchors))
    return model


def resumed_model(checkpoint: Checkpoint, nc: int, names: Sequence[str]) -> Model:
    """The model of a training as it was, whatever has become of the files that the training began with.

    Its weights are the averaged ones; `restore_training` puts the live ones of an interrupted training back.

    Raises:
        UserError: the data set has another number or order of classes by now, or the file is damaged.
    """
    if nc != checkpoint.nc:
        raise UserError(
            f"--resume {checkpoint.path}: this run has {checkpoint.nc} classes, its data set has {nc} now; "
            "put the data set's yaml back, or start a new run with --weights"
        )
    try:
        order = class_order(names, checkpoint.names, "its data set", "this run")
    except UserError as error:
        raise UserError(f"--resume {checkpoint.path}: {error}") from error
    if order is not None:
        raise UserError(
            f"--resume {checkpoint.path}: its data set has the classes of this run in another order now, so that each "
            "would be trained as another; put the data set's yaml back, or start a new run with --weights"
        )
    model = fitted_model(checkpoint)
    model.names = list(names)
    return model


def load_start(model: Model, checkpoint: Checkpoint, keep_anchors: bool) -> None:
    """Starts a model from a checkpoint's weights and says which tensors were taken and which not.

    Args:
        model: the model to fill.
        checkpoint: where the weights come from.
        keep_anchors: take the checkpoint's anchors too; otherwise those of the yaml stay.
    """
    report = transfer_weights(model, checkpoint.state_dict, exclude=() if keep_anchors else ("anchor",))
    if len(checkpoint.names) != model.nc and report.taken:
        report = take_other_classes(model, checkpoint, report)
    LOGGER.info(report.describe())
    if not report.taken:
        raise UserError(
            f"not one tensor of {checkpoint.path} fits this architecture; "
            "check --cfg, or leave it out to use the checkpoint's own"
        )
    if len(checkpoint.names) == model.nc:
        start_from_names(model, checkpoint.names, str(checkpoint.path))


def take_other_classes(model: Model, checkpoint: Checkpoint, report: TransferReport) -> TransferReport:
    """Lets the classes of a model start as those of the same name in a checkpoint of another number of classes.

    Returns:
        The report, with the tensors that this fills among those that were taken.
    """
    try:
        keys, count = take_classes(model, checkpoint.state_dict, checkpoint.names)
    except UserError as error:
        LOGGER.warning(f"warning: {error}; the class outputs start as built")
        return report
    if keys:
        LOGGER.info(f"{count} of {model.nc} classes start as those of the same name in {checkpoint.path}")
    mismatched = tuple(entry for entry in report.mismatched if entry[0] not in keys)
    return replace(report, taken=(*report.taken, *keys), mismatched=mismatched)


def freeze_layers(model: Model, freeze: Sequence[int]) -> list[int]:
    """Freezes layers: one number n means the first n layers, several mean those layers.

    Returns:
        The frozen layers' indices.
    """
    chosen = list(range(freeze[0])) if len(freeze) == 1 else list(freeze)
    num_layers = len(model.model)
    wrong = [i for i in chosen if not 0 <= i < num_layers]
    if wrong:
        raise UsageError(f"--freeze {wrong[0]}: the model has layers 0 to {num_layers - 1}")
    for index in chosen:
        model.model[index].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"--freeze leaves nothing to train; freeze fewer of the model's {num_layers} layers")
    return chosen
