"""BatchNorm of frozen layers, and of a lone image on a map of 1 x 1."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.augmentation.augment import AugmentConfig
from data.dataset import DetectionDataset
from data.loader import create_loader
from data.records import DatasetIndex, ImageRecord
from distill.losses import cwd, pkd
from engine.training.ema import ModelEMA
from engine.training.model import freeze_layers
from engine.training.norms import frozen_norms, guard_lone_values, has_lone_values, smallest_batch
from engine.training.train import guard_lone_images
from models.yolo import Model
from pruning.batchnorm import reestimate_batchnorm
from pruning.errors import PruneError
from tests.unit.engine.training.training_toys import STRIDE, ToyModel
from tests.unit.engine.training.training_toys import toy_trainer as trainer
from tests.unit.models.architectures import tiny_yolov5


class Normalised(ToyModel):
    """Two layers, as `freeze_layers` counts them, each with a BatchNorm; the second map is a quarter of the first."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(n, 2, STRIDE, STRIDE), nn.BatchNorm2d(2)) for n in (3, 2)]
        self.model = nn.Sequential(*layers)
        del self.conv

    def forward(self, images: torch.Tensor, extra_features: Any = None) -> Any:
        return [self.model(images)]


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_layers_keep_their_statistics(tmp_path: Path, frozen: int) -> None:
    model = Normalised()
    freeze_layers(model, [frozen])  # type: ignore[arg-type]
    toy = trainer(tmp_path, model=model, hyp={"nbs": 2})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    toy.run()
    for state in (model.state_dict(), toy.ema.module.state_dict()):
        changed = {key.split(".")[1] for key, value in state.items() if not torch.equal(value, before[key])}
        assert changed == ({"1"} if frozen else {"0", "1"})
    assert len(toy.frozen_norms) == frozen


def test_frozen_norms_of_a_detector() -> None:
    model = Model(tiny_yolov5())
    assert frozen_norms(model) == []
    freeze_layers(model, [2])
    expected = [m for layer in model.model[:2] for m in layer.modules() if isinstance(m, nn.BatchNorm2d)]
    assert frozen_norms(model) == expected


def lone(img_size: int) -> torch.Tensor:
    return torch.rand(1, 3, img_size, img_size)


@pytest.mark.parametrize(("img_size", "expected"), [(16, True), (32, False)])
def test_a_lone_value_is_found_without_a_trace(img_size: int, expected: bool) -> None:
    average = ModelEMA(Normalised()).module
    before = {key: value.clone() for key, value in average.state_dict().items()}
    stream = torch.get_rng_state()
    assert has_lone_values(average, img_size) is expected
    assert all(torch.equal(value, before[key]) for key, value in average.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert not any(module._forward_pre_hooks for module in average.modules())


def test_a_lone_value_is_normalised_by_the_running_statistics() -> None:
    plain, guarded = Normalised(), Normalised()
    guarded.load_state_dict(plain.state_dict())
    guard_lone_values([guarded])
    images = torch.rand(4, 3, 16, 16)
    for model in (plain, guarded):  # where there are statistics, they are taken
        model(images)[0].sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), guarded.state_dict().values()))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        plain(lone(16))
    first, second = guarded.model
    before = second[1].running_mean.clone()
    x = lone(16)
    out = guarded(x)[0]
    out.sum().backward()
    norm = second[1]
    assert out.shape == (1, 2, 1, 1) and out.isfinite().all()
    assert torch.equal(norm.running_mean, before) and norm.training and first[1].training
    assert norm.weight.grad is not None


def test_the_guard_leaves_frozen_norms_in_evaluation_mode() -> None:
    model = Normalised()
    guard_lone_values([model])
    model.model[1][1].eval()
    model(lone(16))
    assert not model.model[1][1].training


def test_the_guard_holds_through_compile() -> None:
    model = Normalised()
    guard_lone_values([model])
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        assert compiled(lone(16))[0].shape == (1, 2, 1, 1)
        assert compiled(torch.rand(2, 3, 16, 16))[0].shape == (2, 2, 1, 1)
    assert model.model[1][1].training


@pytest.mark.parametrize(
    ("count", "batch", "world", "expected"), [(5, 4, 1, 1), (6, 4, 1, 2), (8, 4, 1, 4), (10, 2, 2, 1), (3, 1, 1, 1)]
)
def test_the_smallest_batch(count: int, batch: int, world: int, expected: int) -> None:
    records = [ImageRecord(f"{i}.jpg", 8, 8, torch.zeros(0, 5).numpy()) for i in range(count)]
    dataset = DetectionDataset(DatasetIndex(records, [], {}, ""), 32, None)
    loader = create_loader(dataset, batch, workers=0, world_size=world)
    assert smallest_batch(loader, world) == expected
    assert min(len(requests) for requests in loader._sampler) == expected


@pytest.mark.parametrize("standardise", [cwd.standardise, pkd.standardise])
def test_a_lone_value_is_standardised_to_zero(standardise: Any) -> None:
    x = torch.rand(1, 3, 1, 1, requires_grad=True)
    assert standardise(x).tolist() == [[[[0.0]], [[0.0]], [[0.0]]]]
    assert standardise(torch.rand(2, 3, 1, 1)).abs().sum() > 0


def test_statistics_are_estimated_without_the_lone_image() -> None:
    model, images = Normalised(), torch.rand(4, 3, 16, 16)
    reestimate_batchnorm(model, [images, lone(16)])
    assert model.model[1][1].num_batches_tracked == 1
    with pytest.raises(PruneError, match="batches of two"):
        reestimate_batchnorm(model, [lone(16)])


def test_an_extra_loss_may_have_lone_values_where_the_network_has_none(tmp_path: Path) -> None:
    toy = trainer(tmp_path)
    toy.extra_losses = [SimpleNamespace(module=nn.BatchNorm2d(2))]  # type: ignore[list-item]
    toy.loader = create_loader(lone_dataset(), 1, workers=0)
    guard_lone_images(toy)
    assert not has_lone_values(toy.ema.module, toy.options.img_size[0])
    assert toy.extra_modules[0](torch.ones(1, 2, 1, 1)).isfinite().all()


def lone_dataset() -> DetectionDataset:
    """One image, which is never read."""
    record = ImageRecord("nowhere.png", 64, 64, np.zeros((0, 5), np.float32))
    return DetectionDataset(DatasetIndex([record], [], {}, ""), 64, AugmentConfig())
