"""What a distiller shows before training: which layers are paired, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .context import Level
from .losses.base import DistillationLoss


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, the first row being the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def describe_pairs(losses: Mapping[str, DistillationLoss], weights: Mapping[str, str], levels: Sequence[Level]) -> str:
    """One row for each loss and pair of layers: channels, stride, adapter, trainable parameters."""
    rows = [
        ["loss", "weight", "level", "student layer", "teacher layer", "channels", "stride", "adapter", "parameters"]
    ]
    for name, loss in losses.items():
        weight = weights[name]
        if loss.needs == "predictions":
            form = "common grid" if getattr(loss, "on_grid", False) else "-"
            rows.append([name, weight, "head", "output", "output", "-", "-", form, "0"])
            continue
        for index, level in enumerate(levels):
            adapter, parameters = loss.describe(index)
            channels = f"{level.student_channels} -> {level.teacher_channels}"
            pair = [level.name, str(level.student_layer), str(level.teacher_layer), channels, str(level.stride)]
            rows.append([name, weight, *pair, adapter, f"{parameters:,}"])
    return format_table(rows)
