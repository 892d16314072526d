"""What a training keeps: the student's file, and beside it all that an exact continuation needs."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, to_payload
from engine.runfolder import RunFolder
from engine.training.loop import Trainer, TrainState
from engine.training.state_check import (
    ENTRIES,
    RUN_VERSION,
    TRAINING_ENTRIES,
    check_optimizer,
    check_pending,
    check_scaler,
    check_tensors,
    check_types,
    require,
    unfit,
    upgraded,
)
from models.yolo import Model
from utils.errors import UserError
from utils.logging import LOGGER
from utils.text import shown


def model_entry(model: Model) -> dict[str, Any]:
    """A model as plain values and tensors, enough to build it anew."""
    return {
        "yaml": model.yaml,
        "state_dict": {k: v.detach().cpu().clone() for k, v in model.state_dict().items()},
        "names": list(model.names),
        "nc": int(model.nc),
        "stride": [float(s) for s in model.stride],
        "family": model.family,
    }


def save_training(trainer: Trainer, teacher: dict[str, Any] | None = None, data: dict[str, Any] | None = None) -> None:
    """Writes last.pt after an epoch, best.pt when this epoch is the best, and the periodic copies.

    best.pt is a plain model file of the averaged weights. last.pt holds a `training` entry besides, which is
    taken out at the end of the training. While no epoch has been validated the latest one is the best, as it is with
    --nosave, where the last is the only one that is kept.

    Args:
        trainer: what is saved.
        teacher: paths and hashes of the teachers.
        data: hashes and class names of the data set, by which a change of it is noticed.
    """
    options, state, run = trainer.options, trainer.state, trainer.run_folder
    final = state.stopped or state.epoch >= options.epochs
    if options.nosave and not final:
        return
    plain = plain_entries(trainer, teacher)
    if state.best_epoch in (state.epoch - 1, -1) or options.nosave:
        save_checkpoint(run.best, plain)
    if options.save_period > 0 and state.epoch % options.save_period == 0:
        save_checkpoint(run.weights / f"epoch{state.epoch:03d}.pt", plain)
    save_last(trainer, teacher, data)


def save_last(trainer: Trainer, teacher: dict[str, Any] | None = None, data: dict[str, Any] | None = None) -> None:
    """Writes last.pt alone."""
    entries = {**plain_entries(trainer, teacher), "training": training_entry(trainer, data)}
    save_checkpoint(trainer.run_folder.last, entries)


def plain_entries(trainer: Trainer, teacher: dict[str, Any] | None) -> dict[str, Any]:
    """A file of the averaged weights, as at the end of a training."""
    state = trainer.state
    return {
        "model": model_entry(trainer.ema.module),  # type: ignore[arg-type]
        "hyp": trainer.hyp.to_dict(),
        "epoch": state.epoch - 1,
        "metrics": dict(state.metrics),
        "best_fitness": state.best_fitness,
        "teacher": teacher or {},
    }


def training_entry(trainer: Trainer, data: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that makes a continued training equal one that was never interrupted."""
    state = trainer.state
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    extra_gradients = [
        {name: p.grad for name, p in extra.named_parameters() if p.grad is not None} for extra in trainer.extra_modules
    ]
    return {
        "version": RUN_VERSION,
        "options": trainer.options.to_dict(),
        "data": data or {},
        "world_size": trainer.world.size,
        "state": asdict(state),
        "state_dict": trainer.model.state_dict(),
        "ema_updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "extra_losses": [extra.state_dict() for extra in trainer.extra_modules],
        "gradients": gradients,
        "extra_gradients": extra_gradients,
        "rng": rng_states(),
    }


def strip_run(run: RunFolder) -> None:
    """Makes a plain model file of last.pt, as best.pt is one; it still says of its run what an extension needs.

    A file that is stripped already stays as it is, so this can be repeated after whatever ended it.
    """
    checkpoint = load_checkpoint(run.last)
    if checkpoint.training:
        entry = upgraded(checkpoint.training)
        facts = {key: entry[key] for key in ENTRIES}
        save_checkpoint(run.last, {**to_payload(checkpoint), "run": facts})


