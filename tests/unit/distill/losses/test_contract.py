"""What every entry of the loss table promises."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distill import LOSSES, DistillContext, Distiller, DistillError, HeadSpec
from distill.losses.base import DistillationLoss, FeatureLoss, PredictionLoss
from engine.distilling.distillers import head_spec
from models.yolo import Model
from tests.golden import ROOT
from tests.unit.distill import distill_toys as toys

HEADS_OF: dict[str, tuple[str, ...]] = {"ld": ("anchor_free",)}
"""Kinds of head that a loss on the output works with, where these are not all."""
NOT_ZERO_AT_EQUALITY = {"mgd", "fbkd"}
"""Losses that compare what trained modules make of the maps, so that equal maps do not give 0."""
ONLY_AT_BOXES = {"ld"}
"""Losses that are 0, with gradients of 0, where nothing is labelled."""

CASES = [
    (name, kind)
    for name, loss in LOSSES.items()
    for kind in (HEADS_OF.get(name, ("anchor", "anchor_free")) if loss.needs == "predictions" else ("features",))
]
each_loss = pytest.mark.parametrize(("name", "kind"), CASES)
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique")
"""Operators that make the host wait for a CUDA device."""


def build(name: str, kind: str, channels: tuple[int, int] = (8, 12)) -> DistillationLoss:
    torch.manual_seed(0)
    return LOSSES[name](toys.setup(*channels, kind="anchor" if kind == "features" else kind))


def inputs(kind: str, channels: tuple[int, int] = (8, 12), scale: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    if kind == "features":
        student, teacher = toys.feature_maps(channels[0], 1, scale), toys.feature_maps(channels[1], 2, scale)
    else:
        student, teacher = toys.head_maps(kind, 1, scale), toys.head_maps(kind, 2, scale)
    return [s.requires_grad_() for s in student], teacher


def context_of(kind: str, teacher: list[Tensor], targets: Tensor = toys.TARGETS) -> DistillContext:
    """With the scores and the output that belong to the teacher's features, as a loss on features may ask for."""
    context = DistillContext.from_targets(targets, toys.IMAGE_HW)
    if kind != "features":
        return context
    maps = [t.detach().float() for t in teacher]
    scores = {stride: t[:, 0].sigmoid() for stride, t in zip(toys.STRIDES, maps)}
    return replace(context, teacher_scores=scores, teacher_output=toys.ToyHead(maps[0].shape[1])(maps))


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@each_loss
@pytest.mark.parametrize("targets", [toys.TARGETS, toys.NO_TARGETS], ids=["boxes", "no boxes"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_terms_are_finite_scalars_that_teach_the_student_only(
    name: str, kind: str, targets: Tensor, scale: float
) -> None:
    loss = build(name, kind)
    student, teacher = inputs(kind, scale=scale)
    teacher = [t.requires_grad_() for t in teacher]
    terms = loss(student, teacher, context_of(kind, teacher, targets))
    assert tuple(terms) == tuple(loss.names)
    assert all(term.shape == () and term.isfinite() and term.dtype == torch.float32 for term in terms.values())
    total(terms).backward()
    assert all(t.grad is None for t in teacher)
    for s in student:
        assert s.grad is not None and bool(s.grad.isfinite().all())
    learns = any(bool(s.grad.any()) for s in student if s.grad is not None)
    assert learns != (name in ONLY_AT_BOXES and not len(targets))
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in loss.parameters())


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(name: str, kind: str, dtype: torch.dtype) -> None:
    loss = build(name, kind)
    student, teacher = inputs(kind, scale=10.0)
    expected = total(
        loss([s.to(dtype).float() for s in student], [t.to(dtype).float() for t in teacher], context_of(kind, teacher))
    )
    loss, context = build(name, kind), context_of(kind, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = total(loss([s.to(dtype) for s in student], [t.to(dtype) for t in teacher], context))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@each_loss
def test_channels_last_maps_give_the_same(name: str, kind: str) -> None:
    student, teacher = inputs(kind)
    expected = build(name, kind)(student, teacher, context_of(kind, teacher))
    last = [
        [x.permute(0, *range(2, x.ndim), 1).contiguous().movedim(-1, 1) for x in maps] for maps in (student, teacher)
    ]
    assert not last[0][0].is_contiguous()
    found = build(name, kind)(*last, context_of(kind, teacher))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@each_loss
def test_equal_maps_give_zero_where_the_method_says_so(name: str, kind: str) -> None:
    loss = build(name, kind, channels=(8, 8))
    _, teacher = inputs(kind, channels=(8, 8))
    value = total(loss([t.clone() for t in teacher], teacher, context_of(kind, teacher))).item()
    assert (abs(value) > 1e-3) if name in NOT_ZERO_AT_EQUALITY else (abs(value) < 1e-6)


@each_loss
def test_maps_of_different_sizes_are_refused_with_both_shapes(name: str, kind: str) -> None:
    loss = build(name, kind)
    student, teacher = inputs(kind)
    cut = [s[..., :2] if s.ndim == 4 else s[:, :, :2] for s in student]
    with pytest.raises(DistillError) as raised:
        loss(cut, teacher, context_of(kind, teacher))
    message = str(raised.value)
    assert str(tuple(cut[0].shape)) in message and str(tuple(teacher[0].shape)) in message
    assert "\n" not in message


@each_loss
def test_a_missing_map_is_refused(name: str, kind: str) -> None:
    student, teacher = inputs(kind)
    with pytest.raises(DistillError, match="1 maps of the student, 2 of the teacher"):
        build(name, kind)(student[:1], teacher, context_of(kind, teacher))


@each_loss
def test_the_table_of_pairs_counts_all_parameters(name: str, kind: str) -> None:
    loss = build(name, kind)
    described = [loss.describe(index) for index in range(2)]
    assert sum(count for _, count in described) == sum(p.numel() for p in loss.parameters())


class _Watch(TorchDispatchMode):
    """Notes operators that wait for the device; indexing with a mask is one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name.startswith(WAITING) or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def waiting_operators() -> Iterator[list[str]]:
    with _Watch() as watch:
        yield watch.found


@each_loss
def test_the_host_never_waits_for_the_device(name: str, kind: str) -> None:
    loss = build(name, kind)
    student, teacher = inputs(kind)
    context = context_of(kind, teacher)
    with waiting_operators() as found:
        total(loss(student, teacher, context)).backward()
    assert found == []


def test_the_watch_sees_a_wait() -> None:
    with waiting_operators() as found:
        values = torch.arange(3.0)
        values[values > 1].sum().item()
    assert {"_local_scalar_dense", "index"} <= set(found)


@pytest.mark.parametrize("name", LOSSES)
def test_the_guide_lists_every_keyword_and_default(name: str) -> None:
    guide = (ROOT / "docs" / "methods.md").read_text()
    row = next(line for line in guide.splitlines() if line.startswith(f"| `{name}` |"))
    for parameter in inspect.signature(LOSSES[name].__init__).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            value = parameter.default
            text = f"{value:.5f}".rstrip("0").rstrip(".") if type(value) in (int, float) else str(value)
            found = re.search(rf"`{parameter.name.rstrip('_')}` \(([^;)]*)", row)
            assert found and found.group(1) == (text.lower() if type(value) is bool else text), parameter.name


def tiny_model(kind: str, width: float) -> Model:
    """A detector of the smallest widths; its weights depend on the arguments alone."""
    name = "yolov5/yolov5n" if kind == "anchor" else "yolov8/yolov8n"
    config = yaml.safe_load((ROOT / f"cfg/{name}.yaml").read_text()) | {"nc": toys.NUM_CLASSES}
    if kind == "anchor":
        config |= {"width_multiple": width, "depth_multiple": 0.1}
    else:
        config["scales"] = {"n": [0.1, width, 1024]}
    torch.manual_seed(0)
    return Model(config)


MODEL_CASES = [(name, "anchor" if kind == "features" else kind) for name, kind in CASES]


@pytest.mark.parametrize(("name", "kind"), MODEL_CASES)
def test_a_step_of_training_leaves_the_teacher_as_it_was(name: str, kind: str) -> None:
    """Parameters without gradients, parameters and buffers bit for bit the same, though everything runs in training."""
    student, teacher = tiny_model(kind, 0.0625), tiny_model(kind, 0.125)
    heads: dict[str, HeadSpec] = {"student_head": head_spec(student), "teacher_head": head_spec(teacher)}
    kd = Distiller(student, teacher, "auto", "auto", {name: {}}, image_size=64, **heads)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student.train()
    kd.train()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    predictions, features = student(images, extra_features=kd.layers) if kd.layers else (student(images), [])
    loss, items = kd(images, predictions, features, toys.TARGETS)
    loss.backward()
    assert loss.isfinite() and tuple(items) == kd.item_names
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert any(bool(grad.any()) for grad in grads)


@pytest.mark.slow
@each_loss
def test_a_loss_compiles_into_one_graph(name: str, kind: str) -> None:
    torch.compiler.reset()
    loss = build(name, kind)
    student, teacher = inputs(kind)
    context = context_of(kind, teacher)
    # A generator of random numbers cannot be made inside a graph, so MGD has a break there.
    compiled = torch.compile(lambda s, t: loss(s, t, context), backend="eager", fullgraph=name != "mgd")
    found = total(compiled(student, teacher))
    found.backward()
    torch.testing.assert_close(found, total(build(name, kind)(student, teacher, context)))


def test_every_loss_is_of_one_of_the_two_kinds() -> None:
    for name, loss in LOSSES.items():
        assert issubclass(loss, FeatureLoss | PredictionLoss), name
        assert loss.__doc__, name
