"""The evaluation pipeline against upstream's, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data.augmentation.geometry import worth_keeping
from data.dataset import DetectionDataset
from data.labels import DatasetIndex, build_index
from data.loader import create_loader
from data.records import ImageRecord
from tests.golden import load_json, load_npz, meta

SETTINGS = [
    (implementation, setting)
    for implementation in ("yolov7", "yolov5_7.0")
    for setting in ("rect_pad05", "rect_pad0", "square")
]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return load_npz("postprocess/val_dataset.npz")


@pytest.fixture(scope="module")
def records(golden: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageRecord]:
    """The 12 images as upstream had them, with their labels as this project reads them."""
    root: Path = tmp_path_factory.mktemp("val")
    spec = meta(golden)["spec"]
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for number, (height, width) in enumerate(spec["sizes"]):
        y, x, channel = np.ogrid[:height, :width, :3]
        image = 3 * x + 5 * y + 50 * channel + x * y // 8 + 60 * ((x // 8 + y // 8 + channel) % 2)
        cv2.imwrite(str(root / "images" / f"im{number:02d}.png"), ((image + 17 * number) % 256).astype(np.uint8))
    for stem, lines in spec["labels"].items():
        if lines is not None:
            (root / "labels" / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))
    index = build_index([root / "images"], 3, cache=False)
    return {Path(record.path).name: record for record in index.records}


def expected(golden: dict[str, np.ndarray], implementation: str, setting: str) -> dict[str, Any]:
    return meta(golden)["impl"][implementation][setting]


def dataset_of(records: dict[str, ImageRecord], case: dict[str, Any]) -> DetectionDataset:
    """The data set of the images that upstream kept; images of equal proportions stand in its order."""
    kept = [records[name] for name in case["files"]]
    options = {key: value for key, value in case["kw"].items() if key != "img_size"}
    return DetectionDataset(DatasetIndex(kept, [], {}, ""), case["kw"]["img_size"], None, **options)


@pytest.mark.parametrize("implementation, setting", SETTINGS)
def test_order_and_shapes(
    golden: dict[str, np.ndarray], records: dict[str, ImageRecord], implementation: str, setting: str
) -> None:
    case = expected(golden, implementation, setting)
    dataset = dataset_of(records, case)
    assert [Path(record.path).name for record in dataset.records] == case["files"]
    assert dataset.batch_shapes == [tuple(shape) for shape in case["batch_shapes"] or []]
    assert [[record.width, record.height] for record in dataset.records] == case["shapes_wh"]


@pytest.mark.parametrize("implementation, setting", SETTINGS)
def test_samples(
    golden: dict[str, np.ndarray], records: dict[str, ImageRecord], implementation: str, setting: str
) -> None:
    case = expected(golden, implementation, setting)
    dataset = dataset_of(records, case)
    for number, item in enumerate(case["items"]):
        sample = dataset[number]
        image = sample.image.numpy()
        assert list(image.shape) == item["shape"]
        stored = golden[f"{implementation}/{setting}/{number}/pix"]
        assert np.abs(image.ravel()[::97].astype(int) - stored).max() <= 1
        np.testing.assert_allclose(image.sum((1, 2), dtype=np.int64), item["sums"], atol=image[0].size / 100)
        original_hw, (ratio_hw, pad) = item["shapes"]
        assert sample.shape.original_hw == tuple(original_hw)
        np.testing.assert_allclose(sample.shape.ratio_pad, (ratio_hw, pad))
        labels = golden[f"{implementation}/{setting}/{number}/labels"][:, 1:]  # without the place in the batch
        assert sample.labels.shape[0] == len(labels)
        np.testing.assert_allclose(sorted(sample.labels.tolist()), sorted(labels.tolist()), atol=2e-6)


def test_last_batch(golden: dict[str, np.ndarray], records: dict[str, ImageRecord]) -> None:
    """The golden targets are those of YOLOv7's first batch."""
    case = expected(golden, "yolov7", "rect_pad05")
    batch = next(iter(create_loader(dataset_of(records, case), 3, workers=0, shuffle=False)))
    stored = meta(golden)["impl"]["yolov7"]["collate_labels"]
    np.testing.assert_allclose(sorted(batch.targets.tolist()), sorted(stored), atol=2e-6)


@pytest.mark.parametrize("key, share", [("keep_area010", 0.1), ("keep_area001", 0.01)])
def test_box_candidates(key: str, share: float) -> None:
    stored = load_json("postprocess/helpers.json")["yolov5_7.0"]["box_candidates"]
    before, after = np.array(stored["before"]), np.array(stored["after"])
    if len(before) == 4:
        before, after = before.T, after.T
    areas = (before[:, 2] - before[:, 0]) * (before[:, 3] - before[:, 1])
    assert worth_keeping(areas, after, share).astype(int).tolist() == stored[key]
