"""The flags that train.py and train_distill.py share. Imports nothing heavy, so that --help is instant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from engine.config.options import IMPORTANCES, INITS
from utils.errors import UsageError
from utils.paths import run_path
from utils.running.cli import (
    MOST_IMAGES,
    MOST_PROCESSES,
    MOST_SEED,
    CommandParser,
    check_pixels,
    check_range,
)

MOST_EPOCHS = 10**6
RANGES = {
    "epochs": (1, MOST_EPOCHS), "batch_size": (1, MOST_IMAGES), "val_period": (1, MOST_EPOCHS),
    "workers": (0, MOST_PROCESSES), "seed": (0, MOST_SEED), "patience": (0, MOST_EPOCHS),
    "close_mosaic": (0, MOST_EPOCHS), "unlabeled_batch": (0, MOST_IMAGES), "save_period": (-1, MOST_EPOCHS),
}  # fmt: skip
MOST_LAYER = 10**6

NO_OPTIONS = (
    "resume",
    "local_rank",
    "teacher_assistants",
    "list_layers",
    "report",
)  # flags that are no field of TrainOptions

NOT_BUILT_IN = {
    "--evolve": "hyper-parameter evolution is not built in",
    "--bucket": "uploads to a bucket are not built in",
    "--entity": "Weights & Biases is not built in; every run writes TensorBoard events",
    "--upload_dataset": "Weights & Biases is not built in; every run writes TensorBoard events",
    "--bbox_interval": "Weights & Biases is not built in; every run writes TensorBoard events",
    "--artifact_alias": "Weights & Biases is not built in; every run writes TensorBoard events",
    "--v5-metric": "the best epoch is always chosen by fitness, 0.1 AP50 + 0.9 AP of COCO's evaluation; "
    "test.py has --v5-metric",
    "--quad": "quad batches are not built in; use --multi-scale or a larger --img-size",
}


class NotBuiltIn(argparse.Action):
    """An upstream flag that would be ignored: said, instead of accepted in silence."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Ends with the usage error for the flag."""
        parser.error(f"{option_string}: {NOT_BUILT_IN[str(option_string)]}")


