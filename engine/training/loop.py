"""The training loop, the only one: whatever adds a loss to it plugs in as an `ExtraLoss`."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.loader import Batch, DetectionLoader
from data.unlabeled import MixedLoader
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.runfolder import EventWriter, ResultsTable, RunFolder
from engine.training.distributed import World, agree, average_gradients
from engine.training.ema import ModelEMA
from engine.training.extra_loss import ExtraLoss, Finding, StepInputs
from engine.training.norms import frozen_norms
from engine.training.optimizer import apply_plan
from engine.training.schedule import LearningSchedule
from models.yolo import Model
from utils.device import images_to_device
from utils.errors import UserError
from utils.logging import LOGGER, progress

if TYPE_CHECKING:
    from engine.inference.evaluate import EvalResult

GRADIENT_CLIP = 10.0


@dataclass
class TrainState:
    """What changes during a training and is kept for a resume, beside weights and optimizer.

    Attributes:
        epoch: epochs that are done; the current one's number while it lasts.
        first_epoch: where the present schedule began: 0, or the length of the finished training that is extended.
        best_fitness: 0.1 AP50 + 0.9 AP of the best validated epoch, -1 before the first.
        best_epoch: its number, -1 before the first.
        best_ap: its AP; None before the first.
        last_step: iteration of the last optimizer step, -1 before the first.
        metrics: those of the latest epoch; empty if it was not validated.
        class_ap: AP of each class at the latest validation, NaN for a class without ground truth.
        stopped: whether the training ends before its last epoch.
        changes: what the length of the training was changed to, and when; for the manifest.
    """

    epoch: int = 0
    first_epoch: int = 0
    best_fitness: float = -1.0
    best_epoch: int = -1
    best_ap: float | None = None
    last_step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    class_ap: list[float] = field(default_factory=list)
    stopped: bool = False
    changes: list[dict[str, Any]] = field(default_factory=list)


class Meter:
    """Running means of named scalars; they stay on their device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def update(self, items: Mapping[str, Tensor]) -> None:
        """Adds the values of a batch."""
        for name, value in items.items():
            self.counts[name] = self.counts.get(name, 0) + 1
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().clone()

    def means(self) -> dict[str, float]:
        """The mean of each name over the batches that had it; waits for the device once."""
        if not self.sums:
            return {}
        values = torch.stack([v.float() for v in self.sums.values()]).tolist()
        return {name: value / self.counts[name] for name, value in zip(self.sums, values)}


