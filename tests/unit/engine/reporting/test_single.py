from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from checkpoints.checkpoint import save_checkpoint
from data.labels import build_index
from data.synthetic import render_dataset
from engine.reporting.gallery import attention, count_missed, picture_row, telling_images
from engine.reporting.matching import draw_images
from engine.reporting.measuring import Measured, labelled_boxes, measure
from engine.reporting.runs import describe_seconds, read_run
from engine.reporting.single import report_run
from engine.runfolder import ResultsTable, RunFolder
from engine.training.state import model_entry
from models.yolo import Model
from tests.golden import ROOT
from utils.errors import UserError

EVIL = "<script>alert(1)</script>"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of six images, whose first class has the name of an element."""
    path = render_dataset(
        tmp_path_factory.mktemp("data") / "set", num_train=2, num_val=6, num_test=2, img_size=64, seed=0
    )
    content = yaml.safe_load(path.read_text())
    content["names"] = [EVIL, *list(content["names"])[1:]]
    other = path.with_name("evil.yaml")
    other.write_text(yaml.safe_dump({**content, "path": str(path.parent)}))
    return other


def network(data: Path) -> Model:
    torch.manual_seed(0)
    names = yaml.safe_load(data.read_text())["names"]
    architecture = yaml.safe_load((ROOT / "cfg/yolov5/yolov5n.yaml").read_text())
    model = Model(architecture | {"width_multiple": 0.0625, "depth_multiple": 0.1}, nc=len(names))
    model.names = names
    return model.eval()


def trained(folder: Path, data: Path) -> Path:
    """A run folder as a training of three epochs leaves it."""
    run = RunFolder(folder)
    save_checkpoint(run.best, {"model": model_entry(network(data))})
    table = ResultsTable(folder / "results.csv")
    for epoch, ap in enumerate([0.1, 0.2, 0.3]):
        table.add({"epoch": epoch, "train/box": 1.0 - ap, "time/epoch": 4.0, "metrics/AP": ap})
    run.write_yaml("opt.yaml", {"data": str(data), "img_size": [64, 64], "batch_size": 4, "workers": 0})
    run.write_manifest({"data": EVIL, "val_hash": "0" * 64, "teacher": {"path": EVIL, "sha256": "ab" * 32}})
    return folder


def test_the_report_of_a_run(tmp_path: Path, data: Path) -> None:
    html = report_run(trained(tmp_path / "run", data), "cpu").read_text(encoding="utf-8")
    assert "after 3 epochs; the best was epoch 3" in html
    assert "not what a method brings" in html and "95 % interval" not in html, "a single run claims no gain"
    assert "had not converged" in html
    assert EVIL not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert html.count("<svg") == 3 and "abababababababab" in html
    assert len(html) < 5_000_000


def test_a_folder_that_is_none_of_a_training(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint .*best.pt' does not exist"):
        report_run(tmp_path)
    (trained(tmp_path / "run", data) / "opt.yaml").unlink()
    with pytest.raises(UserError, match=r"options .*opt.yaml' does not exist"):
        report_run(tmp_path / "run")


def test_what_a_folder_says_of_its_training(tmp_path: Path, data: Path) -> None:
    facts = read_run(trained(tmp_path / "run", data) / "weights" / "best.pt")
    assert facts.curve == ([1, 2, 3], [0.1, 0.2, 0.3]) and facts.seconds == 12
    assert facts.rise == pytest.approx(0.1) and not facts.converged and not facts.forced
    told = dict(facts.lines())
    assert told["weights"].startswith(str(facts.weights)) and told["teacher"] == f"{EVIL}  sha256 {'ab' * 8}"
    (tmp_path / "bare").mkdir()
    bare = read_run(tmp_path / "bare" / "weights" / "best.pt")
    assert bare.curve == ([], []) and np.isnan(bare.seconds) and bare.converged


def test_times_as_people_say_them() -> None:
    assert [describe_seconds(s) for s in (42.4, 1500.0, 9000.0, float("nan"))] == ["42 s", "25 min", "2.5 h", "-"]


def test_a_measurement_agrees_with_its_resamples(data: Path) -> None:
    content = yaml.safe_load(data.read_text())
    index = build_index((Path(content["path"]) / "images/val",), len(content["names"]), prefix="val")
    measured = measure(network(data), index, content["names"], CPU, 64, 4, 0, progress=False)
    assert len(measured.detections) == len(measured.found) == len(index.records) == 6
    assert len(measured.resampled) == len(draw_images(6))
    assert measured.resampled.min() <= measured.result.coco.ap <= measured.resampled.max()
    for record, found in zip(index.records, measured.found):
        assert len(found) == len(labelled_boxes(record))


def seen(found: list[list[bool]]) -> Measured:
    empty = np.zeros((0, 6), np.float32)
    flags = [np.array(each, bool) for each in found]
    return Measured(None, np.zeros(1), np.zeros(101), 0.5, flags, [empty] * len(found))  # type: ignore[arg-type]


def test_the_images_are_chosen_by_teacher_and_baseline() -> None:
    teacher = seen([[True, True], [True, True, True], [False], [True]])
    baseline = seen([[True, False], [False, False, True], [True], [True]])
    assert telling_images(teacher, baseline, 5) == [1, 0], "most first, and none without any"
    assert count_missed(teacher, baseline) == (3, 1)


def test_pictures_of_an_image(data: Path) -> None:
    content = yaml.safe_load(data.read_text())
    index = build_index((Path(content["path"]) / "images/val",), len(content["names"]), prefix="val")
    record = index.records[0]
    boxes = labelled_boxes(record)
    right = np.column_stack([boxes[:, :4], np.full(len(boxes), 0.9), boxes[:, 5]])
    one = Measured(None, np.zeros(1), np.zeros(1), 0.5, [np.ones(len(boxes), bool)], [right])  # type: ignore[arg-type]
    other = Measured(None, np.zeros(1), np.zeros(1), 0.5, [np.zeros(len(boxes), bool)], [right[:0]])  # type: ignore[arg-type]
    row = picture_row(record, 0, {"teacher": one, "baseline": other}, content["names"])
    assert [each.caption for each in row] == [
        f"teacher: 0 of {len(boxes)} boxes missed",
        f"baseline: {len(boxes)} of {len(boxes)} boxes missed",
    ]
    assert all(each.source.startswith("data:image/jpeg;base64,") for each in row) and row[0].source != row[1].source


def test_attention_is_where_the_features_are_strong(data: Path) -> None:
    model = network(data)
    image = np.full((48, 64, 3), 114, np.uint8)
    image[30:44, 4:20] = np.random.default_rng(0).integers(0, 255, (14, 16, 3))
    heat = attention(model, image, 64, CPU)
    assert heat.shape == (48, 64) and heat.min() >= 0 and heat.max() <= 1 + 1e-6
    fused = attention(network(data).fuse(), image, 64, CPU)
    assert np.abs(heat - fused).max() < 0.01


def test_the_manifest_that_says_nothing(tmp_path: Path, data: Path) -> None:
    folder = trained(tmp_path / "run", data)
    (folder / "manifest.json").write_text(json.dumps({"gate": {"forced": True}, "hardware": "?"}))
    facts = read_run(folder / "weights" / "best.pt")
    assert not facts.forced and facts.threads is None and [title for title, _ in facts.lines()] == ["weights"]


def test_a_teacher_that_the_gate_refused_is_told(tmp_path: Path, data: Path) -> None:
    folder = trained(tmp_path / "run", data)
    entries: list[object] = [{"path": path, "AP": 0.01, "images": 200, "problem": f"{path} knows nothing",
                              "forced": path != "c.pt"} for path in ("a.pt", "c.pt", EVIL)]  # fmt: skip
    manifest = {"gate": [*entries, "?"], "hardware": {"threads": 3, "gpus": []}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    facts = read_run(folder / "weights" / "best.pt")
    assert facts.forced == ["a.pt: a.pt knows nothing", f"{EVIL}: {EVIL} knows nothing"] and facts.threads == 3
    html = report_run(folder, "cpu").read_text(encoding="utf-8")
    assert "trained with --force" in html and "a.pt knows nothing" in html and "c.pt knows" not in html
    assert EVIL not in html
