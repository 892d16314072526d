"""The methods, one a file; a new one is a file and a line in this table."""

from __future__ import annotations

from .base import DistillationLoss
from .fgd import FGD
from .l2 import L2
from .output import Output

LOSSES: dict[str, type[DistillationLoss]] = {
    "fgd": FGD,
    "l2": L2,
    "output": Output,
}
