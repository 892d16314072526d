"""What `--resume` means: which run, with which options, and whether it trains on, is evaluated or is extended."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import Checkpoint, load_checkpoint
from data.config import DatasetConfig, load_dataset_config
from data.synthetic import ensure_dataset
from data.unlabeled import MixedLoader
from engine.config.defaults import kind_of_checkpoint, resolve_hyp
from engine.config.hyp import AUTO, AUTO_NUMBERS, Hyp, hyp_from_dict
from engine.config.options import TrainOptions
from engine.distilling.teachers import OWN_AVERAGE
from engine.runfolder import RunFolder
from engine.training.data import TrainingData
from engine.training.loop import TrainState
from engine.training.state import newest_last
from engine.training.state_check import check_run, upgraded
from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.paths import file_hash
from utils.text import shown
from utils.yaml_io import load_yaml

TRAINING, EVALUATION, EXTENSION = "training", "evaluation", "extension"
PLACES = ("project", "name", "exist_ok")  # the folder that a run lies in, wherever that is by now
FREE = ("device", "workers", "cache", "noplots", "save_period", "patience", "teacher_device")
"""Flags that may change: they say where and how long is computed, not what."""
MOVED = ("data", "unlabeled", "teacher_weights")
"""Flags that name files, which may lie elsewhere by now; their content must be what it was."""
FILES = ("weights", "cfg", "inherit", *MOVED)


@dataclass
class Resumption:
    """How a run goes on.

    Attributes:
        checkpoint: its last.pt.
        kind: TRAINING goes on after the last epoch that was saved; EVALUATION is all that is left; EXTENSION trains a
            finished run for more epochs.
        options: with what the command line changes.
        hyp: of the run.
        state: its progress; that of an extension has a first epoch of its own.
        data: hashes and class names of its data set.
        given: names of the options that stand in the command line.
        changed: whether options are others than in the file.
        notes: what to tell the user, once messages can be printed.
    """

    checkpoint: Checkpoint
    kind: str
    options: TrainOptions
    hyp: Hyp
    state: TrainState
    data: Mapping[str, Any]
    given: Collection[str]
    changed: bool
    notes: list[str] = field(default_factory=list)


def plan_resumption(resume: str | bool, flags: TrainOptions, given: Collection[str] = ()) -> Resumption:
    """Reads the last.pt of a run and decides how it goes on.

    Args:
        resume: path of a last.pt or of its run folder, or True for the newest one.
        flags: the options of the command line.
        given: names of the options that stand there, as opposed to those that have their defaults.

    Raises:
        UserError: there is no such run, its file is damaged, or there is nothing left to do.
        UsageError: a flag is given that the run cannot take.
    """
    path = find_last(resume, flags, given)
    checkpoint = load_checkpoint(path)
    folder = path.resolve().parent.parent
    checkpoint.training = upgraded(checkpoint.training) if checkpoint.training else {}
    entry = checkpoint.training or checkpoint.extra.get("run")
    if not entry:
        last = path.with_name("last.pt")
        hint = f"name {last}, or " if path.name != "last.pt" and last.is_file() else ""
        raise UserError(
            f"--resume {path}: this run is finished (or the file is no last.pt of ours); "
            f"{hint}start a new one with --weights {path}"
        )
    before, hyp, state = check_run(checkpoint, entry)
    check_place(folder, flags, given if isinstance(resume, str) else ())
    options = changed_options(before, hyp, flags, given, checkpoint)
    changed = options != before
    manifest = RunFolder(folder, active=False).manifest()
    data = entry["data"] or {key: manifest[key] for key in ("train_hash", "val_hash") if key in manifest}
    plan = Resumption(checkpoint, TRAINING, options, hyp, state, data, given, changed)
    words = [f"--{_flag(key)} {shown(now)} instead of {shown(was)}" for key, was, now in differences(before, options)]
    if words:
        plan.notes.append(f"resuming with {', '.join(words)}")
    progress = "interrupted" if checkpoint.training else "finished" if manifest.get("finished") else "evaluating"
    _decide(plan, before, progress)
    plan.options = replace(plan.options, project=str(folder.parent), name=folder.name, exist_ok=True)
    plan.notes += edited_files(folder, before, hyp)
    if plan.kind != EVALUATION:
        check_teachers_unchanged(plan)
    return plan


def find_last(resume: str | bool, flags: TrainOptions, given: Collection[str]) -> Path:
    """The last.pt to go on from.

    Raises:
        UserError: there is none.
    """
    if not isinstance(resume, str):
        root = Path(flags.project) if "project" in given else Path(flags.project).parent
        return newest_last(root, flags.name if "name" in given else "")
    path = Path(resume)
    if path.is_dir():
        path = next((p for p in (path / "weights" / "last.pt", path / "last.pt") if p.is_file()), path)
    return path


def check_place(folder: Path, flags: TrainOptions, given: Collection[str]) -> None:
    """Raises a UsageError where --project or --name name another run folder than that of --resume."""
    asked = Path(flags.project) / flags.name
    for flag, is_it in (("project", asked.parent.resolve() == folder.parent), ("name", asked.name == folder.name)):
        if flag in given and not is_it:
            raise UsageError(
                f"--{flag} {shown(getattr(flags, flag))} does not count with --resume: the run goes on in its own "
                f"folder {folder}; leave the flag out, or move the folder and name its new place with --resume"
            )


def changed_options(
    before: TrainOptions, hyp: Hyp, flags: TrainOptions, given: Collection[str], checkpoint: Checkpoint
) -> TrainOptions:
    """The run's options with those of the command line that may change.

    Raises:
        UsageError: another value is given that the run cannot take.
    """
    changes: dict[str, Any] = {}
    for name in given:
        if name in PLACES or not hasattr(before, name):
            continue
        old, new = getattr(before, name), getattr(flags, name)
        if name == "teacher_weights":
            old, new = (before.teacher_weights, *before.more_teachers), (flags.teacher_weights, *flags.more_teachers)
        if name in (*FREE, "epochs") or (name in MOVED and all(old if isinstance(old, tuple) else (old,))):
            changes[name] = new
        elif not (_means(new, before, hyp, checkpoint) if name == "hyp" else _is_same(name, old, new, checkpoint)):
            raise UsageError(
                f"--{_flag(name)} {shown(new)} does not count with --resume: this run has {shown(old)}; "
                f"leave it out, or start a new run with --weights {checkpoint.path}"
            )
    if "teacher_weights" in changes:
        first, *more = changes["teacher_weights"]
        changes |= {"teacher_weights": first, "more_teachers": tuple(more)}
    return replace(before, **changes)


def _means(path: str, before: TrainOptions, hyp: Hyp, checkpoint: Checkpoint) -> bool:
    """Whether a hyper-parameter file says what the run has anyway."""
    kind = kind_of_checkpoint(checkpoint, fine_tuned=bool(before.weights))
    read = resolve_hyp(path, kind, bool(before.teacher_weights)).hyp
    numbers: dict[str, Any] = {key: getattr(hyp, key) for key in AUTO_NUMBERS if getattr(read, key) == AUTO}
    return replace(read, **numbers) == hyp


def _is_same(name: str, old: Any, new: Any, checkpoint: Checkpoint) -> bool:
    """Whether any other flag means what the run has anyway."""
    if name == "img_size":  # rounded up in the run
        stride = max(map(int, checkpoint.stride), default=1)
        return tuple(-(-size // stride) * stride for size in new) == old
    if name in FILES and old and new:
        return os.path.realpath(old) == os.path.realpath(new)
    return bool(old == new)


def _flag(name: str) -> str:
    return {"cache": "cache-images"}.get(name, name.replace("_", "-"))


def differences(before: TrainOptions, after: TrainOptions) -> list[tuple[str, Any, Any]]:
    """Name, old and new value of each option that has changed, but for the number of epochs, which has its own line."""
    was, now = before.to_dict(), after.to_dict()
    return [(key, was[key], now[key]) for key in was if was[key] != now[key] and key != "epochs"]


def _decide(plan: Resumption, before: TrainOptions, progress: str) -> None:
    """Sets what is left to do, by the epochs that are done and those that are asked for."""
    done, wanted, path = plan.state.epoch, plan.options.epochs, plan.checkpoint.path
    asked = "epochs" in plan.given and not (wanted == before.epochs and progress != "finished")
    over = plan.state.stopped or done >= before.epochs
    if not asked:
        plan.options = replace(plan.options, epochs=before.epochs)
        if progress == "finished":
            raise UserError(
                f"--resume {path}: this run is finished, after {done} epochs; to train it for more, add --epochs with "
                f"their new number, such as --epochs {2 * done}"
            )
        plan.kind = EVALUATION if progress == "evaluating" else TRAINING
        return
    if wanted < done or (wanted == done and progress == "finished"):
        least = f"more than {done}" if over else f"at least {done}"
        raise UsageError(f"--epochs {wanted}: {done} epochs of this run are done already; give {least}")
    if wanted == done:
        plan.kind = EVALUATION if progress == "evaluating" else TRAINING
    if wanted > done:
        _lengthen(plan, done if over else before.epochs)
    elif not over:
        plan.state.changes.append({"epoch": done, "from": before.epochs, "to": wanted})
        plan.notes.append(f"--epochs {wanted} instead of {before.epochs}: the training ends here, after {done} epochs")


def _lengthen(plan: Resumption, length: int) -> None:
    """Another number of epochs, beyond those that are done; `length` is what the training was to have before."""
    state, wanted = plan.state, plan.options.epochs
    state.changes.append({"epoch": state.epoch, "from": length, "to": wanted})
    if length > state.epoch:
        plan.notes.append(
            f"warning: --epochs {wanted} instead of {length}: the learning rates change from here on, and the result "
            f"will not equal an uninterrupted training of {wanted} epochs"
        )
        return
    plan.kind = EXTENSION
    state.first_epoch, state.stopped = state.epoch, False
    adapters = "; the adapters of the distillation start afresh" if plan.options.teacher_weights else ""
    plan.notes.append(
        f"extending a training of {length} epochs to {wanted}: from its final weights, with a warm-up and a schedule "
        f"of their own{adapters}"
    )


def edited_files(folder: Path, options: TrainOptions, hyp: Hyp) -> list[str]:
    """Warnings of a hyp.yaml or opt.yaml in the run folder that says something else than the run does."""
    warnings = []
    held = {"hyp.yaml": hyp.to_dict(), "opt.yaml": options.to_dict()}
    for name, values in held.items():
        path = folder / name
        if not os.path.lexists(path):
            continue
        try:
            edited = load_yaml(path)
            edited = hyp_from_dict(edited, str(path)).to_dict() if name == "hyp.yaml" else edited
        except UserError as error:
            warnings.append(f"warning: {error} (the run itself goes on with what its last.pt holds)")
            continue
        differs = [key for key in values if key not in PLACES and key in edited and edited[key] != values[key]]
        if differs:
            key = differs[0]
            more = f" and {len(differs) - 1} more" if len(differs) > 1 else ""
            warnings.append(
                f"warning: {path} is not what is trained with: {key} is {shown(edited[key])} there and "
                f"{shown(values[key])} in last.pt, which counts{more}"
            )
    return warnings


def check_teachers_unchanged(plan: Resumption) -> None:
    """A resumed distillation must go on under the very same teachers, wherever their files lie by now.

    Raises:
        UserError: a file is gone, or its content is another.
    """
    options = plan.options
    if not options.teacher_weights:
        return
    facts = plan.checkpoint.extra["teacher"]
    paths = (options.teacher_weights, *options.more_teachers)
    hashes = [fact["sha256"] for fact in (facts, *facts.get("more", ()))]
    if len(paths) != len(hashes):
        raise UsageError(f"--teacher-weights names {len(paths)} files, this run has {len(hashes)} teachers; name each")
    for path, known in zip(paths, hashes):
        if path != OWN_AVERAGE and not Path(path).is_file():
            raise UserError(f"the teacher {path} does not exist; name where it lies now with --teacher-weights")
        if ("" if path == OWN_AVERAGE else file_hash(path)) != known:
            raise UserError(
                f"the teacher {path} is not the file that this run began with (its content is another); "
                "put the original back, name it with --teacher-weights, or start a new run"
            )


def open_data(options: TrainOptions, plan: Resumption | None) -> DatasetConfig:
    """The data set of a training; one that a resumed training does not find may lie elsewhere."""
    try:
        return ensure_dataset(load_dataset_config(options.data))
    except UserError as error:
        if plan and "data" not in plan.given:
            raise UserError(f"{error}; a data set that lies elsewhere by now is named with --data") from error
        raise


def data_facts(config: DatasetConfig, data: TrainingData) -> dict[str, Any]:
    """What a data set is known by, wherever it lies: hashes of its splits and the names of its classes."""
    facts: dict[str, Any] = {"train_hash": data.train_index.content_hash, "val_hash": data.val_index.content_hash}
    if isinstance(data.train, MixedLoader):
        facts["unlabeled_hash"] = _listing_hash([record.path for record in data.train.unlabelled.dataset.records])
    return {**facts, "names": list(config.names)}


def _listing_hash(paths: Sequence[str]) -> str:
    """SHA-256 over names below the common folder and sizes of files."""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    lines = (f"{os.path.relpath(path, folder)}\0{os.stat(path).st_size}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def check_data(plan: Resumption, now: Mapping[str, Any]) -> bool:
    """Whether a run's data set is what it was; warns if it is not, and refuses one that --data names instead of it."""
    before = plan.data
    if not before:
        LOGGER.info("note: an earlier version began this run; whether its data have changed since cannot be told")
        return True
    parts = {
        "train_hash": ("training images or labels", "data"), "val_hash": ("validation images or labels", "data"),
        "names": ("class names", "data"), "unlabeled_hash": ("images without labels", "unlabeled"),
    }  # fmt: skip
    changed = [(what, flag) for key, (what, flag) in parts.items() if key in before and before[key] != now.get(key)]
    for what, flag in changed:
        if flag in plan.given:
            named = f"--{flag} {shown(getattr(plan.options, flag))}"
            raise UserError(
                f"{named} is not what this run was trained on: its {what} are others; name the same data, "
                f"wherever they lie, or start a new run with --weights {plan.checkpoint.path}"
            )
    if changed:
        LOGGER.warning(
            f"warning: the data have changed since this run began ({', '.join(what for what, _ in changed)}); "
            "it will not equal an uninterrupted one"
        )
    return not changed


def record_changes(run: RunFolder, plan: Resumption, options: TrainOptions, facts: Mapping[str, Any]) -> None:
    """Brings manifest.json and opt.yaml up to date with a run that goes on."""
    changes = plan.state.changes
    extended = [{"from": c["from"], "to": c["to"]} for c in changes if c["from"] == c["epoch"]]
    lengths = [c for c in changes if c["from"] != c["epoch"]]
    run.update_manifest({**facts, "finished": None, "extended": extended or None, "epochs_changed": lengths or None})
    if plan.changed:
        run.write_yaml("opt.yaml", options.to_dict())
