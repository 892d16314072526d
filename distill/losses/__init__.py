"""The methods, one a file; a new one is a file and a line in this table."""

from __future__ import annotations

from .at import AttentionTransfer
from .base import DistillationLoss
from .bckd import BCKD
from .box import Box
from .crosskd import CrossKD
from .cwd import CWD
from .fbkd import FBKD
from .fgd import FGD
from .l2 import L2
from .ld import LD
from .mgd import MGD
from .output import Output
from .pkd import PKD
from .score_l2 import ScoreL2
from .self_distillation import SelfDistillation
from .soft_label import SoftLabel

LOSSES: dict[str, type[DistillationLoss]] = {
    # on features
    "fgd": FGD,
    "cwd": CWD,
    "mgd": MGD,
    "pkd": PKD,
    "at": AttentionTransfer,
    "fbkd": FBKD,
    "l2": L2,
    "score_l2": ScoreL2,
    "crosskd": CrossKD,
    # on the output
    "output": Output,
    "soft_label": SoftLabel,
    "box": Box,
    "ld": LD,
    "bckd": BCKD,
    "self_distillation": SelfDistillation,
}
