"""Sets a training up, from options to a finished run folder. train.py and train_distill.py call this."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.config import DatasetConfig, ensure_dataset, load_dataset_config
from engine.autoanchor import check_anchors
from engine.build import (
    TrainingData,
    build_data,
    build_model,
    class_weights,
    describe_data,
    freeze_layers,
    image_weights,
    resumed_model,
    rounded_size,
)
from engine.checkpoint import Checkpoint, load_checkpoint, strip_checkpoint
from engine.config import Hyp, TrainOptions, hyp_from_dict, options_from_dict, read_hyp
from engine.criterion import build_criteria
from engine.distillation import build_distillers, check_recipe
from engine.distributed import World, agree, announced_world, broadcast_module, join_world, leave_world
from engine.ema import ModelEMA
from engine.evaluate import EvalResult, evaluate
from engine.loop import Trainer, TrainState
from engine.optimizer import build_optimizer
from engine.reports import final_report, plot_training_batches
from engine.runfolder import RunFolder
from engine.schedule import LearningSchedule
from engine.state import newest_last, restore_training, save_training
from models.yolo import Model
from utils.device import seed_everything, select_device
from utils.errors import UserError
from utils.logging import LOGGER, setup_logging

VALIDATION_IOU = 0.6


@dataclass
class TrainResult:
    """Where a training ended: its folder, the metrics of best.pt, and the epoch that best.pt comes from (from 0)."""

    folder: Path
    metrics: dict[str, float]
    best_epoch: int


def resume_options(resume: str | bool, project: str) -> tuple[TrainOptions, Hyp, Checkpoint]:
    """The options and hyper-parameters of an interrupted run, from its last.pt.

    Args:
        resume: path of a last.pt, or True for the newest one below the project's folder.
        project: where runs lie.
    """
    path = Path(resume) if isinstance(resume, str) else newest_last(Path(project).parent)
    checkpoint = load_checkpoint(path)
    if not checkpoint.training:
        raise UserError(
            f"--resume {path}: this run is finished (or the file is no last.pt of ours); "
            f"start a new one with --weights {path}"
        )
    options = options_from_dict(checkpoint.training["options"], str(path))
    folder = path.resolve().parent.parent
    options = replace(options, project=str(folder.parent), name=folder.name, exist_ok=True)
    return options, hyp_from_dict(checkpoint.hyp or {}, str(path)), checkpoint


def run_training(options: TrainOptions, resume: str | bool = False, distil: bool = False) -> TrainResult:
    """Trains, validates and saves; with `distil`, under a teacher.

    Args:
        options: what to train, on what, for how long.
        resume: continue an interrupted run: True, or the path of its last.pt. Its own options are used then.
        distil: build the distiller of the hyper-parameter file.
    """
    checkpoint: Checkpoint | None = None
    if resume:
        options, hyp, checkpoint = resume_options(resume, options.project)
        distil = bool(options.teacher_weights)
    else:
        hyp = read_hyp(options.hyp)
    world = announced_world(options.batch_size)
    setup_logging(world.rank)
    device = select_device(options.device)
    join_world(world, device)
    trainer, data = set_up(options, hyp, checkpoint, distil, world, device)
    del checkpoint  # or its weights would stay in host memory all the while
    state = trainer.run()
    result = finish(trainer, state, data)
    leave_world(world)  # not after an error: the launcher ends the other processes, which may wait for this one
    return result


def set_up(
    options: TrainOptions, hyp: Hyp, checkpoint: Checkpoint | None, distil: bool, world: World, device: torch.device
) -> tuple[Trainer, TrainingData]:
    """Everything up to the first step, or up to the first after the checkpoint's."""
    seed_everything(options.seed)
    if distil:
        check_recipe(options, hyp)
    elif hyp.distills:
        LOGGER.info(
            "note: the hyper-parameter file's distillation keys are for train_distill.py; training without a teacher"
        )
    config = ensure_dataset(load_dataset_config(options.data))
    nc, names = (1, ("item",)) if options.single_cls else (config.nc, config.names)
    model = resumed_model(checkpoint, nc, names) if checkpoint else build_model(options, hyp, nc, names)
    stride = int(max(model.stride))
    sizes = (
        rounded_size(options.img_size[0], stride, "--img-size"),
        rounded_size(options.img_size[-1], stride, "--img-size"),
    )
    options = replace(options, img_size=sizes)
    freeze_layers(model, options.freeze)
    data = build_data(options, hyp, config, stride, world, sizes)
    if not options.noautoanchor and not checkpoint:
        check_anchors(model, data.train_index, sizes[0], hyp.anchor_t)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    broadcast_module(model, world)
    trainer, teacher = assemble(options, hyp, model, data, distil, world, device)
    start_folder(trainer, config, data, teacher, resumed=checkpoint is not None)
    if checkpoint:
        check_teacher(checkpoint, teacher)
        restore_training(trainer, checkpoint)
        LOGGER.info(f"resuming {trainer.run_folder.path} at epoch {trainer.state.epoch + 1} of {options.epochs}")
    if world.is_main and not options.noplots and not checkpoint:
        plot_training_batches(trainer, names)
    return trainer, data


