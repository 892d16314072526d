"""The distiller: what it builds, what it never touches, and how it refuses."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import LOSSES, Distiller, DistillError, HeadSpec, KDSchedule, auto_layers
from tests.golden import ROOT, load_npz
from tests.unit.distill import distill_toys as toys
from tests.unit.distill.distill_toys import ToyDetector, head_spec

MIXTURE: dict[str, Any] = {"fgd": {"weight": 2.0, "lambda": 1.0e-5}, "l2": {"weight": 0.5}, "output": {"weight": 1.0}}


def networks(num_classes: int = toys.NUM_CLASSES) -> tuple[ToyDetector, ToyDetector]:
    torch.manual_seed(0)
    return ToyDetector(4).train(), ToyDetector(6, num_classes).train()


def distiller(losses: Any = None, schedule: Any = None, **changes: Any) -> Distiller:
    student, teacher = changes.pop("networks", None) or networks()
    values = {"student_layers": "auto", "teacher_layers": "auto", "image_size": 64, "student_head": head_spec()}
    values |= {"teacher_head": head_spec()} | changes
    layers = values.pop("student_layers"), values.pop("teacher_layers")
    return Distiller(student, teacher, *layers, MIXTURE if losses is None else losses, schedule, **values)


def batch(num_images: int = 2) -> Tensor:
    return torch.rand(num_images, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def step(
    student: ToyDetector, kd: Distiller, images: Tensor | None = None, targets: Tensor = toys.TARGETS
) -> tuple[Tensor, dict[str, Tensor]]:
    images = batch() if images is None else images
    output = student(images, extra_features=kd.layers)
    predictions, features = output if kd.layers else (output, [])
    return kd(images, predictions, features, targets)


# What it computes


def test_loss_is_the_weighted_sum_times_the_batch_size() -> None:
    student, teacher = networks()
    kd = distiller(networks=(student, teacher))
    loss, items = step(student, kd)
    assert tuple(items) == kd.item_names
    assert set(items) == {"kd/fgd/P3", "kd/fgd/P4", "kd/l2/P3", "kd/l2/P4"} | {
        f"kd/output/{x}" for x in ("box", "obj", "cls")
    }
    assert loss.dtype == torch.float32 and loss.requires_grad
    assert loss.item() == pytest.approx(2 * sum(item.item() for item in items.values()), rel=1e-5)
    assert not any(item.requires_grad for item in items.values())
    doubled = {name: settings | {"weight": 2 * settings["weight"]} for name, settings in MIXTURE.items()}
    _, twice = step(student, distiller(doubled, networks=(student, teacher)))
    for name, item in items.items():
        assert twice[name].item() == pytest.approx(2 * item.item(), rel=1e-5)


def test_l2_compares_the_listed_layers() -> None:
    """Equal widths need no adapter, so the term is the plain mean of squared differences of layers 1 and 3."""
    torch.manual_seed(0)
    student, teacher = ToyDetector(4), ToyDetector(4)
    kd = distiller({"l2": None}, networks=(student, teacher), student_layers=[1, 3], teacher_layers=[1, 2])
    _, items = step(student, kd)
    _, found = student(batch(), extra_features=[1, 3])
    with torch.no_grad():
        _, wanted = teacher.eval()(batch(), extra_features=[1, 2])
    expected = {"kd/l2/P2": (found[0] - wanted[0]).square().mean(), "kd/l2/P3": (found[1] - wanted[1]).square().mean()}
    torch.testing.assert_close(items, {name: value.detach() for name, value in expected.items()})
    assert kd.layers == [1, 3] and list(kd.parameters()) == []


def test_equal_batches_give_equal_items_at_every_batch_size() -> None:
    student, teacher = networks()
    kd = distiller(networks=(student, teacher))
    student.eval()  # batch statistics would depend on the batch

    def run(copies: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch(1).repeat(copies, 1, 1, 1)
        targets = torch.cat([toys.TARGETS[:2] + torch.tensor([i, 0, 0, 0, 0, 0]) for i in range(copies)])
        (_, raw), features = student(images, extra_features=kd.layers)
        return kd(images, raw, features, targets)

    (one, items_one), (three, items_three) = run(1), run(3)
    torch.testing.assert_close(items_one, items_three, rtol=1e-4, atol=1e-7)
    assert three.item() == pytest.approx(3 * one.item(), rel=1e-4)


def test_maps_of_auxiliary_branches_are_left_out() -> None:
    student, teacher = networks()
    kd = distiller({"output": None}, networks=(student, teacher))
    maps = student(batch())
    plain = kd(batch(), maps, [], toys.TARGETS)[0]
    assert kd(batch(), [*maps, *maps], [], toys.TARGETS)[0].item() == plain.item()


def test_scores_come_from_the_teachers_head_for_a_loss_on_features() -> None:
    """The weighted mean of squared differences, with the teacher's highest objectness of each cell as the weight."""
    torch.manual_seed(0)
    student, teacher = ToyDetector(4), ToyDetector(4)
    kd = distiller({"score_l2": None}, networks=(student, teacher))
    _, items = step(student, kd)
    _, found = student(batch(), extra_features=[3, 4])
    with torch.no_grad():
        (_, raw), wanted = teacher.eval()(batch(), extra_features=[3, 4])
    for level in range(2):
        weight = raw[level][..., 4].sigmoid().amax(1)  # (N, H, W)
        error = (found[level] - wanted[level]).square().mean(1)
        expected = (weight * error).sum() / weight.sum().clamp(min=1)
        torch.testing.assert_close(items[f"kd/score_l2/P{level + 3}"], expected.detach())


