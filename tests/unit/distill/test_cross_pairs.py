"""Any network teaches any other: the real families, at 64 pixels, with every loss."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import LOSSES, Distiller, DistillError
from engine.distilling.distillers import head_spec
from models.yolo import Model
from tests.golden import ROOT

CFGS = {
    "v5": "yolov5/yolov5p",
    "v8": "yolov8/yolov8n",
    "v7": "yolov7/yolov7-tiny",
    "mobile": "mobile/mobilenetv2-yolov5s",
    "v5-p6": "yolov5/yolov5n6",
}
STUDENT_CLASSES = ("Person", "car")
COCO_LIKE = (*(f"thing {index}" for index in range(60)), "car", "person ", *(f"other {index}" for index in range(18)))
TARGETS = torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.4], [1, 0, 0.3, 0.3, 0.5, 0.6]])
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
ALWAYS_ZERO = {"kd/self_distillation/dfl", "kd/output/obj", "kd/crosskd/cls"}
"""Terms that heads without the part, or networks at their start, do not have."""


@functools.cache
def model(family: str, names: tuple[str, ...], role: str) -> Model:
    """One network for all tests of a role; none of them changes it."""
    torch.manual_seed(len(family + role))
    found = Model(ROOT / f"cfg/{CFGS[family]}.yaml", nc=len(names))
    found.names = list(names)
    return found.train()


def student_of(family: str, names: tuple[str, ...] = STUDENT_CLASSES) -> Model:
    return model(family, names, "student")


def teacher_of(family: str, names: tuple[str, ...] = COCO_LIKE) -> Model:
    return model(family, names, "teacher")


def distiller(student: Model, teacher: Model, losses: Any, layers: Any = ("auto", "auto"), **changes: Any) -> Distiller:
    heads = {"student_head": head_spec(student), "teacher_head": head_spec(teacher)}
    return Distiller(student, teacher, *layers, losses, **({"image_size": 64} | heads | changes))


def step(kd: Distiller, student: Model, images: Tensor = IMAGES) -> tuple[Tensor, dict[str, Tensor]]:
    output = student(images, extra_features=kd.layers)
    return kd(images, *output, TARGETS)


def losses_for(student: Model, teacher: Model, without: Sequence[str] = ()) -> dict[str, None]:
    kinds = {head_spec(network).kind for network in (student, teacher)}
    fitting = [name for name in LOSSES if name not in without and (name != "ld" or kinds == {"anchor_free"})]
    return dict.fromkeys(fitting)


def check_step(kd: Distiller, student: Model, images: Tensor = IMAGES) -> None:
    student.zero_grad()
    loss, items = step(kd, student, images)
    loss.backward()
    assert tuple(items) == kd.item_names
    assert all(item.isfinite() for item in items.values()), items
    zero = {name for name, item in items.items() if item == 0}
    assert zero <= ALWAYS_ZERO, zero
    found = [p.grad for p in student.parameters() if p.grad is not None]
    assert found and all(gradient.isfinite().all() for gradient in found)
    assert bool(student.model[0].conv.weight.grad.any()), "it reaches the first layer"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in kd.parameters())


# Every pair


@pytest.mark.parametrize(("student", "teacher"), itertools.product(["v5", "v8", "v7", "mobile"], repeat=2))
def test_any_of_eighty_classes_teaches_any_of_two(student: str, teacher: str) -> None:
    s, t = student_of(student), teacher_of(teacher)
    kd = distiller(s, t, losses_for(s, t))
    assert kd.notes[0].startswith("2 classes are compared; only the teacher has thing 0, thing 1")
    check_step(kd, s)


@pytest.mark.parametrize(("student", "teacher"), [("v5", "v8"), ("v8", "v7")])
@pytest.mark.parametrize("size", [32, 96, 128])
def test_a_teacher_of_images_of_another_size(student: str, teacher: str, size: int) -> None:
    s, t = student_of(student), teacher_of(teacher)
    kd = distiller(s, t, losses_for(s, t, without=("ld", "crosskd")), teacher_image_size=size)
    check_step(kd, s)
    wide = torch.rand(2, 3, 32, 96, generator=torch.Generator().manual_seed(1))
    check_step(kd, s, wide)  # a rectangular batch of another size than the nominal one
    assert kd._teacher.scaling is not None
    factor = size / 64
    assert kd._teacher.scaling.size((32, 96)) == (
        max(1, round(factor)) * 32,
        max(1, round(3 * factor)) * 32,
    )


def test_a_teacher_with_a_further_level_teaches_the_common_ones() -> None:
    s, t = student_of("v8"), teacher_of("v5-p6")
    kd = distiller(s, t, losses_for(s, t, without=("crosskd",)))
    assert [level.name for level in kd.levels] == ["P3", "P4", "P5"]
    assert kd.notes[0].endswith("heads are compared at the strides 8, 16, 32 that both have")
    check_step(kd, s)


def test_the_order_of_the_teachers_classes_plays_no_part() -> None:
    """The same network with its class channels swapped, and its names with them."""
    s, names = student_of("v8"), ("person", "car")
    losses = {"output": None, "soft_label": None, "ld": None, "self_distillation": None, "score_l2": None}
    values = []
    for order in (names, names[::-1]):
        torch.manual_seed(5)
        teacher = Model(ROOT / "cfg/yolov8/yolov8n.yaml", nc=2)
        teacher.names = list(order)
        with torch.no_grad():
            for branch in teacher.head.cv3:  # type: ignore[union-attr]
                last = branch[-1]
                last.bias += torch.tensor([3.0, 1.0])
                if order != names:
                    last.weight.copy_(last.weight.flip(0))
                    last.bias.copy_(last.bias.flip(0))
            kd = distiller(s, teacher, losses)
            assert kd.notes == ()
            values.append(step(kd, s)[1])
    torch.testing.assert_close(values[0], values[1])


def test_eighty_classes_are_as_good_as_the_two_that_count() -> None:
    """A teacher without the classes that the student does not know gives the same, but for what its objectness held."""
    s = student_of("v8")
    losses = {"output": None, "soft_label": None, "self_distillation": None, "score_l2": None}
    large = teacher_of("v8", ("bus", "car", "dog", "person"))
    torch.manual_seed(5)
    small = Model(ROOT / "cfg/yolov8/yolov8n.yaml", nc=2)
    small.names = ["car", "person"]
    tensors = {
        key: value[[1, 3]] if value.shape != small.state_dict()[key].shape else value
        for key, value in large.state_dict().items()
    }
    small.load_state_dict(tensors)
    with torch.no_grad():
        values = [step(distiller(s, teacher, losses), s)[1] for teacher in (large, small)]
    torch.testing.assert_close(values[0], values[1])


# What cannot be compared


def test_no_common_class_leaves_the_features() -> None:
    s, t = student_of("v5"), teacher_of("v8", ("bus", "tram"))
    for losses in ({"output": None}, {"fgd": None, "box": None}, {"score_l2": None}):
        with pytest.raises(DistillError, match="have no class in common: Person, car and bus, tram"):
            distiller(s, t, losses)
    kd = distiller(s, t, {"fgd": None, "cwd": None})
    assert kd.notes == ()
    check_step(kd, s)


def test_layers_of_unequal_strides_are_refused_or_resized() -> None:
    """Student layer 13 has stride 16, teacher layer 15 stride 8."""
    s, t = student_of("v5"), teacher_of("v8")
    layers = [13, 17], [15, 18]
    losses = losses_for(s, t, without=("score_l2", "crosskd"))
    with pytest.raises(DistillError) as raised:
        distiller(s, t, losses, layers)
    message = str(raised.value)
    assert "teacher_kd_layers[0]=15 has stride 8 and shape (64, 8, 8); student_kd_layers[0]=13 has stride 16" in message
    assert message.endswith("drop the pair, use auto, or set kd_resize: true to resize the teacher's map")
    kd = distiller(s, t, losses, layers, resize=True)
    assert [level.stride for level in kd.levels] == [16, 8], "the student's"
    check_step(kd, s)


def test_a_teacher_of_twice_the_size_meets_the_students_grid_one_level_up() -> None:
    s, t = student_of("v5"), teacher_of("v8")
    kd = distiller(s, t, {"l2": None}, ([17, 20], [18, 21]), teacher_image_size=128)
    assert [level.name for level in kd.levels] == ["P3", "P4"]
    with torch.no_grad():
        seen = kd._look(IMAGES, [], s(IMAGES, extra_features=kd.layers)[1], torch.zeros(0, 6))
    assert [m.shape for m in seen.teacher["features"]] == [(2, 128, 8, 8), (2, 256, 4, 4)]


def test_features_of_larger_images_are_interpolated_to_the_students_grid() -> None:
    s, t = student_of("v5"), teacher_of("v8")
    kd = distiller(s, t, {"l2": None}, teacher_image_size=96)
    larger = torch.nn.functional.interpolate(IMAGES, size=(96, 96), mode="bilinear", align_corners=False)
    with torch.no_grad():
        _, features = t.eval()(larger, extra_features=[15], features_only=True)
        seen = kd._look(IMAGES, [], s(IMAGES, extra_features=kd.layers)[1], torch.zeros(0, 6))
        found = seen.teacher["features"][0]
    expected = torch.nn.functional.interpolate(features[0], size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("losses", "changes", "message"),
    [
        ({"ld": None}, {}, r"which anchor heads do not have \(here: the student\); use the loss box instead"),
        ({"l2": None}, {"teacher_image_size": 100}, "image size is 100; expected a multiple of its largest stride, 32"),
        ({"crosskd": None}, {"teacher_image_size": 96}, "crosskd .* the teacher sees the images at another size"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(losses: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DistillError, match=message) as raised:
        distiller(student_of("v5"), teacher_of("v8"), losses, **changes)
    assert "\n" not in str(raised.value)


def test_the_table_says_what_is_compared_on_the_grid() -> None:
    s = student_of("v5")
    unlike = distiller(s, teacher_of("v8"), {"box": None}).describe().splitlines()[1]
    like = distiller(s, teacher_of("v5"), {"box": None}).describe().splitlines()[1]
    assert "common grid" in unlike and "common grid" not in like


# The teacher's pass


@pytest.mark.parametrize(("losses", "with_head"), [({"fgd": None}, False), ({"score_l2": None}, True)])
def test_the_teacher_runs_once_a_batch_and_its_head_only_where_it_is_needed(losses: Any, with_head: bool) -> None:
    s, t = student_of("v5"), teacher_of("v8")
    kd = distiller(s, t, losses)
    passes: list[bool] = []
    handles = [
        t.model[0].register_forward_hook(lambda *_: passes.append(False)),
        t.head.register_forward_hook(lambda *_: passes.append(True)),
    ]
    step(kd, s)
    for handle in handles:
        handle.remove()
    assert passes == ([False, True] if with_head else [False])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("ours", "theirs"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_teacher_on_another_device(ours: str, theirs: str) -> None:
    torch.manual_seed(0)
    s, t = (Model(ROOT / f"cfg/{CFGS[family]}.yaml", nc=2).train() for family in ("v5", "v8"))
    losses = {"fgd": None, "output": None}
    here = step(distiller(s, t, losses), s)[0].item()
    s, t = s.to(ours), t.to(theirs)
    kd = distiller(s, t, losses, teacher_half=False)
    output = s(IMAGES.to(ours), extra_features=kd.layers)
    loss, _ = kd(IMAGES.to(ours), *output, TARGETS.to(ours))
    loss.backward()
    assert loss.device.type == ours and loss.item() == pytest.approx(here, rel=1e-3)


# Compilation


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher"), [("v5", "v8"), ("v8", "v5")])
def test_student_and_distiller_compile_into_whole_graphs(student: str, teacher: str) -> None:
    torch.compiler.reset()
    s, t = student_of(student), teacher_of(teacher)
    kd = distiller(s, t, {"fgd": None, "output": None, "soft_label": None, "box": None})
    compiled = torch.compile(s, backend="eager", fullgraph=True)
    plain = s(IMAGES, extra_features=kd.layers)
    found = compiled(IMAGES, extra_features=kd.layers)
    for a, b in zip([*plain[0], *plain[1]], [*found[0], *found[1]]):
        assert torch.equal(a, b)
    whole = torch.compile(lambda output: kd(IMAGES, *output, TARGETS)[0], backend="eager", fullgraph=True)
    assert torch.equal(whole(found), kd(IMAGES, *plain, TARGETS)[0])
