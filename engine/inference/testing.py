"""What test.py does: measures checkpoints on a split of a data set and writes what was found."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.exported import existing_weights
from data.config import DatasetConfig, load_dataset_config
from data.labels import DatasetIndex, build_index
from data.loader import validation_loader
from data.synthetic import ensure_dataset
from engine.inference.ensemble import load_detector, with_names
from engine.inference.evaluate import EvalResult, Writer, evaluate
from engine.inference.writers import (
    COCO_CATEGORIES,
    CocoWriter,
    LabelWriter,
    annotated_ids,
    coco_categories,
    image_ids,
)
from utils.detector import Detector
from utils.device import select_device
from utils.errors import UsageError, UserError
from utils.evaluation.coco_eval import CocoResult, evaluate_json, read_annotations
from utils.files import write_json
from utils.logging import LOGGER
from utils.names import distinct_names
from utils.paths import existing_file, replacing, run_path
from utils.running.cli import MOST_BOXES, MOST_IMAGES, MOST_PROCESSES, check_pixels, check_range, check_share
from utils.running.folders import output_folder
from utils.sizes import rounded_size

STUDY_SIZES = range(256, 1536 + 128, 128)
MAX_CLASSES_LISTED = 50


@dataclass(frozen=True)
class TestOptions:
    """The flags of test.py, by their names."""

    __test__ = False  # pytest takes the name for a test case

    weights: tuple[str, ...]
    data: str
    batch_size: int = 32
    img_size: int = 640
    conf_thres: float = 0.001
    iou_thres: float = 0.65
    max_det: int = 300
    task: str = "val"
    device: str = ""
    single_cls: bool = False
    augment: bool = False
    verbose: bool = False
    save_txt: bool = False
    save_hybrid: bool = False
    save_conf: bool = False
    save_json: bool = False
    annotations: str = ""
    project: str = "runs/test"
    name: str = "exp"
    exist_ok: bool = False
    v5_metric: bool = False
    half: bool = False
    workers: int = 8
    noplots: bool = False
    trust: bool = False


@dataclass
class Tester:
    """A data set, a device and a folder; measures one detector after the other on them."""

    options: TestOptions
    config: DatasetConfig
    index: DatasetIndex
    device: torch.device
    folder: Path

    def measure(self, weights: tuple[str, ...], img_size: int, files: bool = True) -> EvalResult:
        """Evaluates a checkpoint, or an ensemble of several.

        Args:
            weights: the checkpoints or exported files.
            img_size: longer side of the input, in pixels; a file that takes one size alone keeps to that.
            files: write the plots and files that the options ask for.
        """
        options = self.options
        model = load_detector(weights, self.device, options.augment, self.config.names, options.trust)
        model = self._in_our_order(model, weights)
        stride = int(max(model.stride))
        fixed_hw = model.input_hw
        if fixed_hw and options.task == "study":
            raise UsageError(f"--task study tries many sizes, but {weights[0]} takes images of {fixed_hw} pixels only")
        size = max(fixed_hw) if fixed_hw else rounded_size(img_size, stride, "--img-size")
        loader = validation_loader(self.index, size, options.batch_size, options.workers, stride, fixed_hw)
        writers: list[Writer] = []
        coco_writer = self._coco_writer() if files else None
        if coco_writer:
            writers.append(coco_writer)
        if files and (options.save_txt or options.save_hybrid):
            writers.append(LabelWriter(self.folder / "labels", options.save_conf, self._paths))
        result = evaluate(
            model, loader, names=self.config.names, device=self.device, conf_thres=options.conf_thres,
            iou_thres=options.iou_thres, max_det=options.max_det, half=options.half, augment=options.augment,
            hybrid=options.save_hybrid, single_class=options.single_cls, v5_metric=options.v5_metric,
            save_dir=self.folder, plots=files and not options.noplots, writers=writers,
        )  # fmt: skip
        official = self._finish_json(coco_writer, weights) if coco_writer else None
        LOGGER.info(result.table(verbose=options.verbose or len(result.names) <= MAX_CLASSES_LISTED))
        if official:
            LOGGER.info(f"With the annotation file's crowds and areas: AP {official.ap:.4f}  AP50 {official.ap50:.4f}")
        if files:
            self._write_summary(result, official, weights, size)
        return result

    def _in_our_order(self, model: Detector, weights: tuple[str, ...]) -> Detector:
        """The model with its classes in the data set's order.

        Raises:
            UserError: it has other classes.
        """
        nc = self.config.nc
        if self.options.single_cls:
            return model
        if model.nc != nc:
            raise UserError(
                f"--weights {weights[0]} has {model.nc} classes, but {self.config.path} has {nc}; "
                "use the data set that it was trained on"
            )
        return with_names(model, self.config.names, str(self.config.path), f"--weights {weights[0]}")

    def _annotation_file(self) -> Path | None:
        """--annotations, or COCO's own file beside the images of coco.yaml."""
        if self.options.annotations:
            return existing_file(self.options.annotations, "--annotations")
        if self.config.path.name != "coco.yaml":
            return None
        split = {"train": "train2017", "val": "val2017"}.get(self.options.task, "")
        candidate = self.config.root / "annotations" / f"instances_{split}.json"
        return candidate if candidate.is_file() else None

    def _coco_writer(self) -> CocoWriter | None:
        is_coco = self.config.path.name == "coco.yaml" and self.config.nc == len(COCO_CATEGORIES)
        annotations = self._annotation_file()
        if not (self.options.save_json or is_coco or annotations):
            return None
        if annotations:
            categories, images = read_annotations(annotations, self.config.names)
            return CocoWriter(categories, annotated_ids(self._paths, images, str(annotations)))
        names = self.config.names
        categories = coco_categories(names, str(self.config.path)) if is_coco else list(range(len(names)))
        return CocoWriter(categories, image_ids(self._paths))

    @property
    def _paths(self) -> list[str]:
        return [record.path for record in self.index.records]

    def _finish_json(self, writer: CocoWriter, weights: tuple[str, ...]) -> CocoResult | None:
        """Writes the detections, and measures them against the annotation file where there is one."""
        path = self.folder / f"{Path(weights[0]).stem}_predictions.json"
        writer.save(path)
        LOGGER.info(f"detections in COCO's format: {path}")
        annotations = self._annotation_file()
        if not annotations:
            return None
        return evaluate_json(writer.records, annotations, writer.seen, self.options.single_cls)

    def _write_summary(
        self, result: EvalResult, official: CocoResult | None, weights: tuple[str, ...], size: int
    ) -> None:
        """results.json: every figure of the evaluation."""
        per_class = {
            name: {"labels": int(result.labels_per_class[i]), "AP": result.coco.per_class_ap[i],
                   "AP50": result.coco.per_class_ap50[i]}
            for i, name in enumerate(distinct_names(result.names))
        }  # fmt: skip
        summary = {
            "weights": list(weights), "data": str(self.config.path), "split": self.options.task, "img_size": size,
            "images": result.num_images, "labels": result.num_labels, "metrics": result.as_row(),
            "official": {"AP": official.ap, "AP50": official.ap50} if official else None,
            "speed_ms": result.speed, "classes": per_class,
        }  # fmt: skip
        write_json(self.folder / "results.json", summary)


