"""Structured pruning: channels are removed, so the network is smaller and faster wherever it runs.

    from pruning import prune
    result = prune(model, 0.5, by="gflops")

Imports torch, torch-pruning and itself only.
"""

from pruning.errors import PruneError
from pruning.importance import IMPORTANCES
from pruning.inherit import inherit, labels_for_teacher, plan_inheritance
from pruning.inheritance import Inheritance
from pruning.pruner import LayerWidths, PruneResult, PruneSettings, prune
from pruning.size import Size, measure_latency

__all__ = [
    "IMPORTANCES",
    "Inheritance",
    "LayerWidths",
    "PruneError",
    "PruneResult",
    "PruneSettings",
    "Size",
    "inherit",
    "labels_for_teacher",
    "measure_latency",
    "plan_inheritance",
    "prune",
]
