"""How strongly the student is distilled, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import DistillError, check_choice, check_keys, shown

SHAPES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class KDSchedule:
    """A factor on the whole distillation loss, over the whole training (never restarted within an epoch).

    Attributes:
        shape: "constant" stays at `start`; "linear" and "cosine" go from `start` at epoch 0 towards `end` at the last.
            The cosine is that of YOLOv6 (arXiv 2209.02976): its `end` is 0.01.
        warmup_epochs: the factor is ramped up over so many first epochs; epoch e of them gets (e + 1) / (warmup_epochs
            + 1).
        start: factor at epoch 0, before the warm-up's ramp.
        end: factor that "linear" and "cosine" approach.
        stop_epoch: from this epoch on the factor is 0 and the teacher is not run any more; below 1, a share of the
            training; None means never.
    """

    shape: str = "constant"
    warmup_epochs: float = 0
    start: float = 1.0
    end: float = 0.1
    stop_epoch: float | None = None

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, SHAPES, "kd_schedule")
        for name in ("warmup_epochs", "start", "end", "stop_epoch"):
            value = getattr(self, name)
            if value is None and name == "stop_epoch":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise DistillError(f"kd_schedule: {name} is {shown(value)}; expected a number of at least 0")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None) -> KDSchedule:
        """The schedule of a hyper-parameter file's `kd_schedule`; None gives the constant factor 1."""
        known = [field.name for field in fields(cls)]
        return cls(**check_keys({} if mapping is None else mapping, known, "kd_schedule"))

    def factor(self, epoch: int, epochs: int) -> float:
        """Factor of an epoch (counted from 0) of a training of `epochs` epochs."""
        if self.stop_epoch is not None and epoch >= self.stop_epoch * (epochs if self.stop_epoch < 1 else 1):
            return 0.0
        progress = epoch / max(epochs, 1)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        value = self.start if self.shape == "constant" else self.start + (self.end - self.start) * progress
        return value * min(1.0, (epoch + 1) / (self.warmup_epochs + 1))
