"""What the first batch says of a distillation, and that saying it changes nothing."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import LOSSES, DistillContext, Distiller, HeadSpec, Preflight
from distill.losses.base import FeatureLoss
from distill.losses.output import Output
from distill.losses.self_distillation import SelfDistillation
from distill.preflight import capacity_gap, doubt_of_teacher, found_share, measure_gradients, strength_table
from engine.training.loop import report_preflight, untrained
from tests.unit.distill import distill_toys as toys
from tests.unit.distill.distill_toys import ToyDetector
from tests.unit.engine.training.test_loop import trainer
from tests.unit.engine.training.training_toys import ToyDistiller

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
MIXTURE: dict[str, Any] = {"fgd": None, "mgd": None, "l2": {"adapter": "converter"}, "output": {"weight": 0.1}}


def networks() -> tuple[ToyDetector, ToyDetector]:
    torch.manual_seed(0)
    return ToyDetector(4).train(), ToyDetector(6).train()


def distiller(student: nn.Module, teacher: nn.Module, losses: Any = None) -> Distiller:
    heads = {"student_head": toys.head_spec(), "teacher_head": toys.head_spec()}
    return Distiller(student, teacher, "auto", "auto", losses or MIXTURE, image_size=64, **heads)


def detection_loss(predictions: list[Tensor]) -> Tensor:
    return torch.stack([raw.square().mean() for raw in predictions]).sum() * len(IMAGES)


# Gradients


def test_norms_of_gradients_by_hand() -> None:
    """Terms 3 a and 4 b pull with 3 and 4, together with 5; the detection loss 2 a - b with sqrt(5)."""
    a, b = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    terms = {"one": 3 * a, "two": 4 * b, "none": a.detach() * 7}
    found = measure_gradients(terms, nn.ModuleDict(), [a, b], 2 * a - b)
    assert found.terms == pytest.approx({"one": 3, "two": 4, "none": 0})
    assert (found.total, found.detection) == pytest.approx((5, math.sqrt(5)))
    assert a.grad is None and b.grad is None and found.idle == ()


def test_a_table_of_ratios_by_hand() -> None:
    w = torch.tensor(1.0, requires_grad=True)
    gradients = measure_gradients({"kd/a": 30 * w, "kd/b": w}, nn.ModuleDict(), [w], 2 * w)
    table = strength_table({"kd/a": torch.tensor(1.0), "kd/b": torch.tensor(50.0)}, 2.0, gradients)
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["kd/a", "1", "0.5", "15", "above", "10:", "lower", "its", "weight"],
        ["kd/b", "50", "25", "0.5"],
        ["sum", "51", "25.5", "15.5", "above", "10:", "lower", "its", "weight"],
    ]


class Forgetful(FeatureLoss):
    """Builds an adapter at every level and uses the first alone."""

    def level_loss(self, index: int, student: Tensor, teacher: Tensor, context: DistillContext) -> Tensor:
        return ((student if index == 0 else student.detach()) - teacher).square().mean()


def test_an_adapter_without_gradient_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "forgetful", Forgetful)
    student, teacher = networks()
    kd = distiller(student, teacher, {"forgetful": None, "fgd": None})
    predictions, features = student(IMAGES, extra_features=kd.layers)
    found = kd.preflight(IMAGES, predictions, features, toys.TARGETS, detection_loss(predictions), student.parameters())
    assert [w for w in found.warnings if "adapter" in w] == [
        "no gradient reaches the adapter forgetful.adapters.1: it would stay as it is"
    ]


def test_gradients_are_those_of_the_training_loss() -> None:
    student, teacher = networks()
    kd = distiller(student, teacher)
    predictions, features = student(IMAGES, extra_features=kd.layers)
    detection = detection_loss(predictions)
    table = kd.preflight(IMAGES, predictions, features, toys.TARGETS, detection, student.parameters()).table
    loss, _ = kd(IMAGES, predictions, features, toys.TARGETS)
    norms = []
    for value in (loss, detection):
        found = torch.autograd.grad(value, list(student.parameters()), retain_graph=True, allow_unused=True)
        norms.append(torch.stack([g.norm() for g in found if g is not None]).norm().item())
    rows = {line.split()[0]: line.split() for line in table.splitlines()}
    assert float(rows["sum"][3]) == pytest.approx(norms[0] / norms[1], rel=1e-2)


def train(with_preflight: bool) -> tuple[list[Tensor], list[float]]:
    student, teacher = networks()
    kd = distiller(student, teacher)
    optimizer = torch.optim.SGD([*student.parameters(), *kd.parameters()], lr=0.01)
    losses = []
    for _ in range(3):
        predictions, features = student(IMAGES, extra_features=kd.layers)
        detection = detection_loss(predictions)
        if with_preflight:
            kd.preflight(IMAGES, predictions, features, toys.TARGETS, detection, student.parameters())
            assert all(p.grad is None for p in [*student.parameters(), *kd.parameters(), *teacher.parameters()])
        loss = detection + kd(IMAGES, predictions, features, toys.TARGETS)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return [*student.state_dict().values(), *kd.state_dict().values(), torch.get_rng_state()], losses


def test_a_training_is_the_same_bit_for_bit_with_a_preflight() -> None:
    (one, losses), (other, same) = train(False), train(True)
    assert losses == same and len(set(losses)) == 3
    assert all(torch.equal(a, b) for a, b in zip(one, other))


# The teacher


def free_maps(cls: float) -> list[Tensor]:
    """A head of stride 8 on 32 x 32 pixels: boxes of 16 x 16 around each cell's centre, class 1 with this logit."""
    raw = torch.full((2, 4 * 16 + 2, 4, 4), -1e4)
    raw[:, 1:64:16] = 0  # a distance of one cell to every side
    raw[:, 64:], raw[:, 65] = -20.0, cls
    return [raw]


