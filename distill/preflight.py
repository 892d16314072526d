"""What one batch says about a distillation before the training goes on."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .boxes import iou
from .context import DistillContext, HeadSpec
from .grid import joint_logits
from .heads import anchor_table, decode_boxes, grid_size, split_logits
from .report import format_table

MANY = 10.0
"""Ratio to the detection loss from which on a term is marked."""
GAP = 20.0
"""Ratio of parameters from which on an assistant between teacher and student is advised."""
FEW = 0.1
"""Share of found boxes below which the teacher is doubted, from `LEAST_BOXES` labelled boxes on."""
LEAST_BOXES = 5
_GRADIENT_SCALE = 1024.0
"""On gradients of half-precision networks, so that small ones do not vanish; taken out of the norms again."""


@dataclass(frozen=True)
class Preflight:
    """What to print before the training goes on.

    Attributes:
        table: how strong the terms are.
        warnings: what is wrong, one line each.
        silent: items that are 0 by nature, as the class term of a single class.
    """

    table: str
    warnings: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.table


@dataclass(frozen=True)
class Gradients:
    """Norms of gradients with respect to the student's parameters, and adapters that get none.

    Attributes:
        terms: norm for each term; empty where the detection loss has no graph or no parameters were given.
        total: norm of the sum of the terms.
        detection: norm of the detection loss's.
        idle: names of adapters whose every gradient is 0.
    """

    terms: Mapping[str, float]
    total: float
    detection: float
    idle: tuple[str, ...]


def adapters(losses: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The trained parts of the losses, one for each level: entries of ModuleLists, and other children as they are."""
    for name, loss in losses.named_children():
        for child, module in loss.named_children():
            parts = list(module.named_children()) if isinstance(module, nn.ModuleList) else [("", module)]
            for index, part in parts:
                if any(parameter.requires_grad for parameter in part.parameters()):
                    yield ".".join(filter(None, (name, child, index))), part


