"""How good a detector is: AP by COCO's rules, the families' own figures, losses and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from data.loader import Batch, DetectionLoader
from data.records import ImageRecord
from utils.boxes import cxcywh_to_xyxy, scale_boxes
from utils.detector import Detector, as_detector
from utils.device import Timer, images_to_device
from utils.evaluation.coco_eval import CocoEvaluator, CocoResult
from utils.evaluation.confusion import ConfusionMatrix
from utils.evaluation.metrics import ClassMetrics, Convention, class_metrics, fitness, match_detections
from utils.logging import progress as progress_bar
from utils.nms import non_max_suppression
from utils.plots import plot_batch, plot_confidence_curves, plot_confusion_matrix, plot_pr_curves
from utils.text import printable

VALIDATION_IOU = 0.6  # of NMS, wherever figures are compared: in a training, of an experiment, before and after a cut
NUM_PLOTTED_BATCHES = 3
MAX_NAME = 32  # characters of a class name in the table

Criterion = Callable[[Any, Tensor], tuple[Tensor, Mapping[str, Tensor]]]


class Writer(Protocol):
    """Takes the detections of each image as they come."""

    def __call__(self, path: str, original_hw: tuple[int, int], detections: np.ndarray) -> None:
        """Detections (n, 6) rows [x1, y1, x2, y2, confidence, class] in pixels of the original image."""


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Attributes:
        names: class names.
        coco: COCO's figures; what to publish and to compare.
        own: precision, recall, F1 and AP by the family's own conventions, which its original prints.
        confusion: at confidence 0.25 and IoU 0.45.
        losses: mean of each loss item per image batch.
        speed: milliseconds per image of the steps preprocess, inference and nms.
        num_images: images evaluated.
        labels_per_class: (nc,) boxes of ground truth.
        origin: the program, with its version, whose figures `own` are.
    """

    names: tuple[str, ...]
    coco: CocoResult
    own: ClassMetrics
    confusion: ConfusionMatrix
    losses: dict[str, float]
    speed: dict[str, float]
    num_images: int
    labels_per_class: np.ndarray
    origin: str = ""

    @property
    def num_labels(self) -> int:
        """Boxes of ground truth in all images."""
        return int(self.labels_per_class.sum())

    @property
    def fitness(self) -> float:
        """0.1 AP50 + 0.9 AP; what the best epoch has most of."""
        return fitness(self.coco.ap50, self.coco.ap)

    def as_row(self) -> dict[str, float]:
        """The figures of one epoch by the names of results.csv's columns, and `fitness`."""
        precision, recall, *_ = self.own.means
        coco = self.coco
        return {
            "metrics/precision": precision,
            "metrics/recall": recall,
            "metrics/AP50": coco.ap50,
            "metrics/AP": coco.ap,
            "metrics/AP75": coco.ap75,
            "metrics/AP_small": coco.ap_small,
            "metrics/AP_medium": coco.ap_medium,
            "metrics/AP_large": coco.ap_large,
            "metrics/AR100": coco.ar_100,
            **{f"val/{name}": value for name, value in self.losses.items()},
            "fitness": self.fitness,
        }

    def table(self, verbose: bool = False) -> str:
        """The figures as lines of text; with `verbose`, a line for each class that has ground truth."""
        precision, recall, own_ap50, own_ap = self.own.means
        names = [printable(name, MAX_NAME) for name in self.names]
        width = max(8, *(len(name) for name in names)) if verbose and names else 8
        lines = [f"{'class':>{width}}{'images':>9}{'labels':>9}" + "".join(f"{h:>9}" for h in ("P", "R", "AP50", "AP"))]

        def add(name: str, labels: int, *values: float) -> None:
            lines.append(f"{name:>{width}}{self.num_images:>9}{labels:>9}" + "".join(f"{v:>9.4f}" for v in values))

        add("all", self.num_labels, precision, recall, self.coco.ap50, self.coco.ap)
        if verbose:
            for k, index in enumerate(self.own.classes):
                ap50, ap = self.coco.per_class_ap50[index], self.coco.per_class_ap[index]
                labels = int(self.labels_per_class[index])
                add(names[index], labels, self.own.precision[k], self.own.recall[k], ap50, ap)
        coco = self.coco
        lines.append(
            f"COCO: AP {coco.ap:.4f}  AP50 {coco.ap50:.4f}  AP75 {coco.ap75:.4f}  small {coco.ap_small:.4f}  "
            f"medium {coco.ap_medium:.4f}  large {coco.ap_large:.4f}  AR100 {coco.ar_100:.4f}"
        )
        formula = f"By the family's own formula ({self.origin})" if self.origin else "By the family's own formula"
        lines.append(f"{formula}: mAP@.5 {own_ap50:.4f}  mAP@.5:.95 {own_ap:.4f}")
        lines.append("Speed: " + ", ".join(f"{step} {ms:.1f} ms" for step, ms in self.speed.items()) + " per image")
        return "\n".join(lines)


