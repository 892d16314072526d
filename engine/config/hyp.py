"""Hyper-parameter files, with their bases, as a frozen dataclass that says what is known and what is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.config.bases import load_hyp
from engine.config.teachers import check_teachers
from engine.config.vocabulary import translate
from utils.errors import UserError
from utils.text import shown
from utils.yaml_io import check_keys


@dataclass(frozen=True)
class Hyp:
    """The hyper-parameters of a training. Names and units are upstream's; hyp/scratch-low.yaml explains each.

    Loss gains are those of the file, before the scaling by levels, classes and image size. `nbs` and `ema_ramp` may be
    "auto": numbers that follow from the length of the training (`engine.training.schedule.resolve_auto`).
    """

    # optimisation
    lr0: float = 0.01
    lrf: float = 0.01
    momentum: float = 0.937
    weight_decay: float = 0.0005
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    nbs: int | str = 64
    ema_ramp: float | str = 2000.0
    # detection loss
    box: float = 0.05
    cls: float = 0.5
    cls_pw: float = 1.0
    obj: float = 1.0
    obj_pw: float = 1.0
    dfl: float = 1.5
    iou_t: float = 0.20
    anchor_t: float = 4.0
    anchors: int | None = None
    fl_gamma: float = 0.0
    loss_ota: int | None = None
    enlarge_small_boxes: int = 0
    # augmentation
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    mosaic: float = 1.0
    mosaic9: float = 0.0
    mixup: float = 0.0
    mixup_alpha: float = 32.0
    copy_paste: float = 0.0
    paste_in: float = 0.0
    close_mosaic: int = 0
    # distillation
    student_kd_layers: Any = None
    teacher_kd_layers: Any = None
    kd_losses: Mapping[str, Any] = field(default_factory=dict)
    kd_schedule: Mapping[str, Any] = field(default_factory=dict)
    kd_resize: bool = False
    kd_teachers: Sequence[Mapping[str, Any]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to hyp.yaml and into checkpoints."""
        return asdict(self)

    @property
    def distills(self) -> bool:
        """Whether the file holds a distillation recipe."""
        return bool(self.kd_losses)

    def without_distillation(self) -> dict[str, Any]:
        """Plain values of what a training without a teacher has."""
        return {key: value for key, value in self.to_dict().items() if not is_of_distillation(key)}


def is_of_distillation(key: str) -> bool:
    """Whether a hyper-parameter belongs to the distillation."""
    return key in KD_KEYS or key.startswith("kd_")


FRACTIONS = (
    "hsv_h",
    "hsv_s",
    "hsv_v",
    "flipud",
    "fliplr",
    "mosaic",
    "mosaic9",
    "mixup",
    "copy_paste",
    "paste_in",
    "translate",
)
AUTO = "auto"
AUTO_NUMBERS = ("nbs", "ema_ramp")
POSITIVE = ("lr0", *AUTO_NUMBERS, "anchor_t", "mixup_alpha")
BELOW_ONE = ("momentum", "warmup_momentum", "scale")
OPTIONAL_NUMBERS = ("anchors", "loss_ota")
WHOLE_NUMBERS = (*OPTIONAL_NUMBERS, "enlarge_small_boxes", "close_mosaic", "nbs")
# Beyond these a value can only be a mistake: an accumulation over more images than an epoch has. The augmentation's
# own limits are data.augmentation.augment's.
LARGEST = {"nbs": 100_000, "anchors": 100, "degrees": 180, "shear": 60, "perspective": 0.001, "loss_ota": 1}
LARGEST_VALUE = 1e6
KD_KEYS = ("student_kd_layers", "teacher_kd_layers", "kd_losses", "kd_schedule")


def hyp_from_dict(values: Mapping[str, Any], where: str) -> Hyp:
    """Checks names and types of hyper-parameters.

    Raises:
        UserError: an unknown key (the nearest known one is named), a value that is not a number, or one out of range.
    """
    values = translate(values, where)
    check_keys(values, [f.name for f in fields(Hyp)], where)
    clean: dict[str, Any] = {}
    for name, value in values.items():
        if name == "kd_resize":
            if not isinstance(value, bool):
                raise UserError(f"{where}: kd_resize is {shown(value)}, expected true or false")
            clean[name] = value
        elif name == "kd_teachers":
            clean[name] = check_teachers(value or [], where)
        elif name in KD_KEYS:
            clean[name] = {} if value is None and name.startswith("kd_") else value
        elif name in OPTIONAL_NUMBERS and value is None:
            clean[name] = None
        elif name in AUTO_NUMBERS and value == AUTO:
            clean[name] = AUTO
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(
                f"{where}: {name} must be a number, found {shown(value)}; "
                f"write for example `{name}: 0.1` (1.0e-3, not 1e-3)"
            )
        else:
            _check_range(name, value, where)
            clean[name] = round(value) if name in WHOLE_NUMBERS else float(value)
    clean["anchors"] = clean.get("anchors") or None  # upstream's files write 0 for "those of the architecture"
    clean.setdefault("kd_teachers", [])
    for name in ("kd_losses", "kd_schedule"):
        if not isinstance(clean.get(name, {}), Mapping):
            found = shown(clean[name])
            raise UserError(f"{where}: {name} must be a mapping such as `fgd: {{weight: 1.0}}`, found {found}")
    return Hyp(**clean)


def _check_range(name: str, value: float, where: str) -> None:
    if name in FRACTIONS and not 0 <= value <= 1:
        raise UserError(f"{where}: {name} is {shown(value)}, expected a share from 0 to 1")
    if name in BELOW_ONE and not 0 <= value < 1:
        raise UserError(f"{where}: {name} is {shown(value)}, expected at least 0 and less than 1")
    if not 0 <= value < math.inf or (value == 0 and name in POSITIVE):
        least = "more than" if name in POSITIVE else "at least"
        raise UserError(f"{where}: {name} is {shown(value)}, expected a number of {least} 0")
    most = LARGEST.get(name, LARGEST_VALUE)
    if value > most:
        raise UserError(f"{where}: {name} is {shown(value)}, expected a number of at most {most:g}")


def read_hyp(path: str | Path) -> Hyp:
    """Reads a hyper-parameter file with its base; what neither gives is `Hyp`'s, whatever the student's family."""
    return hyp_from_dict(load_hyp(path).values, str(path))
