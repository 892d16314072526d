"""Distillation inside the `ultralytics` package's own trainer; a copy of the folder distill/ is all that it needs.

    from ultralytics import YOLO
    from examples.ultralytics_trainer import distillation_trainer

    layers = ["model.15", "model.18", "model.21"]
    trainer = distillation_trainer(YOLO("yolov8s.pt").model, {"cwd": {"weight": 0.7}}, layers)
    YOLO("yolov8n.yaml").train(data="coco8.yaml", epochs=100, trainer=trainer)

The student's file stays a plain one: neither teacher nor adapters nor hooks are in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.models.yolo.detect import DetectionTrainer

from distill import Distiller


def distillation_trainer(
    teacher: nn.Module,
    losses: Mapping[str, Mapping[str, Any] | None],
    student_layers: Sequence[str],
    teacher_layers: Sequence[str] | None = None,
    schedule: Mapping[str, Any] | None = None,
) -> type[DetectionTrainer]:
    """A trainer class for `YOLO(...).train(trainer=...)`.

    Args:
        teacher: a trained network of the package, such as `YOLO("yolov8s.pt").model`.
        losses: the mixture, as `kd_losses` of a hyper-parameter file; losses on features.
        student_layers, teacher_layers: modules by name, paired in order; one list for both where the names agree.
        schedule: as `kd_schedule` of a hyper-parameter file.
    """

    class DistillationTrainer(DetectionTrainer):
        """Trains as the package does, with one more loss."""

        def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
            """The package's optimizer, with the adapters as a further group."""
            optimizer = super().build_optimizer(model, *args, **kwargs)
            self.distiller = Distiller(
                model, teacher.to(self.device).float(), list(student_layers), list(teacher_layers or student_layers),
                losses, schedule, image_size=self.args.imgsz, taps="hooks",
            )  # fmt: skip
            print(self.distiller.describe())
            model.register_forward_hook(AddToLoss(self.distiller))
            first = optimizer.param_groups[0]
            settings = {key: value for key, value in first.items() if key != "params"}
            adapters = list(self.distiller.parameters())
            if adapters:
                optimizer.add_param_group({**settings, "params": adapters})
            self.add_callback("on_train_epoch_start", start_epoch)
            return optimizer

        def _setup_train(self, *args: Any, **kwargs: Any) -> None:
            super()._setup_train(*args, **kwargs)
            if self.ema:  # a copy of the student: what is saved must be free of hooks
                for module in self.ema.ema.modules():
                    module._forward_hooks.clear()

    return DistillationTrainer


def start_epoch(trainer: Any) -> None:
    """Follows the schedule of the distillation."""
    trainer.distiller.start_epoch(trainer.epoch, trainer.epochs)


class AddToLoss:
    """A forward hook on the student that adds the distillation to its loss; a copy of the student gets an idle one."""

    def __init__(self, distiller: Distiller | None = None) -> None:
        self.distiller = distiller

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """In training the student is called with a batch and returns (loss, items)."""
        if self.distiller is None or not module.training or not isinstance(inputs[0], dict):
            return None
        batch = inputs[0]
        targets = torch.cat([batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]], 1)  # (T, 6)
        loss, items = output
        more, _ = self.distiller(batch["img"], [], [], targets.to(batch["img"].device), detection_loss=loss.sum())
        return _append(loss, more), items

    def __deepcopy__(self, memo: dict[int, Any]) -> AddToLoss:
        return AddToLoss()


def _append(loss: Tensor, more: Tensor) -> Tensor:
    """The package sums its loss, which is one number or several."""
    return loss + more if loss.ndim == 0 else torch.cat([loss, more.view(1).to(loss.dtype)])
