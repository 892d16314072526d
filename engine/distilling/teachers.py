"""Who teaches: one network, several that share the work, or the student's own average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.paths import existing_file

if TYPE_CHECKING:
    from engine.config.hyp import Hyp
    from engine.config.options import TrainOptions

OWN_AVERAGE = "ema"
"""In place of a teacher's file: the moving average of the student itself (mean teacher, arXiv 1703.01780)."""
LAST_EPOCHS = "close_mosaic"
"""As `stop_epoch` of a schedule: distillation stops when mosaics stop."""


@dataclass(frozen=True)
class TeacherPlan:
    """What one teacher does.

    Attributes:
        path: its checkpoint, or `OWN_AVERAGE`.
        share: factor on all its weights.
        classes: names of the classes that it teaches; None for all. Losses on features know no classes.
        layers: its `teacher_kd_layers`; None for those of the recipe.
        prefix: first part of its terms' names in the log.
    """

    path: str
    share: float = 1.0
    classes: tuple[str, ...] | None = None
    layers: Any = None
    prefix: str = "kd"

    @property
    def is_average(self) -> bool:
        """Whether the student's own average teaches."""
        return self.path == OWN_AVERAGE


def plan_teachers(options: TrainOptions, hyp: Hyp) -> list[TeacherPlan]:
    """The teachers of --teacher-weights with what `kd_teachers` of the recipe says of each, in their order.

    Raises:
        UserError: a file is missing, or `kd_teachers` does not fit the teachers.
    """
    paths = (options.teacher_weights, *options.more_teachers)
    for path in paths:
        if path != OWN_AVERAGE:
            existing_file(path, "--teacher-weights")
    return describe_teachers(options, hyp)


def describe_teachers(options: TrainOptions, hyp: Hyp) -> list[TeacherPlan]:
    """As `plan_teachers`, whether or not their files are there still."""
    paths = (options.teacher_weights, *options.more_teachers)
    entries = list(hyp.kd_teachers) or [{} for _ in paths]
    if len(entries) != len(paths):
        raise UserError(
            f"kd_teachers describes {len(entries)} teachers, --teacher-weights names {len(paths)}; one entry for each"
        )
    several = len(paths) > 1
    return [
        TeacherPlan(
            path,
            float(entry.get("share", 1 / len(paths))),
            tuple(str(name) for name in entry["classes"]) if entry.get("classes") is not None else None,
            entry.get("layers"),
            f"kd{number}" if several else "kd",
        )
        for number, (path, entry) in enumerate(zip(paths, entries), 1)
    ]


def shared_losses(losses: Mapping[str, Any], share: float) -> dict[str, Any]:
    """The mixture with every weight, or share of a loss, times a teacher's share.

    What is no mixture is left for the distiller to refuse.
    """
    if share == 1.0:
        return dict(losses)
    return {
        name: settings if not isinstance(settings, Mapping | None) else _weighted(settings, share)
        for name, settings in losses.items()
    }


def _weighted(settings: Mapping[str, Any] | None, share: float) -> dict[str, Any]:
    values = dict(settings or {})
    given = [key for key in ("weight", "share") if key in values]
    return {**values, **{key: _times(values.get(key, 1.0), share) for key in given or ["weight"]}}


def _times(amount: Any, share: float) -> Any:
    """A number, or one for each part, times a share."""
    if isinstance(amount, Mapping):
        return {part: _times(value, share) for part, value in amount.items()}
    return amount * share if isinstance(amount, int | float) and not isinstance(amount, bool) else amount


def schedule_values(options: TrainOptions, hyp: Hyp) -> dict[str, Any]:
    """`kd_schedule` with `stop_epoch: close_mosaic` replaced by the first epoch without mosaics.

    Raises:
        UserError: mosaics never stop in this training.
    """
    values = dict(hyp.kd_schedule)
    if values.get("stop_epoch") == LAST_EPOCHS:
        closing = max(options.close_mosaic, hyp.close_mosaic)
        if not closing:
            raise UserError(
                "kd_schedule: stop_epoch is close_mosaic, but mosaics never stop; set close_mosaic to some last epochs"
            )
        values["stop_epoch"] = max(options.epochs - closing, 0)
    return values
