"""The training loop, the only one: whatever adds a loss to it plugs in as an `ExtraLoss`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.loader import Batch, DetectionLoader
from engine.build import images_to_device
from engine.config import Hyp, TrainOptions
from engine.distributed import World, agree, average_gradients
from engine.ema import ModelEMA
from engine.optimizer import apply_plan
from engine.runfolder import EventWriter, ResultsTable, RunFolder
from engine.schedule import LearningSchedule
from models.yolo import Model
from utils.errors import UserError
from utils.logging import LOGGER, progress

GRADIENT_CLIP = 10.0


class ExtraLoss(Protocol):
    """A further loss beside the detection loss, such as a distiller.

    Its own parameters are trained with the model's, by the same optimizer, from the first step.
    """

    layers: Sequence[int]

    def __call__(
        self, images: Tensor, predictions: Any, features: list[Tensor], targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to add, already multiplied by the batch size, and its named parts."""

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Called before the first batch of an epoch."""


@dataclass
class TrainState:
    """What changes during a training and is kept for a resume, beside weights and optimizer."""

    epoch: int = 0
    best_fitness: float = -1.0
    best_epoch: int = -1
    last_step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)


class Meter:
    """Running means of named scalars; they stay on their device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def update(self, items: Mapping[str, Tensor]) -> None:
        """Adds the values of a batch."""
        self.count += 1
        for name, value in items.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().clone()

    def means(self) -> dict[str, float]:
        """The means so far; waits for the device once."""
        if not self.sums:
            return {}
        values = torch.stack([v.float() for v in self.sums.values()]).tolist()
        return {name: value / self.count for name, value in zip(self.sums, values)}