class Trainer:
    """Trains a model for the epochs of its options.

    Args:
        model: the student, on its device.
        wrapped: the same model as it is to be called, such as in DistributedDataParallel.
        criterion: (predictions, targets) -> (loss times batch size, items).
        extra_losses: further losses, on the device.
        loader: training batches.
        optimizer: over the model and the extra losses.
        schedule: learning rates of every iteration since the state's first epoch.
        ema: average of the model.
        validate: evaluates the averaged model, in the main process only; None for no validation.
        save: writes last.pt and best.pt, in the main process only.
        before_epoch: called in every process before each epoch.
    """

    REPORT_EVERY = 10

    def __init__(
        self,
        *,
        model: Model,
        wrapped: nn.Module,
        criterion: nn.Module,
        extra_losses: Sequence[ExtraLoss],
        loader: DetectionLoader | MixedLoader,
        optimizer: torch.optim.Optimizer,
        schedule: LearningSchedule,
        ema: ModelEMA,
        options: TrainOptions,
        hyp: Hyp,
        run: RunFolder,
        world: World,
        device: torch.device,
        validate: Callable[[nn.Module], EvalResult] | None = None,
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
        self.frozen_norms = frozen_norms(model)

    @property
    def extra_modules(self) -> list[nn.Module]:
        """What the extra losses train and keep."""
        return [extra.module for extra in self.extra_losses]

    def run(self) -> TrainState:
        """Trains from the state's epoch to the end, or until nothing has improved for `patience` epochs."""
        start = self.state.epoch
        events = EventWriter(self.run_folder.path, self.run_folder.active, purge_step=start or None)
        try:
            self._run_epochs(start, events)
        finally:
            events.close()
        return self.state

    def _run_epochs(self, start: int, events: EventWriter) -> None:
        began = time.perf_counter()
        for epoch in range(start, start if self.state.stopped else self.options.epochs):
            self.state.epoch = epoch
            if self.before_epoch:
                self.before_epoch(self)
            epoch_began = time.perf_counter()
            row = {"epoch": epoch, **self.train_epoch(epoch)}
            row |= self._validated(epoch)
            for extra in self.extra_losses:
                row |= extra.epoch_row()
            row |= {f"x/lr{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
            row["time/epoch"] = time.perf_counter() - epoch_began
            self.results.add(row)
            events.add(row, epoch)
            self.state.epoch = epoch + 1
            self.state.stopped = agree(self._should_stop(epoch), self.world)
            for module in self.extra_modules:  # what one process saves must be what all of them go on with
                average_gradients(module, self.world)
            if self.save and self.world.is_main:
                self.save(self)
            self._report(epoch, time.perf_counter() - began, start)
            self._doubt(epoch, row)
            if self.state.stopped:
                best, patience = self.state.best_epoch + 1, self.options.patience
                LOGGER.info(f"stopped early: the fitness has not risen since epoch {best} (--patience {patience})")
                break

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training images; returns the mean of every loss item."""
        first = self.state.first_epoch
        self.model.train()
        for norm in self.frozen_norms:
            norm.eval()
        for extra in self.extra_losses:
            extra.module.train()
            extra.start_epoch(epoch - first, self.options.epochs - first)
        closing = max(self.options.close_mosaic, self.hyp.close_mosaic)
        self.loader.set_epoch(epoch, mosaic=epoch < self.options.epochs - closing)
        meter = Meter()
        bar = progress(self.loader, total=len(self.loader), desc=self._caption(epoch, {}), enabled=self.world.is_main)
        for step, batch in enumerate(bar):
            iteration = epoch * len(self.loader) + step
            plan = self.schedule.at(epoch - first, iteration - first * len(self.loader))
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
        # The last steps may have spoilt the weights without a loss that shows it; then last.pt must stay as it is.
        if not torch.stack([value.isfinite().all() for value in self.ema.module.state_dict().values()]).all():
            raise self._diverged(epoch, "the weights are not finite")
        return {f"train/{name}": value for name, value in meter.means().items()}

    def forward(self, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses of a batch, and their items."""
        images = images_to_device(batch.images, self.device)
        if self.options.multi_scale:
            images = self._rescale(images, iteration)
        targets = batch.targets.to(self.device, non_blocking=True)  # (T, 6)
        layers = list(dict.fromkeys(layer for extra in self.extra_losses for layer in extra.layers))
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            if layers:
                predictions, features = self.wrapped(images, extra_features=layers)
            else:
                predictions, features = self.wrapped(images), []
            # Targets in host memory spare the assignment most of its padding, and it never has to wait for the device.
            labelled = labelled_maps(predictions, batch.num_unlabelled)
            detection_loss, items = self.criterion(labelled, batch.targets)
            inputs = StepInputs(images, predictions, dict(zip(layers, features)), targets, detection_loss)
            loss = detection_loss
            for extra in self.extra_losses:
                more, more_items = extra(inputs)
                if iteration == self.state.first_epoch * len(self.loader):
                    self._preflight(extra, inputs, more_items)
                loss, items = loss + more, items | more_items
        # DistributedDataParallel averages gradients over the processes; the loss is a sum over images.
        return loss * self.world.size, items

    def _preflight(self, extra: ExtraLoss, inputs: StepInputs, items: Mapping[str, Tensor]) -> None:
        """Shows how strong an extra loss is, in every process: gradients of a SyncBatchNorm need them all."""
        # The gradient of a compiled network can be asked for once only, which is the training's.
        parameters = () if self.options.compile else self.model.parameters()
        found = extra.preflight(inputs, parameters)
        if self.world.is_main:
            report_preflight(found, items, untrained(extra.module, self.optimizer))

    def optimizer_step(self) -> None:
        """Clips, steps, clears the gradients and lets the average follow."""
        for module in self.extra_modules:  # before unscaling, so that every process sees an overflow in any of them
            average_gradients(module, self.world)
        self.scaler.unscale_(self.optimizer)
        for module in (self.model, *self.extra_modules):
            nn.utils.clip_grad_norm_(list(module.parameters()), GRADIENT_CLIP)
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
        """Metrics of this epoch where it is validated; notes whether they are the best so far."""
        state = self.state
        state.metrics = {}
        due = not self.options.notest and (epoch + 1) % self.options.val_period == 0
        if self.validate and self.world.is_main and (due or epoch + 1 == self.options.epochs):
            result = self.validate(self.ema.module)
            state.metrics = result.as_row()
            state.class_ap = [float(ap) for ap in result.coco.per_class_ap]
            fitness = state.metrics.pop("fitness")
            # Before anything is found, every epoch is the best: a slow start must not use the patience up.
            if fitness > state.best_fitness or fitness == state.best_fitness == 0:
                state.best_fitness, state.best_epoch = fitness, epoch
                state.best_ap = state.metrics.get("metrics/AP")
        return state.metrics

    def _should_stop(self, epoch: int) -> bool:
        """Whether this epoch was validated and the best one is as many epochs ago as the patience allows."""
        patience = self.options.patience
        best = self.state.best_epoch
        since = max(best, self.state.first_epoch - 1)  # an extension has its own patience
        return patience > 0 and bool(self.state.metrics) and best >= 0 and epoch - since >= patience

    def _check_finite(self, means: Mapping[str, float], epoch: int) -> None:
        for name, value in means.items():
            if not math.isfinite(value):
                raise self._diverged(epoch, f"the loss term {name} is {value}")

    def _diverged(self, epoch: int, what: str) -> UserError:
        last = self.run_folder.last
        kept = f"; the last good epoch is in {last}" if last.is_file() else ""
        return UserError(f"training diverged in epoch {epoch + 1}: {what}; lower lr0 or the weight of a term{kept}")

    def _caption(self, epoch: int, means: Mapping[str, float]) -> str:
        """The bar's text; terms of one source, such as kd/fgd/P3 and kd/output/box, are shown as their sum."""
        parts = [f"epoch {epoch + 1}/{self.options.epochs}"]
        if self.device.type == "cuda":
            parts.append(f"{torch.cuda.memory_reserved() / 2**30:.1f}G")
        sums: dict[str, float] = {}
        for name, value in means.items():
            source = name.split("/")[0]
            sums[source] = sums.get(source, 0.0) + value
        return "  ".join(parts + [f"{source} {value:.4g}" for source, value in sums.items()])

    def _report(self, epoch: int, spent: float, start: int) -> None:
        row = self.results.rows[-1]
        left = spent / (epoch + 1 - start) * (self.options.epochs - epoch - 1)
        if "metrics/AP" in row:
            ap, ap50 = float(row["metrics/AP"]), float(row["metrics/AP50"])
            state = self.state
            of_best = "" if state.best_ap is None else f" (AP {state.best_ap:.4f})"
            LOGGER.info(
                f"epoch {epoch + 1}/{self.options.epochs}: AP {ap:.4f}  AP50 {ap50:.4f}"
                f"  best fitness {state.best_fitness:.4f}{of_best} at epoch {state.best_epoch + 1}"
                f"  about {_clock(left)} left"
            )

    def _doubt(self, epoch: int, row: Mapping[str, float]) -> None:
        """Warns of what was wrong with the extra losses for all of an epoch."""
        items = {name.removeprefix("train/"): value for name, value in row.items() if name.startswith("train/")}
        for doubt in [doubt for extra in self.extra_losses for doubt in extra.epoch_doubts(items)]:
            LOGGER.warning(f"warning: in all of epoch {epoch + 1}, {doubt}")


def labelled_maps(predictions: Sequence[Tensor], num_unlabelled: int) -> Sequence[Tensor]:
    """The raw maps of a batch's labelled images; the detection loss must not take the others for empty ones."""
    return [maps[: len(maps) - num_unlabelled] for maps in predictions] if num_unlabelled else predictions


def untrained(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters that ask for training and that the optimizer does not have."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in trained]


def report_preflight(found: Finding, items: Mapping[str, Tensor], left_out: Sequence[str] = ()) -> None:
    """Prints how strong the parts of an extra loss are on the first batch; warns of those that do nothing or harm.

    Args:
        found: what the loss itself says.
        items: its parts.
        left_out: its parameters that the optimizer does not have.
    """
    LOGGER.info(f"\n{found.table}")  # the progress bar is on the line
    for warning in found.warnings:
        LOGGER.warning(f"warning: {warning}")
    if left_out:
        LOGGER.warning(f"warning: not in the optimizer, so never trained: {', '.join(left_out)}")
    values = {name: value.item() for name, value in items.items()}
    idle = [name for name, value in values.items() if value == 0 and name not in found.silent]
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if idle:
        LOGGER.warning(f"warning: exactly 0 on the first batch: {', '.join(idle)}; check layers, weights and teacher")
    if broken:
        LOGGER.warning(f"warning: not finite on the first batch: {', '.join(broken)}; check the teacher's weights")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
