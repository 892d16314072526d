"""CrossKD: the student's features in the teacher's head."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import DistillContext, Distiller, DistillError
from distill.losses.crosskd import CrossKD, match_statistics
from engine.distilling.distillers import head_spec
from models.yolo import Model
from tests.golden import ROOT
from tests.unit.distill import distill_toys as toys

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def model(name: str, seed: int = 0) -> Model:
    """A detector whose predictions depend on the image: fresh heads see the same in every cell."""
    torch.manual_seed(seed)
    made = Model(ROOT / f"cfg/{name}.yaml", nc=3)
    for parameter in made.head.parameters():
        if parameter.ndim == 4:
            nn.init.normal_(parameter, std=0.3)
    return made


def distiller(student: Model, teacher: nn.Module, layers: Any = ("auto", "auto"), **settings: Any) -> Distiller:
    extra = {key: settings.pop(key) for key in ("taps", "cross_head") if key in settings}
    heads = {"student_head": head_spec(student), "teacher_head": head_spec(getattr(teacher, "inner", teacher))}
    return Distiller(student, teacher, *layers, {"crosskd": settings}, image_size=64, **heads, **extra)


def step(kd: Distiller, student: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    output = student(IMAGES, extra_features=kd.layers) if kd.layers else student(IMAGES)
    predictions, features = output if kd.layers else (output, [])
    return kd(IMAGES, predictions, features, toys.NO_TARGETS)


CROSSINGS = [
    ("yolov5/yolov5n", "auto", 0),
    ("yolov7/yolov7-tiny", "auto", 0),
    ("yolov8/yolov8n", "auto", 0),
    ("yolov8/yolov8n", "auto", 1),
    ("yolov8/yolov8n", "auto", 2),
]


@pytest.mark.parametrize(("name", "layers", "at"), CROSSINGS)
def test_the_teachers_own_features_cross_unchanged(name: str, layers: Any, at: int) -> None:
    """A student equal to its teacher has nothing to learn, wherever it crosses; a different one has."""
    student, teacher = model(name).eval(), model(name)
    kd = distiller(student, teacher, (layers, layers), at=at, match=False)
    output, features = student(IMAGES, extra_features=kd.layers)
    _, items = kd(IMAGES, output[1], features, toys.NO_TARGETS)
    assert all(value == 0 for value in items.values())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)
    output, features = student(IMAGES, extra_features=kd.layers)
    _, items = kd(IMAGES, output[1], features, toys.NO_TARGETS)
    assert all(value > 0 for value in items.values())


def test_layers_before_a_reparameterised_one_run_in_the_teacher() -> None:
    """75, 88 and 101 of yolov7 feed the RepConvs before the head: the same predictions as from the head's inputs."""
    torch.manual_seed(0)
    teacher = Model(ROOT / "cfg/yolov7/yolov7.yaml", nc=3)
    student = model("yolov7/yolov7-tiny")
    kd = distiller(student, teacher, ("auto", [75, 88, 101]))
    loss = kd.losses["crosskd"]
    assert isinstance(loss, CrossKD)
    with torch.no_grad():
        (_, raw), features = teacher(IMAGES, extra_features=[75, 88, 101])
        found = loss.crossing.predict([[f] for f in features])
    for own, crossed in zip(raw, found):
        assert torch.equal(own, crossed)
    total, _ = step(kd, student.train())
    total.backward()
    assert student.model[0].conv.weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("at", [0, 1])
def test_gradients_reach_the_students_features_and_not_the_rest_of_its_head(at: int) -> None:
    student, teacher = model("yolov8/yolov8n"), model("yolov8/yolov8s")
    kd = distiller(student, teacher, at=at)
    total, _ = step(kd, student.train())
    total.backward()
    assert student.model[0].conv.weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    for branch in (*student.head.cv2, *student.head.cv3):  # type: ignore[union-attr, misc]
        reached = [index for index, conv in enumerate(branch) if any(p.grad is not None for p in conv.parameters())]
        assert reached == list(range(at)), "only the convolutions before the crossing learn from it"
    adapters = list(kd.parameters())
    assert len(adapters) == 3  # weights without a bias; the two box branches are equally wide
    assert all(p.grad is not None for p in adapters)
    assert all(p.grad is None for p in teacher.parameters())


def test_the_crossing_is_no_part_of_the_distiller() -> None:
    student, teacher = model("yolov5/yolov5n"), model("yolov5/yolov5s")
    kd = distiller(student, teacher)
    names = [name for name, _ in kd.named_parameters()]
    assert names and all(".adapters." in name for name in names)
    assert [key for key in kd.state_dict() if ".adapters." not in key] == []
    total, items = step(kd, student.train())
    clone = copy.deepcopy(kd.losses["crosskd"])
    assert clone.crossing is kd.losses["crosskd"].crossing, "a copied loss shares the teacher"
    predictions, features = student(IMAGES, extra_features=kd.layers)
    table = str(kd.preflight(IMAGES, predictions, features, toys.NO_TARGETS, torch.tensor(1.0)))
    assert "kd/crosskd/box" in table


