"""The layers of student and teacher side by side, to choose pairs from: train_distill.py --list-layers."""

from __future__ import annotations

from checkpoints.checkpoint import load_checkpoint
from distill import DistillError
from distill.listing import layer_table
from distill.pairing import AUTO, pair_layers
from engine.config.defaults import training_hyp
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.distilling.distillers import teacher_image_size
from models.yolo import Model
from utils.errors import UsageError
from utils.sizes import rounded_size

Pairs = list[tuple[int, int]]
Sizes = tuple[tuple[int, int], tuple[int, int]]


def list_layers(options: TrainOptions) -> tuple[str, DistillError | None]:
    """A table of the layers of both networks, with the pairs that auto chooses and those of the recipe.

    Weights play no part. Without a teacher the student's layers alone are listed.

    Returns:
        The table, and what is wrong with the recipe's pairs, or with auto where the recipe asks for it.

    Raises:
        UserError: no student is named, or a file is not understood.
    """
    if not (options.cfg or options.weights):
        raise UsageError("--list-layers needs a student: name it with --cfg or --weights")
    student = Model(options.cfg) if options.cfg else architecture(options.weights)
    size = rounded_size(options.img_size[0], int(max(student.stride)), "--img-size")
    if not options.teacher_weights:
        return layer_table(student, None, ((size, size), (size, size)), {}), None
    teacher = architecture(options.teacher_weights)
    teacher_size = teacher_image_size(options, teacher) or size
    sizes: Sizes = ((size, size), (teacher_size, teacher_size))
    hyp, pairs, problem = training_hyp(options, distil=True).hyp, {}, None
    wanted = {"auto": (AUTO, AUTO)}
    if not _is_auto(hyp):
        wanted["hyp"] = (hyp.student_kd_layers or AUTO, hyp.teacher_kd_layers or AUTO)
    for source, (ours, theirs) in wanted.items():
        try:
            pairs[source] = _pairs(student, teacher, ours, theirs, sizes, hyp.kd_resize)
        except DistillError as error:
            problem = error if source == list(wanted)[-1] else None
            if isinstance(ours, list) and isinstance(theirs, list):  # so that what is wrong can be seen
                pairs[source] = list(zip(ours, theirs))
    return layer_table(student, teacher, sizes, pairs), problem


def architecture(weights: str) -> Model:
    """The network of a checkpoint, without its weights."""
    checkpoint = load_checkpoint(weights)
    return Model(checkpoint.yaml, nc=checkpoint.nc)


def _is_auto(hyp: Hyp) -> bool:
    return all(layers in (None, AUTO) for layers in (hyp.student_kd_layers, hyp.teacher_kd_layers))


def _pairs(student: Model, teacher: Model, ours: object, theirs: object, sizes: Sizes, resize: bool) -> Pairs:
    levels = pair_layers(student, teacher, ours, theirs, "extra_features", sizes, resize)[2]  # type: ignore[arg-type]
    return [(int(level.student_layer), int(level.teacher_layer)) for level in levels]