def test_resizing_losses_pair_unequal_strides() -> None:
    layers_apart = {"student_layers": [3], "teacher_layers": [1]}
    student, teacher = networks()
    kd = distiller({"pkd": {"resize": True}}, networks=(student, teacher), **layers_apart)
    loss, items = step(student, kd)
    assert tuple(items) == ("kd/pkd/P3",) and 0 < loss.item() < 4
    for losses in ({"pkd": None}, {"pkd": {"resize": True}, "l2": None}):
        with pytest.raises(DistillError, match=r"teacher_kd_layers\[0\]=1 has stride 4"):
            distiller(losses, **layers_apart)


def test_random_masks_follow_the_epoch_through_a_resume() -> None:
    student, teacher = networks()

    def second_epoch(*epochs: int) -> float:
        kd = distiller({"mgd": None}, networks=(student, teacher))
        for epoch in epochs:
            kd.start_epoch(epoch, 3)
            value = step(student, kd)[0].item()
        return value

    student.eval()
    (_, raw), features = student(batch(), extra_features=[3, 4])
    student.forward = lambda *_, **__: (raw, features)  # type: ignore[assignment]
    assert second_epoch(0, 1) == second_epoch(1) != second_epoch(0)


def test_two_layers_of_one_stride_have_names_of_their_own() -> None:
    kd = distiller({"l2": None}, student_layers=[2, 3], teacher_layers=[2, 3])
    assert kd.item_names == ("kd/l2/P3-2", "kd/l2/P3-3")


# The teacher


def buffers_and_parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_teacher_is_bit_identical_after_steps_whatever_is_called_on_its_holders() -> None:
    student, teacher = networks()
    holder = nn.ModuleDict({"teacher": teacher})
    before = buffers_and_parameters(teacher)
    kd = distiller(networks=(student, teacher))
    optimizer = torch.optim.SGD([*student.parameters(), *kd.parameters()], lr=0.1)
    for _ in range(3):
        kd.train()
        holder.train()
        teacher.model[0].train()
        loss, _ = step(student, kd)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert not any(module.training for module in teacher.modules())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_teacher_is_outside_the_module_tree() -> None:
    student, teacher = networks()
    kd = distiller(networks=(student, teacher))
    assert kd.teacher is teacher
    assert all(module is not teacher for module in kd.modules())
    own = {id(p) for p in kd.parameters()}
    assert own and not own & {id(p) for p in [*teacher.parameters(), *student.parameters()]}
    assert all(name.startswith("losses.") for name in kd.state_dict())


