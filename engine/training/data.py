"""The data of a training: its loaders, the weights of its classes and images, and its facts for the manifest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from data.augmentation.augment import AugmentConfig
from data.config import DatasetConfig
from data.dataset import DetectionDataset
from data.labels import DatasetIndex, build_index
from data.loader import Batch, DetectionLoader, create_loader, validation_loader
from data.unlabeled import MixedLoader, add_unlabelled
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.training.distributed import World, main_first
from utils.logging import LOGGER

LEAST_WANT = 0.01


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
    if options.rect and not rect:
        LOGGER.warning("warning: --image-weights draws images in any order, so --rect does not count")
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


def sample_batches(index: DatasetIndex, options: TrainOptions, hyp: Hyp, stride: int, count: int) -> list[Batch]:
    """The first batches of a training's images, augmented: the statistics of BatchNorm belong to such images.

    They come from a loader of their own; that of the training begins as if nobody had looked.

    Args:
        index: the training images.
        options: the training's, its image size a multiple of the stride.
        hyp: its augmentation.
        stride: the model's largest.
        count: how many batches at most.
    """
    dataset = DetectionDataset(
        index, options.img_size[0], augment_config(hyp), batch_size=options.batch_size, stride=stride, seed=options.seed
    )
    loader = create_loader(dataset, options.batch_size, workers=options.workers, seed=options.seed)
    loader.set_epoch(0)
    return list(itertools.islice(loader, count))


def split_index(options: TrainOptions, config: DatasetConfig, split: str) -> DatasetIndex:
    """The checked images and labels of a split, as a training uses them."""
    return build_index(config.split(split), config.nc, single_class=options.single_cls, need_boxes=True, prefix=split)


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