@dataclass
class _Detector:
    """Images to detections: preprocessing, network, suppression, each with its own clock, and the validation loss."""

    model: Detector
    device: torch.device
    criterion: Criterion | None
    half: bool
    augment: bool
    hybrid: bool
    single_class: bool
    losses: dict[str, float] = field(default_factory=dict)
    num_images: int = 0

    def __post_init__(self) -> None:
        self.timers = {step: Timer(self.device) for step in ("preprocess", "inference", "nms")}
        self.dtype = next((p.dtype for p in self.model.parameters()), torch.float32)
        self.nms_options: dict[str, Any] = {
            "multi_label": True, "agnostic": self.single_class, "layout": self.model.layout
        }  # fmt: skip

    def __call__(self, images: Tensor, targets: Tensor) -> list[Tensor]:
        """Per image the detections (n, 6) in pixels of the network input, on the CPU."""
        with self.timers["preprocess"]:
            images = images_to_device(images, self.device, self.dtype)
        if self.num_images == 0 and self.device.type == "cuda":
            self._forward(images)  # the first pass sets the libraries up, which is no part of the speed
        with self.timers["inference"]:
            decoded, raw = self._forward(images)
        if self.criterion and not self.augment:
            # Targets in host memory spare the assignment most of its padding.
            _, items = self.criterion([level.float() for level in raw], targets)
            for name, value in items.items():
                self.losses[name] = self.losses.get(name, 0.0) + float(value) * len(images)
        self.num_images += len(images)
        labels = _labels_in_pixels(targets.to(self.device), images) if self.hybrid else ()
        with self.timers["nms"]:
            detections = non_max_suppression(decoded, labels=labels, **self.nms_options)
        if self.single_class:
            for rows in detections:
                rows[:, 5] = 0
        return [rows.cpu() for rows in detections]

    def _forward(self, images: Tensor) -> tuple[Tensor, Any]:
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.half and self.device.type == "cuda"):
            output = self.model(images, augment=True) if self.augment else self.model(images)
        return output[0], output[1]

    def mean_losses(self) -> dict[str, float]:
        """Mean over the images of each loss item."""
        return {name: total / self.num_images for name, total in self.losses.items()}

    def speed(self) -> dict[str, float]:
        """Milliseconds per image of each step."""
        return {step: 1e3 * timer.seconds / max(self.num_images, 1) for step, timer in self.timers.items()}


class _Figures:
    """Collects what the figures are computed from, image by image."""

    def __init__(self, names: Sequence[str], convention: Convention) -> None:
        self.names = tuple(names)
        self.convention = convention
        self.coco = CocoEvaluator(names)
        self.confusion = ConfusionMatrix(len(names))
        self.num_images = 0
        self.correct: list[np.ndarray] = [np.zeros((0, 10), dtype=bool)]
        self.detections: list[np.ndarray] = [np.zeros((0, 6), dtype=np.float32)]
        self.true_classes: list[np.ndarray] = [np.zeros(0, dtype=np.float32)]

    def add(self, detections: np.ndarray, boxes_xyxy: np.ndarray, classes: np.ndarray) -> None:
        """Adds an image: detections (n, 6) and ground truth (m, 4), (m,) in pixels of the original image."""
        self.coco.add(self.num_images, detections, boxes_xyxy, classes)
        self.confusion.add(detections, boxes_xyxy, classes)
        self.correct.append(match_detections(detections, boxes_xyxy, classes, self.convention))
        self.detections.append(detections)
        self.true_classes.append(classes)
        self.num_images += 1

    def result(self, detector: _Detector) -> EvalResult:
        """The figures over all images, with the detector's losses and speed."""
        detections, classes = np.concatenate(self.detections), np.concatenate(self.true_classes)
        correct = np.concatenate(self.correct)
        return EvalResult(
            names=self.names,
            coco=self.coco.compute(),
            own=class_metrics(correct, detections[:, 4], detections[:, 5], classes, self.convention),
            confusion=self.confusion,
            losses=detector.mean_losses(),
            speed=detector.speed(),
            num_images=self.num_images,
            labels_per_class=np.bincount(classes.astype(int), minlength=len(self.names)),
            origin=self.convention.origin,
        )


