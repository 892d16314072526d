"""Teacher assistants (Mirzadeh et al., arXiv 1902.03393): a chain of ever smaller networks, each taught by the last.

A large teacher may be too far from a small student. Each stage trains an assistant under the teacher before it, and
the assistant's best weights teach the next stage, in the end the student. An assistant has to be worth it: beside it
the same network is trained without a teacher for as long, and a chain whose assistant is worse ends there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import load_checkpoint
from engine.config.defaults import RECIPE, training_hyp
from engine.config.flags import MOST_EPOCHS
from engine.config.options import LATER, TrainOptions
from engine.distilling.distillers import check_recipe
from engine.training.distributed import World, announced_world
from engine.training.stages import check_stage
from engine.training.state import run_state
from engine.training.train import run_training
from utils.errors import UsageError, UserError
from utils.files import write_json
from utils.logging import LOGGER, setup_logging
from utils.paths import REPOSITORY, existing_file, read_record, run_path
from utils.running.folders import output_folder
from utils.running.processes import advise
from utils.text import shown, shown_path
from utils.yaml_io import check_keys, load_yaml

CHAIN_FILE = "chain.json"
METRIC = "metrics/AP"


@dataclass(frozen=True)
class Assistant:
    """One network between teacher and student.

    Attributes:
        cfg: architecture yaml; empty for that of `weights`.
        weights: checkpoint to start from; empty for a fresh start.
        hyp: hyper-parameters with a recipe; empty for the student's.
        epochs: length of the training; 0 for the student's.
        baseline: a checkpoint of the same network trained without a teacher on the same data, as the mark to beat;
            empty to train one here for as long.
    """

    cfg: str = ""
    weights: str = ""
    hyp: str = ""
    epochs: int = 0
    baseline: str = ""

    @property
    def name(self) -> str:
        """What the stage is called: the stem of its architecture's or checkpoint's file."""
        return Path(self.cfg or self.weights).stem


def parse_assistants(specs: Sequence[str]) -> list[Assistant]:
    """The assistants of --teacher-assistants, from the teacher's side to the student's.

    Args:
        specs: each `cfg.yaml`, `cfg.yaml:weights.pt` or `weights.pt`; or one yaml file with a list `assistants:` of
            mappings with the keys of `Assistant`.

    Raises:
        UserError: a file is missing, or one of them is no such list.
        UsageError: a spec is none of these.
    """
    if len(specs) == 1 and specs[0].endswith((".yaml", ".yml")):
        content = load_yaml(specs[0], "--teacher-assistants", ("cfg", "weights", "hyp", "baseline"))
        if "assistants" in content:
            return _listed(content, specs[0])
    assistants = []
    for spec in specs:
        cfg, colon, weights = spec.partition(".yaml:")
        if colon:
            assistants.append(Assistant(cfg + ".yaml", weights))
        elif spec.endswith(".pt"):
            assistants.append(Assistant(weights=spec))
        elif spec.endswith((".yaml", ".yml")):
            assistants.append(Assistant(spec))
        else:
            expected = "cfg.yaml, cfg.yaml:weights.pt or weights.pt"
            raise UsageError(f"--teacher-assistants {shown_path(spec)}: expected {expected}")
    return _checked(assistants)


def _listed(content: dict[str, Any], where: str) -> list[Assistant]:
    check_keys(content, ["assistants"], where)
    entries = content["assistants"]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: assistants must be a list such as `- {{cfg: cfg/yolov5/yolov5s.yaml}}`")
    assistants = []
    for entry in entries:
        check_keys(entry, [f.name for f in fields(Assistant)], f"{where}: assistants")
        for key, value in entry.items():
            fits = type(value) is int and 1 <= value <= MOST_EPOCHS if key == "epochs" else type(value) is str and value
            if not fits:
                expected = f"a number from 1 to {MOST_EPOCHS}" if key == "epochs" else "text"
                raise UserError(f"{where}: assistants: {key} is {shown(value)}; expected {expected}")
        if not entry.get("cfg") and not entry.get("weights"):
            raise UserError(f"{where}: an assistant needs cfg (an architecture) or weights (a checkpoint)")
        assistants.append(Assistant(**entry))
    return _checked(assistants)


def _checked(assistants: list[Assistant]) -> list[Assistant]:
    """Looks for every file now and not after hours of training."""
    for assistant in assistants:
        for key in ("cfg", "weights", "hyp", "baseline"):
            if getattr(assistant, key):
                existing_file(getattr(assistant, key), f"teacher assistant's {key}")
    return assistants


def run_chain(options: TrainOptions, assistants: Sequence[Assistant]) -> Path:
    """Trains the assistants and then the student, each under the best weights of the one before it.

    Finished stages of a folder that is used again (--exist-ok) are kept, and an interrupted one goes on.

    Args:
        options: those of the student; every stage shares what its assistant does not say itself.
        assistants: see `parse_assistants`.

    Returns:
        The chain's folder: a run folder for each stage, and chain.json.

    Raises:
        UserError: an assistant is worse than its own baseline.
    """
    world = announced_world(options.batch_size)
    setup_logging(world.rank)
    if world.active and not options.exist_ok:
        raise UsageError("--teacher-assistants in several processes: add --exist-ok, so that all mean the same folder")
    if options.more_teachers:
        raise UsageError("--teacher-assistants are a chain under one teacher; name one with --teacher-weights")
    for student in (options, *(_stage_options(options, assistant) for assistant in assistants)):
        check_recipe(replace(options, hyp=student.hyp), training_hyp(student, distil=True).hyp)
    path = run_path(options.project, options.name)
    with output_folder(path, options.exist_ok, world.is_main) as folder:
        try:
            stages = _run_stages(options, assistants, folder, world)
        except BaseException as error:
            advise(error, f"the same command with --name {folder.name} --exist-ok goes on from here")
            raise
    LOGGER.info("\n" + describe_chain(stages))
    return folder


def _run_stages(
    options: TrainOptions, assistants: Sequence[Assistant], folder: Path, world: World
) -> list[dict[str, Any]]:
    plan = {"options": replace(options, exist_ok=True).to_dict(), "assistants": [asdict(a) for a in assistants]}
    record = folder / CHAIN_FILE
    if record.is_file() and _known_plan(record) != plan:
        raise UserError(f"{folder} holds a chain with other settings; remove that folder, or use another --name")
    stages: list[dict[str, Any]] = []
    shared = replace(options, project=str(folder), exist_ok=True)
    for number, assistant in enumerate(assistants, 1):
        stage = replace(_stage_options(shared, assistant), name=f"{number}-{assistant.name}")
        LOGGER.info(f"\n[{number}/{len(assistants) + 1}] assistant {assistant.name} under {shared.teacher_weights}")
        stages.append(_assistant_stage(stage, assistant))
        if world.is_main:
            _write(record, plan, stages)
        best = Path(stages[-1]["weights"])
        _refuse_if_worse(stages[-1], number)
        shared = replace(shared, teacher_weights=str(best))
    LOGGER.info(f"\n[{len(assistants) + 1}/{len(assistants) + 1}] student under {shared.teacher_weights}")
    student = replace(shared, cfg=options.cfg, weights=options.weights, name="student")
    best, ap = _train_stage(student, distil=True)
    stages.append({"stage": "student", "teacher": shared.teacher_weights, "weights": str(best), "AP": ap})
    if world.is_main:
        _write(record, plan, stages)
    return stages


def _stage_options(options: TrainOptions, assistant: Assistant) -> TrainOptions:
    """The options of an assistant's training: the student's, but for what it says itself.

    The default recipe is named, so that the baseline trains with its plain hyper-parameters too.
    """
    return replace(
        options, cfg=assistant.cfg, weights=assistant.weights,
        hyp=assistant.hyp or options.hyp or str(REPOSITORY / RECIPE),
        epochs=assistant.epochs or options.epochs,
    )  # fmt: skip


def _known_plan(record: Path) -> Any:
    """What a chain's folder was begun with, in the present form."""
    plan = read_record(record).get("plan")
    if not isinstance(plan, dict) or not isinstance(plan.get("options"), dict):
        return plan
    return {**plan, "options": {**LATER, **plan["options"]}}