def measure_gradients(
    terms: Mapping[str, Tensor], losses: nn.Module, parameters: Sequence[Tensor], detection_loss: Tensor
) -> Gradients:
    """Gradients of each term, of their sum and of the detection loss.

    `torch.autograd.grad` fills no `.grad`, runs no hook of parameters, and the graph is kept: the training goes on as
    without it.

    Args:
        terms: weighted terms with their graph, as large as in the training's loss but for the batch size.
        losses: the losses that the terms come from.
        parameters: the student's; without any, only adapters are looked at.
        detection_loss: of the same batch, divided by the batch size.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    parts = list(adapters(losses))
    trained = [[p for p in part.parameters() if p.requires_grad] for _, part in parts]
    total = torch.stack(list(terms.values())).sum()
    flat = [p for group in trained for p in group]
    moved = {id(p) for p, gradient in zip(flat, _gradients(total, flat)) if gradient is not None and gradient.any()}
    idle = tuple(name for (name, _), group in zip(parts, trained) if not any(id(p) in moved for p in group))
    if not learning or not detection_loss.requires_grad:
        return Gradients({}, math.nan, math.nan, idle)
    norms = {name: _norm(_gradients(term, learning)) for name, term in terms.items()}
    both = [_norm(_gradients(value, learning)) for value in (total, detection_loss)]
    return Gradients(norms, both[0], both[1], idle)


def _gradients(value: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not value.requires_grad or not parameters:
        return [None] * len(parameters)
    return torch.autograd.grad(value * _GRADIENT_SCALE, parameters, retain_graph=True, allow_unused=True)


def _norm(gradients: Sequence[Tensor | None]) -> float:
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm()) / _GRADIENT_SCALE if norms else 0.0


def strength_table(
    items: Mapping[str, Tensor], detection_loss: float, gradients: Gradients, shared: Collection[str] = ()
) -> str:
    """One row for each term: its weighted value, and the ratios of value and gradient to the detection loss's.

    Ratios above `MANY` are marked; the FGD authors advise to keep distillation near the size of the detection loss.

    Args:
        items: weighted terms, not multiplied by the batch size.
        detection_loss: likewise.
        gradients: of both.
        shared: terms whose weights set themselves, and which are not marked.
    """
    values = {name: value.item() for name, value in items.items()}
    values["sum"] = sum(values.values())
    norms = {**gradients.terms, "sum": gradients.total} if gradients.terms else {}
    rows = [["term", "weighted value", "ratio to the detection loss", "ratio of gradients"]]
    for name, value in values.items():
        ratio = value / detection_loss if detection_loss else math.inf
        pull = norms[name] / gradients.detection if norms and gradients.detection else math.nan
        strong = name not in shared and (pull > MANY or (math.isnan(pull) and ratio > MANY))
        mark = f"  above {MANY:g}: lower its weight" if strong else ""
        rows.append([name, f"{value:.4g}", f"{ratio:.3g}", ("-" if math.isnan(pull) else f"{pull:.3g}") + mark])
    return format_table(rows)


@torch.no_grad()
def found_share(
    maps: Sequence[Tensor], head: HeadSpec, context: DistillContext, *, threshold: float = 0.05, most: int = 300
) -> tuple[float, int]:
    """How many of the labelled boxes a head finds: the share that one of its boxes of that class covers by half.

    Boxes count from a score of `threshold` on, the `most` best of each image, without suppression of overlapping ones.

    Args:
        maps: raw maps.
        head: as it is compared.
        context: the labelled boxes; those of classes that are not compared do not count.
        threshold: least score.
        most: boxes an image.

    Returns:
        The share (mean recall at IoU 0.5; 0 without labels), and the number of labelled boxes that count.
    """
    boxes, scores = [], []
    for level, (raw, anchors) in enumerate(zip(maps, anchor_table(head).to(maps[0].device))):
        height, width = grid_size(raw)
        stride = head.strides[level]  # the head's images may have another size than the labels'
        scale = raw.new_tensor([context.image_hw[1] / (width * stride), context.image_hw[0] / (height * stride)])
        boxes.append(decode_boxes(raw, head, level, anchors) * scale.repeat(2))
        scores.append(joint_logits(split_logits(raw, head)).sigmoid())
    all_boxes, all_scores = torch.cat(boxes, 1), torch.cat(scores, 1)  # (N, A, 4), (N, A, nc)
    found = total = 0
    for image in range(len(all_boxes)):
        mine = (context.box_images == image) & (context.box_classes >= 0)
        best = all_scores[image].amax(-1).topk(min(most, all_scores.shape[1])).indices
        overlap = iou(context.boxes_xyxy[mine][:, None], all_boxes[image, best])  # (T', most)
        sure = all_scores[image, best][:, context.box_classes[mine]].T  # (T', most)
        found += int(((overlap >= 0.5) & (sure >= threshold)).any(1).sum())
        total += int(mine.sum())
    return found / max(total, 1), total


def doubt_of_teacher(share: float, count: int) -> str:
    """A warning where a teacher finds almost nothing; empty where it finds enough, or too little is labelled to say."""
    if count < LEAST_BOXES or share >= FEW:
        return ""
    return (
        f"the teacher finds {share:.0%} of the {count} labelled boxes of this batch: look at the order of its classes, "
        "at its weights (is its head trained?), and at how it wants its images; test.py shows how good it is"
    )


def doubts_of_epoch(items: Mapping[str, float]) -> list[str]:
    """Terms that were 0, or not finite, in the mean over an epoch."""
    idle = [name for name, value in items.items() if value == 0]
    broken = [name for name, value in items.items() if not math.isfinite(value)]
    remedy = "; look at its layers, its keywords and the teacher"
    found = [f"{name} was exactly 0{remedy}" for name in idle]
    return found + [f"{name} was not finite{remedy}" for name in broken]


def doubts_of_networks(learning: Sequence[Tensor], teacher: nn.Module) -> list[str]:
    """What is wrong with a teacher beside the student's parameters that learn, where there are any."""
    taught = list(teacher.parameters())
    doubts = [capacity_gap(_count(learning), _count(taught))] if learning else []
    if any(parameter.requires_grad or parameter.grad is not None for parameter in taught):
        doubts.append("the teacher's parameters take gradients: something unfroze them after it was frozen")
    return doubts


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def capacity_gap(student_parameters: int, teacher_parameters: int) -> str:
    """A warning where the teacher is far larger than the student; else empty."""
    ratio = teacher_parameters / max(student_parameters, 1)
    if ratio <= GAP:
        return ""
    return (
        f"the teacher has {ratio:.0f} times the student's parameters; so large a gap costs much of the gain: a teacher "
        "of a size between, or an assistant taught by this one, often teaches better (arXiv 1902.03393)"
    )