def restore_training(trainer: Trainer, checkpoint: Checkpoint, same_data: bool = True) -> None:
    """Puts a trainer back to where `training_entry` was taken.

    Args:
        trainer: of the same options.
        checkpoint: what `save_training` wrote.
        same_data: whether the data set is what it was; if not, an epoch may have another number of batches by now.

    Raises:
        UserError: the file is damaged, or was changed by hand.
    """
    entry = checkpoint.training
    try:
        _check_tensors(trainer, checkpoint, same_data)
        stepped = entry["ema_updates"] > 0 and not entry["scaler"]  # a GPU's first steps may have been left out
        optimizer = check_optimizer(entry["optimizer"], trainer, stepped)
        trainer.model.load_state_dict(entry["state_dict"])
        trainer.ema.module.load_state_dict(checkpoint.state_dict)
        trainer.ema.updates = entry["ema_updates"]
        trainer.optimizer.load_state_dict(optimizer)
        if entry["scaler"]:  # empty in a run that began on a CPU
            trainer.scaler.load_state_dict(entry["scaler"])
        for extra, state in zip(trainer.extra_modules, entry["extra_losses"]):
            extra.load_state_dict(state)
        trainer.state = TrainState(**entry["state"])
        set_rng_states(entry["rng"])
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise unfit(checkpoint, error) from error
    if not same_data:
        trainer.state.last_step = min(trainer.state.last_step, trainer.state.epoch * len(trainer.loader) - 1)
    # Gradients lie in the file times the loss scale of its device, which is 1 on a CPU.
    factor = trainer.scaler.get_scale() / entry["scaler"].get("scale", 1.0)
    _restore_gradients(trainer.model, entry["gradients"], factor)
    for extra, gradients in zip(trainer.extra_modules, entry["extra_gradients"]):
        _restore_gradients(extra, gradients, factor)
    trainer.results.resume(trainer.state.epoch)
    if entry["world_size"] != trainer.world.size:
        LOGGER.warning(
            f"warning: this run began with {entry['world_size']} process(es) and goes on with {trainer.world.size}; "
            "it will not equal an uninterrupted one"
        )


def _check_tensors(trainer: Trainer, checkpoint: Checkpoint, same_data: bool) -> None:
    """Refuses weights, adapters and gradients that are not those of this trainer's modules."""
    entry = checkpoint.training
    check_types(entry, TRAINING_ENTRIES)
    require(entry["ema_updates"] >= 0, f"ema_updates is {shown(entry['ema_updates'])}")
    num_extra = len(trainer.extra_losses)
    for key in ("extra_losses", "extra_gradients"):
        require(len(entry[key]) == num_extra, f"{len(entry[key])} extra losses in the file, {num_extra} in this run")
    check_tensors(entry["state_dict"], trainer.model.state_dict(), "state_dict")
    check_tensors(checkpoint.state_dict, trainer.ema.module.state_dict(), "model")
    for extra, state in zip(trainer.extra_modules, entry["extra_losses"]):
        check_tensors(state, extra.state_dict(), "extra_losses")
    check_scaler(entry["scaler"], trainer.scaler.is_enabled())
    finite = not entry["scaler"]  # an overflow may wait for the loss scale to fall
    modules, gradients = (trainer.model, *trainer.extra_modules), (entry["gradients"], *entry["extra_gradients"])
    for module, found in zip(modules, gradients):
        check_tensors(found, dict(module.named_parameters()), "gradients", some=True, finite=finite)
    if same_data and entry["world_size"] == trainer.world.size:
        check_pending(entry, trainer)


def _restore_gradients(module: nn.Module, gradients: dict[str, torch.Tensor], factor: float) -> None:
    for name, parameter in module.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device) * factor


def rng_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global generators, as plain values and tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_rng_states(states: dict[str, Any]) -> None:
    """Sets the generators as `rng_states` found them; raises a built-in error for anything else."""
    version, words, gauss = states["python"]
    name, keys, position, has_gauss, cached = states["numpy"]
    require(len(keys) == 624 and 0 <= position <= 624, "rng: numpy")  # numpy itself believes the position
    torch_state = states["torch"]
    require(torch_state.dtype == torch.uint8 and torch_state.shape == torch.get_rng_state().shape, "rng: torch")
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch_state.cpu())
    if "cuda" in states and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def run_state(folder: str | Path) -> str:
    """How far the training of a run folder has come, wherever it was killed.

    Returns:
        "empty" without a last.pt, "interrupted" while epochs may be left, "evaluating" where the training is over and
        its final evaluation is not, "finished" after that. `--resume` goes on with the two in the middle.

    Raises:
        UserError: last.pt is damaged.
    """
    run = RunFolder(Path(folder), active=False)
    if not run.last.is_file():
        return "empty"
    if load_checkpoint(run.last).training:
        return "interrupted"
    return "finished" if run.manifest().get("finished") else "evaluating"


def newest_last(root: Path, name: str = "") -> Path:
    """The most recently written last.pt below a folder of runs, of the runs of this name if one is given."""
    found = [path for path in root.rglob("last*.pt") if name in ("", path.parent.parent.name)]
    if not found:
        of_name = f" of a run {name!r}" if name else ""
        raise UserError(
            f"--resume: no last.pt{of_name} below {root}; name the checkpoint: --resume runs/train/exp/weights/last.pt"
        )
    return max(found, key=lambda path: path.stat().st_mtime)
