"""Which student layer learns from which teacher layer, and whether the two fit: found out by a dry run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .context import Level, level_names
from .errors import DistillError, shown
from .taps import Tap, make_tap, unwrap

AUTO = "auto"
WHO = ("student", "teacher")
Layers = Sequence[int | str]
"""Layer indices or module names, or the word "auto"."""
ImageSizes = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class TappedLayer:
    """What the dry run measured of one layer; `shape` is (C, H, W)."""

    layer: int | str
    shape: tuple[int, int, int]
    stride: int


def auto_layers(
    student_inputs: Sequence[int | str],
    student_strides: Sequence[int],
    teacher_inputs: Sequence[int | str],
    teacher_strides: Sequence[int],
) -> tuple[list[int | str], list[int | str]]:
    """Layers feeding the two heads, paired by stride; strides that only one of them has are left out.

    Args:
        student_inputs, teacher_inputs: the layers that feed each head.
        student_strides, teacher_strides: stride in pixels of each of them.

    Raises:
        DistillError: no stride is common.
    """
    teacher_of: dict[int, int | str] = {}
    for layer, stride in zip(teacher_inputs, teacher_strides):
        teacher_of.setdefault(stride, layer)
    pairs = [(layer, teacher_of[s]) for layer, s in zip(student_inputs, student_strides) if s in teacher_of]
    if not pairs:
        raise DistillError(
            f"auto: the student's layers have strides {list(student_strides)}, the teacher's {list(teacher_strides)}, "
            "none in common; list student_kd_layers and teacher_kd_layers by hand"
        )
    return [student for student, _ in pairs], [teacher for _, teacher in pairs]


def head_inputs(model: nn.Module, who: str) -> tuple[list[int | str], list[int]]:
    """Indices and strides of the layers whose features a network's predictions are made from.

    They are read from `model.head.f` and `model.stride`. A head without parameters only decodes: what feeds it are the
    prediction layers, and the features are what feeds those.
    """
    network = unwrap(model)
    head = getattr(network, "head", None)
    sources, strides = getattr(head, "f", None), getattr(network, "stride", None)
    if not isinstance(sources, list | tuple) or strides is None:
        raise DistillError(f"{who}_kd_layers: auto needs a {who} with head.f and stride; list the layers by hand")
    values = [int(stride) for stride in torch.as_tensor(strides).flatten().tolist()]
    layers = network.model
    position = len(layers) - 1  # type: ignore[arg-type]
    inputs = [index if index >= 0 else position + index for index in sources]
    inputs = inputs[: len(values)]  # inputs of auxiliary branches come after those of the head
    if not any(True for _ in head.parameters()):  # type: ignore[union-attr]
        inputs = [_input_of(layers, index, who) for index in inputs]
    return list(inputs), values


def _input_of(layers: Any, index: int, who: str) -> int:
    """The layer that feeds a layer."""
    source = getattr(layers[index], "f", None)
    if not isinstance(source, int):
        raise DistillError(
            f"{who}_kd_layers: auto looks for the features before the prediction layer {index}, which has no single "
            "input; list the layers by hand"
        )
    return source if source >= 0 else index + source


def _advice(*networks: tuple[nn.Module, str]) -> str:
    """What layers there are to choose from: to be said after what is wrong with those that were chosen."""
    parts = []
    for model, who in networks:
        try:
            parts.append(f"{head_inputs(model, who)[0]} for the {who}")
        except DistillError:
            return ""  # a network of another trainer, whose layers have names
    return f"; auto takes {' and '.join(parts)}, and train_distill.py --list-layers shows all layers"


def pair_layers(
    student: nn.Module,
    teacher: nn.Module,
    student_layers: Layers,
    teacher_layers: Layers,
    taps: str,
    image_hw: ImageSizes,
    resized: bool = False,
) -> tuple[Tap, Tap, tuple[Level, ...]]:
    """Resolves "auto", taps both networks, runs each once, and checks the pairs.

    Args:
        student, teacher, student_layers, teacher_layers, taps: as for the distiller.
        image_hw: height and width of the student's and of the teacher's images in pixels.
        resized: allow pairs of unequal strides.

    Returns:
        The student's tap, the teacher's tap, and the pairs.

    Raises:
        DistillError: the lists differ in length, a layer is not there or gives no map, or strides differ.
    """
    student_list, teacher_list = _resolve(student, teacher, student_layers, teacher_layers, taps, image_hw)
    if len(student_list) != len(teacher_list):
        raise DistillError(
            f"student_kd_layers has {len(student_list)} entries {student_list}, teacher_kd_layers {len(teacher_list)} "
            f"{teacher_list}; they are paired in order, so give both the same number"
            + _advice((student, "student"), (teacher, "teacher"))
        )
    student_tap = _make_tap(taps, student, student_list, "student")
    teacher_tap = _make_tap(taps, teacher, teacher_list, "teacher")
    student_found = measure(student, student_tap, image_hw[0], "student")
    teacher_found = measure(teacher, teacher_tap, image_hw[1], "teacher")
    for position, (s, t) in enumerate(zip(student_found, teacher_found)):
        # A teacher of larger images meets a student's grid one level up too.
        if s.stride != t.stride and s.shape[1:] != t.shape[1:] and not resized:
            advice = _advice((student, "student"), (teacher, "teacher"))
            raise DistillError(_stride_message(position, s, t, [f.stride for f in student_found], advice))
    names = level_names(student_list, [found.stride for found in student_found])
    levels = tuple(
        Level(name, s.layer, t.layer, s.shape[0], t.shape[0], s.stride)
        for name, s, t in zip(names, student_found, teacher_found)
    )
    return student_tap, teacher_tap, levels


def _make_tap(taps: str, model: nn.Module, layers: Sequence[int | str], who: str) -> Tap:
    try:
        return make_tap(taps, model, layers, who)
    except DistillError as error:
        raise DistillError(f"{error}{_advice((model, who))}") from None


def _stride_message(
    position: int, student: TappedLayer, teacher: TappedLayer, student_strides: list[int], advice: str
) -> str:
    return (
        f"teacher_kd_layers[{position}]={teacher.layer} has stride {teacher.stride} and shape {teacher.shape}; "
        f"student_kd_layers[{position}]={student.layer} has stride {student.stride} and shape {student.shape} "
        f"(student strides: {', '.join(map(str, student_strides))}{advice}); "
        "pair equal strides, drop the pair, use auto, or set kd_resize: true to resize the teacher's map"
    )


def _resolve(
    student: nn.Module,
    teacher: nn.Module,
    student_layers: Layers,
    teacher_layers: Layers,
    taps: str,
    image_hw: ImageSizes,
) -> tuple[list[int | str], list[int | str]]:
    """Both lists, with "auto" replaced by the layers that feed the head and have the other side's strides."""
    for model, layers, who in ((student, student_layers, "student"), (teacher, teacher_layers, "teacher")):
        if isinstance(layers, str) and layers != AUTO or not isinstance(layers, Sequence):
            raise DistillError(
                f"{who}_kd_layers is {shown(layers)}; expected a list of layers, or auto{_advice((model, who))}"
            )
    if AUTO not in (student_layers, teacher_layers):
        return list(student_layers), list(teacher_layers)

    def inputs_and_strides(side: int) -> tuple[list[int | str], list[int]]:
        model, layers, who = (student, teacher)[side], (student_layers, teacher_layers)[side], WHO[side]
        if layers == AUTO:
            return head_inputs(model, who)
        found = measure(model, _make_tap(taps, model, layers, who), image_hw[side], who)
        return list(layers), [tapped.stride for tapped in found]

    sides = inputs_and_strides(0), inputs_and_strides(1)
    if teacher_layers != AUTO:  # the listed side decides the order
        teacher_list, student_list = auto_layers(*sides[1], *sides[0])
    else:
        student_list, teacher_list = auto_layers(*sides[0], *sides[1])
    for (inputs, strides), kept, listed, who in zip(
        sides, (student_list, teacher_list), (student_layers, teacher_layers), WHO
    ):
        if listed != AUTO and len(kept) != len(inputs):
            lost = next(i for i, layer in enumerate(inputs) if layer not in kept)
            raise DistillError(
                f"{who}_kd_layers[{lost}]={inputs[lost]} has stride {strides[lost]}, and auto found no layer of that "
                "stride before the other network's head; drop it, or list both sides by hand"
            )
    return student_list, teacher_list


