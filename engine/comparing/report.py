"""What an experiment ends with: figures of all models from one process, a report, and pictures side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from checkpoints.checkpoint import load_model
from data.config import DatasetConfig, load_dataset_config
from data.decoding.decode import ImageError, decode_image
from data.labels import build_index
from data.loader import validation_loader
from data.synthetic import ensure_dataset
from engine.comparing.experiment import Experiment
from engine.comparing.arms import describe_arms, teacher_start
from engine.comparing.summary import Run, enough_seeds, headline, power_note, summarise
from engine.comparing.wording import answer, notes
from engine.inference.class_order import adopt_names
from engine.inference.evaluate import VALIDATION_IOU, evaluate
from engine.inference.predict import Predictor
from engine.runfolder import environment
from models.yolo import Model
from pruning.size import measure_latency
from utils.boxes import cxcywh_to_xyxy
from utils.device import select_device
from utils.logging import LOGGER
from utils.names import distinct_names
from utils.output_names import OutputNames, file_name
from utils.paths import replacing
from utils.plots import draw_boxes
from utils.text import shown_path

if TYPE_CHECKING:
    from data.labels import ImageRecord

PICTURE_HEIGHT = 320
COLUMNS = (
    "model", "AP", "AP50", "APs", "APm", "APl", "parameters", "GFLOPs", "ms/image", "difference in AP",
    "95 % interval over seeds", "share of the gap",
)  # fmt: skip


def evaluate_runs(experiment: Experiment, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """COCO metrics, size and speed of every model, on the experiment's split.

    Returns:
        One row a run: role, seed, weights, AP and its kin (0 to 1), parameters, gflops at the experiment's size,
        ms an image at batch 1 (median, measured in turns so that a change of the machine's speed hits all alike).
    """
    device = select_device(experiment.device)
    config = ensure_dataset(load_dataset_config(experiment.data, needs=(experiment.split,)))
    index = build_index(getattr(config, experiment.split), config.nc, prefix=experiment.split)
    models = [_load(run, config, device) for run in runs]
    image = torch.rand(1, 3, experiment.img_size, experiment.img_size, device=device)
    times = measure_latency(models, image)
    rows = []
    for run, model, seconds in zip(runs, models, times):
        LOGGER.info(f"evaluating {run.role}, seed {run.seed}")
        stride = int(max(model.stride))
        loader = validation_loader(index, experiment.img_size, experiment.batch_size, experiment.workers, stride)
        result = evaluate(model, loader, names=config.names, device=device, iou_thres=VALIDATION_IOU)
        summary = model.summary(experiment.img_size)
        rows.append(
            {
                "role": run.role,
                "seed": run.seed,
                "weights": str(run.weights),
                **{key.removeprefix("metrics/"): value for key, value in result.as_row().items() if "metrics/" in key},
                "per_class": dict(zip(distinct_names(config.names), [float(v) for v in result.coco.per_class_ap])),
                "parameters": summary.parameters,
                "gflops": summary.gflops,
                "ms": seconds * 1000,
            }
        )
    return rows


def write_report(experiment: Experiment, rows: list[dict[str, Any]], folder: Path) -> str:
    """Writes report.md and report.json; returns the former as text."""
    arms = describe_arms(experiment, rows)
    summary = summarise(rows, arms)
    entry = headline(summary, experiment.headline)
    start = teacher_start(experiment, rows)
    sentence, remarks = answer(summary, arms, entry), list(notes(summary, arms, entry, start))
    lines = [
        sentence,
        "",
        f"{experiment.name}: {experiment.data}, {experiment.split} split, {experiment.img_size} px, "
        f"{_lengths(experiment)}, seeds {', '.join(map(str, experiment.seeds))}",
        "",
        *markdown_table(summary),
        "",
        "Means over the seeds ± sample standard deviation. Differences and shares are those of AP to "
        f"{next(iter(arms))}, seed by seed; the interval is over seeds, by the t distribution. In the sentence AP is in "
        "points: +1.0 is +0.0100 in the table.",
    ]
    lines += ["", *(f"- {remark}" for remark in remarks)] if remarks else []
    text = "\n".join(lines)
    with replacing(folder / "report.md") as stream:
        stream.write(text + "\n")
    content = {
        "experiment": asdict(experiment),
        "environment": environment(),
        "answer": {"arm": entry["role"] if entry else None, "sentence": sentence, "notes": remarks},
        "power": power_note(entry["difference"]) if entry and len(entry["difference"]["seeds"]) > 1 else None,
        "summary": summary,
        "runs": rows,
    }
    with replacing(folder / "report.json") as stream:
        json.dump(_valid_json(content), stream, indent=2)
    return text


def markdown_table(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """The summary as a table in Markdown: one row a role, and one for what distillation adds over inheritance."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for entry in summary:
        cells = [entry["role"] + ("" if entry.get("equal_epochs", True) else f" ({entry['epochs']} epochs)")]
        cells += [_figure(entry[k], entry["runs"]) for k in ("AP", "AP50", "AP_small", "AP_medium", "AP_large")]
        cells += [f"{entry['parameters'] / 1e6:.3f} M", f"{entry['gflops']:.3f}", f"{entry['ms']:.1f}"]
        cells += [*_difference_cells(entry.get("difference"), entry.get("equal_epochs", True)), _share_cell(entry)]
        lines.append("| " + " | ".join(cells) + " |")
    for entry in summary:
        if entry.get("added"):
            name = f"{entry['role']} minus {entry['added']['to']}"
            cells = [name, *[""] * 8, *_difference_cells(entry["added"], entry["equal_epochs"]), ""]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _difference_cells(difference: Mapping[str, Any] | None, claimable: bool) -> list[str]:
    """A paired difference and its interval over seeds."""
    if not difference:
        return ["", ""]
    number = len(difference["seeds"])
    figure = _figure((difference["mean"], difference["spread"]), number, "+.4f")
    better = f"{figure} ({difference['better']} of {number} seeds)"
    if not claimable or not enough_seeds(difference):
        return [better, "no claim"]
    low, high = difference["interval"]
    return [better, f"{low:+.4f} to {high:+.4f}"]


def _share_cell(entry: Mapping[str, Any]) -> str:
    share = entry.get("share")
    if not share:
        return ""
    text = f"{100 * share['mean']:.0f} %"
    several = len(entry["difference"]["seeds"]) > 1
    return text + (f" ({100 * share['least']:.0f} to {100 * share['most']:.0f})" if several else "")


def _lengths(experiment: Experiment) -> str:
    """How long the arms are trained."""
    own = [f"{name} {arm['epochs']}" for name, arm in experiment.arms.items() if "epochs" in arm]
    return f"{experiment.epochs} epochs an arm" + (f" ({', '.join(own)})" if own else "")


def _valid_json(value: Any) -> Any:
    """`value` with null for the figures that there were no boxes to measure by, which are NaN."""
    if isinstance(value, Mapping):
        return {str(key): _valid_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid_json(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _figure(mean_and_spread: tuple[float, float], runs: int, form: str = ".4f") -> str:
    mean, spread = mean_and_spread
    if math.isnan(mean):
        return "-"  # no object of that kind in the split
    return f"{mean:{form}}" if runs < 2 else f"{mean:{form}} ± {spread:.4f}"


def draw_pictures(experiment: Experiment, runs: Sequence[Run], folder: Path) -> Path:
    """Draws labels and every role's boxes (first seed) side by side on images spread over the split.

    Returns:
        The folder of the pictures.
    """
    out = folder / "pictures"
    out.mkdir(exist_ok=True)
    config = ensure_dataset(load_dataset_config(experiment.data, needs=(experiment.split,)))
    records = build_index(getattr(config, experiment.split), config.nc, prefix=experiment.split).records
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.role, run)
    device = select_device(experiment.device)
    predictors = {
        role: Predictor(_load(run, config, device), experiment.img_size, device, conf_thres=0.3)
        for role, run in first.items()
    }
    step = max(len(records) // experiment.pictures, 1)
    chosen = records[::step][: experiment.pictures]
    stems = OutputNames(record.path for record in chosen)
    for record in chosen:
        try:
            image = decode_image(record.path)
        except ImageError as error:  # since it was checked
            LOGGER.warning(f"no picture of {shown_path(record.path)}: {error}")
            continue
        panels = [_panel(image, _labelled(record), "labels", config.names)]
        panels += [
            _panel(image, predictor(image).cpu().numpy(), role, config.names) for role, predictor in predictors.items()
        ]
        (out / file_name(stems[record.path], ".jpg")).write_bytes(cv2.imencode(".jpg", np.hstack(panels))[1].tobytes())
    return out


def _load(run: Run, config: DatasetConfig, device: torch.device) -> Model:
    """A run's model with its classes in the data set's order."""
    model = load_model(run.weights, device=device, fuse=True)
    return adopt_names(model, config.names, str(config.path), str(run.weights))


def _labelled(record: ImageRecord) -> np.ndarray:
    """The labels of an image as detections, (n, 6) rows x1, y1, x2, y2, 1, class in pixels."""
    boxes = cxcywh_to_xyxy(record.labels[:, 1:5]) * np.array([record.width, record.height] * 2)
    return np.concatenate([boxes, np.ones((len(boxes), 1)), record.labels[:, :1]], axis=1)


def _panel(image: np.ndarray, detections: np.ndarray, title: str, names: Sequence[str]) -> np.ndarray:
    scale = PICTURE_HEIGHT / image.shape[0]
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    texts = [names[int(row[5])] + ("" if row[4] >= 1 else f" {row[4]:.2f}") for row in detections]
    canvas = draw_boxes(canvas, detections[:, :4] * scale, texts, classes=detections[:, 5].astype(int))
    header = np.full((24, canvas.shape[1], 3), 255, np.uint8)
    cv2.putText(header, title, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.pad(np.vstack([header, canvas]), ((0, 0), (0, 4), (0, 0)), constant_values=255)
