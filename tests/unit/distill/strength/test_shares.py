"""Each loss of the table in the form of a share: what is asked for is what its gradient has, wherever that is."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn

from distill import LOSSES, Distiller, DistillError
from engine.config.hyp import read_hyp
from engine.distilling.distillers import head_spec
from engine.training.criterion import build_criteria
from models.yolo import Model
from tests.golden import ROOT
from tests.unit.distill import distill_toys as toys
from tests.unit.distill.distill_toys import ToyDetector

SIZE = 64
SHARE = 0.4
IMAGES = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.4], [0, 0, 0.2, 0.3, 0.2, 0.2], [1, 2, 0.7, 0.6, 0.4, 0.4]])
ANCHOR_FREE_ONLY = {"ld"}
CONVERTER = {"l2": {"adapter": "converter"}}
ON_OUTPUT = {name for name, loss in LOSSES.items() if loss.needs == "predictions"}
Criterion = Callable[[Any, Tensor], tuple[Tensor, Any]]


def toy_criterion(predictions: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, None]:
    return torch.stack([raw.square().mean() for raw in predictions]).sum() * len(predictions[0]), None


def toys_of(name: str) -> tuple[nn.Module, nn.Module, dict[str, Any], Criterion]:
    """Student, teacher, heads and detection loss: toys, or small networks with the head that a loss needs."""
    if name == "crosskd":
        return networks("yolov5/yolov5n", {"width_multiple": 0.0625}, {"width_multiple": 0.125})
    if name in ANCHOR_FREE_ONLY:
        return networks("yolov8/yolov8n", {"scales": {"n": [0.1, 0.0625, 1024]}}, {"scales": {"n": [0.1, 0.125, 1024]}})
    torch.manual_seed(0)
    heads = {"student_head": toys.head_spec(), "teacher_head": toys.head_spec()}
    return ToyDetector(4).train(), ToyDetector(6), heads, toy_criterion


def networks(cfg: str, student: Any, teacher: Any) -> tuple[nn.Module, nn.Module, dict[str, Any], Criterion]:
    config = yaml.safe_load((ROOT / f"cfg/{cfg}.yaml").read_text())
    torch.manual_seed(0)
    pair = [Model(config | changes, nc=3) for changes in (student, teacher)]
    hyp = read_hyp(ROOT / f"hyp/{'scratch.v8' if pair[0].family == 'yolov8' else 'scratch-low'}.yaml")
    criterion, _ = build_criteria(pair[0], hyp, SIZE, 0.0, torch.device("cpu"))
    heads = {"student_head": head_spec(pair[0]), "teacher_head": head_spec(pair[1])}
    return pair[0].train(), pair[1], heads, criterion


@pytest.fixture(scope="module")
def yolov7() -> Any:
    """A YOLOv7 of a sixteenth of its width under one of an eighth."""
    return networks("yolov7/yolov7", {"width_multiple": 0.0625}, {"width_multiple": 0.125})


def build(parts: Any, losses: Any, layers: Any = "auto", **more: Any) -> Distiller:
    student, teacher, heads, _ = parts
    return Distiller(student, teacher, layers, layers, losses, image_size=SIZE, **heads, **more)


def one(name: str, share: Any = SHARE) -> dict[str, Any]:
    return {name: {"share": share, **CONVERTER.get(name, {})}}


def step(kd: Distiller, parts: Any, targets: Tensor = TARGETS, images: Tensor = IMAGES) -> tuple[Tensor, Any, Any, Any]:
    """A batch: the distillation's loss and items, the detection loss, the features."""
    student, _, _, criterion = parts
    predictions, features = student(images, extra_features=kd.layers)
    detection, _ = criterion(predictions, targets)
    loss, items = kd(images, predictions, features, targets, detection_loss=detection)
    return loss, items, detection, features


