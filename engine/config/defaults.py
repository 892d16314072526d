"""What a training takes that no file says: the plain hyper-parameters of its student's family, and the default recipe.

Values come from, each over the ones before: the plain file of the family (PLAIN_FILES); what every distillation takes
(DISTILLATION); the file's `base`; the file. A file that says at which layers and not what is distilled has the default
recipe below it. This holds for every command, with and without --hyp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import Checkpoint, load_checkpoint
from engine.config.bases import LOSSES, Loaded, load_hyp, merge
from engine.config.hyp import AUTO, AUTO_NUMBERS, Hyp, hyp_from_dict
from engine.config.options import TrainOptions
from engine.config.vocabulary import LAYER_KEYS
from models.config import ModelConfig, read_model_config
from utils.logging import LOGGER
from utils.paths import REPOSITORY
from utils.text import shown_path

LARGE, SMALL, FINE_TUNED = "yolov7", "yolov7, small", "yolov7, fine-tuned"
PLAIN_FILES = {
    "yolov5": "hyp/scratch-low.yaml",
    "mobile": "hyp/scratch-low.yaml",
    LARGE: "hyp/scratch.p5.yaml",
    SMALL: "hyp/scratch.tiny.yaml",
    FINE_TUNED: "hyp/scratch.custom.yaml",
    "yolov8": "hyp/scratch.v8.yaml",
}
"""The plain hyper-parameters of each kind of student; the table in docs/architectures.md."""
SMALL_WIDTH = 512
"""Channels of yolov7-tiny's widest row; what is no wider counts as small. The others have 1024 and more."""
RECIPE = "hyp/distill.yaml"
DISTILLATION = dict.fromkeys(AUTO_NUMBERS, AUTO)


@dataclass(frozen=True)
class Resolved:
    """The hyper-parameters of a training.

    Attributes:
        hyp: all of them.
        notes: lines to tell at its start: where they come from.
    """

    hyp: Hyp
    notes: tuple[str, ...]


def student_kind(config: ModelConfig, fine_tuned: bool) -> str:
    """The key of PLAIN_FILES for an architecture: its family and, for YOLOv7, how wide its rows are.

    Args:
        config: of any yaml; its name plays no part, and a pruned one counts as what it was cut from.
        fine_tuned: whether the training starts from trained weights.
    """
    if config.family != "yolov7":
        return config.family
    if fine_tuned:
        return FINE_TUNED
    widths = [row.arguments[0] for row in config.rows if row.arguments and type(row.arguments[0]) is int]
    return SMALL if max(widths, default=0) * config.width <= SMALL_WIDTH else LARGE


def kind_of_architecture(architecture: str | Path | Mapping[str, Any], fine_tuned: bool = False) -> str:
    """`student_kind` of a yaml or its content."""
    before, LOGGER.disabled = LOGGER.disabled, True  # what there is to warn of is told when the model is built
    try:
        return student_kind(read_model_config(architecture), fine_tuned)
    finally:
        LOGGER.disabled = before


def kind_of_checkpoint(checkpoint: Checkpoint, fine_tuned: bool = True) -> str:
    """`student_kind` of a checkpoint's architecture."""
    family = {"family": checkpoint.family} if checkpoint.family else {}
    return kind_of_architecture({**checkpoint.yaml, **family}, fine_tuned)


def kind_of_student(cfg: str, weights: str) -> str:
    """`student_kind` of what --cfg and --weights name; YOLOv5's where they name nothing, which is refused elsewhere."""
    if cfg:
        return kind_of_architecture(cfg, bool(weights))
    return kind_of_checkpoint(load_checkpoint(weights)) if weights else "yolov5"


def training_hyp(options: TrainOptions, distil: bool) -> Resolved:
    """The hyper-parameters of a training by its options.

    Args:
        options: their hyp is empty for the defaults.
        distil: whether it is one of train_distill.py, whose default is a recipe.

    Raises:
        UserError: a file is missing or not understood.
    """
    return resolve_hyp(options.hyp, kind_of_student(options.cfg, options.weights), distil)


def resolve_hyp(path: str | Path, kind: str, distil: bool) -> Resolved:
    """The hyper-parameters that a file means for a kind of student; of the default file where it is empty."""
    loaded = hyp_values(path, kind, distil)
    source = str(path) or (RECIPE if distil else PLAIN_FILES[kind])
    return Resolved(hyp_from_dict(loaded.values, source), loaded.notes)


def hyp_values(path: str | Path, kind: str, distil: bool) -> Loaded:
    """As `resolve_hyp`, unchecked."""
    plain = PLAIN_FILES[kind]
    named = str(path) or (RECIPE if distil else "")
    notes = [f"hyper-parameters: {f'{shown_path(named)} over ' if named else ''}{plain}, for {kind}"]
    values = load_hyp(REPOSITORY / plain).values
    if not named:
        return Loaded(values, tuple(notes))
    given = load_hyp(path or REPOSITORY / RECIPE)
    own = given.values
    if LOSSES not in own and any(own.get(key) is not None for key in LAYER_KEYS):
        own = merge(load_hyp(REPOSITORY / RECIPE).values, own)
        layers = ", ".join(key for key in LAYER_KEYS if given.values.get(key) is not None)
        notes.append(f"{shown_path(named)} has {layers} and no {LOSSES}: the losses of {RECIPE} at those layers")
    if own.get(LOSSES):
        values |= DISTILLATION
    return Loaded(merge(values, own), (*notes, *given.notes))
