"""That a student which inherited from a trained teacher starts ahead of one from scratch, with the real losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.config.hyp import read_hyp
from engine.training.criterion import build_criteria
from models.yolo import Model
from pruning import inherit, labels_for_teacher
from pruning.graph import trace_groups
from pruning.importance import Taylor, group_scores
from pruning.pruner import run_for_outputs
from pruning.selection import removed_channels
from pruning.surgery import remove_channels
from tests.golden import ROOT
from tests.unit.models.architectures import tiny_yolov5, tiny_yolov7, tiny_yolov8
from tests.unit.pruning.test_inherit import doubled, lively, photos, squares

SIZE = 64
HYPS = {"yolov5": "scratch-low.yaml", "yolov7": "scratch.tiny.yaml", "yolov8": "scratch.v8.yaml"}


@lru_cache
def scenes(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches of four grey images, each with a square of one of three colours, and their targets."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    batches = []
    for _ in range(count):
        images, targets = torch.full((4, 3, SIZE, SIZE), 0.4), []
        for number in range(4):
            label, x, y, side = draw(0, 3), draw(0, 40), draw(0, 40), draw(10, 22)
            images[number, label, y : y + side, x : x + side] = 1.0
            targets.append([number, label, (x + side / 2) / SIZE, (y + side / 2) / SIZE, side / SIZE, side / SIZE])
        batches.append((images + 0.02 * torch.rand(images.shape, generator=generator), torch.tensor(targets)))
    return batches


def loss_of(model: Model) -> Callable[[nn.Module, Any], Tensor]:
    criterion, _ = build_criteria(model, read_hyp(ROOT / "hyp" / HYPS[model.family]), SIZE, 0.0, torch.device("cpu"))
    return lambda network, batch: criterion(network(batch[0]), batch[1])[0]


def trained(model: Model, epochs: int) -> float:
    """Trains a model; the mean loss of the last epoch."""
    loss, optimizer = loss_of(model), torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    for _ in range(epochs):
        total = 0.0
        for batch in scenes():
            value = loss(model, batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += float(value.detach())
    return total / len(scenes())


@pytest.mark.parametrize("make", [tiny_yolov5, tiny_yolov7, tiny_yolov8])
def test_the_first_epoch_after_inheriting_has_a_lower_loss_than_one_from_scratch(make: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher, student = Model(doubled(make())), Model(make())
        scratch = copy.deepcopy(student)
        trained(teacher, 12)
    criterion, classes = loss_of(teacher), [(0, 0), (1, 1), (2, 2)]

    def loss(network: nn.Module, batch: Any) -> Tensor:
        run_for_outputs(network, batch[0])  # its modes
        return criterion(network, (batch[0], labels_for_teacher(batch[1], classes)))

    result = inherit(student, teacher, batches=scenes(), loss=loss, images=[images for images, _ in scenes()])
    assert result.share == 1 and result.importance == "taylor"
    assert trained(student, 1) < 0.8 * trained(scratch, 1)


@pytest.mark.parametrize("make", [tiny_yolov5, tiny_yolov7, tiny_yolov8])
def test_it_is_the_teacher_with_its_least_important_channels_removed(make: Any) -> None:
    student, teacher = lively(make(), 1), lively(doubled(make()), 2)
    image = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64)
    groups = trace_groups(teacher, image, run_for_outputs)
    sizes = {group.name: group.size for group in trace_groups(student, image, run_for_outputs)}
    usable = [group for group in groups if not group.reason]
    scores = group_scores(usable, Taylor(teacher, photos(), squares), "none")
    kept = {number: sizes[group.name] for number, group in enumerate(usable) if sizes[group.name] < group.size}
    inherit(student, teacher, batches=photos(), loss=squares)
    remove_channels(teacher, removed_channels(usable, scores, kept))
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(value, theirs[key]) for key, value in ours.items())
