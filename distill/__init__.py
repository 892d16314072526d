"""Knowledge distillation for detectors. Depends on torch alone; the folder can be copied into another code base."""

from .context import DistillContext, DistillSetup, HeadSpec, Level
from .distiller import Distiller
from .errors import DistillError
from .losses import LOSSES
from .pairing import auto_layers
from .preflight import Preflight
from .schedule import KDSchedule
from .taps import remove_hooks

__all__ = [
    "LOSSES",
    "DistillContext",
    "DistillError",
    "DistillSetup",
    "Distiller",
    "HeadSpec",
    "KDSchedule",
    "Level",
    "Preflight",
    "auto_layers",
    "remove_hooks",
]