def training_parser(description: str, project: str, hyp: str) -> argparse.ArgumentParser:
    """Upstream YOLOv7's flags and defaults, with YOLOv5's spellings as aliases.

    Args:
        description: first line of --help.
        project: default folder of the runs.
        hyp: what --hyp is by default, in words.
    """
    parser = CommandParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    _add_inputs(parser, hyp)
    _add_length_and_data(parser)
    _add_optimisation(parser)
    _add_outputs(parser, project)
    for flag in NOT_BUILT_IN:
        parser.add_argument(flag, action=NotBuiltIn, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _add_inputs(parser: argparse.ArgumentParser, hyp: str) -> None:
    add = parser.add_argument
    add("--weights", default="", help="checkpoint to start from; upstream's .pt files too")
    add("--cfg", default="", help="architecture yaml; without it, that of --weights")
    add("--data", default="data/coco.yaml", help="data set yaml")
    add("--hyp", default="", help=f"hyper-parameter yaml; without it, {hyp}")
    add(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="LAST.PT",
        help="continue an interrupted run exactly; with --epochs N, train a finished one for longer",
    )
    add("--device", default="", help="cpu, 0, or cuda:0; the first GPU when there is one")
    add("--local_rank", "--local-rank", type=int, default=-1, help="set by launchers; torchrun's environment counts")


def _add_length_and_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--epochs", type=int, default=300)
    add("--batch-size", "--batch", type=int, default=16, help="total over all processes")
    add("--img-size", "--img", "--imgsz", nargs="+", type=int, default=[640, 640], help="training, validation pixels")
    add("--rect", action="store_true", help="rectangular training batches")
    add("--multi-scale", action="store_true", help="vary the size by half up and down")
    add("--single-cls", action="store_true", help="all objects are one class")
    add("--image-weights", action="store_true", help="draw images with rare classes more often")
    kinds = ["ram", "disk"]
    add("--cache-images", "--cache", nargs="?", const="ram", choices=kinds, dest="cache", help="keep decoded images")
    add("--close-mosaic", type=int, default=0, help="epochs at the end without mosaic and mixup")
    add("--workers", type=int, default=8, help="loader processes, at most one a core")
    add("--seed", type=int, default=0)


def _add_optimisation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--optimizer", choices=["SGD", "Adam", "AdamW"], default="SGD")
    add("--adam", action="store_const", const="Adam", dest="optimizer", help="the same as --optimizer Adam")
    add("--linear-lr", action="store_true", help="linear instead of cosine learning rate")
    add("--cos-lr", action="store_false", dest="linear_lr", help="cosine learning rate (the default)")
    add("--label-smoothing", type=float, default=0.0)
    add("--freeze", nargs="+", type=int, default=[0], help="one number n: the first n layers; several: those layers")
    add("--noautoanchor", action="store_true", help="keep the anchors as they are")
    add("--compile", action="store_true", help="run the training pass through torch.compile")
    add("--sync-bn", action="store_true", help="BatchNorm statistics over all GPUs")
    add("--patience", type=int, default=100, help="stop after so many epochs without a higher fitness; 0: never")


def _add_outputs(parser: argparse.ArgumentParser, project: str) -> None:
    add = parser.add_argument
    add("--project", default=project, help="folder of the runs")
    add("--name", default="exp", help="name of this run; numbered when it exists")
    add("--exist-ok", action="store_true", help="write into an existing run folder")
    add("--nosave", action="store_true", help="save after the last epoch only")
    add("--notest", "--noval", action="store_true", help="validate after the last epoch only")
    add("--val-period", type=int, default=1, help="validate every so many epochs, and after the last")
    add("--noplots", action="store_true", help="draw nothing")
    add("--report", action="store_true", help="write report.html into the run folder at the end")
    add("--save_period", "--save-period", type=int, default=-1, help="also keep a copy every so many epochs")


def add_inheriting(parser: argparse.ArgumentParser, distil: bool = False) -> None:
    """The flags that say which network a student starts as a part of."""
    add = parser.add_argument
    if distil:
        add(
            "--init", choices=INITS, default="auto",
            help="what the student starts as: a part cut out of its teacher (inherit), or random weights (scratch); "
            "auto: inherit where --cfg is of the teacher's kind and --weights says nothing else",
        )  # fmt: skip
    else:
        add("--inherit", default="", metavar="PT", help="start as a part cut out of this trained, larger network")
    add("--inherit-importance", choices=IMPORTANCES, default="taylor", help="what chooses the channels that are kept")


def add_distillation(parser: argparse.ArgumentParser) -> None:
    """The flags that train_distill.py has besides."""
    add = parser.add_argument
    add_inheriting(parser, distil=True)
    add(
        "--teacher-weights", nargs="+", default=[], metavar="PT",
        help="the teacher's checkpoint, upstream's .pt too; several share the work; ema: the student's own average",
    )  # fmt: skip
    add(
        "--teacher-assistants", nargs="+", default=[], metavar="CFG[:WEIGHTS]",
        help="networks between teacher and student, each taught by the one before; or a yaml that lists them",
    )  # fmt: skip
    add("--teacher-img-size", type=int, default=0, help="pixels of the images that the teacher sees; 0: the student's")
    add("--teacher-device", default="", help="where the teacher runs: cpu, 0, 1; the student's device")
    add("--list-layers", action="store_true", help="print the layers of both networks with the pairs, and end")
    add("--unlabeled", default="", metavar="DIR", help="images without labels to distil on, a folder or a .txt list")
    add("--unlabeled-batch", type=int, default=0, help="how many of them in a batch, over all processes; 0: half of it")


def given_flags(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> set[str]:
    """Names of the flags that stand in a command line, in whatever spelling, as opposed to those with their defaults.

    Args:
        parser: has parsed the same words already.
        words: the command line; that of this process by default.
    """
    defaults = [(action, action.default) for action in parser._actions]
    try:
        for action, _ in defaults:
            action.default = argparse.SUPPRESS
        return set(vars(parser.parse_args(words)))
    finally:
        for action, default in defaults:
            action.default = default


def refuse_beside_resume(namespace: argparse.Namespace) -> None:
    """Raises the UsageError of flags that ask for something else than the run that --resume goes on with."""
    if namespace.resume and namespace.list_layers:
        raise UsageError("--list-layers shows what a training would begin with; leave --resume out")
    if namespace.resume and namespace.teacher_assistants:
        raise UsageError(
            "--teacher-assistants does not count with --resume: a chain goes on by its own command with --exist-ok; "
            "leave one of the two out"
        )


def training_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of TrainOptions from parsed flags; checks what argparse does not."""
    values = vars(namespace).copy()
    for name in NO_OPTIONS:
        values.pop(name, None)
    sizes = values["img_size"]
    if len(sizes) > 2:
        raise UsageError(f"--img-size takes one or two numbers (training, validation), got {len(sizes)}")
    values["img_size"] = (sizes[0], sizes[-1])
    values["freeze"] = tuple(values["freeze"])
    named = values.pop("teacher_weights", [])
    teachers = [named] if isinstance(named, str) else named
    values["teacher_weights"], values["more_teachers"] = (teachers or [""])[0], tuple(teachers[1:])
    if values.get("inherit") and "init" not in values:
        values["init"] = "inherit"
    _check_numbers(values)
    run_path(values["project"], values["name"])
    return values


def _check_numbers(values: dict[str, Any]) -> None:
    if values["batch_size"] == -1:
        raise UsageError("--batch-size -1: choosing it by the GPU's memory is not built in; give a number such as 16")
    for name, bounds in RANGES.items():
        if name in values:
            check_range(f"--{name.replace('_', '-')}", values[name], *bounds)
    for size in values["img_size"]:
        check_pixels("--img-size", size)
    if values.get("teacher_img_size"):
        check_pixels("--teacher-img-size", values["teacher_img_size"])
    if not 0 <= values["label_smoothing"] < 1:
        raise UsageError(f"--label-smoothing must be at least 0 and less than 1, got {values['label_smoothing']}")
    for layer in values["freeze"]:
        check_range("--freeze", layer, 0, MOST_LAYER)
