"""What every stage of prune.py works with: the data, the loss, and a measure of quality."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from checkpoints.checkpoint import Checkpoint, load_model
from data.config import load_dataset_config
from data.labels import build_index
from data.loader import Batch, DetectionLoader, validation_loader
from data.records import DatasetIndex
from data.synthetic import ensure_dataset
from engine.inference.class_order import adopt_names
from engine.inference.evaluate import VALIDATION_IOU, EvalResult, evaluate
from engine.pruning_run.config import PruneOptions, base_hyp, distillation_values
from engine.reporting.measuring import Measured, measure
from engine.training.criterion import loss_by_batch
from engine.training.data import sample_batches
from models.yolo import Model
from utils.device import images_to_device, select_device
from utils.errors import UserError
from utils.paths import replacing
from utils.sizes import rounded_size


class Workbench:
    """Data, loss and evaluation for one model to prune.

    Args:
        options: of prune.py.
        folder: where all results go.
        checkpoint: the model to prune.
    """

    def __init__(self, options: PruneOptions, folder: Path, checkpoint: Checkpoint) -> None:
        self.options, self.folder = options, folder
        self.ch = int(checkpoint.yaml.get("ch") or 3)
        self.stride = int(max(checkpoint.stride, default=32))
        self.device = select_device(options.training.device)
        self.hyp = base_hyp(options, checkpoint)
        self.config = ensure_dataset(load_dataset_config(options.training.data))
        if checkpoint.nc != self.config.nc:
            raise UserError(
                f"{checkpoint.path} has {checkpoint.nc} classes, {options.training.data} has {self.config.nc}; "
                "pruning needs the data that the model was trained on"
            )
        self.img_size = rounded_size(options.training.img_size[0], self.stride, "--img-size")
        self.hyp_file, self.recipe_file = folder / "hyp.yaml", folder / "distill.yaml"
        self._write_hyp(self.hyp_file, self.hyp.without_distillation())
        if options.epochs_of("distill") and options.stage in ("all", "distill"):
            self._write_hyp(self.recipe_file, dict(distillation_values(options, self.hyp, checkpoint)))

    def model(self, path: Path | str) -> Model:
        """A model of these classes, with their names and in their order."""
        model = load_model(path, self.device, fuse=False)
        return adopt_names(model, self.config.names, str(self.options.training.data), str(path))

    def _write_hyp(self, path: Path, values: dict[str, Any]) -> None:
        with replacing(path) as stream:
            yaml.safe_dump(values, stream, sort_keys=False)

    def example(self, batch: int = 1) -> Tensor:
        """An input of the size that counts, (batch, C, H, W)."""
        return torch.zeros(batch, self.ch, self.img_size, self.img_size, device=self.device)

    @cached_property
    def batches(self) -> list[Batch]:
        """Batches as the training sees them, augmented: BatchNorm's statistics belong to such images."""
        training = replace(self.options.training, img_size=(self.img_size, self.img_size))
        index = build_index(self.config.split("train"), self.config.nc, need_boxes=True, prefix="train")
        return sample_batches(index, training, self.hyp, self.stride, self.options.batches)

    @cached_property
    def index(self) -> DatasetIndex:
        """The split of the report."""
        split = self.options.split
        return build_index(self.config.split(split), self.config.nc, need_boxes=True, prefix=split)

    @cached_property
    def loader(self) -> DetectionLoader:
        """The images that the figures of the report come from."""
        training = self.options.training
        return validation_loader(self.index, self.img_size, training.batch_size, training.workers, self.stride)

    def evaluate(self, model: nn.Module, progress: bool = False) -> EvalResult:
        """A model's figures on the split of the report."""
        return evaluate(
            model, self.loader, names=self.config.names, device=self.device, iou_thres=VALIDATION_IOU, progress=progress
        )

    def measure(self, model: Model) -> Measured:
        """A model's figures on that split, and what each image contributed."""
        training = self.options.training
        settings = (self.img_size, training.batch_size, training.workers)
        return measure(model, self.index, self.config.names, self.device, *settings, progress=False)

    def ap(self, model: nn.Module) -> float:
        """COCO's AP."""
        return float(self.evaluate(model).coco.ap)

    def images(self) -> list[Tensor]:
        """The images of `batches`, on the device."""
        return [images_to_device(batch.images, self.device) for batch in self.batches]

    def loss_of(self, model: Model) -> Any:
        """(model, batch) -> the detection loss, with BatchNorm's statistics as they are."""
        return loss_by_batch(model, self.hyp, self.img_size, self.device)


@dataclass
class Produced:
    """The models of one target, by their role, and what the cut did.

    Attributes:
        target: share to remove.
        weights: role (sparse, pruned, finetuned, distilled) -> file.
        cut: the facts of `cut_model`.
    """

    target: float
    weights: dict[str, Path] = field(default_factory=dict)
    cut: dict[str, Any] = field(default_factory=dict)