def test_heads_need_not_be_alike() -> None:
    """An anchor-free student, and one of other classes, in the head of an anchor-based teacher."""
    teacher = model("yolov5/yolov5s")
    kd = distiller(model("yolov8/yolov8n"), teacher)
    assert kd.item_names == ("kd/crosskd/cls", "kd/crosskd/obj", "kd/crosskd/box")


class Foreign(nn.Module):
    """Another code base's network: no extra features, its layers under other names."""

    def __init__(self, inner: Model) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Any:
        return self.inner(images)


@pytest.mark.parametrize("give", ["function", "module"])
def test_foreign_networks_cross_by_a_head_that_is_given(give: str) -> None:
    student, teacher = Foreign(model("yolov5/yolov5n")), Foreign(model("yolov5/yolov5s"))
    names = [f"inner.model.{index}" for index in (17, 20, 23)]
    head = teacher.inner.head
    cross_head = head if give == "module" else lambda features: head.raw_maps(features)
    losses: dict[str, Any] = {"crosskd": {}}
    heads = {"student_head": head_spec(student.inner), "teacher_head": head_spec(teacher.inner)}
    hooked: dict[str, Any] = {"image_size": 64, "taps": "hooks", **heads}
    kd = Distiller(student, teacher, names, names, losses, cross_head=cross_head, **hooked)
    student.train()
    total, items = kd(IMAGES, student(IMAGES), [], toys.NO_TARGETS)
    total.backward()
    assert total > 0 and all(p.grad is None for p in teacher.parameters())
    reference = distiller(student.inner, teacher.inner)
    _, wanted = step(reference, student.inner)
    for name, value in items.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)
    with pytest.raises(DistillError, match="give cross_head"):
        Distiller(student, teacher, names, names, losses, **hooked)


@pytest.mark.parametrize(
    ("names", "layers", "settings", "message"),
    [
        (("yolov5/yolov5n", "yolov5/yolov5s"), ("auto", "auto"), {"at": 1}, "no branches cv2 and cv3"),
        (("yolov5/yolov5n", "yolov5/yolov5s"), ("auto", "auto"), {"at": 3}, "at is 3; expected 0, 1 or 2"),
        (("yolov5/yolov5n", "yolov5/yolov5s"), ([17, 20], [17, 20]), {}, "layer 23 feeds the teacher's head"),
        (("yolov5/yolov5n", "yolov5/yolov5s"), ([4, 6, 9], [4, 6, 9]), {}, "layer 17 feeds the teacher's head"),
        (("yolov8/yolov8n", "yolov8/yolov8s"), ([15], [15]), {"at": 2}, "3 levels in common, 1 layers"),
    ],
)
def test_what_cannot_cross_is_refused_in_one_line(
    names: tuple[str, str], layers: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DistillError) as error:
        distiller(model(names[0]), model(names[1]), layers, **settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_statistics_are_those_of_the_teachers_channels() -> None:
    student = torch.tensor([[1.0, 3.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
    teacher = torch.tensor([[10.0, 18.0], [5.0, 7.0]]).reshape(1, 2, 1, 2)
    # channel 0: (x - 2) / 1 * 4 + 14; channel 1 is constant: 0 / 1e-6 * 1 + 6
    found = match_statistics(student, teacher)
    torch.testing.assert_close(found.flatten(), torch.tensor([10.0, 18.0, 6.0, 6.0]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(match_statistics(100 * student - 3, teacher), found, rtol=1e-4, atol=1e-3)


def test_by_hand() -> None:
    """One cell, one anchor, one class: the numbers behind each term."""
    head = toys.head_spec(num_classes=1, strides=(8,), anchors=[[[8.0, 8.0]]])
    setup = toys.setup(6, 6)
    levels = (replace(setup.levels[0], stride=8),)

    def as_raw(features: list[Tensor]) -> list[Tensor]:
        return [x.permute(0, 2, 3, 1)[:, None] for x in features]

    loss = CrossKD(replace(setup, levels=levels, teacher_head=head, cross_head=as_raw), match=False)
    teacher = torch.zeros(1, 6, 1, 1)
    student = teacher.clone()
    student[0, 4], student[0, 5] = -30.0, 30.0  # objectness 0 against 0.5, class 1 against 0.5
    student[0, 2] = torch.logit(torch.tensor(0.5**0.5) / 1)  # (2 s)^2 is 2 instead of 1: a box twice as wide
    context = DistillContext.from_targets(toys.NO_TARGETS, (8, 8))
    terms = loss([student], [teacher], replace(context, teacher_output=as_raw([teacher])))
    # foreground 0.5, counted as 1. obj: cross-entropy 0.5 * 30 times the gap of 0.5; cls the same, weighted by 0.5
    assert terms["obj"].item() == pytest.approx(7.5)
    assert terms["cls"].item() == pytest.approx(3.75)
    # boxes 16 x 8 and 8 x 8 around one centre: GIoU is the IoU, 0.5; gain 2; 0.5 * 0.5 / max(0.5, 1)
    assert terms["box"].item() == pytest.approx(2 * 0.25)
