"""Makes a trained detector smaller and faster: prunes channels, then fine-tunes and distils the rest:
`python prune.py all --weights best.pt --data data/mine.yaml --target 0.5`.
"""

from __future__ import annotations

import argparse

from engine.config.flags import training_options, training_parser
from utils.errors import UsageError
from utils.running.cli import run_command

OWN = (
    "stage", "target", "by", "importance", "scope", "normalize", "round_to", "min_keep", "protect", "steps",
    "step_epochs", "sparse_epochs", "finetune_epochs", "distill_epochs", "sparsity", "sparsity_schedule",
    "distill_hyp", "distill_from", "calibration_batches", "sensitivity", "split",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The flags of a training, and those of pruning."""
    parser = training_parser(str(__doc__), project="runs/prune", hyp="those of the model's training, or of its family")
    parser.set_defaults(epochs=100)
    stages = ["all", "sparse", "prune", "finetune", "distill"]
    parser.add_argument("stage", choices=stages, help="all of them, or one")
    parser.add_argument("--teacher-weights", default="", help="the teacher; by default the model before pruning")
    add = parser.add_argument_group("pruning").add_argument
    add(
        "--target", "--targets", type=float, nargs="+", default=[0.5], help="share to remove; several: a model for each"
    )
    add("--by", choices=["gflops", "params", "channels", "latency"], default="gflops", help="what the share is of")
    kinds = ["taylor", "bn", "l1", "l2", "random"]
    add("--importance", choices=kinds, default="taylor", help="bn: scales of BatchNorm, after a sparse training")
    add(
        "--scope",
        choices=["global", "layer"],
        default="global",
        help="rank all channels, or the same share of each layer",
    )
    add("--normalize", choices=["mean", "max", "none"], default="mean", help="how layers are made comparable")
    add("--round-to", type=int, default=8, help="widths become multiples of this")
    add("--min-keep", type=float, default=0.2, help="share of each layer that stays in any case")
    add("--protect", nargs="+", default=[], metavar="CLASS", help="layers of these classes keep their outputs, as SPPF")
    add("--steps", type=int, default=1, help="cuts, with fine-tuning between")
    add("--step-epochs", type=int, default=10, help="epochs between two cuts")
    add("--calibration-batches", type=int, default=12, help="training batches for importance and BatchNorm statistics")
    add("--sensitivity", action="store_true", help="also measure how much each layer alone can lose; takes long")
    add = parser.add_argument_group("repair").add_argument
    add("--sparse-epochs", type=int, help="epochs of sparse training; by default --epochs with --importance bn, else 0")
    add("--finetune-epochs", type=int, help="0: no fine-tuning; by default --epochs")
    add("--distill-epochs", type=int, help="0: no distillation; by default --epochs")
    add("--sparsity", type=float, default=1e-3, help="strength of the L1 penalty on BatchNorm scales")
    add(
        "--sparsity-schedule", choices=["constant", "decay", "ramp"], default="decay", help="its course over the epochs"
    )
    add("--distill-hyp", default="", help="recipe whose kd_losses are used; by default hyp/distill.yaml")
    add("--distill-from", choices=["pruned", "finetuned"], default="pruned", help="where the distillation starts")
    add("--split", choices=["val", "test"], default="val", help="where the report's figures come from")
    return parser


def main() -> None:
    """Parses the flags and runs the stages."""
    namespace = build_parser().parse_args()
    if namespace.resume:
        raise UsageError("--resume: repeat the command of the run with --exist-ok; what is finished is used again")
    own = argparse.Namespace(**{name: vars(namespace).pop(name) for name in OWN})
    from engine.config.options import TrainOptions
    from engine.pruning_run.config import PruneOptions
    from engine.pruning_run.prune import run_prune
    from pruning import PruneSettings

    settings = PruneSettings(
        by=own.by, importance=own.importance, scope=own.scope, normalize=own.normalize, round_to=own.round_to,
        min_keep=own.min_keep, protect=tuple(own.protect), seed=namespace.seed,
    )  # fmt: skip
    rest = {name: getattr(own, name) for name in OWN[OWN.index("steps") :] if name != "calibration_batches"}
    training = TrainOptions(**training_options(namespace))
    run_prune(
        PruneOptions(own.stage, training, settings, targets=tuple(own.target), batches=own.calibration_batches, **rest)
    )


if __name__ == "__main__":
    run_command(main)
