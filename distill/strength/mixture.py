"""What a recipe says of each loss: its keywords, and a weight or a share for it or for its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DistillError, shown, unknown_name
from ..losses import LOSSES
from ..losses.base import DistillationLoss, keywords

WEIGHT, SHARE = "weight", "share"


@dataclass(frozen=True)
class Entry:
    """One loss of the mixture.

    Attributes:
        name: in `LOSSES`.
        kind: `WEIGHT` or `SHARE`: what `amount` is.
        amount: of the whole loss, or of each of its parts by name; parts that are not named count for nothing.
        settings: the loss's keywords.
    """

    name: str
    kind: str
    amount: float | Mapping[str, float]
    settings: Mapping[str, Any]

    @property
    def active(self) -> bool:
        """Whether any of it is to be computed."""
        return any(self.amount.values()) if isinstance(self.amount, Mapping) else self.amount > 0

    def __str__(self) -> str:
        of_parts = isinstance(self.amount, Mapping)
        text = ", ".join(f"{k} {v:g}" for k, v in self.amount.items()) if of_parts else f"{self.amount:g}"  # type: ignore[union-attr]
        return text if self.kind == WEIGHT else f"{SHARE} {text}"


@dataclass(frozen=True)
class Portion:
    """The terms of an entry that have one weight, or one share, together.

    Attributes:
        entry: the loss's name.
        name: the entry's, and the part's where it is one: `fgd`, `output/box`.
        terms: those of the loss.
        kind, amount: as of an entry; `amount` is more than 0.
    """

    entry: str
    name: str
    terms: tuple[str, ...]
    kind: str
    amount: float


def parse_entry(name: str, settings: Mapping[str, Any] | None) -> Entry:
    """One entry of `kd_losses`, checked.

    Raises:
        DistillError: the loss or a keyword is unknown, a value is out of its range, or both a weight and a share are
            given.
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES, "kd_losses")
    where = f"kd_losses.{name}"
    if not isinstance(settings, Mapping | None):
        raise DistillError(f"{where} is {shown(settings)}; expected {{weight: 1.0, ...}} or {{share: 0.5, ...}}")
    values = dict(settings or {})
    if WEIGHT in values and SHARE in values:
        raise DistillError(
            f"{where} has a weight and a share; a share finds the weight by itself, so leave one of the two out"
        )
    kind = SHARE if SHARE in values else WEIGHT
    amount = values.pop(kind, 1.0)
    if isinstance(amount, Mapping):
        if not amount:
            raise DistillError(f"{where}: {kind} names no part; expected a number, or {{part: number, ...}}")
        amount = {str(part): _number(f"{kind}.{part}", value, where) for part, value in amount.items()}
    else:
        amount = _number(kind, amount, where)
    return Entry(name, kind, amount, keywords(LOSSES[name], values, where))


def _number(what: str, value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DistillError(f"{where}: {what} is {shown(value)}; expected a number of at least 0")
    return float(value)


def split_entry(entry: Entry, loss: DistillationLoss) -> list[Portion]:
    """The portions of an entry, in the order of the loss's terms.

    Of the parts, those that two heads of this kind leave nothing for (the objectness of YOLOv8) are passed over, so
    that one recipe serves all families.

    Raises:
        DistillError: a part is unknown, is switched off by the loss's own gain, or none is left.
    """
    if not isinstance(entry.amount, Mapping):
        return [Portion(entry.name, entry.name, loss.names, entry.kind, entry.amount)]
    where = f"kd_losses.{entry.name}"
    known = dict.fromkeys((*loss.names, *loss.gains, *loss.absent))
    for part, amount in entry.amount.items():
        if part not in known:
            raise unknown_name("part", part, known, f"{where}: {entry.kind}")
        if amount and not loss.gains.get(part, 1.0):
            raise DistillError(f"{where}: {entry.kind} gives {part} {amount:g}, but its gain is 0; leave one out")
    there = [name for name in loss.names if name not in loss.absent and entry.amount.get(name)]
    if not there:
        named, present = ", ".join(entry.amount), ", ".join(loss.names)
        raise DistillError(f"{where}: nothing is left of {named} between these two heads; it has {present}")
    return [Portion(entry.name, f"{entry.name}/{name}", (name,), entry.kind, entry.amount[name]) for name in there]
