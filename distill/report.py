"""What a distiller shows before training: which layers are paired, and how strong each term is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .context import Level
from .losses.base import DistillationLoss


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, the first row being the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def describe_pairs(
    losses: Mapping[str, DistillationLoss], weights: Mapping[str, float], levels: Sequence[Level]
) -> str:
    """One row for each loss and pair of layers: channels, stride, adapter, trainable parameters."""
    rows = [
        ["loss", "weight", "level", "student layer", "teacher layer", "channels", "stride", "adapter", "parameters"]
    ]
    for name, loss in losses.items():
        weight = f"{weights[name]:g}"
        if loss.needs == "predictions":
            rows.append([name, weight, "head", "output", "output", "-", "-", "-", "0"])
            continue
        for index, level in enumerate(levels):
            adapter, parameters = loss.describe(index)
            channels = f"{level.student_channels} -> {level.teacher_channels}"
            pair = [level.name, str(level.student_layer), str(level.teacher_layer), channels, str(level.stride)]
            rows.append([name, weight, *pair, adapter, f"{parameters:,}"])
    return format_table(rows)


def describe_strength(items: Mapping[str, Tensor], detection_loss: float, batch_size: int, limit: float = 10.0) -> str:
    """One row for each term: its weighted value, and its ratio to the detection loss of the same batch.

    A ratio above `limit` is marked; the FGD authors advise to keep distillation near the size of the detection loss.

    Args:
        items: weighted terms as the distiller gives them, not multiplied by the batch size.
        detection_loss: as the criterion gives it, multiplied by the batch size.
        batch_size: number of images.
        limit: ratio from which on a term is marked.
    """
    task = detection_loss / batch_size
    rows = [["term", "weighted value", "ratio to the detection loss"]]
    values = {name: value.item() for name, value in items.items()}
    for name, value in [*values.items(), ("sum", sum(values.values()))]:
        ratio = value / task if task else float("inf")
        mark = f"  above {limit:g}: lower its weight" if ratio > limit else ""
        rows.append([name, f"{value:.4g}", f"{ratio:.3g}{mark}"])
    return format_table(rows)