def _assistant_stage(stage: TrainOptions, assistant: Assistant) -> dict[str, Any]:
    """Baseline and distilled training of one assistant."""
    if assistant.baseline:
        baseline = _recorded_ap(Path(assistant.baseline))
    else:
        alone = replace(
            stage, name=f"{stage.name}-baseline", teacher_weights="", unlabeled="", inherit=stage.teacher_weights
        )  # with the same start, or more than the distillation would be compared
        _, baseline = _train_stage(alone, distil=False)
    best, ap = _train_stage(stage, distil=True)
    return {
        "stage": stage.name, "teacher": stage.teacher_weights, "weights": str(best), "AP": ap, "baseline AP": baseline,
    }  # fmt: skip


def _train_stage(stage: TrainOptions, distil: bool) -> tuple[Path, float]:
    """Trains one stage, or goes on with it, unless it is finished already; its best weights and their AP."""
    folder = Path(stage.project) / stage.name
    best, last = folder / "weights" / "best.pt", folder / "weights" / "last.pt"
    state = run_state(folder) if best.is_file() else "empty"
    if state != "empty":
        check_stage(folder, stage)
    if state == "finished":
        LOGGER.info(f"already trained: {best}")
    elif state in ("interrupted", "evaluating"):
        run_training(stage, resume=str(last), distil=distil, given=("device", "workers"))
    else:
        run_training(stage, distil=distil)
    return best, _recorded_ap(best)


def _recorded_ap(path: Path) -> float:
    """The AP that a checkpoint of ours had on the validation images."""
    metrics = load_checkpoint(path).extra.get("metrics", {})
    if METRIC not in metrics:
        raise UserError(f"{path} does not say its AP; leave `baseline` out, and one is trained here")
    return float(metrics[METRIC])


def _refuse_if_worse(stage: dict[str, Any], number: int) -> None:
    if stage["AP"] < stage["baseline AP"]:
        raise UserError(
            f"stage {number} ({stage['stage']}) is worse than its own baseline: AP {stage['AP']:.4f} distilled, "
            f"{stage['baseline AP']:.4f} without a teacher; the chain stops here, for a worse assistant makes a worse "
            "student: distil the student from the teacher itself, or weaken kd_losses"
        )


def _write(record: Path, plan: dict[str, Any], stages: list[dict[str, Any]]) -> None:
    write_json(record, {"plan": plan, "stages": stages})


def describe_chain(stages: Sequence[dict[str, Any]]) -> str:
    """A table of the stages: AP under the teacher, and without one."""
    lines = [f"{'stage':24} {'AP':>8} {'alone':>8}  weights"]
    for stage in stages:
        alone = f"{stage['baseline AP']:8.4f}" if "baseline AP" in stage else f"{'-':>8}"
        lines.append(f"{stage['stage']:24} {stage['AP']:8.4f} {alone}  {stage['weights']}")
    return "\n".join(lines)
