"""Prunes a trained detector and repairs it: sparse training, pruning, fine-tuning, distillation. For prune.py."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from engine.pruning_run.bench import Produced, Workbench
from engine.pruning_run.config import PruneOptions, check_options
from engine.runfolder import RunFolder
from engine.training.distributed import announced_world
from engine.training.stages import FREE_FLAGS, check_stage
from engine.training.state import model_entry, run_state
from engine.training.train import run_training
from models.yolo import Model
from pruning import IMPORTANCES, LayerWidths, prune
from pruning.batchnorm import reestimate_batchnorm
from utils.errors import UsageError, UserError
from utils.files import write_json
from utils.logging import LOGGER, setup_logging
from utils.paths import existing_file, file_hash, read_record
from utils.running.processes import advise


def run_prune(options: PruneOptions) -> Path:
    """Runs one stage or all.

    Returns:
        The folder of the results.
    """
    setup_logging()
    if announced_world(options.training.batch_size).active:
        raise UsageError("prune.py runs in one process; train with several by train.py and train_distill.py")
    checkpoint = check_options(options)
    training = options.training
    run = RunFolder.create(training.project, training.name, training.exist_ok)
    run.write_yaml("prune.yaml", options.to_dict())
    run.write_manifest({"weights": training.weights, "sha256": file_hash(training.weights)})
    LOGGER.info(f"folder: {run.path}")
    bench = Workbench(options, run.path, checkpoint)
    try:
        STAGE_FUNCTIONS[options.stage](bench)
    except BaseException as error:
        advise(error, f"the same command with --name {run.path.name} --exist-ok goes on from here")
        raise
    finally:
        run.release()
    LOGGER.info(f"results: {run.path}")
    return run.path


def sparse_stage(bench: Workbench) -> None:
    """Sparse training alone."""
    train_sparse(bench)


def prune_stage(bench: Workbench) -> None:
    """Cuts alone, with their report."""
    from engine.pruning_run.report import report

    produced = [produce_pruned(bench, Path(bench.options.training.weights), t) for t in bench.options.targets]
    report(bench, produced)


def finetune_stage(bench: Workbench) -> None:
    """Fine-tuning alone."""
    run_stage(bench, "finetuned", Path(bench.options.training.weights), bench.options.epochs_of("finetune"))


def distill_stage(bench: Workbench) -> None:
    """Distillation alone; without a named teacher, the model that the student was pruned from."""
    weights = Path(bench.options.training.weights)
    teacher = bench.options.training.teacher_weights or str(pruned_from(weights))
    run_stage(bench, "distilled", weights, bench.options.epochs_of("distill"), teacher=teacher)


def all_stages(bench: Workbench) -> None:
    """Everything, for every target, and the report."""
    from engine.pruning_run.report import report

    options, start = bench.options, Path(bench.options.training.weights)
    weights = train_sparse(bench) if options.epochs_of("sparse") else start
    produced = []
    for target in options.targets:
        made = produce_pruned(bench, weights, target)
        pruned, name = made.weights["pruned"], target_name(bench, target)
        if weights != start:
            made.weights = {"sparse": weights, **made.weights}
        if options.epochs_of("finetune"):
            made.weights["finetuned"] = run_stage(bench, f"{name}finetuned", pruned, options.epochs_of("finetune"))
        if options.epochs_of("distill"):
            first = made.weights.get("finetuned", pruned) if options.distill_from == "finetuned" else pruned
            teacher = options.training.teacher_weights or str(start)
            made.weights["distilled"] = run_stage(
                bench, f"{name}distilled", first, options.epochs_of("distill"), teacher=teacher
            )
        shutil.copyfile(list(made.weights.values())[-1], bench.folder / "weights" / f"{name}best.pt")
        produced.append(made)
        report(bench, produced)  # after each target, so that an interrupted series leaves one too


STAGE_FUNCTIONS: dict[str, Callable[[Workbench], None]] = {
    "all": all_stages,
    "sparse": sparse_stage,
    "prune": prune_stage,
    "finetune": finetune_stage,
    "distill": distill_stage,
}


def target_name(bench: Workbench, target: float) -> str:
    """What the folders of a target's models begin with, where there are several targets."""
    return f"{target:g}-" if len(bench.options.targets) > 1 else ""


def train_sparse(bench: Workbench) -> Path:
    """Trains with the penalty on BatchNorm scales, and shows what became of them."""
    from engine.pruning_run.report import show_scales

    before = Path(bench.options.training.weights)
    best = run_stage(bench, "sparse", before, bench.options.epochs_of("sparse"), sparse=True)
    show_scales(bench, before, best.with_name("last.pt"), best.parent.parent)
    return best


def run_stage(
    bench: Workbench, name: str, weights: Path, epochs: int, *, teacher: str = "", sparse: bool = False
) -> Path:
    """One training below the folder. One that is finished there is used again; an interrupted one is resumed.

    Returns:
        Its best.pt.
    """
    if not epochs:
        raise UsageError(f"nothing to do: the training of this stage ({name}) has 0 epochs")
    options = bench.options
    training = replace(
        options.training,
        weights=str(weights),
        hyp=str(bench.recipe_file if teacher else bench.hyp_file),
        epochs=epochs,
        teacher_weights=teacher,
        sparsity=options.sparsity if sparse else 0.0,
        sparsity_schedule=options.sparsity_schedule,
        noautoanchor=True,  # the teacher's anchors, and those that the model knows
        project=str(bench.folder),
        name=name,
        exist_ok=True,
    )
    folder = bench.folder / name
    last, best = folder / "weights" / "last.pt", folder / "weights" / "best.pt"
    state = run_state(folder)
    if state != "empty":
        check_stage(folder, training)
        if state == "finished" and best.is_file():
            LOGGER.info(f"already trained: {best}")
            return best
        LOGGER.info(f"[{name}] goes on")
        run_training(training, resume=str(last), given=FREE_FLAGS)
    else:
        LOGGER.info(f"\n[{name}] {epochs} epochs from {weights}")
        run_training(training, distil=bool(teacher))
    return best