def check_separate(student: nn.Module, teacher: nn.Module) -> None:
    """Freezing the teacher must not freeze the student."""
    own = {id(parameter) for parameter in unwrap(student).parameters()}
    if not own:
        raise DistillError("the student has no parameters")
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise DistillError("student and teacher share parameters; load the teacher as a network of its own")


def measure(model: nn.Module, tap: Tap, image_hw: tuple[int, int], who: str) -> list[TappedLayer]:
    """Channels, sizes and strides of the tapped layers, from one pass over a black image.

    The pass runs in evaluation mode without gradients, so BatchNorm statistics and the random stream stay as they are;
    every module's mode is restored afterwards.
    """
    if not tap.layers:
        return []
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *image_hw, device=parameter.device, dtype=parameter.dtype)
    with evaluation_mode(model), torch.no_grad():
        _, features = tap.run(model, image, with_head=False)
    for layer, feature in zip(tap.layers, features):
        if not isinstance(feature, Tensor) or feature.ndim != 4:
            raise DistillError(
                f"layer {layer} of the {who} gives no feature map (N, C, H, W); choose another{_advice((model, who))}"
            )
    return [_tapped(layer, feature, image_hw, who) for layer, feature in zip(tap.layers, features)]


def _tapped(layer: int | str, feature: Tensor, image_hw: tuple[int, int], who: str) -> TappedLayer:
    channels, height, width = feature.shape[1:]
    stride = image_hw[0] // height
    if stride * height != image_hw[0] or stride * width != image_hw[1]:
        raise DistillError(
            f"layer {layer} of the {who} gives a map of {height}x{width} for an image of {image_hw[0]}x{image_hw[1]}, "
            "which is no whole stride; choose an image size that is a multiple of the largest stride"
        )
    return TappedLayer(layer, (channels, height, width), stride)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode is restored after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
