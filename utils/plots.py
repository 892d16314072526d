"""Pictures: boxes on images, mosaics of batches, training curves, precision-recall curves, the confusion matrix.

A file that cannot be drawn is a warning: no picture is worth the end of a training.
"""

from __future__ import annotations

import colorsys
import csv
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import cv2
import numpy as np
import torch

from utils.boxes import cxcywh_to_xyxy
from utils.evaluation.confusion import ConfusionMatrix
from utils.evaluation.metrics import CONFIDENCES, ClassMetrics
from utils.files import write_image
from utils.fonts import drawing_font, legible
from utils.logging import LOGGER
from utils.paths import replacing

MOSAIC_SIDE = 1920  # pixels; larger mosaics are scaled down
MAX_LEGEND = 20  # more classes than this are drawn thin, without a legend
MAX_CELLS_WITH_NUMBERS = 31
FACTORS = "weights that follow from shares"  # title of a panel
MAX_NAME = 32  # characters of a class name in a figure

Parameters = ParamSpec("Parameters")


def never_fatal(plot: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Turns whatever goes wrong in a plot into a warning."""

    @functools.wraps(plot)
    def guarded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            plot(*args, **kwargs)
        except Exception as error:
            LOGGER.warning(f"warning: {plot.__name__} drew nothing: {type(error).__name__}: {error}")

    return guarded


# ------------------------------------------------------------------------------------------------ boxes on images


def class_color(index: int) -> tuple[int, int, int]:
    """A colour for a class: hues by the golden ratio, so that neighbours in the list differ clearly."""
    hue = (0.61803398875 * index + 0.58) % 1.0
    saturation, value = ((0.85, 0.95), (0.65, 0.80), (0.95, 0.75))[index // 8 % 3]
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return blue, green, red


def draw_boxes(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    labels: Sequence[str],
    classes: Sequence[int] | np.ndarray | None = None,
    thickness: int | None = None,
) -> np.ndarray:
    """A copy of the image with boxes and captions; lines and letters grow with the image.

    Args:
        image: uint8 (H, W, 3) BGR.
        boxes_xyxy: (n, 4) in pixels.
        labels: n captions; an empty one draws none.
        classes: n class indices that choose the colours; one colour without them.
        thickness: of the lines in pixels.
    """
    canvas = np.ascontiguousarray(image).copy()
    side = sum(canvas.shape[:2]) / 2
    line = thickness or max(round(side * 0.0035), 1)
    size = max(round(side * 0.023), 11)
    numbers = [None] * len(boxes_xyxy) if classes is None else [int(index) for index in classes]
    colors = [class_color(number or 0) for number in numbers]
    corners = np.asarray(boxes_xyxy).reshape(-1, 4).round().astype(int).tolist()
    for (x1, y1, x2, y2), color in zip(corners, colors):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, line)
    for (x1, y1, _, _), color, label, number in zip(corners, colors, labels, numbers):  # on top of all lines
        if label:
            _draw_caption(canvas, legible(label, number), x1 - line // 2, y1, color, size)
    return canvas


def _draw_caption(
    canvas: np.ndarray, caption: tuple[str, Path], x: int, y: int, color: tuple[int, int, int], size: int
) -> None:
    """Writes a text in its font above (x, y), or below where there is no room, moved into the image."""
    from PIL import Image, ImageDraw

    text, font = caption[0], drawing_font(caption[1], size)
    height, width = canvas.shape[:2]
    ascent, descent = font.getmetrics()
    box_h, box_w = ascent + descent, int(font.getlength(text)) + descent
    top = y - box_h if y >= box_h else y
    left, top = max(min(x, width - box_w), 0), max(min(top, height - box_h), 0)
    patch = canvas[top : top + box_h, left : left + box_w]
    patch[:] = color
    dark = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2] > 150  # black letters on light colours
    picture = Image.fromarray(patch)
    ImageDraw.Draw(picture).text((descent // 2, 0), text, font=font, fill=(0, 0, 0) if dark else (255, 255, 255))
    patch[:] = np.asarray(picture)


@never_fatal
def plot_batch(
    images: torch.Tensor,
    targets: torch.Tensor,
    path: str | Path,
    names: Sequence[str] = (),
    paths: Sequence[str] = (),
    max_images: int = 16,
) -> None:
    """A mosaic of a batch with its boxes, as the network sees it.

    Args:
        images: uint8 (N, 3, H, W) RGB, or floats in 0..1.
        targets: (T, 6) rows [image, class, cx, cy, w, h] normalised, or (T, 7) with a confidence at the end.
        path: of the picture to write.
        names: class names; numbers without them.
        paths: files of the images, whose names are written on the tiles.
        max_images: so many tiles at most.
    """
    pixels = images[:max_images].detach().cpu()
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    tiles = pixels.permute(0, 2, 3, 1).numpy()[..., ::-1]  # (N, H, W, 3) BGR
    columns = int(np.ceil(np.sqrt(len(tiles))))
    rows = int(np.ceil(len(tiles) / columns))
    height, width = tiles.shape[1:3]
    scale = min(MOSAIC_SIDE / (columns * width), MOSAIC_SIDE / (rows * height), 640 / max(height, width))
    scale = max(scale, 320 / max(height, width)) if len(tiles) <= 4 else scale
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    mosaic = np.full((rows * (size[1] + 2), columns * (size[0] + 2), 3), 255, dtype=np.uint8)
    boxes = targets.detach().cpu().float().numpy()
    for i, tile in enumerate(tiles):
        tile = cv2.resize(tile, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        tile = _draw_targets(tile, boxes[boxes[:, 0] == i], names)
        if len(paths):
            _draw_caption(tile, legible(Path(paths[i]).name[:40]), 0, tile.shape[0], (60, 60, 60), 13)
        y, x = i // columns * (size[1] + 2), i % columns * (size[0] + 2)
        mosaic[y : y + size[1], x : x + size[0]] = tile
    write_image(Path(path), mosaic)


def _draw_targets(tile: np.ndarray, rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    height, width = tile.shape[:2]
    classes = rows[:, 1].astype(int)
    labels = [names[c] if c < len(names) else str(c) for c in classes]
    if rows.shape[1] > 6:
        labels = [f"{label} {confidence:.2f}" for label, confidence in zip(labels, rows[:, 6])]
    return draw_boxes(tile, cxcywh_to_xyxy(rows[:, 2:6]) * [width, height, width, height], labels, classes)


# ------------------------------------------------------------------------------------------------ curves


@contextmanager
def open_figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[np.ndarray]:
    """The axes (rows, columns) of a figure that is written to `path` at the end; `size` is of one axes, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    yield axes
    with replacing(path, "wb") as stream:
        figure.savefig(stream, format=path.suffix[1:], dpi=160)


def _set_font(text: Any, font: Path) -> None:
    """Gives a text of a figure, the name of a class, the font that has its letters, and takes it for no formula."""
    from matplotlib.font_manager import FontProperties

    text.set_font_properties(FontProperties(fname=str(font), size=text.get_fontsize()))
    text.set_parse_math(False)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a results.csv as floats; NaN where a cell is empty."""
    with open(path, newline="") as stream:
        rows = [{k.strip(): (v or "").strip() for k, v in row.items() if k} for row in csv.DictReader(stream)]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return {name: np.array([float(row.get(name) or "nan") for row in rows]) for name in rows[0]}


def _panels(columns: Iterable[str]) -> dict[str, dict[str, str]]:
    """Which column is drawn where: title of a panel -> label of a line -> column.

    A loss term shares its panel with its validation, the levels of a distillation term (`kd/fgd/P3`) share one, and so
    do metrics of a kind and the learning rates.
    """
    panels: dict[str, dict[str, str]] = {}
    kinds = {
        "precision": "precision and recall", "recall": "precision and recall", "AR100": "precision and recall",
        "AP": "average precision", "AP50": "average precision", "AP75": "average precision",
        "AP_small": "average precision by size", "AP_medium": "average precision by size",
        "AP_large": "average precision by size",
    }  # fmt: skip
    for column in columns:
        group, _, name = column.partition("/")
        if group in ("train", "val"):
            term, _, level = name.rpartition("/")
            title, label = (term, level) if "/" in term else (name, group)
            if group == "val" and "/" in term:
                label += " (val)"
            panels.setdefault(title, {})[label] = column
        elif group == "metrics":
            panels.setdefault(kinds.get(name, name), {})[name] = column
        elif group == "schedule":
            panels.setdefault("schedule: factor on all weights", {})[name] = column
        elif group == "share":
            panels.setdefault("share of the detection loss's gradient", {})[name] = column
        elif group == "factor":
            panels.setdefault(FACTORS, {})[name] = column
        elif group in ("x", "lr"):
            panels.setdefault("learning rate", {})[name] = column
    return panels


@never_fatal
def plot_results(csv_path: str | Path) -> None:
    """Draws every loss, metric and learning rate of a results.csv over the epochs, as results.png beside it."""
    csv_path = Path(csv_path)
    columns = read_columns(csv_path)
    epochs = columns.get("epoch", np.arange(len(next(iter(columns.values())))))
    panels = _panels(columns)
    best = _best_epoch(columns, epochs)
    across = min(len(panels), 4)
    down = -(-len(panels) // across)
    with open_figure(csv_path.with_name("results.png"), down, across, (3.6, 2.7)) as axes:
        for axis, (title, lines) in zip(axes.flat, panels.items()):
            for label, column in lines.items():
                known = ~np.isnan(columns[column])
                if not known.any():
                    continue
                style = "--" if column.startswith("val/") else "-"
                marker = "o" if known.sum() == 1 else None
                axis.plot(epochs[known], columns[column][known], style, marker=marker, linewidth=1.5, label=label)
            if best is not None:
                axis.axvline(best, color="0.6", linestyle=":", linewidth=1)
            axis.set_title(title, fontsize=10)
            if title == FACTORS:  # of losses that differ by orders of magnitude
                axis.set_yscale("log")
            axis.tick_params(labelsize=8)
            if len(lines) > 1:
                axis.legend(fontsize=7, frameon=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        caption = "epoch" if best is None else f"epoch (dotted: the best, {best:g})"
        axes[0, 0].figure.supxlabel(caption, fontsize=9)


def _best_epoch(columns: Mapping[str, np.ndarray], epochs: np.ndarray) -> float | None:
    """The epoch with the highest fitness, where there is one."""
    if "metrics/AP" not in columns or np.isnan(columns["metrics/AP"]).all():
        return None
    return float(epochs[np.nanargmax(0.1 * columns["metrics/AP50"] + 0.9 * columns["metrics/AP"])])


def _plot_curves(
    path: Path,
    x: np.ndarray,
    curves: np.ndarray,
    labels: Sequence[tuple[str, Path]],
    mean_label: str,
    axis_names: tuple[str, str],
) -> None:
    """One thin line for each class (k, 1000) and a bold one for their mean; both axes go from 0 to 1."""
    with open_figure(path, 1, 1, (7.5, 5)) as axes:
        axis = axes[0, 0]
        named = 1 < len(curves) <= MAX_LEGEND
        for k, curve in enumerate(curves):
            if len(curves) > 1:
                color = tuple(channel / 255 for channel in class_color(k)[::-1]) if named else "0.7"
                axis.plot(x, curve, linewidth=1, color=color, label=f"class {k}" if named else None)
        axis.plot(x, _mean(curves), linewidth=2.5, color="black", label=mean_label)
        axis.set(xlabel=axis_names[0], ylabel=axis_names[1], xlim=(0, 1), ylim=(0, 1.01))
        legend = axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for text, (words, font) in zip(legend.get_texts(), labels if named else ()):
            text.set_text(words)  # not before: a legend leaves out what begins with _
            _set_font(text, font)


def _mean(curves: np.ndarray) -> np.ndarray:
    """The mean (1000,) of curves (k, 1000); zeros where there is no class."""
    return curves.sum(0) / max(len(curves), 1)


@never_fatal
def plot_pr_curves(metrics: ClassMetrics, names: Sequence[str], path: str | Path) -> None:
    """Precision over recall at IoU 0.5, for each class and on average."""
    words = [legible(names[c], int(c), MAX_NAME) for c in metrics.classes]
    labels = [(f"{name} {ap:.3f}", font) for (name, font), ap in zip(words, metrics.ap[:, 0])]
    mean_label = f"all classes: AP50 {metrics.means[2]:.3f}"
    _plot_curves(Path(path), CONFIDENCES, metrics.pr_curve, labels, mean_label, ("recall", "precision"))


@never_fatal
def plot_confidence_curves(metrics: ClassMetrics, names: Sequence[str], folder: str | Path) -> None:
    """F1, precision and recall over the confidence threshold, as F1_curve.png, P_curve.png and R_curve.png."""
    labels = [legible(names[c], int(c), MAX_NAME) for c in metrics.classes]
    curves = {"F1": metrics.f1_curve, "precision": metrics.precision_curve, "recall": metrics.recall_curve}
    for title, file_name in (("F1", "F1_curve.png"), ("precision", "P_curve.png"), ("recall", "R_curve.png")):
        mean = _mean(curves[title])
        mean_label = f"all classes: {mean.max():.2f} at {CONFIDENCES[mean.argmax()]:.3f}"
        _plot_curves(Path(folder) / file_name, CONFIDENCES, curves[title], labels, mean_label, ("confidence", title))


@never_fatal
def plot_confusion_matrix(confusion: ConfusionMatrix, names: Sequence[str], path: str | Path) -> None:
    """Shares of each true class (columns) by what it was taken for (rows)."""
    shares = confusion.normalized()
    labels = [legible(name, index, MAX_NAME) for index, name in enumerate([*names, "background"])]
    side = float(np.clip(2.5 + 0.45 * len(labels), 5, 18))
    with open_figure(Path(path), 1, 1, (side + 1, side)) as axes:
        axis = axes[0, 0]
        axis.grid(False)
        picture = axis.imshow(np.where(confusion.matrix > 0, shares, np.nan), cmap="Blues", vmin=0, vmax=1)
        if len(labels) <= MAX_CELLS_WITH_NUMBERS:
            for row, column in np.argwhere(shares >= 0.005):
                color = "white" if shares[row, column] > 0.5 else "black"
                text = f"{shares[row, column]:.2f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
        ticks = range(len(labels))
        size = 9 if len(labels) <= MAX_CELLS_WITH_NUMBERS else 5
        words = [text for text, _ in labels]
        axis.set_xticks(ticks, words, rotation=90, fontsize=size)
        axis.set_yticks(ticks, words, fontsize=size)
        for texts in (axis.get_xticklabels(), axis.get_yticklabels()):
            for text, (_, font) in zip(texts, labels):
                _set_font(text, font)
        axis.set(xlabel="true", ylabel="predicted")
        axis.figure.colorbar(picture, ax=axis, shrink=0.8, label="share of the true class")