class Trainer:
    """Trains a model for the epochs of its options.

    Args:
        model: the student, on its device.
        wrapped: the same model as it is to be called, such as in DistributedDataParallel.
        criterion: (predictions, targets) -> (loss times batch size, items).
        extra_losses: further losses; modules on the device.
        loader: training batches.
        optimizer: over the model and the extra losses.
        schedule: learning rates of every iteration.
        ema: average of the model.
        validate: (model) -> row of metrics with the key "fitness", or None for no validation.
        save: (trainer) -> None, writes last.pt and best.pt.
    """

    REPORT_EVERY = 10

    def __init__(
        self,
        *,
        model: Model,
        wrapped: nn.Module,
        criterion: nn.Module,
        extra_losses: Sequence[nn.Module],
        loader: DetectionLoader,
        optimizer: torch.optim.Optimizer,
        schedule: LearningSchedule,
        ema: ModelEMA,
        options: TrainOptions,
        hyp: Hyp,
        run: RunFolder,
        world: World,
        device: torch.device,
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
        save: Callable[[Trainer], None] | None = None,
        before_epoch: Callable[[Trainer], None] | None = None,
    ) -> None:
        self.model, self.wrapped, self.criterion = model, wrapped, criterion
        self.extra_losses = list(extra_losses)
        self.loader, self.optimizer, self.schedule, self.ema = loader, optimizer, schedule, ema
        self.options, self.hyp, self.run_folder = options, hyp, run
        self.world, self.device = world, device
        self.validate, self.save, self.before_epoch = validate, save, before_epoch
        self.state = TrainState()
        self.results = ResultsTable(run.path / "results.csv", run.active)
        self.scaler = torch.amp.GradScaler("cuda", enabled=device.type == "cuda")
        self.stride = int(max(model.stride))

    def run(self) -> TrainState:
        """Trains from the state's epoch to the end, or until nothing has improved for `patience` epochs."""
        start = self.state.epoch
        events = EventWriter(self.run_folder.path, self.run_folder.active, purge_step=start or None)
        began = time.perf_counter()
        for epoch in range(start, self.options.epochs):
            self.state.epoch = epoch
            if self.before_epoch:
                self.before_epoch(self)
            epoch_began = time.perf_counter()
            row = {"epoch": epoch, **self.train_epoch(epoch)}
            row |= self._validated(epoch)
            row |= {f"x/lr{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
            row["time/epoch"] = time.perf_counter() - epoch_began
            self.results.add(row)
            events.add(row, epoch)
            self.state.epoch = epoch + 1
            if self.save and self.world.is_main:
                self.save(self)
            self._report(epoch, time.perf_counter() - began, start)
            if agree(self._should_stop(epoch), self.world):
                best, patience = self.state.best_epoch + 1, self.options.patience
                LOGGER.info(f"stopped early: nothing better than epoch {best} for {patience} epochs (--patience)")
                break
        events.close()
        return self.state

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training images; returns the mean of every loss item."""
        self.model.train()
        for extra in self.extra_losses:
            extra.train()
            cast(ExtraLoss, extra).start_epoch(epoch, self.options.epochs)
        closing = max(self.options.close_mosaic, self.hyp.close_mosaic)
        self.loader.set_epoch(epoch, mosaic=epoch < self.options.epochs - closing)
        meter = Meter()
        bar = progress(self.loader, total=len(self.loader), desc=self._caption(epoch, {}), enabled=self.world.is_main)
        for step, batch in enumerate(bar):
            iteration = epoch * len(self.loader) + step
            plan = self.schedule.at(epoch, iteration)
            apply_plan(self.optimizer, plan)
            loss, items = self.forward(batch, iteration)
            self.scaler.scale(loss).backward()
            if iteration - self.state.last_step >= plan.accumulate:
                self.optimizer_step()
                self.state.last_step = iteration
            meter.update(items)
            if step % self.REPORT_EVERY == 0 or step == len(self.loader) - 1:
                means = meter.means()
                self._check_finite(means, epoch)
                bar.set_description(self._caption(epoch, means))
        return {f"train/{name}": value for name, value in meter.means().items()}

    def forward(self, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses of a batch, and their items."""
        images = images_to_device(batch.images, self.device)
        if self.options.multi_scale:
            images = self._rescale(images, iteration)
        targets = batch.targets.to(self.device, non_blocking=True)
        layers = [layer for extra in self.extra_losses for layer in cast(ExtraLoss, extra).layers]
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            if layers:
                predictions, features = self.wrapped(images, extra_features=layers)
            else:
                predictions, features = self.wrapped(images), []
            loss, items = self.criterion(predictions, targets)
            for extra in self.extra_losses:
                count = len(cast(ExtraLoss, extra).layers)
                more, more_items = extra(images, predictions, features[:count], targets)
                features = features[count:]
                loss, items = loss + more, items | more_items
        # DistributedDataParallel averages gradients over the processes; the loss is a sum over images.
        return loss * self.world.size, items

    def optimizer_step(self) -> None:
        """Clips, steps, clears the gradients and lets the average follow."""
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_CLIP)
        for extra in self.extra_losses:
            average_gradients(extra, self.world)
            nn.utils.clip_grad_norm_(extra.parameters(), GRADIENT_CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model)

    def _rescale(self, images: Tensor, iteration: int) -> Tensor:
        """Multi-scale training: a size from half to one and a half times the usual, the same on a resume."""
        size = self.options.img_size[0]
        generator = random.Random(f"{self.options.seed}-{iteration}")
        target = generator.randrange(int(size * 0.5), int(size * 1.5) + self.stride) // self.stride * self.stride
        factor = target / max(images.shape[2:])
        if factor == 1:
            return images
        shape = [max(round(side * factor / self.stride), 1) * self.stride for side in images.shape[2:]]
        return F.interpolate(images, size=shape, mode="bilinear", align_corners=False)

    def _validated(self, epoch: int) -> dict[str, float]:
        """Metrics of this epoch, and whether they are the best so far."""
        due = not self.options.notest and (epoch + 1) % self.options.val_period == 0
        metrics: dict[str, float] = {}
        if self.validate and self.world.is_main and (due or epoch + 1 == self.options.epochs):
            metrics = self.validate(self.ema.module)
            fitness = metrics.pop("fitness")
            if fitness > self.state.best_fitness:
                self.state.best_fitness, self.state.best_epoch = fitness, epoch
                self.state.metrics = dict(metrics)
        return metrics

    def _should_stop(self, epoch: int) -> bool:
        patience = self.options.patience
        return patience > 0 and self.state.best_epoch >= 0 and epoch - self.state.best_epoch >= patience

    def _check_finite(self, means: Mapping[str, float], epoch: int) -> None:
        for name, value in means.items():
            if value != value or value in (float("inf"), float("-inf")):
                raise UserError(
                    f"training diverged in epoch {epoch + 1}: the loss term {name} is {value}; "
                    f"lower lr0 or the weight of that term; the last good epoch is in {self.run_folder.last}"
                )

    def _caption(self, epoch: int, means: Mapping[str, float]) -> str:
        parts = [f"epoch {epoch + 1}/{self.options.epochs}"]
        if self.device.type == "cuda":
            parts.append(f"{torch.cuda.memory_reserved() / 2**30:.1f}G")
        return "  ".join(parts + [f"{name} {value:.4g}" for name, value in means.items()])

    def _report(self, epoch: int, spent: float, start: int) -> None:
        row = self.results.rows[-1]
        left = spent / (epoch + 1 - start) * (self.options.epochs - epoch - 1)
        if "metrics/AP" in row:
            ap, ap50 = float(row["metrics/AP"]), float(row["metrics/AP50"])
            LOGGER.info(
                f"epoch {epoch + 1}/{self.options.epochs}: AP {ap:.4f}  AP50 {ap50:.4f}"
                f"  best {self.state.best_fitness:.4f} at epoch {self.state.best_epoch + 1}  about {_clock(left)} left"
            )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
