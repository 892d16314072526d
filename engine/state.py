"""What a training keeps: the student's file, and beside it all that an exact continuation needs."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from engine.loop import Trainer, TrainState
from engine.runfolder import RunFolder
from models.yolo import Model
from utils.errors import UserError
from utils.logging import LOGGER


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


def save_training(trainer: Trainer, teacher: dict[str, Any] | None = None) -> None:
    """Writes last.pt after an epoch, best.pt when this epoch is the best, and the periodic copies.

    best.pt is a plain model file of the averaged weights. last.pt holds a `training` entry besides, which is
    taken out at the end of the training. While no epoch has been validated the latest one is the best, as it is with
    --nosave, where the last is the only one that is kept.
    """
    options, state, run = trainer.options, trainer.state, trainer.run_folder
    final = state.stopped or state.epoch >= options.epochs
    if options.nosave and not final:
        return
    plain = {
        "model": model_entry(trainer.ema.module),  # type: ignore[arg-type]
        "hyp": trainer.hyp.to_dict(),
        "epoch": state.epoch - 1,
        "metrics": dict(state.metrics),
        "best_fitness": state.best_fitness,
        "teacher": teacher or {},
    }
    if state.best_epoch in (state.epoch - 1, -1) or options.nosave:
        save_checkpoint(run.best, plain)
    if options.save_period > 0 and state.epoch % options.save_period == 0:
        save_checkpoint(run.weights / f"epoch{state.epoch:03d}.pt", plain)
    save_checkpoint(run.last, {**plain, "training": training_entry(trainer)})


def training_entry(trainer: Trainer) -> dict[str, Any]:
    """Everything that makes a continued training equal one that was never interrupted."""
    state = trainer.state
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    extra_gradients = [
        {name: p.grad for name, p in extra.named_parameters() if p.grad is not None} for extra in trainer.extra_losses
    ]
    return {
        "options": trainer.options.to_dict(),
        "world_size": trainer.world.size,
        "state": asdict(state),
        "state_dict": trainer.model.state_dict(),
        "ema_updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "extra_losses": [extra.state_dict() for extra in trainer.extra_losses],
        "gradients": gradients,
        "extra_gradients": extra_gradients,
        "rng": rng_states(),
    }


def restore_training(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Puts a trainer back to where `training_entry` was taken."""
    entry = checkpoint.training
    try:
        if len(entry["extra_losses"]) != len(trainer.extra_losses):
            raise ValueError(
                f"{len(entry['extra_losses'])} extra losses in the file, {len(trainer.extra_losses)} in this run"
            )
        trainer.model.load_state_dict(entry["state_dict"])
        trainer.ema.module.load_state_dict(checkpoint.state_dict)
        trainer.ema.updates = entry["ema_updates"]
        trainer.optimizer.load_state_dict(entry["optimizer"])
        if entry["scaler"]:  # empty in a run that began on a CPU
            trainer.scaler.load_state_dict(entry["scaler"])
        for extra, state in zip(trainer.extra_losses, entry["extra_losses"]):
            extra.load_state_dict(state)
        trainer.state = TrainState(**entry["state"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        lines = str(error).splitlines()
        reason = lines[min(1, len(lines) - 1)].strip()  # PyTorch says in the second line what is wrong
        raise UserError(
            f"{checkpoint.path} does not fit the run that it belongs to ({reason}); "
            "restore the run's hyp.yaml and opt.yaml, or start anew with --weights"
        ) from error
    # Gradients lie in the file times the loss scale of its device, which is 1 on a CPU.
    factor = trainer.scaler.get_scale() / entry["scaler"].get("scale", 1.0)
    _restore_gradients(trainer.model, entry["gradients"], factor)
    for extra, gradients in zip(trainer.extra_losses, entry["extra_gradients"]):
        _restore_gradients(extra, gradients, factor)
    set_rng_states(entry["rng"])
    trainer.results.resume(trainer.state.epoch)
    if entry["world_size"] != trainer.world.size:
        LOGGER.warning(
            f"warning: this run began with {entry['world_size']} process(es) and goes on with {trainer.world.size}; "
            "it will not equal an uninterrupted one"
        )


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
    """Sets the generators as `rng_states` found them."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def run_state(folder: str | Path) -> str:
    """How far the training of a run folder has come, wherever it was killed.

    Returns:
        "empty" without a last.pt, "interrupted" while epochs may be left, "evaluating" where the training is over and its
        final evaluation is not, "finished" after that. `--resume` goes on with the two in the middle.

    Raises:
        UserError: last.pt is damaged.
    """
    run = RunFolder(Path(folder), active=False)
    if not run.last.is_file():
        return "empty"
    if load_checkpoint(run.last).training:
        return "interrupted"
    return "finished" if run.manifest().get("finished") else "evaluating"


def newest_last(root: Path) -> Path:
    """The most recently written last.pt below a folder of runs."""
    found = sorted(root.rglob("last*.pt"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(
            f"--resume: no last.pt below {root}; name the checkpoint: --resume runs/train/exp/weights/last.pt"
        )
    return found[-1]