def norm(loss: Tensor, maps: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
    return torch.stack([g.float().norm() for g in found if g is not None]).norm()


def reached(loss: Tensor, detection: Tensor, maps: Sequence[Tensor]) -> float:
    return float(norm(loss, maps) / norm(detection, maps))


@pytest.mark.parametrize("name", LOSSES)
def test_at_what_feeds_the_head(name: str) -> None:
    parts = toys_of(name)
    kd = build(parts, one(name))
    assert kd.layers == {"ld": [15, 18, 21], "crosskd": [17, 20, 23]}.get(name, [3, 4])
    kd.start_epoch(0, 3)
    loss, items, detection, features = step(kd, parts)
    assert reached(loss, detection, features) == pytest.approx(SHARE, rel=1e-4)
    assert tuple(items) == kd.item_names
    row = kd.epoch_row()
    assert row[f"share/kd/{name}"] == pytest.approx(SHARE, rel=1e-4) and row[f"factor/kd/{name}"] > 0


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ANCHOR_FREE_ONLY])
def test_at_layers_of_yolov7_before_those_that_feed_the_head(name: str, yolov7: Any) -> None:
    kd = build(yolov7, one(name), [75, 88, 101])
    inputs = [102, 103, 104]
    assert kd.layers == (inputs if name in ON_OUTPUT else [75, 88, 101])
    loss, _, detection, features = step(kd, yolov7)
    assert reached(loss, detection, features) == pytest.approx(SHARE, rel=1e-3)
    assert float(norm(detection, features)) > 0


def test_features_at_the_layers_that_are_listed_and_output_at_the_head_together(yolov7: Any) -> None:
    kd = build(yolov7, one("cwd", 0.5) | one("output", {"box": 0.2, "cls": 0.1}), [75, 88, 101])
    assert kd.layers == [75, 88, 101, 102, 103, 104]
    step(kd, yolov7)
    row = kd.epoch_row()
    shares = {name: value for name, value in row.items() if name.startswith("share/")}
    assert shares == pytest.approx({"share/kd/cwd": 0.5, "share/kd/output/box": 0.2, "share/kd/output/cls": 0.1})
    assert kd.item_names[-2:] == ("kd/output/box", "kd/output/cls"), "a part that is not named is not taught"


@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast(name: str) -> None:
    """Gradients of half precision have three digits."""
    parts = toys_of(name)
    kd = build(parts, one(name))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, detection, features = step(kd, parts)
    assert all(x.dtype == torch.bfloat16 for x in features)
    assert loss.dtype == torch.float32 and reached(loss, detection, features) == pytest.approx(SHARE, rel=0.02)


def trained(name: str, steps: int, kept: Any = None, first: int = 0) -> Any:
    """The states after some steps of an epoch of three, from those that were `kept` of an earlier training."""
    parts = toys_of(name)
    student = parts[0]
    kd = build(parts, one(name))
    optimizer = torch.optim.SGD([*student.parameters(), *kd.parameters()], lr=0.01, momentum=0.9)
    things = [student, kd, optimizer]
    if kept:
        for thing, state in zip(things, kept):
            thing.load_state_dict(state)
    for number in range(first, steps):
        if number % 3 == 0:
            kd.start_epoch(number // 3, 3)
        images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(number))
        loss, _, detection, _ = step(kd, parts, images=images)
        optimizer.zero_grad()
        (loss + detection).backward()
        optimizer.step()
    return [copy.deepcopy(thing.state_dict()) for thing in things]


@pytest.mark.parametrize("name", LOSSES)
def test_a_training_that_goes_on_from_what_was_saved_is_the_same_bit_for_bit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.strength.balance.BEGINNING", 4)
    whole = trained(name, 9)
    resumed = trained(name, 9, trained(name, 6), first=6)
    for a, b in zip(whole[:2], resumed[:2]):
        assert list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
    assert whole[1]["balance.counts"].tolist() == [4]


# A compiled student