def test_teacher_runs_without_head_unless_its_output_is_needed() -> None:
    student, teacher = networks()
    for losses, features_only in (({"fgd": None}, True), (MIXTURE, False)):
        kd = distiller(losses, networks=(student, teacher))
        teacher.calls.clear()
        step(student, kd)
        assert teacher.calls == [{"layers": [3, 4], "features_only": features_only, "training": False}]


def test_a_network_cannot_be_its_own_teacher() -> None:
    student, _ = networks()
    with pytest.raises(DistillError, match="share parameters"):
        distiller(networks=(student, student))
    assert all(p.requires_grad for p in student.parameters())


def test_half_precision_teacher_gives_a_float32_loss() -> None:
    student, teacher = networks()
    reference = step(student, distiller(networks=(student, copy.deepcopy(teacher))))[0]
    found = step(student, distiller(networks=(student, teacher), teacher_half=True))[0]
    assert teacher.model[0][0].weight.dtype == torch.float16 and found.dtype == torch.float32
    assert found.item() == pytest.approx(reference.item(), rel=1e-2)


# The adapters


def test_adapters_are_trained() -> None:
    student, teacher = networks()
    kd = distiller({"fgd": {"weight": 1e4}, "l2": {"adapter": "converter"}}, networks=(student, teacher))
    before = buffers_and_parameters(kd)
    optimizer = torch.optim.SGD(kd.parameters(), lr=0.1)
    for _ in range(2):  # the relation blocks start at zero: their first layers move from the second step on
        optimizer.zero_grad()
        step(student, kd)[0].backward()
        optimizer.step()
    unmoved = [name for name, p in kd.named_parameters() if torch.equal(p, before[name])]
    assert [name for name in unmoved if "mask.bias" not in name] == []  # a softmax ignores its bias


def test_adapters_travel_in_the_state_dict() -> None:
    student, teacher = networks()
    kd = distiller(networks=(student, teacher))
    with torch.no_grad():
        for p in kd.parameters():
            p.uniform_(-1, 1)
    fresh = distiller(networks=(student, teacher))
    fresh.load_state_dict(kd.state_dict())
    assert step(student, kd)[0].item() == step(student, fresh)[0].item()


def test_adapters_are_the_same_in_every_mixture_and_run() -> None:
    alone = distiller({"l2": None}).state_dict()
    among = distiller({"fgd": None, "l2": None}).state_dict()
    for name, value in alone.items():
        assert torch.equal(value, among[name])