def assemble(
    options: TrainOptions, hyp: Hyp, model: Model, data: TrainingData, distil: bool, world: World, device: torch.device
) -> tuple[Trainer, dict[str, Any]]:
    """The trainer with all its parts, and the teacher's description."""
    if world.active and options.sync_bn and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ema = ModelEMA(model)
    extra_losses: list[nn.Module] = []
    teacher: dict[str, Any] = {}
    if distil:
        distillers, teacher = build_distillers(model, options, hyp, device, cast(Model, ema.module))
        extra_losses += distillers
        for distiller in distillers:
            broadcast_module(distiller, world)
    if options.sparsity:
        from pruning.sparsity import SparsityLoss

        extra_losses.append(SparsityLoss(model, options.sparsity, options.sparsity_schedule))
    criterion, val_criterion = build_criteria(model, hyp, options.img_size[0], options.label_smoothing, device)
    schedule = LearningSchedule(hyp, options.epochs, len(data.train), options.batch_size, options.linear_lr)
    optimizer = build_optimizer(options.optimizer, [model, *extra_losses], hyp.lr0, hyp.momentum, schedule.weight_decay)
    run = RunFolder.create(options.project, options.name, options.exist_ok, world.is_main)
    run = RunFolder(Path(agree(str(run.path), world)), world.is_main)

    names = tuple(model.names)

    def validate(network: nn.Module) -> EvalResult:
        assert data.val is not None
        return evaluate(
            network, data.val, names=names, device=device, iou_thres=VALIDATION_IOU, criterion=val_criterion
        )

    def before_epoch(trainer: Trainer) -> None:
        weights = class_weights(data.train_index, model.nc, agree(trainer.state.class_ap, world))
        data.train.set_index_weights(image_weights(data.train_index, weights))

    trainer = Trainer(
        model=model,
        wrapped=wrap(model, options, world, device),
        criterion=criterion,
        extra_losses=extra_losses,
        loader=data.train,
        optimizer=optimizer,
        schedule=schedule,
        ema=ema,
        options=options,
        hyp=hyp,
        run=run,
        world=world,
        device=device,
        validate=validate,
        save=lambda trainer: save_training(trainer, teacher),
        before_epoch=before_epoch if options.image_weights else None,
    )
    return trainer, teacher


def wrap(model: Model, options: TrainOptions, world: World, device: torch.device) -> nn.Module:
    """The model as the loop calls it; its parameters, and so what is saved, stay the model's own."""
    wrapped: nn.Module = model
    if world.active:
        wrapped = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    if not options.compile:
        return wrapped
    # One graph a size is faster, and sooner there, than one for all: an epoch has two, its last batch being smaller.
    one_size = not (options.multi_scale or options.rect)
    return torch.compile(wrapped, dynamic=False if one_size else None)  # type: ignore[return-value]


def start_folder(
    trainer: Trainer, config: DatasetConfig, data: TrainingData, teacher: dict[str, Any], resumed: bool
) -> None:
    """Says what is about to be trained, and writes it into the run folder."""
    model, run = trainer.model, trainer.run_folder
    LOGGER.info(str(model.summary(trainer.options.img_size[0])))
    LOGGER.info(f"run folder: {run.path}")
    if not resumed:
        run.write_yaml("opt.yaml", trainer.options.to_dict())
        run.write_yaml("hyp.yaml", trainer.hyp.to_dict())
        facts = describe_data(config, data) | {
            "seed": trainer.options.seed,
            "teacher": teacher,
            "world_size": trainer.world.size,
        }
        run.write_manifest(facts)


def check_teacher(checkpoint: Checkpoint, teacher: dict[str, Any]) -> None:
    """A resumed distillation must go on under the very same teacher."""
    before = checkpoint.extra.get("teacher")
    if before and teacher_hashes(before) != teacher_hashes(teacher):
        raise UserError(
            f"the teacher {teacher.get('path')} is not the file that this run began with (its content changed); "
            "put the original back, or start a new run"
        )


def teacher_hashes(teacher: dict[str, Any]) -> list[str]:
    """The contents of a training's teachers, in their order."""
    return [fact.get("sha256", "") for fact in (teacher, *teacher.get("more", ()))]


def finish(trainer: Trainer, state: TrainState, data: TrainingData) -> TrainResult:
    """Strips the checkpoints to plain model files, evaluates the best one and draws the reports.

    Only the main process has metrics to return.
    """
    run = trainer.run_folder
    if not trainer.world.is_main:
        return TrainResult(run.path, {}, state.best_epoch)
    assert data.val is not None
    for path in (run.last, run.best):
        strip_checkpoint(path)
    checkpoint, best = load_checkpoint(run.best), trainer.ema.module
    best.load_state_dict(checkpoint.state_dict)
    result = evaluate(
        best, data.val, names=trainer.model.names, device=trainer.device, iou_thres=VALIDATION_IOU,
        save_dir=run.path, plots=not trainer.options.noplots,
    )  # fmt: skip
    final_report(run, result, trainer.options)
    run.update_manifest({"finished": {"epochs": state.epoch, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}})
    return TrainResult(run.path, result.as_row(), checkpoint.epoch)
