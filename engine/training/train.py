"""Sets a training up, from options to a finished run folder. train.py and train_distill.py call this."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.config import DatasetConfig
from engine.config.defaults import training_hyp
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.distilling.distillers import build_distillers, check_recipe
from engine.distilling.inheriting import (
    NUM_BATCHES,
    Heritage,
    Start,
    check_start,
    find_heritage,
    inherit_part,
    other_start,
)
from engine.inference.evaluate import VALIDATION_IOU, EvalResult, evaluate
from engine.runfolder import RunFolder
from engine.training.autoanchor import check_anchors
from engine.training.criterion import build_criteria, loss_by_batch
from engine.training.data import TrainingData, build_data, class_weights, describe_data, image_weights, sample_batches
from engine.training.distributed import World, agree, announced_world, broadcast_module, join_world, leave_world
from engine.training.ema import ModelEMA
from engine.training.extra_loss import ExtraLoss, ModuleLoss
from engine.training.finish import TrainResult, evaluate_trained, finish
from engine.training.loop import Trainer
from engine.training.model import build_model, freeze_layers, resumed_model
from engine.training.norms import guard_lone_values, has_lone_values, smallest_batch
from engine.training.optimizer import build_optimizer
from engine.training.reports import plot_training_batches
from engine.training.resume import (
    EVALUATION,
    EXTENSION,
    Resumption,
    check_data,
    data_facts,
    open_data,
    plan_resumption,
    record_changes,
)
from engine.training.schedule import LearningSchedule, resolve_auto
from engine.training.state import restore_training, save_last, save_training
from models.yolo import Model
from utils.device import random_streams_kept, seed_everything, select_device
from utils.logging import LOGGER, setup_logging
from utils.paths import file_hash
from utils.running.processes import advise
from utils.sizes import rounded_size


def run_training(
    options: TrainOptions, resume: str | bool = False, distil: bool = False, given: Collection[str] = ()
) -> TrainResult:
    """Trains, validates and saves; with `distil`, under a teacher.

    Args:
        options: what to train, on what, for how long.
        resume: go on with a run: True, or the path of its last.pt. Its own options are used then.
        distil: build the distiller of the hyper-parameter file.
        given: names of the options that count beside `resume`, as they stand in the command line.
    """
    plan: Resumption | None = None
    if resume:
        plan = plan_resumption(resume, options, given)
        options, distil = plan.options, bool(plan.options.teacher_weights)
    world = announced_world(options.batch_size)
    setup_logging(world.rank)
    source = plan or training_hyp(options, distil)
    hyp = source.hyp
    for note in source.notes:
        (LOGGER.warning if note.startswith("warning") else LOGGER.info)(note)
    device = select_device(options.device)
    join_world(world, device)
    if plan and plan.kind == EVALUATION:
        result = evaluate_trained(plan, world, device)
    else:
        trainer, data = set_up(options, hyp, plan, distil, world, device)
        plan = None  # or its checkpoint's weights would stay in host memory all the while
        try:
            state = trainer.run()
            result = finish(trainer, state, data)
        except BaseException as error:
            advise(error, how_to_go_on(trainer))
            raise
        finally:
            trainer.run_folder.release()
    leave_world(world)  # not after an error: the launcher ends the other processes, which may wait for this one
    return result


def how_to_go_on(trainer: Trainer) -> str:
    """What continues a training that has ended too soon; nothing before its first epoch is over."""
    last = trainer.run_folder.last
    saved = trainer.state.epoch > 0 and last.is_file()
    return f"python train.py --resume {shlex.quote(str(last))} goes on from there" if saved else ""


def set_up(
    options: TrainOptions, hyp: Hyp, plan: Resumption | None, distil: bool, world: World, device: torch.device
) -> tuple[Trainer, TrainingData]:
    """Everything up to the first step, or up to the first after the checkpoint's."""
    seed_everything(options.seed)
    check_start(options, distil)
    if distil:
        check_recipe(options, hyp)
    elif hyp.distills:
        LOGGER.info(
            "note: the hyper-parameter file's distillation keys are for train_distill.py; training without a teacher"
        )
    config = open_data(options, plan)
    nc, names = (1, ("item",)) if options.single_cls else (config.nc, config.names)
    model = resumed_model(plan.checkpoint, nc, names) if plan else build_model(options, hyp, nc, names)
    heritage = find_heritage(options, distil, model) if world.is_main and not plan else None
    stride = int(max(model.stride))
    sizes = (
        rounded_size(options.img_size[0], stride, "--img-size"),
        rounded_size(options.img_size[-1], stride, "--img-size"),
    )
    options = replace(options, img_size=sizes)
    freeze_layers(model, options.freeze)
    data = build_data(options, hyp, config, stride, world, sizes)
    hyp, chosen = resolve_auto(hyp, options.epochs, len(data.train), options.batch_size)
    if chosen:
        LOGGER.info(chosen)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    start = Start() if plan else start_student(model, heritage, options, hyp, data, world, device)
    heritage = None  # or the teacher would stay in memory all the while
    broadcast_module(model, world)
    facts = data_facts(config, data)
    trainer, teacher = assemble(options, hyp, model, data, facts, distil, world, device, plan)
    start_folder(trainer, config, data, teacher, start, resumed=plan is not None)
    if plan:
        go_on(trainer, plan, teacher, facts)
    guard_lone_images(trainer)
    if world.is_main and not options.noplots and not plan:
        plot_training_batches(trainer, names)
    return trainer, data


