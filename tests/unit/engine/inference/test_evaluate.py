"""Evaluation of fake detectors with known quality, and the files that come out of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import engine.inference.evaluate
from checkpoints.exported import LAYOUT_NAMES
from data.config import load_class_names
from data.labels import build_index
from data.loader import validation_loader
from engine.inference.ensemble import Ensemble, with_names
from engine.inference.evaluate import EvalResult, evaluate
from engine.inference.writers import CocoWriter, LabelWriter, annotated_ids, coco_categories, image_ids
from models.families import FAMILIES
from tests.golden import ROOT
from utils.boxes import cxcywh_to_xyxy
from utils.errors import UserError
from utils.evaluation.coco_eval import CocoEvaluator

CPU = torch.device("cpu")
NAMES = ["cat", "dog"]
# [image, class, cx, cy, w, h], normalised
TARGETS = torch.tensor([[0, 0, 0.3, 0.3, 0.2, 0.2], [0, 1, 0.7, 0.7, 0.4, 0.4], [2, 1, 0.5, 0.5, 0.25, 0.5]])


class Loader(list):
    """Batches of two images of 64 x 64 with the targets above; the last of the three is alone."""

    def __init__(self, original_hw: tuple[int, int] = (64, 64)) -> None:
        shape = SimpleNamespace(original_hw=original_hw, ratio_pad=((64 / original_hw[0], 64 / original_hw[1]), (0, 0)))
        batches = []
        for images in ([0, 1], [2]):
            mine = TARGETS[torch.isin(TARGETS[:, 0], torch.tensor(images))].clone()
            mine[:, 0] -= images[0]
            batches.append(
                SimpleNamespace(
                    images=torch.full((len(images), 3, 64, 64), 255, dtype=torch.uint8),
                    targets=mine,
                    paths=[f"/data/images/{i:012d}.jpg" for i in images],
                    shapes=[shape] * len(images),
                )
            )
        super().__init__(batches)


class Oracle(nn.Module):
    """Predicts the targets, `shift` pixels to the right and with class `index + swap`, in a given layout."""

    def __init__(self, shift: float = 0.0, swap: int = 0, layout: str = "yolov5", size: float = 64.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shift, self.swap, self.layout, self.size = shift, swap, LAYOUT_NAMES[layout], size
        self.convention, self.input_hw = FAMILIES[layout].convention, None
        self.names, self.nc, self.stride = NAMES, 2, torch.tensor([8.0, 32.0])
        self.seen: list[Tensor] = []
        self.augmented = False

    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, Any]:
        first = sum(len(batch) for batch in self.seen)
        self.seen.append(images)
        self.augmented = augment
        rows = torch.zeros(len(images), 3, 7)
        for image, index, *box in TARGETS.tolist():
            if first <= image < first + len(images):
                row = rows[int(image) - first, int(index)]
                row[:4] = torch.tensor(box) * self.size
                row[0] += self.shift
                row[4], row[5 + (int(index) + self.swap) % 2] = 1.0, 0.9 - 0.1 * index
        raw = None if augment else [torch.full((1,), 2.0)]
        if not self.layout.objectness:
            return torch.cat([rows[..., :4], rows[..., 5:]], 2).transpose(1, 2), raw
        return rows, raw


def run(model: nn.Module, loader: Any = None, **options: Any) -> EvalResult:
    batches = Loader() if loader is None else loader
    return evaluate(model, batches, **{"names": NAMES, "device": CPU, "progress": False, **options})


@pytest.mark.parametrize("layout", ["yolov5", "yolov7", "yolov8"])
def test_perfect_detector_has_ap_one(layout: str) -> None:
    result = run(Oracle(layout=layout))
    assert (result.coco.ap, result.coco.ap50, result.coco.ar_100, result.fitness) == pytest.approx((1, 1, 1, 1))
    # P and R are interpolated at the sampled confidence next to the best one, so they miss 1 by a hair
    assert result.own.means[:2] == pytest.approx((1, 1), abs=1e-3)
    assert (result.num_images, result.num_labels, result.labels_per_class.tolist()) == (3, 3, [1, 2])
    assert np.array_equal(result.confusion.matrix, np.diag([1, 2, 0]))


def test_wrong_classes_have_ap_zero() -> None:
    result = run(Oracle(swap=1))
    assert (result.coco.ap, result.coco.ap50) == (0, 0)
    assert result.confusion.matrix[1, 0] == 1 and result.confusion.matrix[0, 1] == 2


def test_single_class_forgives_wrong_classes() -> None:
    result = run(Oracle(swap=1), single_class=True)
    assert result.coco.ap == pytest.approx(1) and result.names == ("item",)
    assert result.labels_per_class.tolist() == [3]


def test_shifted_boxes_lose_the_strict_thresholds() -> None:
    # image 0: widths 12.8 and 25.6; image 2: 16. Shift 3: IoU 9.8/15.8 = .62, 22.6/28.6 = .79, 13/19 = .68
    result = run(Oracle(shift=3.0))
    assert result.coco.ap50 == pytest.approx(1) and 0.2 < result.coco.ap < 0.6
    assert result.coco.per_class_ap[0] == pytest.approx(0.3)  # .50 .55 .60 of ten thresholds


def test_areas_are_those_of_the_original_image() -> None:
    # boxes of 164, 655 and 512 px^2 are all small at 64 px; at 512 px they are 64 times as large
    small, enlarged = run(Oracle()), run(Oracle(), Loader((512, 512)))
    assert small.coco.ap_small == pytest.approx(1) and np.isnan(small.coco.ap_large)
    assert np.isnan(enlarged.coco.ap_small) and enlarged.coco.ap_large == pytest.approx(1)
    assert enlarged.coco.ap == pytest.approx(1)


def test_ground_truth_is_as_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes of the files, digit by digit, not as they come back from the network's input."""
    labels = {
        "a": [[0, 0.123457, 0.3, 0.07, 0.11]],
        "b": [[1, 0.7, 0.654321, 0.2, 0.13], [0, 0.5, 0.5, 0.9, 0.3]],
        "c": [],
    }
    sizes = {"a": (97, 61), "b": (333, 501), "c": (40, 40)}  # height, width
    for stem, rows in labels.items():
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{stem}.png"), np.full((*sizes[stem], 3), 90, np.uint8))
        lines = [" ".join(f"{value:g}" for value in row) for row in rows]
        (tmp_path / "labels" / f"{stem}.txt").write_text("\n".join(lines))
    loader = validation_loader(build_index([tmp_path / "images"], 2, cache=False, quiet=True), 64, 2, 0, 32)
    seen: list[np.ndarray] = []

    class Recording(CocoEvaluator):
        def add(self, image_id: int, detections: Any, boxes_xyxy: Any, classes: Any, **others: Any) -> None:
            seen.append(np.column_stack([classes, boxes_xyxy]))
            super().add(image_id, detections, boxes_xyxy, classes, **others)

    monkeypatch.setattr(engine.inference.evaluate, "CocoEvaluator", Recording)
    result = run(Oracle(), loader)
    assert result.num_labels == 3 and result.num_images == 3
    stems = [Path(record.path).stem for record in loader.dataset.records]
    for stem, found in zip(stems, seen):
        height, width = sizes[stem]
        rows = np.array(labels[stem], np.float32).reshape(-1, 5)
        expected = cxcywh_to_xyxy(rows[:, 1:]) * np.array([width, height, width, height], np.float32)
        assert np.array_equal(found, np.column_stack([rows[:, 0], expected]))


