"""Several teachers, the student's own average as one, and when distillation stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.checkpoint import save_checkpoint
from distill import Distiller, DistillError
from engine.config.hyp import Hyp, hyp_from_dict
from engine.config.options import TrainOptions
from engine.distilling.distillers import build_distillers, check_recipe
from engine.distilling.teachers import OWN_AVERAGE, TeacherPlan, plan_teachers, schedule_values, shared_losses
from engine.training.ema import ModelEMA
from engine.training.state import model_entry
from models.yolo import Model
from utils.errors import UsageError, UserError

CPU = torch.device("cpu")
PICO = "cfg/yolov5/yolov5p.yaml"
NAMES = ["red", "white", "plate"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two trained teachers of three classes, the second with its classes in another order."""
    folder = tmp_path_factory.mktemp("teachers")
    paths = []
    for number, names in enumerate((NAMES, NAMES[::-1])):
        torch.manual_seed(number)
        model = Model(PICO, nc=3)
        model.names = names
        paths.append(str(folder / f"{number}.pt"))
        save_checkpoint(Path(paths[-1]), {"model": model_entry(model)})
    return paths


def build(
    files: list[str], hyp: dict[str, Any], weights: tuple[str, ...] = ()
) -> tuple[list[Distiller], Any, ModelEMA]:
    torch.manual_seed(7)
    student = Model(PICO, nc=3)
    student.names = NAMES
    ema = ModelEMA(student)
    named = weights or tuple(files)
    options = TrainOptions(cfg=PICO, teacher_weights=named[0], more_teachers=named[1:], img_size=(64, 64))
    distillers, facts = build_distillers(student, options, hyp_from_dict(hyp, "h.yaml"), CPU, ema.module)
    assert facts["path"] == named[0]
    return distillers, student, ema


def losses(distillers: list[Distiller], student: Model, training: bool = True) -> list[dict[str, float]]:
    torch.manual_seed(1)
    images = torch.rand(2, 3, 64, 64)
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.4]])
    student.train(training)
    found = []
    for distiller in distillers:
        predictions, features = student(images, extra_features=distiller.layers)
        found.append({k: float(v) for k, v in distiller(images, predictions, features, targets)[1].items()})
    return found


def test_teachers_share_the_work(files: list[str]) -> None:
    recipe = {"kd_losses": {"cwd": {"weight": 2.0}}}
    alone = losses(*build(files, recipe, (files[0],))[:2])[0]
    first, second = losses(*build(files, recipe)[:2])
    assert {name.split("/")[0] for name in first} == {"kd1"} and {n.split("/")[0] for n in second} == {"kd2"}
    for name, value in alone.items():
        assert first[name.replace("kd/", "kd1/")] == pytest.approx(value / 2), "each has half of the weight"
    uneven = {**recipe, "kd_teachers": [{"share": 0.25}, {"share": 3}]}
    quarter, thrice = losses(*build(files, uneven)[:2])
    for name, value in first.items():
        assert quarter[name] == pytest.approx(value / 2)
    for name, value in second.items():
        assert thrice[name] == pytest.approx(value * 6)


def test_a_teacher_for_some_classes(files: list[str]) -> None:
    recipe = {
        "kd_losses": {"soft_label": {}},
        "kd_teachers": [{"classes": ["Red"]}, {"classes": ["plate", "white"]}],
    }
    distillers, student, _ = build(files, recipe)
    first, second = distillers
    assert first.student_view is not None and second.student_view is not None and second.teacher_view is not None
    assert first.student_view.spec.names == ("red",)
    assert second.student_view.spec.names == ("white", "plate") == second.teacher_view.spec.names
    assert second.teacher_view.classes.tolist() == [1, 0], "by name, whatever the order"
    assert "this teacher teaches red" in first.notes[0]
    assert all(value > 0 for found in losses(distillers, student) for value in found.values())


def test_a_class_that_a_teacher_does_not_know(files: list[str]) -> None:
    recipe = {"kd_losses": {"cwd": {}}, "kd_teachers": [{"classes": ["plates"]}]}
    with pytest.raises(DistillError, match="unknown class 'plates'; did you mean 'plate'"):
        build(files, recipe, (files[0],))


