"""What the shares of a recipe came to: the weights that they found, as a recipe has weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.distilling.teachers import TeacherPlan, describe_teachers


def found_weights(row: Mapping[str, Any], options: TrainOptions, hyp: Hyp) -> list[str]:
    """Lines to print at the end of a training: entries of `kd_losses` with weights in place of their shares.

    Args:
        row: the last of the results, with its columns `factor/<prefix>/<entry>` or `factor/<prefix>/<entry>/<part>`.
        options, hyp: of the training.

    Returns:
        Nothing where no entry has a share.
    """
    lines = []
    plans = describe_teachers(options, hyp)
    for plan in plans:
        entries = _entries(row, plan, hyp)
        if entries:
            whose = f", under the teacher {plan.path}" if len(plans) > 1 else ""
            lines += [f"weights that the shares came to{whose}; to fix them, write", "kd_losses:", *entries]
    return lines


def _entries(row: Mapping[str, Any], plan: TeacherPlan, hyp: Hyp) -> list[str]:
    lines = []
    for name, settings in hyp.kd_losses.items():
        if not isinstance(settings, Mapping) or "share" not in settings or not plan.share:
            continue
        amount = settings["share"]
        column = f"factor/{plan.prefix}/{name}"
        if isinstance(amount, Mapping):
            parts = {part: _weight(row.get(f"{column}/{part}"), plan) for part in amount}
            weight: Any = {part: value for part, value in parts.items() if value}
        else:
            weight = _weight(row.get(column), plan)
        if weight:
            values = {"weight": weight, **{key: value for key, value in settings.items() if key != "share"}}
            text = yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=math.inf)
            lines.append(f"  {name}: {text.strip()}")
    return lines


def _weight(factor: Any, plan: TeacherPlan) -> float:
    """Four digits of the weight that times the teacher's share is the factor; 0 where there is none."""
    return float(f"{float(factor) / plan.share:.4g}") if factor not in (None, "") else 0.0