@pytest.mark.parametrize("name", LOSSES)
def test_of_a_compiled_student(name: str) -> None:
    """What is measured of an opaque graph is what is measured of an open one, and no buffer moves for it."""
    parts = toys_of(name)
    plain = build(parts, one(name))
    before = copy.deepcopy(parts[0].state_dict())
    step(plain, parts)
    after = copy.deepcopy(parts[0].state_dict())
    parts[0].load_state_dict(before)
    kd = build(parts, one(name), compiled=True)
    state = torch.get_rng_state()
    opaque = (Opaque(parts[0]), *parts[1:])
    loss, _, detection, _ = step(kd, opaque)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, after[key]) for key, value in parts[0].state_dict().items()), "one pass's statistics"
    torch.testing.assert_close(kd.balance.factors, plain.balance.factors, rtol=1e-4, atol=0)
    (loss + detection).backward()
    assert all(p.grad is not None for p in parts[0].parameters() if p.requires_grad)


class Opaque(nn.Module):
    """Calls a network as one node of the graph, as torch.compile does: its outputs know nothing of each other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, extra_features: Sequence[int]) -> Any:
        predictions, features = self.model(images, extra_features=extra_features)
        outputs = OneNode.apply(len(predictions), *predictions, *features)
        return list(outputs[: len(predictions)]), list(outputs[len(predictions) :])


class OneNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *gradients


def test_of_a_student_under_torch_compile() -> None:
    parts = toys_of("output")
    losses = one("output") | one("l2")
    plain, kd = build(parts, losses), build(parts, losses, compiled=True)
    compiled = (torch.compile(parts[0], backend="aot_eager"), *parts[1:])
    step(plain, parts)
    loss, _, detection, _ = step(kd, compiled)
    torch.testing.assert_close(kd.balance.factors, plain.balance.factors, rtol=1e-3, atol=0)
    (loss + detection).backward()  # once, which is all that a compiled graph allows


# Two processes


def work(rank: int, port: int, folder: Path) -> None:
    """One of two processes, each with an image of its own; the second has no box, and at the second step none has."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name in LOSSES:
        parts = toys_of(name)
        kd = build(parts, one(name))
        mine = TARGETS[:2] if rank == 0 else toys.NO_TARGETS
        with Sums(kd) as values:
            _, _, detection, features = step(kd, parts, mine, IMAGES[rank : rank + 1])
        squares = [float(norm(loss, features) ** 2) for loss in (values[0], detection)]
        step(kd, parts, toys.NO_TARGETS, IMAGES[rank : rank + 1])
        found[name] = {"squares": squares, "factor": kd.balance.factors.item(), "count": kd.balance.counts.item()}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


class Sums:
    """Catches the sums of the terms of a distiller's losses, at weight 1."""

    def __init__(self, kd: Distiller) -> None:
        self.values: list[Tensor] = []
        self.handles = [loss.register_forward_hook(self.note) for loss in kd.losses.values()]

    def note(self, module: nn.Module, inputs: Any, terms: dict[str, Tensor]) -> None:
        self.values.append(torch.stack(list(terms.values())).sum())

    def __enter__(self) -> list[Tensor]:
        return self.values

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_measure_what_both_have(name: str, pair: list[Any]) -> None:
    first, second = (found[name] for found in pair)
    assert first["factor"] == second["factor"] and first["count"] == second["count"] == 1
    own, detection = (sum(found["squares"][i] for found in (first, second)) for i in (0, 1))
    assert first["factor"] == pytest.approx(SHARE / (own / detection) ** 0.5, rel=1e-3)


# What else is asked of a share


def test_a_weight_that_was_found_teaches_as_its_share_did() -> None:
    parts = toys_of("fgd")
    kd = build(parts, one("fgd"))
    loss, _, _, _ = step(kd, parts)
    fixed = build(parts, {"fgd": {"weight": kd.balance.factors.item()}})
    assert fixed.balance is None and not any("balance" in key for key in fixed.state_dict())
    predictions, features = parts[0](IMAGES, extra_features=fixed.layers)
    assert fixed(IMAGES, predictions, features, TARGETS)[0].item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_schedule_multiplies_afterwards() -> None:
    parts = toys_of("l2")
    kd = build(parts, one("l2"), schedule={"shape": "constant", "start": 0.25})
    loss, _, detection, features = step(kd, parts)
    assert reached(loss, detection, features) == pytest.approx(SHARE / 4, rel=1e-4)
    assert kd.epoch_row()["share/kd/l2"] == pytest.approx(SHARE)