HEAD = HeadSpec("anchor_free", 2, (8,))


def labels(category: int) -> DistillContext:
    """Of each image the box 4..20 of cell (1, 1), which a head's box covers, and one of 3 pixels, which none does."""
    rows = [[i, category, *box] for i in range(2) for box in ((0.375, 0.375, 0.5, 0.5), (0.1, 0.1, 0.1, 0.1))]
    return DistillContext.from_targets(torch.tensor(rows), (32, 32))


def test_the_share_of_found_boxes_by_hand() -> None:
    assert found_share(free_maps(2.0), HEAD, labels(1)) == (0.5, 4)
    assert found_share(free_maps(-4.0), HEAD, labels(1)) == (0.0, 4), "a score of 0.018 is no detection"
    assert found_share(free_maps(2.0), HEAD, labels(0)) == (0.0, 4), "of another class"
    assert found_share(free_maps(2.0), HEAD, labels(-1)) == (0.0, 0), "of a class that only the student has"
    wide = DistillContext.from_targets(torch.tensor([[0, 1, 0.375, 0.375, 0.5, 0.5]]), (64, 64))
    assert found_share(free_maps(2.0), HEAD, wide) == (1.0, 1), "labels of a student that sees twice as large images"


def test_a_teacher_that_finds_almost_nothing_is_doubted() -> None:
    assert "finds 2% of the 50 labelled boxes of this batch: look at the order of its classes" in doubt_of_teacher(
        0.02, 50
    )
    assert doubt_of_teacher(0.3, 50) == doubt_of_teacher(0.0, 4) == ""


class Oracle(ToyDetector):
    """Says with a score of `sure` that each of the labelled boxes of `TARGETS` is there, in one cell of stride 8."""

    sure = 0.9

    def forward(self, x: Tensor, extra_features: Any = (), features_only: bool = False) -> Any:
        found = super().forward(x, extra_features, features_only)
        if features_only:
            return found
        raw = found[0][1][0] if len(extra_features) else found[1][0]
        raw[..., 4] = -20.0
        for image, category, cx, cy, w, h in LABELS.tolist():
            column, row = int(cx * 8), int(cy * 8)
            anchor = torch.tensor(toys.ANCHORS[0][0])
            size = ((torch.tensor([w, h]) * 64 / anchor).sqrt() / 2).logit()
            centre = ((torch.tensor([cx, cy]) * 8 - torch.tensor([column, row]) + 0.5) / 2).logit()
            classes = torch.full((3,), -20.0)
            classes[int(category)] = 20.0
            numbers = torch.cat((centre, size, torch.tensor([self.sure]).logit(), classes))
            raw[int(image), 0, row, column] = numbers
        return found


LABELS = torch.tensor([[i, i + j, 0.2 + 0.3 * j, 0.25 + 0.3 * j, 0.3, 0.35] for i in range(2) for j in range(2)])
MORE_LABELS = LABELS.repeat(2, 1)


@pytest.mark.parametrize(("names", "share"), [(("a", "b", "c"), "100%"), (("b", "c", "a"), "0%")])
def test_a_wrong_order_of_the_teachers_classes_shows(names: tuple[str, ...], share: str) -> None:
    torch.manual_seed(0)
    student, teacher = ToyDetector(4).train(), Oracle(6)
    kd = Distiller(
        student, teacher, "auto", "auto", {"l2": None}, image_size=64,
        student_head=toys.head_spec(names=("a", "b", "c")), teacher_head=toys.head_spec(names=names),
    )  # fmt: skip
    predictions, features = student(IMAGES, extra_features=kd.layers)
    found = kd.preflight(IMAGES, predictions, features, MORE_LABELS, torch.tensor(1.0))
    assert f"the teacher finds {share} of the 8 labelled boxes of this batch" in found.table
    assert any("look at the order of its classes" in warning for warning in found.warnings) == (share == "0%")


def test_a_large_gap_advises_an_assistant() -> None:
    assert capacity_gap(1000, 20_000) == ""
    assert capacity_gap(1000, 21_000).startswith("the teacher has 21 times the student's parameters")
    student, teacher = networks()
    kd = distiller(student, ToyDetector(60), {"l2": None})
    predictions, features = student(IMAGES, extra_features=kd.layers)
    found = kd.preflight(IMAGES, predictions, features, toys.TARGETS, torch.tensor(1.0), student.parameters())
    assert any("an assistant taught by this one" in warning for warning in found.warnings)


