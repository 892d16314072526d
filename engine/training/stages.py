"""Whether what one training of several left behind is what would be trained now, however it was changed since."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import load_checkpoint
from data.config import load_dataset_config
from data.labels import build_index
from engine.config.defaults import kind_of_checkpoint, resolve_hyp
from engine.config.hyp import AUTO, AUTO_NUMBERS, hyp_from_dict
from engine.config.options import TrainOptions
from engine.runfolder import RunFolder
from engine.training.state_check import upgraded
from utils.errors import UserError
from utils.logging import LOGGER
from utils.paths import file_hash
from utils.text import shown, shown_path

FREE_FLAGS = ("device", "workers", "cache", "noplots")  # change nothing about what a training gives
PLACE_FLAGS = ("exist_ok", "project", "name")  # the folder is looked for at its place, wherever that was
FILES = ("weights", "hyp", "teacher_weights", "inherit")  # whose content counts


def check_stage(folder: Path, training: TrainOptions, free: Collection[str] = FREE_FLAGS) -> None:
    """Refuses to take the training in a run folder for another one: of other options, recipe, start or teacher.

    Data that have changed since are a warning.

    Args:
        folder: with a last.pt, whether finished or not.
        training: what would be trained.
        free: options that may be others.

    Raises:
        UserError: the training is another one.
    """
    run = RunFolder(folder, active=False)
    checkpoint = load_checkpoint(run.last)
    entry = upgraded(checkpoint.training or checkpoint.extra.get("run") or {})
    before, now = entry.get("options", {}), training.to_dict()
    stride = int(max(checkpoint.stride, default=1))
    now["img_size"] = [-(-side // stride) * stride for side in now["img_size"]]  # rounded up in the run
    for key, value in now.items():
        if key not in (*free, *PLACE_FLAGS, *FILES) and before.get(key, value) != value:
            raise _another(folder, f"--{key.replace('_', '-')} was {shown(before[key])}, now {shown(value)}")
    if checkpoint.hyp:
        kind = kind_of_checkpoint(checkpoint, fine_tuned=bool(training.weights))
        wanted = resolve_hyp(training.hyp, kind, bool(training.teacher_weights)).hyp.to_dict()
        was = hyp_from_dict(checkpoint.hyp, str(run.last)).to_dict()
        chosen = [key for key in AUTO_NUMBERS if wanted[key] == AUTO]  # by the length of the training, which counts
        key = next((key for key in was if was[key] != wanted[key] and key not in chosen), "")
        if key:
            raise _another(folder, f"its hyper-parameters are others: {key} was {shown(was[key])}, "
                           f"now {shown(wanted[key])}")  # fmt: skip
    manifest = run.manifest()
    hashes = {
        "teacher_weights": checkpoint.extra.get("teacher"),
        "weights": manifest.get("start"),
        "inherit": manifest.get("init"),
    }
    for name, facts in hashes.items():
        known, path = facts.get("sha256") if isinstance(facts, dict) else "", getattr(training, name)
        if not known and before.get(name, path) != path:
            raise _another(folder, f"--{name.replace('_', '-')} was {shown(before[name])}, now {shown(path)}")
        if known and Path(path).is_file() and file_hash(path) != known:
            raise _another(folder, f"the content of {shown_path(path)} was another")
    tell_of_changed_data(run, training.data)


def _another(folder: Path, what: str) -> UserError:
    remedy = "remove that folder, or use another --name"
    return UserError(f"{shown_path(folder)} holds another training ({what}); {remedy}")


def tell_of_changed_data(run: RunFolder, data: str) -> None:
    """Warns of a run whose data set holds something else by now than it was trained and measured on."""
    manifest = run.manifest()
    known = {key: manifest[key] for key in ("train_hash", "val_hash") if key in manifest}
    if known and any(_data_hashes(data)[key] != value for key, value in known.items()):
        LOGGER.warning(
            f"warning: the data of {data} have changed since {run.path} was trained; remove that folder to train anew"
        )


@functools.cache
def _data_hashes(data: str) -> dict[str, Any]:
    """What `data_facts` knows a data set by; in one command a data set is looked through once."""
    config = load_dataset_config(data)
    options: dict[str, Any] = {"single_class": True, "quiet": True}  # the numbers of the classes do not count here
    return {f"{name}_hash": build_index(config.split(name), config.nc, **options).content_hash
            for name in ("train", "val")}  # fmt: skip