def test_images_reach_the_model_in_zero_to_one_and_its_precision() -> None:
    model = Oracle().double()
    run(model)
    assert model.seen[0].dtype == torch.float64 and model.seen[0].max() == 1


def test_training_state_is_kept() -> None:
    for training in (True, False):
        model = Oracle().train(training)
        run(model)
        assert model.training is training


def test_losses_are_means_over_images() -> None:
    losses = iter([1.0, 4.0])

    def criterion(raw: list[Tensor], targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert raw[0].item() == 2.0 and targets.shape[1] == 6
        return torch.zeros(()), {"box": torch.tensor(next(losses))}

    result = run(Oracle(), criterion=criterion)
    assert result.losses == {"box": pytest.approx((2 * 1 + 1 * 4) / 3)}
    assert result.as_row()["val/box"] == pytest.approx(2.0)


def test_augment_is_passed_on_and_has_no_loss() -> None:
    model = Oracle()
    result = run(model, augment=True, criterion=lambda raw, targets: pytest.fail("no raw maps to compare"))
    assert model.augmented and result.losses == {} and result.coco.ap == pytest.approx(1)


def test_row_has_the_columns_of_the_results_table() -> None:
    row = run(Oracle()).as_row()
    assert row["metrics/AP"] == row["metrics/AP50"] == row["fitness"] == pytest.approx(1)
    assert {"metrics/precision", "metrics/recall", "metrics/AP75", "metrics/AP_small", "metrics/AR100"} <= set(row)
    assert all(type(value) is float for value in row.values())


def test_table_lists_classes_when_asked() -> None:
    result = run(Oracle())
    assert "dog" not in result.table() and "COCO: AP 1.0000" in result.table()
    lines = result.table(verbose=True).splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [["all", "3", "3"], ["cat", "3", "1"], ["dog", "3", "2"]]


def test_no_labels_at_all_is_no_error() -> None:
    loader = Loader()
    for batch in loader:
        batch.targets = batch.targets[:0]
    result = run(Oracle(), loader)
    assert result.num_labels == 0 and np.isnan(result.coco.ap) and result.fitness == 0
    assert result.own.means == (0, 0, 0, 0) and "nan" in result.table(verbose=True)


def test_nothing_detected_is_no_error(tmp_path: Path) -> None:
    result = run(Oracle(), conf_thres=0.99, plots=True, save_dir=tmp_path)
    assert result.coco.ap == 0 and result.confusion.matrix[2].tolist() == [1, 2, 0]


def test_plots_are_written_when_asked(tmp_path: Path) -> None:
    run(Oracle(), save_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    run(Oracle(), save_dir=tmp_path, plots=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"PR_curve.png", "F1_curve.png", "confusion_matrix.png", "val_batch1_pred.jpg"} <= names
    assert "val_batch0_labels.jpg" in names and "val_batch2_pred.jpg" not in names


def test_hybrid_labels_join_the_detections() -> None:
    seen: list[np.ndarray] = []
    run(Oracle(shift=40.0), hybrid=True, writers=[lambda path, hw, detections: seen.append(detections)])
    confidences = [sorted(rows[:, 4].tolist()) for rows in seen]
    assert confidences == [pytest.approx([0.8, 0.9, 1, 1]), [], pytest.approx([0.8, 1])]


def test_ensemble_puts_predictions_together() -> None:
    for layout in ("yolov5", "yolov8"):
        model = Ensemble([Oracle(layout=layout), Oracle(shift=40.0, layout=layout)])
        decoded, raw = model(torch.zeros(2, 3, 64, 64))
        assert decoded.shape == ((2, 6, 7) if layout == "yolov5" else (2, 6, 6)) and raw is None
        assert model.stride.tolist() == [32]
    model = Ensemble([Oracle(), Oracle()])
    assert run(model).coco.ap == pytest.approx(1)


# ------------------------------------------------------------------------------------------------ files


FOUND = np.array([[10, 20, 30, 60, 0.9, 1], [0, 0, 100, 200, 0.123456, 0]], dtype=np.float32)


def test_label_files_are_named_after_their_images(tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path / "labels")
    writer("/data/a.jpg", (200, 100), FOUND)
    writer("/data/b.jpg", (200, 100), FOUND[:0])
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["a.txt"]
    # cx (10 + 30) / 2 / 100, cy (20 + 60) / 2 / 200, w 20 / 100, h 40 / 200; the least confident first
    assert (tmp_path / "labels/a.txt").read_text() == "0 0.5 0.5 1 1\n1 0.2 0.2 0.2 0.2\n"
    LabelWriter(tmp_path / "labels", with_confidence=True)("/data/a.jpg", (200, 100), FOUND)
    assert (tmp_path / "labels/a.txt").read_text().startswith("0 0.5 0.5 1 1 0.123456\n")


def test_label_files_of_equal_names_are_told_apart(tmp_path: Path) -> None:
    paths = ["/data/val/a/7.jpg", "/data/val/b/7.jpg", "/data/val/b/8.jpg", "/data/val/b/8.png", "/data/val/a_7.jpg"]
    writer = LabelWriter(tmp_path / "labels", paths=paths)
    for path in paths:
        writer(path, (200, 100), FOUND)
    found = {path.name for path in (tmp_path / "labels").iterdir()}
    assert found == {"a_7.txt", "a_7_2.txt", "b_7.txt", "8_jpg.txt", "8_png.txt"}


def test_coco_json_holds_upstream_s_fields(tmp_path: Path) -> None:
    paths = ["/data/000000000042.jpg", "/data/field.jpg"]
    writer = CocoWriter([7, 90], image_ids(paths))
    writer(paths[0], (200, 100), FOUND)
    writer(paths[1], (200, 100), FOUND[:1])
    writer.save(tmp_path / "out.json")
    records = json.loads((tmp_path / "out.json").read_text())
    assert records[0] == {"image_id": 42, "category_id": 90, "bbox": [10.0, 20.0, 20.0, 40.0], "score": 0.9}
    assert records[1]["category_id"] == 7 and records[1]["score"] == 0.12346
    assert records[2]["image_id"] == "field" and writer.seen == [42, "field"]


@pytest.mark.parametrize(
    ("paths", "ids"),
    [
        (["/d/7.png", "/d/08.png", "/d/x.png"], [7, 8, "x"]),
        (["/d/7.png", "/d/007.png", "/d/9.png"], ["7", "007", 9]),
        (["/d/a/7.png", "/d/b/7.png", "/d/b/x.png"], ["a_7", "b_7", "x"]),
        (["/d/7.png", "/d/\u0667.png"], ["7", "\u0667"]),  # an Arabic seven is a seven too
    ],
)
def test_image_ids_are_unique(paths: list[str], ids: list[int | str]) -> None:
    assert list(image_ids(paths).values()) == ids


@pytest.mark.parametrize(
    ("paths", "images", "ids"),
    [
        (["/d/val/field.jpg"], [("field.jpg", 5), ("x.jpg", 1)], [5]),
        (["/d/val/a/0.png", "/d/val/b/0.png"], [("b/0.png", 2), ("a/0.png", 1)], [1, 2]),
        (["/d/val/a/0.png", "/d/val/b/0.png"], [("a\\0.png", 1), ("b\\0.png", 2)], [1, 2]),
        (["/d/a/0.png", "/d/b/0.png"], [("/other/set/a/0.jpg", 1), ("/other/set/b/0.jpg", 2)], [1, 2]),
        (["/d/0.jpg", "/d/0.png"], [("0.png", 1), ("0.jpg", 2)], [2, 1]),
        (["/d/a/0.png", "/d/b/0.png"], [("0.png", 1), ("b/0.png", 2)], [1, 2]),  # the longer name first
        (["/d/images/0.png"], [("val2017/0.jpg", 3)], [3]),
        (["/d/e\u0301.png"], [("\u00e9.png", 3)], [3]),  # an accent as a Mac stores it
    ],
)
def test_images_are_found_in_an_annotation_file(
    paths: list[str], images: list[tuple[str, int]], ids: list[int]
) -> None:
    found = annotated_ids(paths, images, "a.json")
    assert [found[path] for path in paths] == ids


@pytest.mark.parametrize(
    ("paths", "images", "message"),
    [
        (["/d/42.jpg"], [("field.jpg", 5)], "image '/d/42.jpg' is not in the annotation file a.json"),
        (
            ["/d/a/0.png", "/d/b/0.png"],
            [("0.png", 1)],
            "'0.png' may be the image '/d/b/0.png', but also '/d/a/0.png';",
        ),
        (["/d/a/0.png"], [("0.png", 1), ("0.png", 2)], "but also entries 1 and 2; its names are not unique"),
        (["/d/a/0.png", "/d/b/0.png"], [("x/0.png", 1), ("y/0.png", 2)], "but also entries 1 and 2; its names are not"),
        (["/d/a/0.png", "/d/b/0.png"], [("b/0.png", 1)], "image '/d/a/0.png' is not in the annotation file"),
    ],
)
def test_an_image_that_may_be_several_is_an_error(
    paths: list[str], images: list[tuple[str, int]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        annotated_ids(paths, images, "a.json")


# ------------------------------------------------------------------------------------------------ class names


@pytest.mark.parametrize("layout", ["yolov5", "yolov8"])
def test_classes_in_another_order_are_put_into_that_of_the_data_set(layout: str) -> None:
    """The model says cat, dog; the data set's labels say dog, cat, so its numbers are the others."""
    model = Oracle(swap=1, layout=layout)
    assert run(model).coco.ap == 0
    model = Oracle(swap=1, layout=layout)
    reordered = with_names(model, ["dog", "cat"], "the data set", "the model")
    assert run(reordered, names=reordered.names).coco.ap == pytest.approx(1)
    assert reordered.names == ["dog", "cat"] and reordered.layout == model.layout


def test_voters_are_brought_to_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"a.pt": Oracle(), "b.pt": Oracle(swap=1)}
    models["b.pt"].names = ["dog", "cat"]
    monkeypatch.setattr(engine.inference.ensemble, "load_model", lambda path, *_, **__: models[path])
    ensemble = engine.inference.ensemble.load_detector(["a.pt", "b.pt"], CPU)
    assert run(ensemble).coco.ap == pytest.approx(1) and ensemble.names == NAMES


def test_categories_of_coco_follow_the_names() -> None:
    names = list(load_class_names(ROOT / "data/coco.yaml"))
    numbers = coco_categories(names, "coco.yaml")
    assert (numbers[0], numbers[11], numbers[79]) == (1, 13, 90)  # person, stop sign, toothbrush
    assert coco_categories(names[::-1], "coco.yaml") == numbers[::-1]
    assert coco_categories(["human", *names[1:]], "coco.yaml") == numbers
    with pytest.raises(UserError, match="the order differs, and so do other names"):
        coco_categories(["human", *names[:0:-1]], "coco.yaml")


@pytest.mark.parametrize("order", ["abc", "acb", "cab", "bca"])
def test_a_voter_without_names_does_not_hide_those_of_the_others(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    models = {"a": Oracle(), "b": Oracle(), "c": Oracle(swap=1)}
    models["a"].names, models["c"].names = ["class0", "class1"], ["dog", "cat"]
    monkeypatch.setattr(engine.inference.ensemble, "load_model", lambda path, *_, **__: models[path])
    if order.index("c") < order.index("b"):  # the classes without names are those of the first names
        models["a"].swap = 1
    ensemble = with_names(engine.inference.ensemble.load_detector(list(order), CPU), NAMES, "the data set", "all")
    assert run(ensemble).coco.ap == pytest.approx(1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog"], ""),
        (["Cat ", "DOG"], ""),
        (["0", "1"], ""),
        (["cat", "wolf"], "'dog' in w.pt is 'wolf' in d.yaml (1 of 2 classes): taken for the same by index"),
    ],
)
def test_other_names_in_the_same_order_are_the_same_model(
    names: list[str], message: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.inference.ensemble.LOGGER, "propagate", True)
    model = Oracle()
    assert with_names(model, names, "d.yaml", "w.pt") is model
    assert message in caplog.text and (bool(message) or names == ["0", "1"] or not caplog.text)


def test_an_order_that_cannot_be_known_is_an_error() -> None:
    model = Oracle()
    with pytest.raises(UserError, match="class 0 of d.yaml is 'dog', which is class 1 of w.pt; the order differs, and"):
        with_names(model, ["dog", "wolf"], "d.yaml", "w.pt")
    model.names = ["Dog", "dog "]
    with pytest.raises(UserError, match="d.yaml 'dog' and w.pt 'Dog', 'dog ' cannot be told apart by name"):
        with_names(model, ["dog", "cat"], "d.yaml", "w.pt")


def test_help_is_instant() -> None:
    code = (
        "import sys; sys.argv = ['test.py', '--help']\n"
        "import runpy\n"
        "try:\n    runpy.run_path('test.py', run_name='__main__')\n"
        "except SystemExit as end:\n    sys.exit(bool(end.code) or bool({'torch', 'numpy', 'cv2'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for flag in ("--weights", "--iou-thres", "--no-trace", "--v5-metric", "--save-json", "--imgsz", "--max-det"):
        assert flag in process.stdout
