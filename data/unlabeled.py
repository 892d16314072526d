"""Images without labels, mixed into the batches of a training: a teacher can say what is in them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.augmentation.augment import AugmentConfig
from data.dataset import DetectionDataset
from data.labels import build_index
from data.loader import Batch, DetectionLoader, create_loader
from utils.errors import UserError
from utils.logging import LOGGER
from utils.text import shown_path


class MixedLoader:
    """Every batch of a labelled loader, followed by images without labels.

    An epoch has as many batches as the labelled loader; images without labels begin anew in another order where they
    do not suffice. What a batch holds depends on (seed, epoch, position) alone, as without them.

    Args:
        labelled: gives the length, the data set and the first images of every batch.
        unlabelled: full batches of images of the same size; their labels, if any, are left out.
    """

    def __init__(self, labelled: DetectionLoader, unlabelled: DetectionLoader) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.dataset = labelled.dataset
        self.batch_size = labelled.batch_size
        self._epoch, self._mosaic = 0, True

    def __len__(self) -> int:
        return len(self.labelled)

    def __iter__(self) -> Iterator[Batch]:
        others = self._endless()
        for batch in self.labelled:
            yield mixed(batch, next(others))

    def _endless(self) -> Iterator[Batch]:
        rounds = -(-len(self.labelled) // len(self.unlabelled))
        for number in range(rounds):
            self.unlabelled.set_epoch(self._epoch * rounds + number, self._mosaic)
            yield from self.unlabelled

    def set_epoch(self, epoch: int, mosaic: bool = True) -> None:
        """Sets the epoch of the next iteration, and whether it has mosaics."""
        self._epoch, self._mosaic = epoch, mosaic
        self.labelled.set_epoch(epoch, mosaic)

    def set_index_weights(self, weights: np.ndarray | None) -> None:
        """Draws labelled images with these weights, see DetectionLoader."""
        self.labelled.set_index_weights(weights)


def mixed(labelled: Batch, unlabelled: Batch) -> Batch:
    """One batch of both: the labelled images first, the targets theirs alone."""
    return Batch(
        torch.cat([labelled.images, unlabelled.images]),
        labelled.targets,
        labelled.paths + unlabelled.paths,
        labelled.shapes + unlabelled.shapes,
        num_unlabelled=len(unlabelled.paths),
    )


def add_unlabelled(
    labelled: DetectionLoader,
    folder: str | Path,
    batch_size: int,
    augment: AugmentConfig,
    *,
    withheld: Collection[str],
    workers: int,
    seed: int,
    rank: int,
    world_size: int,
) -> MixedLoader:
    """A loader that adds the images of a folder to every batch.

    Args:
        labelled: the training's loader, of square batches.
        folder: images, searched recursively, or a .txt list of them. Label files beside them are not used.
        batch_size: images without labels in a batch of this process; fewer when there are not so many.
        augment: the training's random changes; those that need polygons do nothing.
        withheld: files that must not be learned from, such as the validation images; they are left out.
        workers, seed, rank, world_size: see create_loader.

    Raises:
        UserError: there is no usable image, or the batches are rectangular.
    """
    if labelled.dataset.rect:
        raise UserError("--unlabeled needs square batches; leave --rect out")
    if not os.path.exists(folder):
        raise UserError(f"--unlabeled {shown_path(folder)} does not exist; name a folder of images, or a .txt list")
    index = build_index([Path(folder)], 1, labels=False, prefix="unlabeled")
    hidden = {os.path.realpath(path) for path in withheld}
    kept = [record for record in index.records if os.path.realpath(record.path) not in hidden]
    if not kept:
        raise UserError(f"--unlabeled {shown_path(folder)} holds nothing but validation images; name other images")
    left_out = len(index.records) - len(kept)
    LOGGER.info(
        f"unlabeled: {len(kept)} images" + (f"; {left_out} left out, they are for validation" if left_out else "")
    )
    dataset = DetectionDataset(replace(index, records=kept), labelled.dataset.img_size, augment, seed=seed)
    share = -(-len(dataset) // world_size)
    loader = create_loader(
        dataset, min(batch_size, share), workers=workers, seed=seed, rank=rank, world_size=world_size, drop_last=True
    )
    return MixedLoader(labelled, loader)