def start_student(
    student: Model,
    heritage: Heritage | None,
    options: TrainOptions,
    hyp: Hyp,
    data: TrainingData,
    world: World,
    device: torch.device,
) -> Start:
    """Lets a student inherit, where it can, else looks after its anchors.

    The main process, which has the heritage, does it; the others learn whether it was done.
    """
    start = None
    if heritage:
        from pruning import labels_for_teacher

        classes, teacher = heritage.classes, heritage.teacher.to(device)
        with random_streams_kept():
            batches = sample_batches(data.train_index, options, hyp, int(max(student.stride)), NUM_BATCHES)
            loss = loss_by_batch(teacher, hyp, options.img_size[0], device, lambda t: labels_for_teacher(t, classes))
            val = None if options.notest else data.val
            start = inherit_part(student, heritage, options, batches, loss, val, device)
    if not agree(start is not None, world) and not options.noautoanchor:
        check_anchors(student, data.train_index, options.img_size[0], hyp.anchor_t)
    return start or other_start(options)


def go_on(trainer: Trainer, plan: Resumption, teacher: dict[str, Any], facts: dict[str, Any]) -> None:
    """Puts a trainer to where its run was, or a finished run to the beginning of its extension."""
    same_data = check_data(plan, facts)
    done, epochs = plan.state.epoch, trainer.options.epochs
    if plan.kind == EXTENSION:
        plan.state.last_step = done * len(trainer.loader) - 1
        trainer.results.resume(done)
    else:
        restore_training(trainer, plan.checkpoint, same_data)
        plan.state.last_step = trainer.state.last_step
    trainer.state = plan.state
    if trainer.world.is_main and plan.changed:  # at once, so that this may be killed, too, and be resumed
        save_last(trainer, teacher, facts)
    record_changes(trainer.run_folder, plan, trainer.options, {} if same_data else facts)
    LOGGER.info(f"resuming {trainer.run_folder.path} at epoch {min(done + 1, epochs)} of {epochs}")
    if plan.state.best_epoch >= 0 and trainer.world.is_main and not trainer.run_folder.best.is_file():
        LOGGER.warning(f"warning: {trainer.run_folder.best} of epoch {plan.state.best_epoch + 1} is gone")


