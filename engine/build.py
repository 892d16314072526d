"""Builds the parts of a training from its options: model, data, criterion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.augment import AugmentConfig
from data.config import DatasetConfig
from data.dataset import DetectionDataset
from data.labels import DatasetIndex, build_index
from data.loader import DetectionLoader, create_loader
from data.unlabeled import MixedLoader, add_unlabelled
from engine.checkpoint import Checkpoint, fitted_model, fitted_yaml, load_checkpoint, transfer_weights
from engine.class_order import start_from_names
from engine.config import Hyp, TrainOptions
from engine.distributed import World, main_first
from models.yolo import Model
from utils.errors import UsageError, UserError
from utils.logging import LOGGER

LEAST_WANT = 0.01


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
        UserError: the data set has another number of classes by now, or the file is damaged.
    """
    if nc != checkpoint.nc:
        raise UserError(
            f"--resume {checkpoint.path}: this run has {checkpoint.nc} classes, its data set has {nc} now; "
            "put the data set's yaml back, or start a new run with --weights"
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
    LOGGER.info(report.describe())
    if not report.taken:
        raise UserError(
            f"not one tensor of {checkpoint.path} fits this architecture; "
            "check --cfg, or leave it out to use the checkpoint's own"
        )
    if len(checkpoint.names) == model.nc:
        start_from_names(model, checkpoint.names, str(checkpoint.path))


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


@dataclass
class TrainingData:
    """The data of a training: loaders, and the index of the training images."""

    train: DetectionLoader | MixedLoader
    val: DetectionLoader | None
    train_index: DatasetIndex
    val_index: DatasetIndex


def augment_config(hyp: Hyp) -> AugmentConfig:
    """The augmentation part of the hyper-parameters."""
    return AugmentConfig(**{f.name: getattr(hyp, f.name) for f in fields(AugmentConfig)})


def rounded_size(size: int, stride: int, what: str) -> int:
    """`size` rounded up to a multiple of the model's largest stride, with a word when it changes."""
    rounded = math.ceil(size / stride) * stride
    if rounded != size:
        LOGGER.info(f"{what} {size} is not a multiple of the largest stride {stride}; using {rounded}")
    return rounded


def build_data(
    options: TrainOptions, hyp: Hyp, config: DatasetConfig, stride: int, world: World, image_sizes: tuple[int, int]
) -> TrainingData:
    """Indexes, checks and opens the training and validation images."""
    with main_first(world):
        train_index, val_index = (split_index(options, config, split) for split in ("train", "val"))
    for index, split in ((train_index, "train"), (val_index, "val")):
        if not index.problems:  # otherwise said when they were found
            LOGGER.info(f"{split}: {index.summary()}")
    batch_size = options.batch_size // world.size
    rect = options.rect and not options.image_weights
    dataset = DetectionDataset(
        train_index, image_sizes[0], augment_config(hyp), rect=rect, batch_size=batch_size, stride=stride,
        cache=options.cache, seed=options.seed,
    )  # fmt: skip
    share: dict[str, Any] = {
        "workers": options.workers, "seed": options.seed, "rank": max(world.rank, 0), "world_size": world.size,
    }  # fmt: skip
    labelled = create_loader(dataset, batch_size, **share)
    train: DetectionLoader | MixedLoader = labelled
    if options.unlabeled:
        extra = options.unlabeled_batch // world.size or max(batch_size // 2, 1)
        withheld = {record.path for record in val_index.records}
        train = add_unlabelled(labelled, options.unlabeled, extra, augment_config(hyp), withheld=withheld, **share)
    val = validation_loader(val_index, image_sizes[1], batch_size, options.workers, stride) if world.is_main else None
    return TrainingData(train, val, train_index, val_index)


def split_index(options: TrainOptions, config: DatasetConfig, split: str) -> DatasetIndex:
    """The checked images and labels of a split, as a training uses them."""
    return build_index(config.split(split), config.nc, single_class=options.single_cls, need_boxes=True, prefix=split)


def validation_loader(
    index: DatasetIndex,
    img_size: int,
    batch_size: int,
    workers: int,
    stride: int,
    fixed_hw: tuple[int, int] | None = None,
) -> DetectionLoader:
    """Batches for evaluation: no augmentation, images of similar shape together, half a stride of border.

    With `fixed_hw` all images are fitted into that height and width instead.
    """
    dataset = DetectionDataset(
        index, max(fixed_hw or (img_size,)), None, rect=fixed_hw is None, batch_size=batch_size, stride=stride, pad=0.5,
        fixed_hw=fixed_hw,
    )  # fmt: skip
    return create_loader(dataset, batch_size, workers=workers, shuffle=False)


def class_weights(index: DatasetIndex, nc: int, class_ap: Sequence[float] = ()) -> np.ndarray:
    """How much the classes are wanted: inversely to their counts, and the more the worse they are found.

    Args:
        index: the training images; an absent class counts once.
        nc: number of classes.
        class_ap: AP of each class from 0 to 1, at the latest validation; a class without any (NaN) has the mean of the
            others. Empty before the first validation.

    Returns:
        (nc,), the normalised inverse of the count times (1 - AP)^2. A perfect class keeps a little, for the case that
        all are.
    """
    inverse = 1 / np.maximum(index.class_counts(nc), 1)
    ap = np.array(class_ap or [0.0] * nc)
    known = ap[~np.isnan(ap)]
    ap = np.where(np.isnan(ap), known.mean() if len(known) else 0.0, ap)
    return inverse / inverse.sum() * np.maximum(1 - ap, LEAST_WANT) ** 2


def image_weights(index: DatasetIndex, weights_by_class: np.ndarray) -> np.ndarray:
    """Weights of the images: the sum of the weights of their objects' classes, (num_images,)."""
    nc = len(weights_by_class)
    counts = np.stack([np.bincount(record.labels[:, 0].astype(int), minlength=nc) for record in index.records])
    return (counts * weights_by_class).sum(1)


def describe_data(config: DatasetConfig, data: TrainingData) -> dict[str, Any]:
    """The data set's facts for the manifest."""
    return {
        "data": str(Path(config.path)),
        "train_images": len(data.train_index.records),
        "val_images": len(data.val_index.records),
        "train_hash": data.train_index.content_hash,
        "val_hash": data.val_index.content_hash,
    }


def images_to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 (N, 3, H, W) to float32 from 0 to 1 on the device, in channels-last layout there."""
    moved = images.to(device, non_blocking=True)
    return moved.to(torch.float32, memory_format=torch.channels_last).div_(255)
