"""test.py as a user calls it, and the same in this process where only the figures matter."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from checkpoints.checkpoint import save_checkpoint
from engine.inference.testing import TestOptions, run_test
from models.yolo import Model
from tests.golden import ROOT
from tests.integration.conftest import checked, run_command
from utils.errors import UserError

NAMES = ["cat", "dog", "bird"]


def write_images(folder: Path) -> None:
    """Six images of different shapes."""
    generator = np.random.default_rng(0)
    for i, (height, width) in enumerate([(64, 96), (96, 64), (80, 80), (50, 96), (64, 64), (96, 30)]):
        coarse = generator.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        path = folder / "images" / f"{i:012d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def write_model(path: Path, seed: int, nc: int = 3) -> None:
    """A very small YOLOv5 with random weights, as a checkpoint."""
    architecture = yaml.safe_load((ROOT / "cfg/yolov5/yolov5n.yaml").read_text())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Model(architecture | {"nc": nc, "width_multiple": 0.0625, "depth_multiple": 0.1})
        for head in model.head.m:  # type: ignore[union-attr]
            torch.nn.init.normal_(head.weight, std=1.0)
            torch.nn.init.normal_(head.bias, std=0.5)
    entry = {
        "yaml": model.yaml, "state_dict": model.state_dict(), "names": NAMES[:nc], "nc": nc,
        "stride": model.stride.tolist(), "family": "yolov5",
    }  # fmt: skip
    save_checkpoint(path, {"model": entry, "epoch": -1})


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TestOptions:
    """A detector and a data set on which it is perfect: its labels are the detector's own five best detections."""
    folder = tmp_path_factory.mktemp("measured")
    write_images(folder)
    write_model(folder / "best.pt", seed=0)
    data = {"path": str(folder), "train": "images", "val": "images", "nc": 3, "names": NAMES}
    (folder / "mine.yaml").write_text(yaml.safe_dump(data))
    options = TestOptions(
        (str(folder / "best.pt"),), str(folder / "mine.yaml"), batch_size=4, img_size=96, conf_thres=0.01,
        iou_thres=0.3, max_det=5, device="cpu", workers=0, project=str(folder / "runs"), noplots=True,
    )  # fmt: skip
    run_test(replace(options, save_txt=True, name="labels"))
    shutil.copytree(folder / "runs/labels/labels", folder / "labels")
    shutil.rmtree(folder / "runs")
    for cache in folder.glob("*.cache"):
        cache.unlink()
    return options


def measure(options: TestOptions, **changes: Any) -> Any:
    return run_test(replace(options, **changes))[0]


def test_detections_written_as_labels_are_found_again(options: TestOptions) -> None:
    result = measure(options)
    assert result.num_images == 6 and result.num_labels > 10
    assert result.coco.ap > 0.99 and result.own.means[:2] == pytest.approx((1, 1), abs=0.01)


def test_speed_of_loading_changes_nothing(options: TestOptions) -> None:
    one, many = measure(options, batch_size=1), measure(options, batch_size=6, workers=2)
    assert one.num_labels == many.num_labels  # rectangular batches differ in shape, so the figures may


def test_other_weights_are_worse(options: TestOptions, tmp_path: Path) -> None:
    write_model(tmp_path / "other.pt", seed=1)
    other = measure(options, weights=(str(tmp_path / "other.pt"),))
    assert other.coco.ap < 0.5
    both = measure(options, weights=(*options.weights, str(tmp_path / "other.pt")), max_det=10)
    assert other.coco.ap < both.coco.ap < 1


def test_single_class(options: TestOptions) -> None:
    result = measure(options, single_cls=True, max_det=300)
    assert result.names == ("item",) and result.coco.ap > 0.5