def test_building_leaves_student_random_stream_and_modes_alone() -> None:
    student, teacher = networks()
    student.model[1].eval()
    modes = [module.training for module in student.modules()]
    before, stream = buffers_and_parameters(student), torch.get_rng_state()
    distiller(networks=(student, teacher))
    assert torch.equal(stream, torch.get_rng_state())
    assert modes == [module.training for module in student.modules()]
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_building_seeds_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed would set the streams of all CUDA devices, which nobody puts back."""

    def seeds_every_device(seed: int) -> None:
        raise AssertionError("the streams of CUDA devices were set")

    monkeypatch.setattr(torch, "manual_seed", seeds_every_device)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds_every_device)
    distiller(networks=(ToyDetector(4), ToyDetector(6)))


# Weights, schedule, log


def test_weight_zero_computes_and_holds_nothing() -> None:
    student, teacher = networks()
    kd = distiller({"fgd": {"weight": 0}, "output": {"weight": 0.0}}, networks=(student, teacher))
    teacher.calls.clear()
    loss, items = step(student, kd)
    assert kd.layers == [] and list(kd.parameters()) == [] and items == {} and kd.item_names == ()
    assert loss.item() == 0 and not loss.requires_grad and teacher.calls == []
    detection = torch.tensor(3.7, requires_grad=True)
    assert torch.equal(detection + loss, detection)


def test_weight_zero_leaves_the_other_terms_as_they_are() -> None:
    student, teacher = networks()
    with_zero = step(student, distiller({"fgd": {"weight": 0}, "l2": None}, networks=(student, teacher)))
    without = step(student, distiller({"l2": None}, networks=(student, teacher)))
    assert torch.equal(with_zero[0], without[0]) and with_zero[1].keys() == without[1].keys()


def test_no_teacher_pass_after_the_stop_epoch() -> None:
    student, teacher = networks()
    kd = distiller(networks=(student, teacher), schedule={"stop_epoch": 5})
    kd.start_epoch(4, 10)
    assert step(student, kd)[0].item() > 0
    kd.start_epoch(5, 10)
    teacher.calls.clear()
    loss, items = step(student, kd)
    assert loss.item() == 0 and teacher.calls == []
    assert tuple(items) == kd.item_names and not any(item.any() for item in items.values())


def test_schedule_scales_every_item() -> None:
    student, teacher = networks()
    kd = distiller(networks=(student, teacher), schedule={"shape": "linear", "end": 0.0})
    kd.start_epoch(0, 4)
    first = step(student, kd)
    kd.start_epoch(3, 4)  # a quarter is left
    last = step(student, kd)
    assert last[0].item() == pytest.approx(first[0].item() / 4, rel=1e-5)
    for name, item in first[1].items():
        assert last[1][name].item() == pytest.approx(item.item() / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (KDSchedule(), [1, 1, 1, 1, 1]),
        (KDSchedule(warmup_epochs=3), [0.25, 0.5, 0.75, 1, 1]),
        (KDSchedule("linear", end=0.5), [1, 0.9, 0.8, 0.7, 0.6]),
        (KDSchedule("linear", start=0.5, end=1.0), [0.5, 0.6, 0.7, 0.8, 0.9]),
        (KDSchedule(stop_epoch=2), [1, 1, 0, 0, 0]),
        (KDSchedule(stop_epoch=0.6), [1, 1, 1, 0, 0]),
        # (1 + cos(pi e / 5)) / 2
        (KDSchedule("cosine", end=0.0), [1, 0.904508497, 0.654508497, 0.345491503, 0.095491503]),
        (KDSchedule("linear", warmup_epochs=1, end=0.0, stop_epoch=4), [0.5, 0.8, 0.6, 0.4, 0]),
    ],
)
def test_schedule_values(schedule: KDSchedule, factors: list[float]) -> None:
    assert [schedule.factor(epoch, 5) for epoch in range(5)] == pytest.approx(factors)


def test_cosine_is_the_published_one() -> None:
    arrays = load_npz("distill/yolov6_self_distillation.npz")
    schedule, epochs = KDSchedule("cosine", end=0.01), int(arrays["own_decay_max_epoch"])
    found = [schedule.factor(int(epoch), epochs) for epoch in arrays["own_decay_epoch"]]
    assert found == pytest.approx(arrays["own_decay_weight"].tolist(), abs=1e-12)


def test_description_lists_every_pair() -> None:
    kd = distiller()
    lines = [line.split() for line in kd.describe().splitlines()]
    assert lines[1] == ["fgd", "2", "P3", "3", "3", "4", "->", "6", "8", "conv", "1x1", "146"]
    # adapter 4*6 + 6 = 30, and two relation blocks of (6 + 1) + (6*3 + 3) + (3 + 3) + (3*6 + 6) = 58
    assert [line[0] for line in lines[1:]] == ["fgd", "fgd", "l2", "l2", "output"]


def test_preflight_reports_ratios_and_changes_nothing() -> None:
    student, teacher = networks()
    kd = distiller(
        {"l2": {"adapter": "converter"}, "mgd": None, "output": {"weight": 1000.0}}, networks=(student, teacher)
    )
    predictions, features = student(batch(), extra_features=kd.layers)
    before = buffers_and_parameters(kd)
    found = kd.preflight(batch(), predictions, features, toys.TARGETS, torch.tensor(0.5))
    text = found.table
    assert all(torch.equal(value, before[name]) for name, value in kd.state_dict().items())
    _, items = kd(batch(), predictions, features, toys.TARGETS)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}
    assert rows["sum"][2] == "-", "without the detection loss's graph there is no ratio of gradients"
    for name, item in items.items():
        # detection loss 0.5 of two images: 0.25 an image
        assert float(rows[name][0]) == pytest.approx(item.item(), rel=1e-3)
        assert float(rows[name][1]) == pytest.approx(item.item() / 0.25, rel=1e-2)
    assert "above 10: lower its weight" in text and "kd/l2/P3" in text


# Pairing


def test_auto_pairs_by_stride() -> None:
    assert auto_layers([17, 20, 23], [8, 16, 32], [40, 41, 42, 43], [64, 32, 16, 8]) == ([17, 20, 23], [43, 42, 41])
    assert auto_layers([17, 20, 23], [8, 16, 32], [24, 28], [16, 64]) == ([20], [24])
    with pytest.raises(DistillError, match="none in common"):
        auto_layers([1], [8], [2], [16])


@pytest.mark.parametrize("listed", ["student", "teacher"])
def test_auto_on_one_side_follows_the_listed_side(listed: str) -> None:
    other = "teacher" if listed == "student" else "student"
    kd = distiller({"l2": None}, **{f"{listed}_layers": [4, 2], f"{other}_layers": "auto"})
    pairs = [(level.student_layer, level.teacher_layer) for level in kd.levels]
    assert pairs == ([(4, 4), (2, 3)] if listed == "student" else [(4, 4), (3, 2)])
    with pytest.raises(DistillError, match=rf"{listed}_kd_layers\[0\]=0 has stride 2, and auto found no layer"):
        distiller({"l2": None}, **{f"{listed}_layers": [0, 4], f"{other}_layers": "auto"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"teacher_layers": [3, 3]},
            r"^teacher_kd_layers\[1\]=3 has stride 8 and shape \(6, 8, 8\); student_kd_layers\[1\]=4 "
            r"has stride 16 and shape \(8, 4, 4\) .*"
            r"pair equal strides, drop the pair, use auto, or set kd_resize: true to resize the teacher's map$",
        ),
        ({"student_layers": [3]}, r"student_kd_layers has 1 entries \[3\], teacher_kd_layers 2 \[3, 4\]"),
        (
            {"student_layers": [3, 5]},
            r"student_kd_layers\[1\] is 5, but the student's layers before its head are 0 to 4",
        ),
        (
            {"teacher_layers": [-1, 4]},
            r"teacher_kd_layers\[0\] is -1, but the teacher's layers before its head are 0 to 4",
        ),
        ({"student_layers": ["3", 4]}, r"student_kd_layers\[0\] is '3'; expected a layer's index"),
        (
            {"student_layers": [3, 99]},
            r"are 0 to 4; auto takes \[3, 4\] for the student, and train_distill.py --list-layers shows all layers$",
        ),
        (
            {"teacher_layers": [3]},
            r"auto takes \[3, 4\] for the student and \[3, 4\] for the teacher, and .*--list-layers",
        ),
        (
            {"teacher_layers": [3, 3]},
            r"auto takes \[3, 4\] for the student and \[3, 4\] for the teacher, and .*--list-l",
        ),
        ({"student_layers": "all"}, r"student_kd_layers is 'all'; expected a list of layers, or auto"),
        ({"student_layers": 3}, r"student_kd_layers is 3; expected a list of layers, or auto"),
        ({"image_size": 72}, r"layer 4 of the student gives a map of 5x5 for an image of 72x72"),
        ({"taps": "hook"}, r"unknown taps 'hook'; did you mean 'hooks'\?"),
        ({"student_head": None}, r"Output compares the heads' outputs; give student_head and teacher_head"),
        (
            {"teacher_head": head_spec(num_classes=5)},
            r"3 classes, the teacher 5, and the student's have no names to match",
        ),
        ({"teacher_head": head_spec(strides=(32, 64))}, r"strides \(8, 16\), the teacher's \(32, 64\), none in common"),
        ({"teacher_image_size": 72}, r"the teacher's image size is 72; expected a multiple of its largest stride, 16"),
        ({"losses": {"fdg": None}}, r"^kd_losses: unknown loss 'fdg'; did you mean 'fgd'\?$"),
        ({"losses": {"fgd": {"temprature": 1}}}, r"^kd_losses\.fgd: unknown key 'temprature'; did you mean 'temperat"),
        ({"losses": {"fgd": {"weight": 0, "alhpa": 1}}}, r"unknown key 'alhpa'; did you mean 'alpha'\?"),
        ({"losses": {"fgd": {"weight": -1}}}, r"kd_losses\.fgd: weight is -1; expected a number of at least 0"),
        ({"losses": {"fgd": {"alpha": "1e-3"}}}, r"kd_losses\.fgd: alpha is '1e-3'; expected a number"),
        ({"losses": {"fgd": {"gamma": -0.1}}}, r"kd_losses\.fgd: gamma is -0\.1; expected a number of at least 0"),
        (
            {"losses": {"fgd": {"temperature": 0}}},
            r"kd_losses\.fgd: temperature is 0; expected a number of more than 0",
        ),
        ({"losses": {"output": {"scale_obj": "no"}}}, r"output: scale_obj is 'no'; expected true or false"),
        ({"losses": {"mgd": {"lambda": 1.5}}}, r"kd_losses\.mgd: lambda is 1\.5; expected the share that is masked"),
        ({"losses": {"fgd": 1.0}}, r"kd_losses\.fgd is 1\.0; expected \{weight: 1\.0, \.\.\.\}"),
        ({"losses": {"l2": {"mode": "men"}}}, r"unknown mode 'men'; did you mean 'mean'\?"),
        ({"schedule": {"warmup": 3}}, r"kd_schedule: unknown key 'warmup'; did you mean 'warmup_epochs'\?"),
        ({"schedule": {"shape": "cos"}}, r"unknown shape 'cos'; did you mean 'cosine'\?"),
        ({"schedule": {"end": -1}}, r"kd_schedule: end is -1; expected a number of at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    values = {"student_layers": [3, 4], "teacher_layers": [3, 4]} | changes
    with pytest.raises(DistillError, match=message) as raised:
        distiller(**values)
    assert "\n" not in str(raised.value)


def test_teacher_of_other_classes_can_teach_features() -> None:
    student, teacher = networks(num_classes=7)
    kd = distiller({"fgd": None}, networks=(student, teacher), teacher_head=head_spec(num_classes=7))
    assert step(student, kd)[0].item() > 0


def test_too_few_features_are_refused() -> None:
    student, teacher = networks()
    kd = distiller({"fgd": None}, networks=(student, teacher))
    with pytest.raises(DistillError, match=r"call the student with extra_features=distiller\.layers"):
        kd(batch(), student(batch()), [], toys.TARGETS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "anchors"}, "unknown kind of head 'anchors'; did you mean 'anchor'"),
        ({"kind": "anchor", "anchors": None}, "needs its anchors"),
        ({"kind": "anchor", "anchors": [[[1, 2]]]}, r"anchors have shape \(1, 1, 2\); expected \(2, na, 2\)"),
    ],
)
def test_head_spec_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        HeadSpec(**({"num_classes": 3, "strides": (8, 16), "anchors": toys.ANCHORS} | values))


# A new loss


def test_the_example_of_the_guide_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The loss of docs/adding_a_loss.md, as it stands there: in the table, in a recipe, in the log, and trained."""
    guide = (ROOT / "docs" / "adding_a_loss.md").read_text()
    (tmp_path / "cosine_example.py").write_text(guide.split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    example = importlib.import_module("cosine_example")
    monkeypatch.setitem(LOSSES, "cosine", example.Cosine)
    student, teacher = networks()
    kd = distiller({"cosine": {"weight": 2.0, "power": 2}}, networks=(student, teacher))
    loss, items = step(student, kd)
    loss.backward()
    assert tuple(items) == ("kd/cosine/P3", "kd/cosine/P4") and 0 < loss.item() < 2 * 2 * 2 * 4
    assert all(p.grad is not None and bool(p.grad.any()) for p in kd.parameters())
    with pytest.raises(DistillError, match="unknown key 'powr'; did you mean 'power'"):
        distiller({"cosine": {"powr": 2}})


# Foreign networks


class Foreign(nn.Module):
    """A network that knows nothing of this project."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width))
        self.neck = nn.ModuleDict({"p3": nn.Conv2d(width, width, 3, 2, 1)})
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.neck["p3"](self.stem(x)).mean()


HOOKED: dict[str, Any] = {
    "student_layers": ["stem.1", "neck.p3"],
    "teacher_layers": ["stem.1", "neck.p3"],
    "taps": "hooks",
}


def test_hooks_read_features_of_any_network() -> None:
    student, teacher = Foreign(4).train(), Foreign(6)
    kd = distiller({"l2": None}, networks=(student, teacher), **HOOKED)
    assert kd.layers == [] and [(lv.name, lv.stride) for lv in kd.levels] == [("P2", 4), ("P3", 8)]
    output = student(batch())
    loss, items = kd(batch(), output, [], toys.TARGETS)
    loss.backward()
    assert set(items) == {"kd/l2/P2", "kd/l2/P3"}
    assert student.stem[0].weight.grad is not None and bool(student.stem[0].weight.grad.any())


def test_hooks_neither_follow_copies_nor_keep_evaluation_passes() -> None:
    student, teacher = Foreign(4).train(), Foreign(6)
    kd = distiller({"l2": None}, networks=(student, teacher), **HOOKED)
    average = copy.deepcopy(student)
    student(batch())
    average(torch.zeros(1, 3, 64, 64))
    student.eval()(torch.zeros(1, 3, 64, 64))
    kd(batch(), None, [], toys.TARGETS)  # type: ignore[arg-type]  # still the two images of the training pass
    with pytest.raises(DistillError, match="student's forward pass did not reach stem.1, neck.p3"):
        kd(batch(), None, [], toys.TARGETS)  # type: ignore[arg-type]  # taken once


def test_a_hooked_module_must_give_a_map() -> None:
    foreign = (Foreign(4), Foreign(6))
    foreign[1].neck["p3"] = nn.Sequential(nn.Conv2d(6, 6, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(DistillError, match="layer neck.p3 of the teacher gives no feature map"):
        distiller({"l2": None}, networks=foreign, **HOOKED)


def test_hooks_name_the_nearest_module() -> None:
    foreign = (Foreign(4), Foreign(6))
    wrong: dict[str, Any] = HOOKED | {"student_layers": ["stem.1", "neck.p4"]}
    with pytest.raises(DistillError, match=r"student_kd_layers\[1\]: unknown module 'neck.p4'; did you mean 'neck.p3'"):
        distiller({"l2": None}, networks=foreign, **wrong)
    with pytest.raises(DistillError, match="did not reach unused"):
        distiller({"l2": None}, networks=foreign, **(wrong | {"student_layers": ["stem.1", "unused"]}))


def test_package_works_under_another_name() -> None:
    root = ROOT / "distill"
    places = [str(root)]
    spec = importlib.util.spec_from_file_location("vendored", root / "__init__.py", submodule_search_locations=places)
    assert spec is not None and spec.loader is not None
    sys.modules["vendored"] = package = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(package)
        bases = {base.__module__ for loss in package.LOSSES.values() for base in loss.__mro__}
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "vendored"]:
            del sys.modules[name]
    assert "vendored.losses.base" in bases
    assert not any(module.startswith("distill") for module in bases)