@torch.no_grad()
def evaluate(
    model: Detector | nn.Module,
    loader: DetectionLoader | Iterable[Batch],
    *,
    names: Sequence[str],
    device: torch.device,
    conf_thres: float = 0.001,
    iou_thres: float = 0.65,
    max_det: int = 300,
    criterion: Criterion | None = None,
    half: bool = False,
    augment: bool = False,
    hybrid: bool = False,
    single_class: bool = False,
    v5_metric: bool = False,
    save_dir: Path | None = None,
    plots: bool = False,
    writers: Sequence[Writer] = (),
    progress: bool = True,
) -> EvalResult:
    """Runs a detector over a data set and measures it.

    Args:
        model: says of itself what `utils.detector.Detector` names.
        loader: batches. Those of a data set without augmentation are measured against its labels as they are in the
            files, others against their targets, which have been through the network's input.
        names: class names, one for each class of the model.
        device: where the model is.
        conf_thres, iou_thres, max_det: of the suppression.
        criterion: (raw maps, targets) -> (loss, items), for the validation loss; not with `augment`.
        half: float16 on a GPU.
        augment: test-time augmentation.
        hybrid: the ground truth takes part in the suppression with confidence 1, to complete labels; no fair measure.
        single_class: take all classes for one.
        v5_metric: YOLOv7's own AP with YOLOv5's recall axis.
        save_dir: folder of the plots.
        plots: draw the first batches, the curves and the confusion matrix.
        writers: take the detections of each image.
        progress: show a bar.

    Raises:
        UserError: the model does not say how its predictions are laid out.
    """
    names = ("item",) if single_class else tuple(names)
    model = as_detector(model)
    detector = _Detector(model, device, criterion, half, augment, hybrid, single_class)
    detector.nms_options |= {"conf_thres": conf_thres, "iou_thres": iou_thres, "max_det": max_det}
    figures = _Figures(names, model.convention.with_v5_recall() if v5_metric else model.convention)
    plot_dir = save_dir if plots else None
    batches = progress_bar(loader, desc="evaluating", enabled=progress)
    training = model.training
    model.eval()
    _run(detector, figures, batches, labelled_records(loader), writers, plot_dir)
    model.train(training)
    result = figures.result(detector)
    if plot_dir:
        _plot_figures(result, plot_dir)
    return result


def _run(
    detector: _Detector,
    figures: _Figures,
    batches: Iterable[Batch],
    records: Mapping[str, ImageRecord],
    writers: Sequence[Writer],
    plot_dir: Path | None,
) -> None:
    """Takes every batch through the detector to the figures, the writers and the first pictures."""
    for number, batch in enumerate(batches):
        detections = detector(batch.images, batch.targets)
        if plot_dir and number < NUM_PLOTTED_BATCHES:
            _plot_batches(batch, detections, figures.names, plot_dir / f"val_batch{number}")
        for i, rows in enumerate(detections):
            found, boxes, classes = _in_original_pixels(batch, i, rows, records)
            figures.add(found, boxes, np.zeros_like(classes) if detector.single_class else classes)
            for writer in writers:
                writer(batch.paths[i], batch.shapes[i].original_hw, found)


def labelled_records(loader: DetectionLoader | Iterable[Batch]) -> dict[str, ImageRecord]:
    """The records of a loader's images by their path; none where its batches are not of images as they are."""
    if not isinstance(loader, DetectionLoader) or loader.dataset.augment is not None:
        return {}
    return {record.path: record for record in loader.dataset.records}


def _in_original_pixels(
    batch: Batch, i: int, rows: Tensor, records: Mapping[str, ImageRecord]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections (n, 6), true boxes (m, 4) and their classes (m,) of image `i`, in pixels of the original image."""
    input_hw, shape = (batch.images.shape[2], batch.images.shape[3]), batch.shapes[i]
    height, width = shape.original_hw
    found = rows.numpy().copy()
    found[:, :4] = scale_boxes(found[:, :4], input_hw, shape.original_hw, shape.ratio_pad)
    record = records.get(batch.paths[i])
    if record is not None:  # as labelled, without the way through the network input
        boxes = cxcywh_to_xyxy(record.labels[:, 1:5]) * np.array([width, height, width, height], dtype=np.float32)
        return found, boxes, record.labels[:, 0]
    labels = batch.targets[batch.targets[:, 0] == i].numpy()
    boxes = cxcywh_to_xyxy(labels[:, 2:6]) * np.array([input_hw[1], input_hw[0]] * 2, dtype=np.float32)
    return found, scale_boxes(boxes, input_hw, shape.original_hw, shape.ratio_pad), labels[:, 1]


def _labels_in_pixels(targets: Tensor, images: Tensor) -> list[Tensor]:
    """Per image the rows (n, 5) [class, cx, cy, w, h] in pixels of the network input."""
    height, width = images.shape[2:]
    scale = torch.tensor([1, width, height, width, height], device=targets.device)
    return [targets[targets[:, 0] == i, 1:] * scale for i in range(len(images))]


def _plot_batches(batch: Any, detections: Sequence[Tensor], names: Sequence[str], stem: Path) -> None:
    """Draws a batch twice: with its labels, and with what was detected above confidence 0.25."""
    height, width = batch.images.shape[2:]
    rows = [torch.zeros(0, 7)]
    for i, found in enumerate(detections):
        found = found[found[:, 4] > 0.25]
        x1, y1, x2, y2, confidence, classes = found.unbind(1)
        columns = [torch.full_like(x1, i), classes, (x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
        rows.append(torch.stack([*columns, (x2 - x1) / width, (y2 - y1) / height, confidence], dim=1))
    for suffix, targets in (("labels", batch.targets), ("pred", torch.cat(rows))):
        plot_batch(batch.images, targets, Path(f"{stem}_{suffix}.jpg"), names=names, paths=batch.paths)


def _plot_figures(result: EvalResult, folder: Path) -> None:
    """Draws the curves and the confusion matrix."""
    plot_pr_curves(result.own, result.names, folder / "PR_curve.png")
    plot_confidence_curves(result.own, result.names, folder)
    plot_confusion_matrix(result.confusion, result.names, folder / "confusion_matrix.png")