def test_no_share_without_a_detection_loss_but_in_evaluation() -> None:
    parts = toys_of("l2")
    kd = build(parts, one("l2"))
    predictions, features = parts[0](IMAGES, extra_features=kd.layers)
    for loss in (None, torch.tensor(1.0)):
        with pytest.raises(
            DistillError, match="kd_losses.l2 asks for a share .* call the distiller with detection_loss"
        ):
            kd(IMAGES, predictions, features, TARGETS, detection_loss=loss)
    step(kd, parts)
    with torch.no_grad():
        assert kd(IMAGES, predictions, features, TARGETS)[0] > 0
    assert kd.eval()(IMAGES, predictions, features, TARGETS)[0] > 0
    assert kd.balance.counts.tolist() == [1]


def test_until_a_labelled_batch_nothing_is_taught_and_nothing_is_warned_of() -> None:
    parts = toys_of("l2")
    kd = build(parts, one("l2"))
    loss, _, detection, features = step(kd, parts, toys.NO_TARGETS)
    assert loss == 0 and "share/kd/l2" not in kd.epoch_row()
    predictions, features = parts[0](IMAGES, extra_features=kd.layers)
    found = kd.preflight(IMAGES, predictions, features, toys.NO_TARGETS, detection, parts[0].parameters())
    assert "no labelled box is in this batch" in found.table and set(found.silent) == set(kd.item_names)
    assert not any("gradient reaches" in warning for warning in found.warnings)


def test_the_preflight_shows_shares_and_changes_nothing() -> None:
    parts = toys_of("l2")
    kd = build(parts, one("l2") | {"at": {"weight": 100}})
    _, _, detection, _ = step(kd, parts)
    before = copy.deepcopy(kd.state_dict())
    predictions, features = parts[0](IMAGES, extra_features=kd.layers)
    detection, _ = toy_criterion(predictions, TARGETS)
    table = kd.preflight(IMAGES, predictions, features, TARGETS, detection, parts[0].parameters()).table
    rows = [line.split() for line in table.splitlines()]
    assert ["share", "of", "asked", "for", "weight", "found", "reached"] in rows
    assert ["l2", "0.4", f"{kd.balance.factors.item():.4g}", "0.4"] in rows
    assert "share 0.4" in kd.describe() and "100" in kd.describe()
    assert all(torch.equal(value, before[key]) for key, value in kd.state_dict().items())


def test_hooked_modules_serve_losses_on_the_output_too() -> None:
    parts = toys_of("output")
    kd = build(parts, one("output") | one("l2"), ["model.3", "model.4"], taps="hooks")
    predictions = parts[0](IMAGES)
    detection, _ = toy_criterion(predictions, TARGETS)
    kd(IMAGES, predictions, [], TARGETS, detection_loss=detection)
    assert kd.layers == [] and kd.epoch_row()["share/kd/output"] == pytest.approx(SHARE)
    only = build(parts, one("output"), ["model.3", "model.4"], taps="hooks")
    predictions = parts[0](IMAGES)
    only(IMAGES, predictions, [], TARGETS, detection_loss=toy_criterion(predictions, TARGETS)[0])
    assert only.balance.factors.item() == pytest.approx(kd.balance.factors[0].item(), rel=1e-4)


def test_what_was_wrong_for_a_whole_epoch_is_said_once() -> None:
    parts = toys_of("output")
    kd = build(parts, one("l2") | {"at": {}})
    kd.start_epoch(0, 3)
    items = {"kd/l2/P3": 1.0, "kd/l2/P4": 0.0, "kd/at/P3": float("nan"), "kd/at/P4": 1.0, "box": 0.0}
    doubts = kd.epoch_doubts(items)
    assert [doubt.split(";")[0] for doubt in doubts] == ["kd/l2/P4 was exactly 0", "kd/at/P3 was not finite"]
    assert kd.epoch_doubts(items) == []
