"""A network, losses and batches small enough to follow the training loop by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from data.loader import Batch
from distill import Preflight
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.runfolder import RunFolder
from engine.training.distributed import World
from engine.training.ema import ModelEMA
from engine.training.extra_loss import ModuleLoss
from engine.training.loop import Trainer
from engine.training.optimizer import build_optimizer
from engine.training.schedule import LearningSchedule

IMAGE_SIZE = 16
STRIDE = 4


class ToyModel(nn.Module):
    """One convolution; its output is both the prediction and, as layer 0, the feature."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, STRIDE, STRIDE)
        self.stride = torch.tensor([float(STRIDE)])
        self.yaml, self.names, self.nc, self.family = (
            {"width": width, "backbone": [], "head": []},
            ["item"],
            1,
            "yolov5",
        )

    def forward(self, images: Tensor, extra_features: Sequence[int] | None = None) -> Any:
        x = self.conv(images)
        return [x] if extra_features is None else ([x], [x] * len(extra_features))


class ToyLoss(nn.Module):
    """Mean square of the prediction, summed over the images; with `noise`, it draws from the global random stream."""

    def __init__(self, scale: float = 1.0, noise: float = 0.0) -> None:
        super().__init__()
        self.scale, self.noise = scale, noise

    def forward(self, predictions: list[Tensor], targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = predictions[0]
        if self.noise:
            x = x + self.noise * torch.randn(x.shape)
        loss = self.scale * x.square().mean()
        return loss * len(x), {"box": loss.detach()}


class ToyDistiller(nn.Module):
    """An extra loss with one adapter; notes what it was called with."""

    layers = (0,)

    def __init__(self, weight: float = 1.0, warnings: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.weight, self.warnings = weight, warnings
        self.adapter = nn.Parameter(torch.tensor(0.5))
        self.epochs: list[tuple[int, int]] = []
        self.checked: list[Tensor] = []

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.epochs.append((epoch, epochs))

    def epoch_row(self) -> dict[str, float]:
        return {"schedule/kd": 1 / (1 + self.epochs[-1][0])}

    def epoch_doubts(self, items: Mapping[str, float]) -> Sequence[str]:
        return ()

    def forward(
        self,
        images: Tensor,
        predictions: Any,
        features: list[Tensor],
        targets: Tensor,
        *,
        detection_loss: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert len(features) == 1
        loss = self.weight * (self.adapter * features[0] - 1).square().mean()
        return loss * len(images), {"kd/toy/P2": loss.detach()}

    def preflight(
        self,
        images: Tensor,
        predictions: Any,
        features: list[Tensor],
        targets: Tensor,
        detection_loss: Tensor,
        parameters: Iterable[Tensor] = (),
    ) -> Preflight:
        self.checked.append(detection_loss.detach())
        return Preflight("the table", self.warnings)


@dataclass
class ToyLoader:
    """The same batches at every epoch, but for their order; `share` is the part (rank, size) of each batch."""

    num_batches: int = 4
    batch_size: int = 2
    share: tuple[int, int] = (0, 1)
    opened: list[tuple[int, bool]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.num_batches

    def set_epoch(self, epoch: int, mosaic: bool = True) -> None:
        self.opened.append((epoch, mosaic))

    def __iter__(self) -> Iterator[Batch]:
        rank, size = self.share
        for step in range(self.num_batches):
            generator = torch.Generator().manual_seed(100 * self.opened[-1][0] + step)
            shape = (self.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            yield Batch(images.tensor_split(size)[rank], torch.zeros(0, 6), (), ())


def toy_validation(fitness: Sequence[float]) -> Callable[[nn.Module], Any]:
    """A validation that finds these values of fitness, one a call."""
    values = iter(fitness)

    def validate(network: nn.Module) -> Any:
        value = next(values)
        row = {"metrics/AP": value, "metrics/AP50": value, "fitness": value}
        return SimpleNamespace(as_row=lambda: dict(row), coco=SimpleNamespace(per_class_ap=torch.tensor([value])))

    return validate


def toy_trainer(
    folder: Path,
    *,
    model: nn.Module | None = None,
    criterion: nn.Module | None = None,
    extra_losses: Sequence[nn.Module] = (),
    loader: ToyLoader | None = None,
    hyp: dict[str, Any] | None = None,
    world: World | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    validate: Callable[[nn.Module], Any] | None = None,
    save: Callable[[Trainer], None] | None = None,
    optimizer: str = "SGD",
    **options: Any,
) -> Trainer:
    """A trainer of toys; `options` are those of the command line. A step after every batch, without a warm-up."""
    model = model or ToyModel()
    loader = loader or ToyLoader()
    settings = TrainOptions(
        img_size=(IMAGE_SIZE, IMAGE_SIZE), batch_size=loader.batch_size, **({"epochs": 2, "patience": 0} | options)
    )
    values = Hyp(**({"nbs": 1, "warmup_epochs": 0.0, "lr0": 0.1} | (hyp or {})))
    schedule = LearningSchedule(values, settings.epochs, len(loader), loader.batch_size)
    return Trainer(
        model=model,  # type: ignore[arg-type]
        wrapped=wrap(model) if wrap else model,
        criterion=criterion or ToyLoss(),
        extra_losses=[ModuleLoss(extra) for extra in extra_losses],  # type: ignore[arg-type]
        loader=loader,  # type: ignore[arg-type]
        optimizer=build_optimizer(
            optimizer, [model, *extra_losses], values.lr0, values.momentum, schedule.weight_decay
        ),
        schedule=schedule,
        ema=ModelEMA(model),
        options=settings,
        hyp=values,
        run=RunFolder(folder / "run", (world or World()).is_main),
        world=world or World(),
        device=torch.device("cpu"),
        validate=validate,
        save=save,
    )
