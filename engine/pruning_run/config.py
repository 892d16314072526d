"""Options of prune.py, beside those of the trainings that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import Checkpoint, load_checkpoint
from engine.config.flags import MOST_EPOCHS
from engine.config.hyp import Hyp, hyp_from_dict, is_of_distillation, read_hyp
from engine.config.options import TrainOptions
from pruning import PruneSettings
from pruning.pruner import check_settings
from pruning.sparsity import SCHEDULES
from utils.errors import UsageError, UserError
from utils.paths import existing_file
from utils.running.cli import check_range

MOST_TARGETS, MOST_STEPS, MOST_CHANNELS, MOST_SPARSITY = 100, 10_000, 100_000, 1000
STAGES = ("all", "sparse", "prune", "finetune", "distill")
STARTS = ("pruned", "finetuned")
DEFAULT_HYP = {"yolov8": "hyp/scratch.v8.yaml"}
DEFAULT_RECIPE = {"yolov8": "hyp/distill.fgd.yaml"}
EXPORTED = (".onnx", ".engine", ".torchscript", ".xml", ".bin", ".mlmodel", ".mlpackage", ".tflite", ".pb")


@dataclass(frozen=True)
class PruneOptions:
    """What prune.py does.

    Attributes:
        stage: one of STAGES.
        training: options of all trainings; its weights are the model to prune, its epochs the length of each
            training that has none of its own.
        settings: how to prune; its target is replaced by each of `targets`.
        targets: the shares to remove, one model each.
        steps: in how many cuts, with `step_epochs` of fine-tuning between.
        sparse_epochs: None means: as `training` where BatchNorm scales decide, else none.
        finetune_epochs, distill_epochs: None as `training`; 0 leaves the stage out.
        sparsity, sparsity_schedule: of the sparse training.
        distill_hyp: whose kd_losses and kd_schedule are used; empty for the family's default.
        distill_from: what the distillation starts from: the pruned or the fine-tuned model.
        batches: of training images, for Taylor importance and BatchNorm's statistics.
        sensitivity: also measure how much each layer alone can lose.
        split: where the figures of the report come from.
    """

    stage: str
    training: TrainOptions
    settings: PruneSettings = PruneSettings()
    targets: tuple[float, ...] = (0.5,)
    steps: int = 1
    step_epochs: int = 10
    sparse_epochs: int | None = None
    finetune_epochs: int | None = None
    distill_epochs: int | None = None
    sparsity: float = 1e-3
    sparsity_schedule: str = "decay"
    distill_hyp: str = ""
    distill_from: str = "pruned"
    batches: int = 12
    sensitivity: bool = False
    split: str = "val"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to prune.yaml."""
        return {**asdict(self), "training": self.training.to_dict(), "targets": list(self.targets)}

    def epochs_of(self, stage: str) -> int:
        """Length of the training of a stage; 0 where it is left out."""
        given = {"sparse": self.sparse_epochs, "finetune": self.finetune_epochs, "distill": self.distill_epochs}[stage]
        if given is None:
            return 0 if stage == "sparse" and self.stage == "all" and not self.ranks_by_scale else self.training.epochs
        return given

    @property
    def ranks_by_scale(self) -> bool:
        """Whether BatchNorm scales decide which channels go."""
        return self.settings.importance == "bn"


def check_options(options: PruneOptions) -> Checkpoint:
    """Looks at all that the options name before anything takes its time.

    Returns:
        The checkpoint of the model to prune.

    Raises:
        UserError: a file is missing or no checkpoint of a training, or a value is out of range.
    """
    training = options.training
    if not training.weights:
        raise UsageError("--weights is missing: name the checkpoint of the model to prune")
    if training.cfg:
        raise UsageError("--cfg has no use here: the architecture is that of --weights")
    if Path(training.weights).suffix.lower() in EXPORTED:
        raise UserError(f"{training.weights} is an exported model; prune the .pt file that it was exported from")
    if len(options.targets) > MOST_TARGETS:
        raise UsageError(
            f"--target has {len(options.targets)} values; at most {MOST_TARGETS} models are made at a time"
        )
    for target in options.targets:
        check_settings(replace(options.settings, target=target))
    check_range("--round-to", options.settings.round_to, 1, MOST_CHANNELS)
    for flag, value, least, most in (
        ("--steps", options.steps, 1, MOST_STEPS),
        ("--step-epochs", options.step_epochs, 1, MOST_EPOCHS),
        ("--sparse-epochs", options.epochs_of("sparse"), 0, MOST_EPOCHS),
        ("--finetune-epochs", options.epochs_of("finetune"), 0, MOST_EPOCHS),
        ("--distill-epochs", options.epochs_of("distill"), 0, MOST_EPOCHS),
        ("--calibration-batches", options.batches, 1, MOST_STEPS),
    ):
        check_range(flag, value, least, most)
    if not options.sparsity > 0:
        raise UsageError(f"--sparsity must be more than 0, got {options.sparsity:g}")
    check_range("--sparsity", options.sparsity, 0, MOST_SPARSITY)
    if options.sparsity_schedule not in SCHEDULES:
        raise UsageError(f"--sparsity-schedule must be one of {', '.join(SCHEDULES)}, got {options.sparsity_schedule}")
    if training.teacher_weights:
        existing_file(training.teacher_weights, "--teacher-weights")
    return load_checkpoint(existing_file(training.weights, "--weights"))


def base_hyp(options: PruneOptions, checkpoint: Checkpoint) -> Hyp:
    """Hyper-parameters of all stages: the file that is named, else those of the model's own training."""
    if options.training.hyp:
        return read_hyp(options.training.hyp)
    if checkpoint.kind == "own" and checkpoint.hyp:
        known = {f.name for f in fields(Hyp)}
        values = {k: v for k, v in checkpoint.hyp.items() if k in known and not is_of_distillation(k)}
        return hyp_from_dict(values, f"the hyper-parameters in {checkpoint.path}")
    return read_hyp(DEFAULT_HYP.get(checkpoint.family, "hyp/scratch-low.yaml"))


def distillation_values(options: PruneOptions, hyp: Hyp, family: str) -> Mapping[str, Any]:
    """The hyper-parameters of the distillation: the base, with what a recipe says of distillation.

    Raises:
        UserError: the recipe has no kd_losses.
    """
    path = options.distill_hyp or DEFAULT_RECIPE.get(family, "hyp/distill.fgd-output.yaml")
    recipe = read_hyp(path)
    if not recipe.distills:
        raise UserError(f"{path} has no kd_losses: nothing would be distilled; use one of hyp/distill.*.yaml")
    defaults = Hyp().to_dict()
    own = {k: v for k, v in recipe.to_dict().items() if is_of_distillation(k) and v != defaults[k]}
    return {**hyp.without_distillation(), **own}
