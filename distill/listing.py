"""All layers of two networks side by side, to choose pairs from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .errors import DistillError
from .pairing import evaluation_mode
from .report import format_table
from .taps import unwrap

Pairs = Mapping[str, Sequence[tuple[int, int]]]
"""For each way to pair ("auto", or where it is written), (student layer, teacher layer)."""
COLUMNS = ("layer", "block", "channels", "stride", "pairs")


def layer_rows(model: nn.Module, image_hw: tuple[int, int], who: str) -> list[list[str]]:
    """Index, block, channels and stride of each layer before a network's head.

    Raises:
        DistillError: the network has no sequence of layers `model`.
    """
    network = unwrap(model)
    layers = getattr(network, "model", None)
    if not isinstance(layers, nn.Sequential):
        raise DistillError(f"the {who} has no sequence of layers to list")
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, *image_hw, device=parameter.device, dtype=parameter.dtype)
    with evaluation_mode(network), torch.no_grad():
        _, features = network(image, extra_features=list(range(len(layers) - 1)), features_only=True)
    return [_row(index, layer, feature, image_hw) for index, (layer, feature) in enumerate(zip(layers, features))]


def _row(index: int, layer: nn.Module, feature: object, image_hw: tuple[int, int]) -> list[str]:
    named = getattr(layer, "type", None)  # of any other module it is a method
    block = named if isinstance(named, str) else type(layer).__name__
    if not isinstance(feature, Tensor) or feature.ndim != 4:
        return [str(index), block, "-", "-"]
    return [str(index), block, str(feature.shape[1]), f"{image_hw[0] / feature.shape[2]:g}"]


def layer_table(
    student: nn.Module,
    teacher: nn.Module | None,
    image_hw: tuple[tuple[int, int], tuple[int, int]],
    pairs: Pairs,
) -> str:
    """A table of both networks' layers; a pair has the same mark on both sides, such as "auto 1".

    Args:
        student, teacher: networks with a sequence of layers `model`, called with `extra_features`; without a teacher
            the student alone is listed.
        image_hw: height and width of the images of either.
        pairs: what is marked.
    """
    tables = [_marked(layer_rows(student, image_hw[0], "student"), pairs, 0)]
    if teacher is not None:
        tables.append(_marked(layer_rows(teacher, image_hw[1], "teacher"), pairs, 1))
    blank = [""] * len(COLUMNS)
    heading = [f"{who} {name}" if name == COLUMNS[0] else name for who in ("student", "teacher") for name in COLUMNS]
    length = max(len(rows) for rows in tables)
    body = [[cell for rows in tables for cell in (rows[i] if i < len(rows) else blank)] for i in range(length)]
    return format_table([heading[: len(body[0])], *body])


def _marked(rows: list[list[str]], pairs: Pairs, side: int) -> list[list[str]]:
    marks: dict[int, list[str]] = {}
    for source, listed in pairs.items():
        for number, pair in enumerate(listed, start=1):
            marks.setdefault(pair[side], []).append(f"{source} {number}")
    return [[*row, ", ".join(marks.get(index, []))] for index, row in enumerate(rows)]