def guard_lone_images(trainer: Trainer) -> None:
    """Lets a last batch of one image through a network whose deepest map it gives a single cell."""
    options, stride = trainer.options, trainer.stride
    size = options.img_size[0]
    if options.multi_scale:
        size = max(size // 2 // stride, 1) * stride
    if smallest_batch(trainer.loader, trainer.world.size) > 1:
        return
    guard_lone_values(trainer.extra_modules)  # whose maps may be a smaller teacher's
    if not has_lone_values(trainer.ema.module, size):
        return
    guard_lone_values([trainer.model])
    LOGGER.warning(
        f"warning: a batch of one image of {size} pixels gives BatchNorm a single value a channel, for which it uses "
        "its running statistics; another --batch-size or a larger --img-size avoids it"
    )


def assemble(
    options: TrainOptions,
    hyp: Hyp,
    model: Model,
    data: TrainingData,
    facts: dict[str, Any],
    distil: bool,
    world: World,
    device: torch.device,
    plan: Resumption | None = None,
) -> tuple[Trainer, dict[str, Any]]:
    """The trainer with all its parts, and the teacher's description."""
    length = options.epochs - (plan.state.first_epoch if plan else 0)  # of an extension, whose schedules are its own
    if world.active and options.sync_bn and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ema = ModelEMA(model, ramp=float(hyp.ema_ramp))
    shortened = replace(options, epochs=length)
    extra_losses, teacher = build_extra_losses(model, ema, shortened, hyp, distil, world, device)
    criterion, val_criterion = build_criteria(model, hyp, options.img_size[0], options.label_smoothing, device)
    schedule = LearningSchedule(hyp, length, len(data.train), options.batch_size, options.linear_lr)
    modules = [model, *(extra.module for extra in extra_losses)]
    optimizer = build_optimizer(options.optimizer, modules, hyp.lr0, hyp.momentum, schedule.weight_decay)
    run = RunFolder.create(options.project, options.name, options.exist_ok, world.is_main)
    path = Path(agree(str(run.path), world))
    if not world.is_main:
        run = RunFolder(path, active=False)

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
        save=lambda trainer: save_training(trainer, teacher, facts),
        before_epoch=before_epoch if options.image_weights else None,
    )
    return trainer, teacher


def build_extra_losses(
    model: Model, ema: ModelEMA, options: TrainOptions, hyp: Hyp, distil: bool, world: World, device: torch.device
) -> tuple[list[ExtraLoss], dict[str, Any]]:
    """What is added to the detection loss, and the teachers' paths and hashes."""
    extra_losses: list[ExtraLoss] = []
    teacher: dict[str, Any] = {}
    if distil:
        distillers, teacher = build_distillers(model, options, hyp, device, cast(Model, ema.module))
        extra_losses += [ModuleLoss(distiller) for distiller in distillers]
        for distiller in distillers:
            broadcast_module(distiller, world)
    if options.sparsity:
        from pruning.sparsity import SparsityLoss

        extra_losses.append(ModuleLoss(SparsityLoss(model, options.sparsity, options.sparsity_schedule)))
    return extra_losses, teacher


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
    trainer: Trainer,
    config: DatasetConfig,
    data: TrainingData,
    teacher: dict[str, Any],
    start: Start,
    resumed: bool,
) -> None:
    """Says what is about to be trained, and writes it into the run folder."""
    model, run = trainer.model, trainer.run_folder
    LOGGER.info(str(model.summary(trainer.options.img_size[0])))
    LOGGER.info(f"run folder: {run.path}")
    weights = trainer.options.weights
    if not resumed:
        run.write_yaml("opt.yaml", trainer.options.to_dict())
        run.write_yaml("hyp.yaml", trainer.hyp.to_dict())
        if start.table:
            run.write_lines("inherited.txt", start.table)
        facts = describe_data(config, data) | {
            "seed": trainer.options.seed,
            "init": start.facts,
            "teacher": teacher,
            "start": {"path": weights, "sha256": file_hash(weights)} if weights else None,
            "world_size": trainer.world.size,
        }
        run.write_manifest(facts)
