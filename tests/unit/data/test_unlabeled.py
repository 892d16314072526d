"""Batches of labelled images with unlabelled ones behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.augmentation.augment import AugmentConfig
from data.dataset import DetectionDataset
from data.labels import build_index
from data.loader import DetectionLoader, create_loader
from data.unlabeled import MixedLoader, add_unlabelled
from engine.training.loop import labelled_maps
from utils.errors import UserError

STILL = AugmentConfig(
    hsv_h=0, hsv_s=0, hsv_v=0, degrees=0, translate=0, scale=0, shear=0, perspective=0, flipud=0, fliplr=0,
    mosaic=0, mosaic9=0, mixup=0, mixup_alpha=32.0, copy_paste=0, paste_in=0,
)  # fmt: skip


@dataclass
class Sets:
    """Two folders of images: `labelled` of grey 0, 1, .. with a box each, `free` of grey 100, 101, .."""

    labelled: DetectionLoader
    root: Path

    def mix(self, batch_size: int, withheld: tuple[str, ...] = (), seed: int = 0) -> MixedLoader:
        return add_unlabelled(
            self.labelled, self.root / "free", batch_size, STILL,
            withheld=withheld, workers=0, seed=seed, rank=0, world_size=1,
        )  # fmt: skip


def paint(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((32, 32, 3), grey, np.uint8))


@pytest.fixture
def sets(tmp_path: Path) -> Sets:
    for number in range(8):
        paint(tmp_path / f"images/train/{number}.png", number)
        label = tmp_path / f"labels/train/{number}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.2 0.2\n")
    for number in range(5):
        paint(tmp_path / f"free/{number}.png", 100 + number)
    index = build_index([tmp_path / "images/train"], 1)
    return Sets(create_loader(DetectionDataset(index, 32, STILL), 4, workers=0), tmp_path)


def greys(images: torch.Tensor) -> list[int]:
    return images[:, 0, 16, 16].tolist()


def test_unlabelled_images_follow_the_labelled_ones(sets: Sets) -> None:
    loader = sets.mix(2)
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    for batch in batches:
        assert batch.images.shape == (6, 3, 32, 32) and len(batch.paths) == len(batch.shapes) == 6
        assert batch.num_unlabelled == 2
        assert all(grey < 8 for grey in greys(batch.images[:4])) and all(g >= 100 for g in greys(batch.images[4:]))
        assert batch.targets[:, 0].max() == 3  # nothing is said about the last two
    assert len({grey for batch in batches for grey in greys(batch.images[:4])}) == 8


def test_a_short_folder_begins_anew_in_another_order(sets: Sets) -> None:
    """Five images in full batches of four: one batch a round, so that two batches of an epoch need two rounds."""
    loader = sets.mix(4)
    seen = [greys(batch.images[4:]) for epoch in range(4) for batch in _epoch(loader, epoch)]
    assert len(seen) == 8 and len({tuple(values) for values in seen}) > 4


def _epoch(loader: MixedLoader, epoch: int) -> MixedLoader:
    loader.set_epoch(epoch)
    return loader


def test_an_epoch_is_the_same_whatever_came_before(sets: Sets) -> None:
    fresh, used = sets.mix(2), sets.mix(2)
    list(_epoch(used, 0))
    for one, other in zip(_epoch(fresh, 1), _epoch(used, 1), strict=True):
        assert torch.equal(one.images, other.images)


def test_labels_beside_them_are_not_used(sets: Sets) -> None:
    (sets.root / "images/free").mkdir()
    (sets.root / "labels/free").mkdir()
    for number in range(3):
        (sets.root / f"free/{number}.png").rename(sets.root / f"images/free/{number}.png")
        (sets.root / f"labels/free/{number}.txt").write_text("79 0.5 0.5 0.2 0.2\n")
    loader = add_unlabelled(
        sets.labelled, sets.root / "images/free", 2, STILL, withheld=(), workers=0, seed=0, rank=0, world_size=1
    )
    assert all(batch.targets[:, 1].max() == 0 and batch.num_unlabelled == 2 for batch in loader)


def test_validation_images_are_never_distilled_on(sets: Sets) -> None:
    withheld = tuple(str(sets.root / f"free/{number}.png") for number in range(3))
    loader = sets.mix(2, withheld)
    seen = {grey for epoch in range(3) for batch in _epoch(loader, epoch) for grey in greys(batch.images[4:])}
    assert seen == {103, 104}
    with pytest.raises(UserError, match="nothing but validation images"):
        sets.mix(2, tuple(str(path) for path in (sets.root / "free").iterdir()))


def test_a_folder_that_is_not_there(sets: Sets) -> None:
    with pytest.raises(UserError, match="--unlabeled .*nowhere.* does not exist"):
        add_unlabelled(
            sets.labelled, sets.root / "nowhere", 2, STILL, withheld=(), workers=0, seed=0, rank=0, world_size=1
        )


def test_the_detection_loss_sees_labelled_images_alone() -> None:
    maps = [torch.arange(6.0).view(6, 1), torch.arange(6.0).view(6, 1, 1)]
    assert [len(part) for part in labelled_maps(maps, 2)] == [4, 4]
    assert labelled_maps(maps, 0) is maps