def test_json_is_measured_against_an_annotation_file(options: TestOptions, tmp_path: Path) -> None:
    numbers = [30, 10, 20]
    annotations: list[dict[str, Any]] = []
    images = sorted((Path(options.data).parent / "images").glob("*.png"))
    sizes = {path.stem: cv2.imread(str(path)).shape[:2] for path in images}  # type: ignore[union-attr]
    for path in (Path(options.data).parent / "labels").glob("*.txt"):
        height, width = sizes[path.stem]
        for line in path.read_text().splitlines():
            index, cx, cy, w, h = map(float, line.split())
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": int(path.stem) + 100, "category_id": numbers[int(index)],
                 "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    content = {
        "images": [{"id": int(stem) + 100, "file_name": f"{stem}.png"} for stem in sizes]
        + [{"id": 1, "file_name": "x.png"}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in zip(numbers, NAMES)],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    result = measure(options, annotations=str(path), project=str(tmp_path), name="run")
    summary = json.loads((tmp_path / "run/results.json").read_text())
    assert summary["official"]["AP"] == pytest.approx(result.coco.ap, abs=0.01) and summary["official"]["AP"] > 0.98
    records = json.loads((tmp_path / "run/best_predictions.json").read_text())
    assert {record["category_id"] for record in records} <= set(numbers)
    assert {record["image_id"] for record in records} <= set(range(100, 106))


def test_study_writes_a_row_for_each_size(
    options: TestOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.inference.testing.STUDY_SIZES", (64, 96))
    results = run_test(replace(options, task="study", project=str(tmp_path)))
    rows = (tmp_path / "exp/study.csv").read_text().splitlines()
    assert len(results) == 2 and len(rows) == 3 and "metrics/AP" in rows[0] and "inference" in rows[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ("absent.pt",)}, "--weights 'absent.pt' does not exist"),
        ({"task": "test"}, "no `test:` entry"),
        ({"annotations": "absent.json"}, "--annotations 'absent.json' does not exist"),
        ({"img_size": 0}, "--img-size must be at least 32 pixels, got 0"),
        ({"conf_thres": 1.5}, "--conf-thres must be from 0 to 1, got 1.5"),
    ],
)
def test_mistakes_are_named(options: TestOptions, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(options, **changes)


def test_wrong_number_of_classes_is_named(options: TestOptions, tmp_path: Path) -> None:
    write_model(tmp_path / "two.pt", seed=0, nc=2)
    with pytest.raises(UserError, match="two.pt has 2 classes, but .*mine.yaml has 3"):
        measure(options, weights=(str(tmp_path / "two.pt"),))
    with pytest.raises(UserError, match="has number of classes 2, but .* has 3; they cannot vote"):
        measure(options, weights=(*options.weights, str(tmp_path / "two.pt")))


def test_command_line(options: TestOptions, tmp_path: Path) -> None:
    words: list[Any] = ["test.py", "--weights", *options.weights, "--data", options.data, "--imgsz", 96]
    words += ["--device", "cpu"]
    words += ["--workers", 0, "--project", tmp_path, "--no-trace", "--v5-metric", "--save-txt", "--save-conf"]
    words += ["--conf-thres", 0.01, "--iou-thres", 0.3, "--max-det", 5, "--batch-size", 4]
    out = checked(*words).stdout
    assert "COCO: AP" in out and "    all" in out and f"results: {tmp_path}/exp" in out
    written = {path.name for path in (tmp_path / "exp").iterdir()}
    assert {"results.json", "labels", "PR_curve.png", "confusion_matrix.png", "val_batch0_pred.jpg"} <= written
    line = next((tmp_path / "exp/labels").iterdir()).read_text().splitlines()[0]
    assert len(line.split()) == 6


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--weights", "absent.pt"], 1, "error: "),
        (["--device", "gpu"], 2, "error: --device"),
        (["--task", "nothing"], 2, "invalid choice"),
    ],
)
def test_command_line_mistakes_are_one_line(options: TestOptions, words: list[str], code: int, message: str) -> None:
    done = run_command("test.py", "--data", options.data, *words)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
    assert code == 2 or done.stderr.count("\n") == 1
