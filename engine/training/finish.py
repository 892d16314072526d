"""The end of a training: plain model files, the figures and pictures of the best one, the mark that it is finished."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from checkpoints.checkpoint import load_checkpoint, save_checkpoint, to_payload
from data.loader import DetectionLoader, validation_loader
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.inference.evaluate import VALIDATION_IOU, evaluate
from engine.runfolder import RunFolder
from engine.training.data import TrainingData, split_index
from engine.training.distributed import World
from engine.training.loop import Trainer, TrainState
from engine.training.model import resumed_model
from engine.training.reports import final_report
from engine.training.resume import Resumption, check_data, open_data, record_changes
from engine.training.state import strip_run
from engine.training.state_check import UnfitError, check_tensors
from models.yolo import Model
from utils.errors import UserError
from utils.logging import LOGGER
from utils.text import printable


@dataclass
class TrainResult:
    """Where a training ended: its folder, the metrics of best.pt, and the epoch that best.pt comes from (from 0)."""

    folder: Path
    metrics: dict[str, float]
    best_epoch: int


def finish(trainer: Trainer, state: TrainState, data: TrainingData) -> TrainResult:
    """Strips the checkpoints to plain model files, evaluates the best one and draws the reports.

    Only the main process has metrics to return.
    """
    run = trainer.run_folder
    if not trainer.world.is_main:
        return TrainResult(run.path, {}, state.best_epoch)
    assert data.val is not None
    strip_run(run)
    network = cast(Model, trainer.ema.module)
    return final_evaluation(run, trainer.options, trainer.hyp, state, network, data.val, trainer.device)


def evaluate_trained(plan: Resumption, world: World, device: torch.device) -> TrainResult:
    """What is left of a run that ended in its final evaluation."""
    options = plan.options
    run = RunFolder.create(options.project, options.name, options.exist_ok, world.is_main)
    if not world.is_main:
        return TrainResult(run.path, {}, plan.state.best_epoch)
    try:
        LOGGER.info(f"resuming {run.path} with its final evaluation")
        strip_run(run)
        config = open_data(options, plan)
        nc, names = (1, ("item",)) if options.single_cls else (config.nc, config.names)
        model = resumed_model(plan.checkpoint, nc, names)
        index = split_index(options, config, "val")
        facts = {"val_hash": index.content_hash, "names": list(config.names)}
        check_data(plan, {**plan.data, **facts})
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        stride = int(max(model.stride))
        loader = validation_loader(
            index, options.img_size[-1], options.batch_size // world.size, options.workers, stride
        )
        record_changes(run, plan, options, {})
        return final_evaluation(run, options, plan.hyp, plan.state, model, loader, device)
    finally:
        run.release()


def final_evaluation(
    run: RunFolder,
    options: TrainOptions,
    hyp: Hyp,
    state: TrainState,
    network: Model,
    loader: DetectionLoader,
    device: torch.device,
) -> TrainResult:
    """The figures and pictures of best.pt, after which a run is finished.

    Args:
        run: the run folder, with stripped checkpoints.
        options, hyp: of the run.
        state: of its end.
        network: takes the weights of best.pt.
        loader: validation images.
        device: where the network is.
    """
    epoch = load_best(run, network)
    names = list(network.names)
    result = evaluate(
        network, loader, names=names, device=device, iou_thres=VALIDATION_IOU,
        save_dir=run.path, plots=not options.noplots,
    )  # fmt: skip
    final_report(run, result, options, hyp)
    run.update_manifest({"finished": {"epochs": state.epoch, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}})
    return TrainResult(run.path, result.as_row(), epoch)


def load_best(run: RunFolder, network: Model) -> int:
    """Puts the weights of best.pt into a network; where that file is lost, those of last.pt take its place.

    Returns:
        The epoch that they are of, from 0.
    """
    expected = network.state_dict()
    try:
        checkpoint = load_checkpoint(run.best)
        check_tensors(checkpoint.state_dict, expected, "model")
    except (UserError, UnfitError) as error:
        LOGGER.warning(f"warning: best.pt cannot be used ({printable(error, 160)}); last.pt takes its place")
        checkpoint = load_checkpoint(run.last)
        save_checkpoint(run.best, {k: v for k, v in to_payload(checkpoint).items() if k != "run"})
    network.load_state_dict(checkpoint.state_dict)
    return checkpoint.epoch