def test_a_teacher_that_was_unfrozen_is_noticed() -> None:
    student, teacher = networks()
    kd = distiller(student, teacher, {"l2": None})
    teacher.requires_grad_(True)
    predictions, features = student(IMAGES, extra_features=kd.layers)
    found = kd.preflight(IMAGES, predictions, features, toys.TARGETS, torch.tensor(1.0))
    assert any("the teacher's parameters take gradients" in warning for warning in found.warnings)


def test_nothing_is_measured_where_nothing_is_distilled() -> None:
    student, teacher = networks()
    kd = distiller(student, teacher, {"l2": {"weight": 0}})
    found = kd.preflight(IMAGES, student(IMAGES), [], toys.TARGETS, torch.tensor(1.0))
    assert found == Preflight("no distillation: every weight, or the schedule's factor, is 0")


@pytest.mark.parametrize(
    ("loss", "changes", "terms"),
    [
        (Output, {}, ()),
        (Output, {"num_classes": 1}, ("cls",)),
        (Output, {"kind": "anchor_free"}, ("obj",)),
        (Output, {"kind": "anchor_free", "num_classes": 1}, ("obj",)),
        (SelfDistillation, {}, ("dfl",)),
        (SelfDistillation, {"kind": "anchor_free"}, ()),
        (SelfDistillation, {"kind": "anchor_free", "num_classes": 1}, ("cls",)),
        (SelfDistillation, {"num_classes": 1}, ()),  # nothing is left: let it be warned of
    ],
)
def test_terms_that_are_zero_by_nature(loss: Any, changes: dict[str, Any], terms: tuple[str, ...]) -> None:
    head = toys.head_spec(**changes)
    assert loss(replace(toys.setup(), student_head=head, teacher_head=head)).zero_terms == terms


def test_a_term_that_the_recipe_turns_off_may_be_zero() -> None:
    head = toys.head_spec()
    assert Output(replace(toys.setup(), student_head=head, teacher_head=head), obj=0.0).zero_terms == ("obj",)


@pytest.mark.parametrize("copied", [False, True])
def test_one_class_draws_no_warning_unless_the_networks_are_the_same(
    caplog: pytest.LogCaptureFixture, copied: bool
) -> None:
    torch.manual_seed(0)
    student = ToyDetector(4, num_classes=1).train()
    teacher = copy.deepcopy(student) if copied else ToyDetector(4, num_classes=1)
    if copied:
        student.eval()  # so that both compute the same
    heads = {f"{who}_head": toys.head_spec(num_classes=1) for who in ("student", "teacher")}
    kd = Distiller(student, teacher, "auto", "auto", {"output": None}, image_size=64, teacher_half=False, **heads)
    output = student(IMAGES)
    raw = output[1] if copied else output
    _, items = kd(IMAGES, raw, [], toys.TARGETS * torch.tensor([1, 0, 1, 1, 1, 1]))
    found = kd.preflight(IMAGES, raw, [], toys.TARGETS * torch.tensor([1, 0, 1, 1, 1, 1]), torch.tensor(1.0))
    assert items["kd/output/cls"] == 0 and found.silent == ("kd/output/cls",)
    logging.getLogger("yolo-distill").propagate = True
    with caplog.at_level(logging.WARNING, "yolo-distill"):
        report_preflight(found, items)
    zero = [record.message for record in caplog.records if "exactly 0" in record.message]
    expected = "warning: exactly 0 on the first batch: kd/output/box, kd/output/obj; check layers, weights and teacher"
    assert zero == ([expected] if copied else [])


# In the loop


def test_the_loop_prints_warnings_and_what_the_optimizer_lacks(caplog: pytest.LogCaptureFixture) -> None:
    kd = ToyDistiller()
    empty = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    assert untrained(kd, empty) == ["adapter"]
    assert untrained(kd, torch.optim.SGD(kd.parameters(), lr=0.1)) == []
    logging.getLogger("yolo-distill").propagate = True
    with caplog.at_level(logging.INFO, "yolo-distill"):
        report_preflight(Preflight("the table", ("beware",)), {"kd/toy/P2": torch.tensor(1.0)}, untrained(kd, empty))
    assert [record.message for record in caplog.records] == [
        "\nthe table",
        "warning: beware",
        "warning: not in the optimizer, so never trained: adapter",
    ]


def test_the_loop_gives_the_graph_of_the_detection_loss(tmp_path: Path) -> None:
    class Asking(ToyDistiller):
        seen: Any = None

        def preflight(self, *args: Any) -> Preflight:
            self.seen = (args[4].requires_grad, len(list(args[5])))
            return Preflight("the table")

    kd = Asking()
    toy = trainer(tmp_path, extra_losses=[kd], epochs=1)
    toy.run()
    assert kd.seen == (True, len(list(toy.model.parameters())))
    assert copy.deepcopy(kd).adapter.item() == kd.adapter.item()
