"""The report of a single training: its figures, curves and pictures, and no claim of a gain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.checkpoint import load_model
from data.config import load_dataset_config
from data.labels import build_index
from data.records import DatasetIndex
from data.synthetic import ensure_dataset
from distill import DistillError
from engine.inference.class_order import adopt_names
from engine.reporting.charts import Series, line_chart
from engine.reporting.gallery import attention_row, picture_row
from engine.reporting.matching import RECALLS, percentile_interval
from engine.reporting.measuring import Measured, measure
from engine.reporting.page import Cell, Chart, Charts, Listing, Page, Pictures, Section, Table, write_page
from engine.reporting.runs import RunFacts, describe_seconds, read_run
from engine.reporting.statistics import LEVEL
from models.yolo import Model
from utils.device import select_device
from utils.errors import UserError
from utils.logging import LOGGER
from utils.names import distinct_names
from utils.paths import existing_file
from utils.text import printable, shown_path
from utils.yaml_io import load_yaml

MOST_PICTURES, MOST_ATTENTIONS, MOST_TERMS = 12, 4, 8
SIZES = (
    ("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"), ("small", "ap_small"), ("medium", "ap_medium"),
    ("large", "ap_large"),
)  # fmt: skip


def report_run(folder: Path, device: str = "", split: str = "val", workers: int | None = None) -> Path:
    """Measures the best checkpoint of a run folder again and writes report.html into the folder.

    Args:
        folder: of a training.
        device: where to measure.
        split: of the data set.
        workers: processes that load images; by default as many as the training had.

    Raises:
        UserError: the folder is no run folder, or what it names is gone.
    """
    weights = existing_file(folder / "weights" / "best.pt", "the run folder's checkpoint")
    options = load_yaml(existing_file(folder / "opt.yaml", "the run folder's options"), "options")
    facts, place = read_run(weights), select_device(device)
    config = ensure_dataset(load_dataset_config(str(options.get("data")), needs=(split,)))
    single = bool(options.get("single_cls"))
    names = ("item",) if single else tuple(config.names)
    index = build_index(config.split(split), config.nc, single_class=single, prefix=split)
    if not index.records:
        raise UserError(f"{shown_path(config.path)}: the {split} split has no image to report on")
    model = load_model(weights, device=place, fuse=True)
    if not single:
        model = adopt_names(model, names, str(config.path), str(weights))
    size = int(options["img_size"][-1]) if isinstance(options.get("img_size"), list) else 640
    batch = int(options.get("batch_size", 16))
    count = int(options.get("workers", 0)) if workers is None else workers
    measured = measure(model, index, names, place, size, batch, count)
    sections = [
        _figures_section(measured),
        _curves_section(facts),
        _classes_section(measured),
        _precision_section(measured),
        _gallery_section(index, measured, names),
        _attention_section(index, measured, model, size, place),
        Section("To repeat it", "", [Listing(list(facts.lines()))]),
    ]
    page = Page(
        title=printable(f"Training: {folder.name}"),
        subtitle=f"{options.get('data')}, {split} split, {len(index.records)} images, {size} px",
        answer=_answer(measured, facts),
        figures=list(_tiles(measured, model, size, facts)),
        warnings=list(_warnings(facts)),
        remarks=[
            "A single run shows what this model does, not what a method brings; compare.py shows that, over seeds."
        ],
        sections=sections,
        footer=f"{facts.manifest.get('started', '')}",
    )
    path = write_page(page, folder / "report.html")
    LOGGER.info(f"report: {path}")
    return path


def _answer(measured: Measured, facts: RunFacts) -> str:
    coco, (epochs, values) = measured.result.coco, facts.curve
    text = f"AP {100 * coco.ap:.1f}, AP50 {100 * coco.ap50:.1f}"
    bounds = percentile_interval(measured.resampled, LEVEL)
    if bounds:
        text += f" (AP {100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} over resampled images)"
    if values:
        best = int(epochs[int(np.argmax(values))])
        number = len(facts.columns["epoch"])
        text += f", after {number} epoch{'s' if number > 1 else ''}; the best was epoch {best}"
    return f"{text}."


def _tiles(measured: Measured, model: Model, size: int, facts: RunFacts) -> Iterator[tuple[str, str]]:
    summary, speed = model.summary(size), measured.result.speed
    yield f"{100 * measured.result.coco.ap:.1f}", "AP"
    yield f"{summary.parameters / 1e6:.2f} M", "parameters"
    yield f"{summary.gflops:.2f}", "GFLOPs an image"
    yield f"{speed['inference']:.1f} ms", "an image, in batches, while measuring"
    if math.isfinite(facts.seconds):
        yield describe_seconds(facts.seconds), "of training"


def _warnings(facts: RunFacts) -> Iterator[str]:
    if not facts.converged:
        yield (
            f"The training had not converged: the best epoch is among the last, and validation AP rose by "
            f"{100 * facts.rise:.1f} points over the last fifth of the epochs."
        )
    for fault in facts.forced:
        yield f"It was trained with --force, although the gate refused its teacher. {fault}"


def _figures_section(measured: Measured) -> Section:
    coco = measured.result.coco
    columns = [("", "")] + [(name, "COCO's AP in points, by IoU or by the area of the boxes") for name, _ in SIZES]
    row = [Cell("best.pt")] + [_points(getattr(coco, key)) for _, key in SIZES]
    return Section("Figures", "COCO's AP in points, 100 is perfect.", [Table(columns, [row])])


def _points(value: float) -> Cell:
    return Cell("-") if math.isnan(value) else Cell(f"{100 * value:.1f}", float(value))


def _curves_section(facts: RunFacts) -> Section:
    charts, (epochs, values) = [], facts.curve
    if epochs:
        series = [Series("AP", 2, epochs, [100 * v for v in values])]
        charts.append(Chart(line_chart(series, "Validation AP", "epoch", "AP"), "AP on the validation split by epoch."))
    terms = [name for name in facts.columns if name.startswith("train/") and np.isfinite(facts.columns[name]).any()]
    if terms:
        x = [float(e) + 1 for e in facts.columns["epoch"]]
        shown = terms[:MOST_TERMS]
        series = [Series(name, number, x, facts.columns[name].tolist()) for number, name in enumerate(shown)]
        more = f" The first {len(shown)} of {len(terms)} terms." if len(shown) < len(terms) else ""
        legend = [(name.removeprefix("train/"), number) for number, name in enumerate(shown)]
        charts.append(Chart(line_chart(series, "Losses", "epoch", "loss"), f"Training losses by epoch.{more}", legend))
    return Section("Learning curves", "", [Charts(charts)] if charts else [])


def _classes_section(measured: Measured) -> Section:
    result = measured.result
    columns = [("class", ""), ("labels", "labelled boxes"), ("AP", "in points"), ("AP50", "in points")]
    rows = [
        [Cell(name), Cell(str(int(labels)), float(labels)), _points(float(ap)), _points(float(ap50))]
        for name, labels, ap, ap50 in zip(
            distinct_names(result.names), result.labels_per_class, result.coco.per_class_ap, result.coco.per_class_ap50
        )
    ]
    return Section("Classes", "A click on a head sorts.", [Table(columns, rows)])


def _precision_section(measured: Measured) -> Section:
    series = [Series("precision", 2, RECALLS.tolist(), measured.curve.tolist())]
    chart = line_chart(series, "Precision over recall", "recall", "precision")
    return Section("Precision and recall", "", [Charts([Chart(chart, "At IoU 0.5, mean over the classes.")])])


def _gallery_section(index: DatasetIndex, measured: Measured, names: tuple[str, ...]) -> Section:
    missed = np.array([int((~found).sum()) for found in measured.found])
    places = [int(i) for i in np.argsort(-missed, kind="stable")[:MOST_PICTURES]]
    pictures = [picture for i in places for picture in picture_row(index.records[i], i, {"": measured}, names)]
    text = (
        f"The images with most boxes missed, at confidence {measured.confidence:.2f}, where F1 is highest. Green: "
        "right, orange: wrong, red: missed."
    )
    return Section("Hardest images", text, [Pictures([pictures])] if pictures else [])


def _attention_section(index: DatasetIndex, measured: Measured, model: Model, size: int, device: Any) -> Section:
    hits = np.array([int(found.sum()) for found in measured.found])
    places = [int(i) for i in np.argsort(-hits, kind="stable")[:MOST_ATTENTIONS]]
    try:
        pictures = [p for i in places for p in attention_row(index.records[i], {"best.pt": model}, size, device)]
    except DistillError:  # a network whose head does not say what feeds it
        pictures = []
    text = "The mean over channels of the squared features at the head's inputs: where a network is active, not why."
    return Section("Attention", text if pictures else "", [Pictures([pictures])] if pictures else [])
