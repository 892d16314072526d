"""What the state of a training must be before it is continued from: a file may be damaged, or changed by hand."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from checkpoints.checkpoint import Checkpoint
from engine.config.flags import training_options
from engine.config.hyp import Hyp, hyp_from_dict
from engine.config.options import IMPORTANCES, INITS, LATER, TrainOptions
from engine.training.loop import Trainer, TrainState
from utils.errors import UserError
from utils.text import printable, shown

LARGEST_STEP = 10**12
RUN_VERSION = 3
"""Of what a file says of its run. A file without a version has version 1, which knew no `data` and less `state`;
version 2 knew fewer `options`."""
LATER_HYP = {"ema_ramp": 2000.0}
"""Hyper-parameters that files of earlier versions lack, with the values that do what those versions did."""
ENTRIES: dict[str, type] = {"version": int, "options": dict, "state": dict, "data": dict, "world_size": int}
"""What a file says of its run, as long as the run can be continued or extended."""
TRAINING_ENTRIES: dict[str, type] = {
    **ENTRIES, "state_dict": dict, "ema_updates": int, "optimizer": dict, "scaler": dict, "extra_losses": list,
    "gradients": dict, "extra_gradients": list, "rng": dict,
}  # fmt: skip
"""What an exact continuation needs besides."""
SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


class UnfitError(ValueError):
    """A value of the file that no training of this run can have written."""


def unfit(checkpoint: Checkpoint, error: Exception) -> UserError:
    """The one line for a file that is damaged, or was changed by hand."""
    lines = str(error).splitlines() or [type(error).__name__]
    reason = printable(lines[min(1, len(lines) - 1)].strip(), 160)  # PyTorch says in the second line what is wrong
    return UserError(
        f"{checkpoint.path} does not fit the run that it belongs to ({reason}); "
        "put an unchanged copy of the file back, or start a new run with --weights"
    )


def require(truth: bool, what: str) -> None:
    """Raises an UnfitError that says `what` unless it is the truth."""
    if not truth:
        raise UnfitError(what)


def check_types(entry: Mapping[Any, Any], expected: Mapping[str, type]) -> None:
    """Refuses an entry that lacks one of these values, or has one of another type."""
    for name, kind in expected.items():
        require(name in entry, f"{name} is missing")
        require(isinstance(entry[name], kind) and type(entry[name]) is not bool, f"{name} is {shown(entry[name])}")


def upgraded(entry: Any) -> Any:
    """What a file of an earlier version says of its run, in the present form; whatever else it is stays as it is.

    What an earlier version did not know is not taken for damage. Anything newer is, as it is not understood.
    """
    version = entry.get("version") if isinstance(entry, Mapping) else None
    first = isinstance(entry, Mapping) and "version" not in entry
    if not first and (type(version) is not int or version != RUN_VERSION - 1):
        return entry
    options, state = entry.get("options"), entry.get("state")
    newer: dict[str, Any] = {"options": {**LATER, **options}} if isinstance(options, Mapping) else {}
    if first and isinstance(state, Mapping):
        fresh = asdict(TrainState())
        newer["state"] = {**{name: fresh[name] for name in ("first_epoch", "best_ap", "changes")}, **state}
    return {**({"data": {}} if first else {}), **entry, **newer, "version": RUN_VERSION}


def checked_options(values: Mapping[Any, Any]) -> TrainOptions:
    """The options of a run from its file, checked as the flags are.

    Raises:
        UnfitError, UserError: one is missing, unknown, of another type or out of its range.
    """
    known = {f.name: f.default for f in fields(TrainOptions)}
    for name in (*known, *values):
        require(name in values, f"the option {name} is missing")
        require(name in known, f"the option {shown(name)} is unknown")
        require(_is_like(values[name], known[name]), f"the option {name} is {shown(values[name])}")
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    require(len(plain["img_size"]) == 2 and len(plain["freeze"]) > 0, "img_size or freeze has another length")
    require(plain["cache"] in (None, "ram", "disk"), f"the option cache is {shown(plain['cache'])}")
    for name, known_values in (("init", INITS), ("inherit_importance", IMPORTANCES)):
        require(plain[name] in known_values, f"the option {name} is {shown(plain[name])}")
    require(0 <= plain["sparsity"] < math.inf, f"the option sparsity is {shown(plain['sparsity'])}")
    teachers = [path for path in (plain["teacher_weights"], *plain["more_teachers"]) if path]
    flags = {**plain, "teacher_weights": teachers}
    more = {name: flags.pop(name) for name in ("sparsity", "sparsity_schedule", "more_teachers")}
    return TrainOptions(**{**training_options(argparse.Namespace(**flags)), **more})


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        kind = int if default else str
        return isinstance(value, list | tuple) and all(type(item) is kind for item in value)
    if default is None:
        return value is None or type(value) is str
    if type(default) is float:
        return type(value) in (int, float)
    return type(value) is type(default)


def checked_hyp(values: Mapping[Any, Any], where: str) -> Hyp:
    """The hyper-parameters of a run from its file; every one must be there."""
    values = {**LATER_HYP, **values}
    for name in (f.name for f in fields(Hyp)):
        require(name in values, f"the hyper-parameter {name} is missing")
    return hyp_from_dict(values, where)


def checked_state(values: Mapping[Any, Any], checkpoint: Checkpoint, options: TrainOptions) -> TrainState:
    """The progress of a run from its file, in itself and beside what the file says elsewhere."""
    known = {f.name for f in fields(TrainState)}
    for name in (*known, *values):
        require(name in values, f"state: {name} is missing")
        require(name in known, f"state: {shown(name)} is unknown")
    state = TrainState(**values)
    wholes = (state.epoch, state.first_epoch, state.best_epoch, state.last_step)
    require(all(type(v) is int for v in wholes), "state: an epoch or step is no whole number")
    require(0 <= state.first_epoch <= state.epoch <= options.epochs, f"state: epoch {shown(state.epoch)}")
    require(checkpoint.epoch == state.epoch - 1, f"epoch is {checkpoint.epoch}, its state's {shown(state.epoch)}")
    require(-1 <= state.best_epoch < max(state.epoch, 1), f"state: best_epoch is {shown(state.best_epoch)}")
    require(-1 <= state.last_step < LARGEST_STEP, f"state: last_step is {shown(state.last_step)}")
    require(_is_number(state.best_fitness) and -1 <= state.best_fitness <= 1, "state: best_fitness")
    require(checkpoint.best_fitness == state.best_fitness, "best_fitness is not that of its state")
    require(state.best_ap is None or _is_number(state.best_ap), "state: best_ap")
    require(type(state.stopped) is bool, "state: stopped")
    require(isinstance(state.metrics, dict) and all(map(_is_number, state.metrics.values())), "state: metrics")
    require(isinstance(state.class_ap, list) and all(map(_is_number, state.class_ap)), "state: class_ap")
    require(len(state.class_ap) in (0, checkpoint.nc), "state: class_ap is of another number of classes")
    require(isinstance(state.changes, list), "state: changes")
    for change in state.changes:
        plain = isinstance(change, dict) and change.keys() == {"epoch", "from", "to"}
        require(plain and all(type(v) is int for v in change.values()), "state: changes")
    return state


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def check_run(checkpoint: Checkpoint, entry: Mapping[str, Any]) -> tuple[TrainOptions, Hyp, TrainState]:
    """What a file says of its run, checked; `entry` is its `training`, or the `run` of a finished one.

    Raises:
        UserError: the file is damaged, or was changed by hand.
    """
    try:
        require(isinstance(entry, Mapping), "run is no mapping")
        check_types(entry, TRAINING_ENTRIES if checkpoint.training else ENTRIES)
        require(entry["version"] == RUN_VERSION, f"version {shown(entry['version'])} of a newer software; update this")
        require(entry["world_size"] >= 1, f"world_size is {entry['world_size']}")
        require(all(isinstance(v, str | list) for v in entry["data"].values()), "data")
        options = checked_options(entry["options"])
        state = checked_state(entry["state"], checkpoint, options)
        _check_teacher_facts(checkpoint.extra.get("teacher"), options)
        return options, checked_hyp(checkpoint.hyp, str(checkpoint.path)), state
    except (UnfitError, UserError) as error:
        raise unfit(checkpoint, error) from error


def _check_teacher_facts(facts: Any, options: TrainOptions) -> None:
    require(isinstance(facts, dict), "teacher is missing")
    if not options.teacher_weights:
        return
    more = facts.get("more", [])
    require(isinstance(more, list) and len(more) == len(options.more_teachers), "teacher: more")
    for fact in (facts, *more):
        require(isinstance(fact, dict) and isinstance(fact.get("sha256"), str), "teacher: sha256")


def check_tensors(
    found: Any, expected: Mapping[str, Tensor], what: str, some: bool = False, finite: bool = True
) -> dict[str, Tensor]:
    """`found` itself if it holds tensors of the expected names, shapes and types.

    Args:
        found: from a file.
        expected: what the run has.
        what: how to call it.
        some: names may be missing.
        finite: refuse NaN and infinite values.
    """
    require(isinstance(found, Mapping), f"{what} is {shown(found)}")
    for name in found:
        require(name in expected, f"{what}: {shown(name)} is unknown")
    for name, wanted in expected.items():
        if some and name not in found:
            continue
        require(name in found, f"{what}: {name} is missing")
        _check_tensor(found[name], wanted, f"{what}: {name}", finite)
    return dict(found)


def _check_tensor(value: Any, wanted: Tensor, what: str, finite: bool = True) -> None:
    require(isinstance(value, Tensor), f"{what} is no tensor")
    require(value.shape == wanted.shape, f"size mismatch for {what}: {tuple(value.shape)}, {tuple(wanted.shape)} here")
    require(value.dtype == wanted.dtype, f"{what} is {value.dtype}, {wanted.dtype} here")
    require(not finite or not value.is_floating_point() or bool(value.isfinite().all()), f"{what} is not finite")


def check_optimizer(found: Mapping[Any, Any], trainer: Trainer, stepped: bool) -> dict[str, Any]:
    """A state dict for the run's optimizer: the buffers of the file, with the groups as they are here.

    Args:
        found: the file's.
        trainer: the run.
        stepped: whether the optimizer has made a step for certain.
    """
    fresh = trainer.optimizer.state_dict()
    check_types(found, {"state": dict, "param_groups": list})
    groups = found["param_groups"]
    require(len(groups) == len(fresh["param_groups"]), f"optimizer: {len(groups)} groups")
    for theirs, ours in zip(groups, fresh["param_groups"]):
        for key in ("params", "kind", "weight_decay"):
            require(isinstance(theirs, dict) and theirs.get(key) == ours[key], f"optimizer: {key} of a group differs")
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    sgd = isinstance(trainer.optimizer, torch.optim.SGD)
    buffers = {"momentum_buffer"} if sgd else {"step", "exp_avg", "exp_avg_sq"}
    for number, values in found["state"].items():
        require(type(number) is int and 0 <= number < len(parameters), f"optimizer: parameter {shown(number)}")
        require(isinstance(values, dict) and values.keys() == buffers, f"optimizer: state of parameter {number}")
        for name, value in values.items():
            wanted = torch.zeros(()) if name == "step" else parameters[number]
            _check_tensor(value, wanted, f"optimizer: {name} of parameter {number}")
    kept = stepped and (not sgd or trainer.hyp.momentum > 0)
    require(bool(found["state"]) or not kept, "optimizer: state is empty")
    return {"state": found["state"], "param_groups": fresh["param_groups"]}


def check_scaler(found: Mapping[Any, Any], enabled: bool) -> None:
    """Refuses a loss scale that is none; an empty one is of a run that began on a CPU."""
    for name in SCALER if enabled and found else tuple(found):
        value: Any = found.get(name)
        require(_is_number(value) and 0 <= value < math.inf, f"scaler: {shown(name)} is {shown(value)}")
    require(not found or found.get("scale", 0) > 0, "scaler: scale")


def check_pending(entry: Mapping[str, Any], trainer: Trainer) -> None:
    """Refuses gradients that cannot be those of the batches since the last step of the optimizer."""
    done = entry["state"]["epoch"] * len(trainer.loader)
    last = entry["state"]["last_step"]
    require(last < max(done, 1), f"state: last_step is {last}, after {done} iterations")
    require(bool(entry["gradients"]) == (last < done - 1), "gradients are not those that wait for their step")