def test_the_students_own_average_teaches(files: list[str]) -> None:
    distillers, student, ema = build(files, {"kd_losses": {"cwd": {}}}, (OWN_AVERAGE,))
    (distiller,) = distillers
    assert distiller.teacher is ema.module
    assert max(losses(distillers, student, training=False)[0].values()) < 1e-6, "it begins as the student itself"
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    apart = losses(distillers, student, training=False)[0]
    assert min(apart.values()) > 1e-3
    ema.limit = 0.0  # the average becomes the student
    ema.update(student)
    assert max(losses(distillers, student, training=False)[0].values()) < 1e-6, "the teacher follows"


def test_the_average_takes_the_teachers_anchors_with_the_student(files: list[str], tmp_path: Path) -> None:
    model = Model(PICO, nc=3)
    model.names = NAMES
    model.head.set_anchors(model.head.anchors_px * 1.5)
    path = tmp_path / "other.pt"
    save_checkpoint(path, {"model": model_entry(model)})
    _, student, ema = build(files, {"kd_losses": {"output": {}}}, (str(path),))
    assert torch.equal(student.head.anchors_px, model.head.anchors_px)
    assert torch.equal(ema.module.head.anchors_px, model.head.anchors_px)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"share": 1}, "kd_teachers must be a list such as"),
        ([{"shares": 1}], "unknown key 'shares'; did you mean 'share'"),
        ([{"share": -1}], "share is -1; expected a number of at least 0"),
        ([{"classes": "red"}], "classes is 'red'; expected a list of names"),
        ([{"classes": []}], "expected a list of names, or leave it out"),
    ],
)
def test_wrong_descriptions(entries: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hyp_from_dict({"kd_teachers": entries}, "h.yaml")


def test_as_many_descriptions_as_teachers(files: list[str]) -> None:
    options = TrainOptions(teacher_weights=files[0])
    with pytest.raises(UserError, match="describes 2 teachers, --teacher-weights names 1"):
        plan_teachers(options, Hyp(kd_teachers=[{}, {}]))
    assert plan_teachers(options, Hyp()) == [TeacherPlan(files[0])]
    with pytest.raises(UserError, match="--teacher-weights 'none.pt' does not exist"):
        plan_teachers(replace(options, more_teachers=("none.pt",)), Hyp())


def test_a_student_is_not_its_own_teacher(files: list[str]) -> None:
    hyp = Hyp(kd_losses={"cwd": {}})
    with pytest.raises(UsageError, match="would be its own teacher.*--teacher-weights ema"):
        check_recipe(TrainOptions(weights=files[1], teacher_weights=files[0], more_teachers=(files[1],)), hyp)
    check_recipe(TrainOptions(weights=files[1], teacher_weights=OWN_AVERAGE), hyp)


def test_shares_leave_odd_settings_to_the_distiller() -> None:
    mixture = {
        "cwd": None, "mgd": {"weight": 4, "mask": 1}, "at": 3, "l2": {"weight": "much"},
        "fgd": {"share": 0.4, "temperature": 1}, "output": {"share": {"box": 0.2, "cls": "x"}},
    }  # fmt: skip
    assert shared_losses(mixture, 0.5) == {
        "cwd": {"weight": 0.5}, "mgd": {"weight": 2.0, "mask": 1}, "at": 3, "l2": {"weight": "much"},
        "fgd": {"share": 0.2, "temperature": 1}, "output": {"share": {"box": 0.1, "cls": "x"}},
    }  # fmt: skip


def test_distillation_stops_with_the_mosaics() -> None:
    hyp = Hyp(kd_schedule={"stop_epoch": "close_mosaic", "end": 0.5}, close_mosaic=10)
    assert schedule_values(TrainOptions(epochs=30), hyp) == {"stop_epoch": 20, "end": 0.5}
    assert schedule_values(TrainOptions(epochs=30, close_mosaic=12), hyp)["stop_epoch"] == 18
    with pytest.raises(UserError, match="mosaics never stop"):
        schedule_values(TrainOptions(epochs=30), replace(hyp, close_mosaic=0))
