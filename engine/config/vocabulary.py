"""The distillation keys of the forks in the wild, put into ours.

Dozens of public forks share a set of keys (`kd_loss_type`, `feature_loss_type`, layers as "12,15,18"). A recipe written
for them is understood here; what has no counterpart is answered by the key to use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from utils.errors import UserError, unknown_name
from utils.logging import LOGGER
from utils.text import shown

FEATURE_LOSSES = {"mimic": "l2", "mgd": "mgd", "cwd": "cwd"}
LOGICAL_LOSSES = {"l2": "output", "AlignSoftTarget": "soft_label", "BCKD": "bckd"}
# The forks' `cosine` and `linear` restart within an epoch; everything here runs once over the training.
DECAYS = {
    "constant": "constant", "linear": "linear", "linear_epoch": "linear", "cosine": "cosine", "cosine_epoch": "cosine",
}  # fmt: skip
LOSS_TYPES = {"feature": ("feature",), "logical": ("logical",), "all": ("feature", "logical")}
LOSS_TABLES = {"feature": FEATURE_LOSSES, "logical": LOGICAL_LOSSES}

MAX_INDEX_DIGITS = 6  # of a layer
LAYER_KEYS = ("student_kd_layers", "teacher_kd_layers")
SCHEDULE_KEYS = ("kd_loss_decay", "kd_loss_epoch")
RECIPE_KEYS = (
    "kd_loss_type", *SCHEDULE_KEYS,
    "feature_loss_type", "feature_loss_ratio", "logical_loss_type", "logical_loss_ratio",
)  # fmt: skip
ELSEWHERE = {
    "teacher_weights": "name the teacher's checkpoint by the flag --teacher-weights",
    "teacher_cfg": "leave it out: a checkpoint brings its own architecture",
    "prune_model": "leave it out: a pruned checkpoint brings its own channels, for --weights and --teacher-weights",
}


def translate(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Hyper-parameters with the forks' distillation keys replaced by `kd_losses`, `kd_schedule` and lists of layers.

    Args:
        values: the content of a hyper-parameter file.
        where: its name, for messages.

    Raises:
        UserError: a key or value that has no counterpart; what to write instead is said.
    """
    result = dict(values)
    for key, remedy in ELSEWHERE.items():
        if key in result:
            raise UserError(f"{where}: {key} is no hyper-parameter; {remedy}")
    for key in LAYER_KEYS:
        if isinstance(result.get(key), str) and result[key] != "auto":
            result[key] = parse_layers(result[key], key, where)
    given = {key: result.pop(key) for key in RECIPE_KEYS if key in result}
    if not given:
        return result
    if result.get("kd_losses"):
        raise UserError(f"{where}: {', '.join(given)} beside kd_losses; keep one of the two, kd_losses says it all")
    if not (given.keys() <= set(SCHEDULE_KEYS) and any(result.get(key) is not None for key in LAYER_KEYS)):
        result["kd_losses"] = _losses(given, where)  # layers with a decay alone are for the default recipe's losses
    schedule = result.get("kd_schedule") or {}
    if not isinstance(schedule, Mapping):
        raise UserError(f"{where}: kd_schedule must be a mapping such as `shape: cosine`, found {shown(schedule)}")
    result["kd_schedule"] = _schedule(given, where) | dict(schedule)
    read = [f"{key}: {shown(result[key], 300)}" for key in ("kd_losses", "kd_schedule") if key in result]
    LOGGER.info(f"{where}: {', '.join(given)} read as {', '.join(read)}")
    return result


def parse_layers(text: str, key: str, where: str) -> list[int]:
    """The indices of a text such as "12,15,18".

    Raises:
        UserError: a part is no index; "0-1", which is the second output of layer 0 in the forks, among them.
    """
    layers = []
    for part in (piece.strip() for piece in text.split(",")):
        if part.isascii() and part.isdecimal() and len(part) <= MAX_INDEX_DIGITS:
            layers.append(int(part))
            continue
        first, dash, _ = part.partition("-")
        hint = (
            f"every layer has one output here, so write {first}"
            if dash and first.isdecimal() and len(first) <= MAX_INDEX_DIGITS
            else "write indices such as [12, 15, 18], or auto"
        )
        raise UserError(f"{where}: {key} has {shown(part)}; {hint} (train_distill.py --list-layers prints them)")
    return layers


def _losses(given: Mapping[str, Any], where: str) -> dict[str, dict[str, float]]:
    """`kd_losses` from the type, the losses' names, and their ratios."""
    kinds = [kind for kind in LOSS_TABLES if f"{kind}_loss_type" in given]
    if "kd_loss_type" in given:
        kinds = list(_look_up(given["kd_loss_type"], LOSS_TYPES, "kd_loss_type", where))
    losses = {}
    for kind in kinds:
        key = f"{kind}_loss_type"
        if key not in given:
            raise UserError(f"{where}: {key} is missing; one of {', '.join(LOSS_TABLES[kind])}, or write kd_losses")
        weight = given.get(f"{kind}_loss_ratio", 1.0)
        losses[_look_up(given[key], LOSS_TABLES[kind], key, where)] = {"weight": weight}
    if not losses:
        raise UserError(f"{where}: {', '.join(given)} name no loss; add kd_losses, such as `cwd: {{weight: 1.0}}`")
    return losses


def _schedule(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`kd_schedule` from the decay and the share of the training that is distilled."""
    schedule: dict[str, Any] = {}
    if "kd_loss_decay" in given:
        schedule["shape"] = _look_up(given["kd_loss_decay"], DECAYS, "kd_loss_decay", where)
    share = given.get("kd_loss_epoch", 1)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
        expected = "a share of the training (0 to 1), or an epoch"
        raise UserError(f"{where}: kd_loss_epoch is {shown(share)}; expected {expected}")
    if share != 1:
        schedule["stop_epoch"] = share
    return schedule


def _look_up(name: Any, table: Mapping[str, Any], key: str, where: str) -> Any:
    if not isinstance(name, str) or name not in table:
        error = unknown_name(key, name, table, where)
        raise UserError(f"{error}; known: {', '.join(table)}; kd_losses takes every loss of docs/methods.md")
    return table[name]