def run_test(options: TestOptions) -> list[EvalResult]:
    """Measures the checkpoints of the options: together as an ensemble, or one by one for "speed" and "study".

    Returns:
        One result, or one for each checkpoint (and size).
    """
    _check(options)
    device = select_device(options.device)
    if options.half and device.type == "cpu":
        LOGGER.warning("--half needs a GPU; computing in float32")
    split = options.task if options.task in ("train", "val", "test") else "val"
    config = ensure_dataset(load_dataset_config(options.data, needs=(split,)))
    for path in options.weights:
        existing_weights(path)
    # Detections can be written without any labels to measure them by, and test sets are published without.
    need_boxes = split != "test" and not (options.save_txt or options.save_json)
    index = build_index(
        config.split(split), config.nc, single_class=options.single_cls, need_boxes=need_boxes, prefix=split
    )
    LOGGER.info(f"{split}: {index.summary()}")
    with output_folder(run_path(options.project, options.name), options.exist_ok) as folder:
        tester = Tester(options, config, index, device, folder)
        if options.task == "speed":
            results = [tester.measure((path,), options.img_size, files=False) for path in options.weights]
        elif options.task == "study":
            results = _study(tester)
        else:
            results = [tester.measure(options.weights, options.img_size)]
    LOGGER.info(f"results: {folder}")
    return results


def _check(options: TestOptions) -> None:
    """Refuses numbers that cannot be meant, and a folder's name that is none."""
    check_pixels("--img-size", options.img_size)
    check_range("--batch-size", options.batch_size, 1, MOST_IMAGES)
    check_range("--max-det", options.max_det, 1, MOST_BOXES)
    check_range("--workers", options.workers, 0, MOST_PROCESSES)
    check_share("--conf-thres", options.conf_thres)
    check_share("--iou-thres", options.iou_thres)
    run_path(options.project, options.name)


def _study(tester: Tester) -> list[EvalResult]:
    """Every checkpoint at every size, as study.csv: accuracy against time."""
    results, rows = [], []
    for path in tester.options.weights:
        for size in STUDY_SIZES:
            LOGGER.info(f"{path} at {size} px")
            results.append(tester.measure((path,), size, files=False))
            rows.append({"weights": path, "img_size": size, **results[-1].as_row(), **results[-1].speed})
    with replacing(tester.folder / "study.csv") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return results