def produce_pruned(bench: Workbench, weights: Path, target: float) -> Produced:
    """Cuts a model down to a target, at once or in steps with fine-tuning between."""
    options, name, left = bench.options, target_name(bench, target), target
    for step in range(1, options.steps):
        share = 1 - (1 - left) ** (1 / (options.steps - step + 1))  # of what this step finds
        folder = bench.folder / f"{name}pruned-step{step}"
        cut_model(bench, weights, share, folder)
        weights = run_stage(bench, f"{name}finetuned-step{step}", folder / "pruned.pt", options.step_epochs)
        left = 1 - (1 - left) / (1 - share)
    folder = bench.folder / f"{name}pruned"
    facts = cut_model(bench, weights, left, folder)
    return Produced(target, {"pruned": folder / "pruned.pt"}, facts)


def cut_model(bench: Workbench, weights: Path, target: float, folder: Path) -> dict[str, Any]:
    """Prunes a checkpoint once and writes pruned.pt and cut.json into a folder, unless they are there.

    Returns:
        The facts: settings, layers, sizes, AP as cut and with BatchNorm's statistics estimated again.
    """
    options = bench.options
    settings = {**asdict(options.settings), "target": target, "protect": list(options.settings.protect)}
    identity = {
        "settings": settings,
        "source": {"path": str(weights), "sha256": file_hash(weights)},
        "images": {"size": bench.img_size, "batches": options.batches, "batch_size": options.training.batch_size},
    }
    file, facts_file = folder / "pruned.pt", folder / "cut.json"
    if file.is_file() and facts_file.is_file():
        facts = read_record(facts_file)
        if {"images": identity["images"], **{key: facts[key] for key in identity if key in facts}} != identity:
            raise UserError(f"{folder} holds a model pruned in another way; remove that folder, or use another --name")
        LOGGER.info(f"already pruned: {file}")
        return facts
    model = bench.model(weights)
    needs_data = IMPORTANCES[options.settings.importance].needs_data
    data = {"batches": bench.batches, "loss": bench.loss_of(model)} if needs_data else {}
    gflops_before = model.summary(bench.img_size).gflops
    result = prune(model, image=bench.example(), **settings, **data)
    model.eval()
    facts = {
        **identity,
        "share": result.share,
        "before": {**asdict(result.before), "gflops": gflops_before},
        "after": {**asdict(result.after), "gflops": model.summary(bench.img_size).gflops},
        "layers": [asdict(layer) for layer in result.layers],
        **_settle_statistics(bench, model),
    }
    _announce(bench, target, result.layers, facts)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        file,
        {
            "model": model_entry(model),
            "hyp": bench.hyp.to_dict(),
            "epoch": -1,
            "best_fitness": None,
            "pruning": identity,
        },
    )
    write_json(facts_file, facts)
    return facts


def _settle_statistics(bench: Workbench, model: Model) -> dict[str, Any]:
    """Evaluates a model as it was cut and with BatchNorm's statistics estimated anew, and leaves it the better way."""
    anew = copy.deepcopy(model)
    reestimate_batchnorm(anew, bench.images())
    as_cut, estimated = bench.ap(model), bench.ap(anew)
    if estimated > as_cut:
        model.load_state_dict(anew.state_dict())
    return {"AP_as_cut": as_cut, "AP_statistics_estimated": estimated}


def _announce(bench: Workbench, target: float, layers: list[LayerWidths], facts: dict[str, Any]) -> None:
    changed = sum(layer.before != layer.after for layer in layers)
    by, before, after = bench.options.settings.by, facts["before"], facts["after"]
    LOGGER.info(
        f"pruned {facts['share']:.1%} of the {by} (asked: {target:.1%}): {changed} of {len(layers)} convolutions are "
        f"narrower, {before['params']:,} -> {after['params']:,} parameters, "
        f"{before['gflops']:.2f} -> {after['gflops']:.2f} GFLOPs; AP {facts['AP_as_cut']:.4f} as cut, "
        f"{facts['AP_statistics_estimated']:.4f} with BatchNorm's statistics estimated on training images. "
        "Before fine-tuning this is expected to be low."
    )


def pruned_from(weights: Path) -> Path:
    """The model that a pruned one was made from.

    Raises:
        UsageError: the file does not say.
    """
    source = load_checkpoint(weights).extra.get("pruning", {}).get("source", {})
    if not source:
        raise UsageError(f"--teacher-weights is missing: {weights} does not say what it was pruned from")
    path = existing_file(source["path"], f"the model that {weights} was pruned from (--teacher-weights names another):")
    if file_hash(path) != source["sha256"]:
        raise UserError(f"{path} has changed since {weights} was pruned from it; name the teacher: --teacher-weights")
    return path
