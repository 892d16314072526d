"""The table of both networks' layers, to choose pairs from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import train_distill
from checkpoints.checkpoint import save_checkpoint
from distill.listing import layer_table
from distill.pairing import head_inputs, pair_layers
from engine.config.options import TrainOptions
from engine.distilling.list_layers import list_layers
from engine.training.state import model_entry
from models.yolo import Model
from tests.golden import ROOT
from tests.unit.distill.distill_toys import ToyDetector
from utils.errors import UsageError

STUDENT = str(ROOT / "cfg/yolov5/yolov5p.yaml")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of YOLOv8n."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    save_checkpoint(path, {"model": model_entry(Model(ROOT / "cfg/yolov8/yolov8n.yaml", nc=3)), "epoch": 0})
    return str(path)


def hyp(folder: Path, student: object, teacher: object) -> str:
    values = {"student_kd_layers": student, "teacher_kd_layers": teacher, "kd_losses": {"l2": {"weight": 1.0}}}
    path = folder / "hyp.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


def test_the_table_by_hand() -> None:
    size = (64, 64)
    table = layer_table(ToyDetector(4), ToyDetector(6), (size, size), {"auto": [(3, 3), (4, 4)], "hyp": [(4, 2)]})
    heading = ["layer", "block", "channels", "stride", "pairs"]
    assert rows(table)[0] == ["student", *heading, "teacher", *heading]
    assert rows(table)[3] == ["2", "Sequential", "4", "8", "2", "Sequential", "6", "8", "hyp", "1"]
    assert rows(table)[4] == ["3", "Conv2d", "4", "8", "auto", "1", "3", "Conv2d", "6", "8", "auto", "1"]
    assert rows(table)[5][:7] == ["4", "Sequential", "8", "16", "auto", "2,", "hyp"]


def test_a_teacher_of_larger_images_has_its_own_strides() -> None:
    table = layer_table(ToyDetector(4), ToyDetector(6), ((64, 64), (128, 128)), {})
    assert rows(table)[5] == ["4", "Sequential", "8", "16", "4", "Sequential", "12", "16"]


def test_without_a_teacher_the_student_is_listed() -> None:
    table, problem = list_layers(TrainOptions(cfg=STUDENT, img_size=(64, 64)))
    assert problem is None and rows(table)[0] == ["student", "layer", "block", "channels", "stride", "pairs"]
    assert rows(table)[-1][:2] == ["23", "C3"] and len(rows(table)) == 25


def test_auto_pairs_and_those_of_the_file_are_marked(teacher: str, tmp_path: Path) -> None:
    options = TrainOptions(
        cfg=STUDENT, teacher_weights=teacher, img_size=(64, 64), hyp=hyp(tmp_path, [14, 23], [16, 21])
    )
    table, problem = list_layers(options)
    assert problem is None
    by_layer = {row[0]: " ".join(row) for row in rows(table)[1:]}
    assert "auto 1" in by_layer["17"] and "auto 3, hyp 2" in by_layer["23"] and "hyp 1" in by_layer["14"]
    marks = [line for line in table.splitlines() if "auto 1" in line]
    assert [line.split()[0] for line in marks] == ["15", "17"], "the teacher's layer 15 feeds its head at stride 8"
    _, same = list_layers(TrainOptions(weights=teacher, teacher_weights=teacher, hyp=hyp(tmp_path, "auto", None)))
    assert same is None


def test_what_cannot_be_paired_is_said_after_the_table(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student layer 14 has stride 16, teacher layer 15 stride 8."""
    file = hyp(tmp_path, [14], [15])
    words = f"train_distill.py --list-layers --cfg {STUDENT} --teacher-weights {teacher} --img 64 --hyp {file}".split()
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(Exception, match=r"teacher_kd_layers\[0\]=15 has stride 8 and shape \(64, 8, 8\)"):
        train_distill.main()
    shown = capsys.readouterr().out
    assert "hyp 1" in next(line for line in shown.splitlines() if line.startswith("14 "))


MEANING = {
    "mobilenetv2-yolov5s": ([28, 23, 18], [8, 16, 32]),  # 29, 24, 19 are the predictions
    "yolov7-tiny": ([74, 75, 76], [8, 16, 32]),
    "yolov7": ([102, 103, 104], [8, 16, 32]),
    "yolov7-half": ([102, 103, 104], [8, 16, 32]),
    "yolov7-quarter": ([102, 103, 104], [8, 16, 32]),
    "yolov7x": ([118, 119, 120], [8, 16, 32]),
    "yolov7-w6": ([114, 115, 116, 117], [8, 16, 32, 64]),  # and not what feeds the auxiliary maps
    "yolov7-e6": ([136, 137, 138, 139], [8, 16, 32, 64]),
    "yolov7-d6": ([158, 159, 160, 161], [8, 16, 32, 64]),
    "yolov7-e6e": ([257, 258, 259, 260], [8, 16, 32, 64]),
}


@pytest.mark.parametrize("cfg", sorted((ROOT / "cfg").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_auto_takes_the_features_before_the_predictions_of_every_architecture(cfg: Path) -> None:
    """Built on the meta device: without weights, so the large ones cost little."""
    with torch.device("meta"):
        model = Model(cfg, nc=7)
    usual = [15, 18, 21] if "v8" in cfg.stem else [23, 26, 29, 32] if cfg.stem.endswith("6") else [17, 20, 23]
    layers, strides = MEANING.get(cfg.stem, (usual, [8, 16, 32, 64][: len(usual)]))
    assert head_inputs(model, "student") == (layers, strides)


def test_the_small_mobile_student_is_compared_by_its_features() -> None:
    model = Model(ROOT / "cfg/mobile/mobilenetv2-yolov5s.yaml", nc=3)
    found = pair_layers(model, model, "auto", "auto", "extra_features", ((64, 64), (64, 64)))[2]
    assert [(level.name, level.student_channels) for level in found] == [("P3", 128), ("P4", 256), ("P5", 512)]


def test_a_student_has_to_be_named() -> None:
    with pytest.raises(UsageError, match="--list-layers needs a student: name it with --cfg or --weights"):
        list_layers(TrainOptions())
