"""Bounds on an architecture that a file brings, before anything of it is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from utils.errors import UserError

MAX_ROWS = 2000  # the largest published architecture has 262
MAX_SOURCES = 64  # layers that one layer reads
MAX_REPEATS = 1000
MAX_ARGUMENT = 200  # characters
MAX_ARGUMENTS = 200
MAX_VALUE = 1_000_000
MAX_ANCHORS = 64  # a level
MAX_DEPTH_MULTIPLE = 20
BLOCK_NAME = re.compile(r"[\w.]{1,60}")


def check_architecture(yaml: Mapping[str, Any], where: str) -> None:
    """Refuses an architecture in a file that would take without end to build.

    Raises:
        UserError: it is no list of rows, or a number or text in it is beyond that of any detector.
    """
    for key in ("backbone", "head"):
        rows = yaml.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
            raise UserError(f"{where}: its architecture's {key!r} is no list of rows; it is damaged")
        if len(rows) > MAX_ROWS:
            raise UserError(
                f"{where}: its architecture has {len(rows)} rows in its {key!r}; it is damaged or malicious"
            )
        for row in rows:
            _check_row(row, where)
    scales = yaml.get("scales") or {}
    depths = [scale[:1] for scale in scales.values() if isinstance(scale, list)] if isinstance(scales, dict) else []
    for depth in (yaml.get("depth_multiple"), *(value for scale in depths for value in scale)):
        if isinstance(depth, int | float) and not 0 < depth <= MAX_DEPTH_MULTIPLE:
            raise UserError(f"{where}: its architecture has a depth multiple of {depth:g}; it is damaged or malicious")
    if not _are_anchors(yaml.get("anchors")):
        raise UserError(f"{where}: its architecture has more anchors than any detector; it is damaged or malicious")


def _check_row(row: list[Any], where: str) -> None:
    source, repeats, block, arguments = row
    if isinstance(repeats, int) and repeats > MAX_REPEATS:
        raise UserError(f"{where}: its architecture repeats a block without end; it is damaged or malicious")
    if isinstance(source, list) and len(source) > MAX_SOURCES:
        raise UserError(f"{where}: its architecture has a layer that reads {len(source)} others; it is malicious")
    if not isinstance(block, str) or not BLOCK_NAME.fullmatch(block) or not _are_arguments(arguments):
        raise UserError(f"{where}: its architecture has a row with an impossible block; it is damaged")


def _are_arguments(values: Any, depth: int = 2) -> bool:
    """Whether these are arguments of a row: numbers, short texts, and lists of such."""
    return (
        isinstance(values, list)
        and len(values) <= MAX_ARGUMENTS
        and all(_is_argument(value) or (depth > 0 and _are_arguments(value, depth - 1)) for value in values)
    )


def _is_argument(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_ARGUMENT
    return value is None or (isinstance(value, int | float) and not abs(value) > MAX_VALUE)


def _are_anchors(anchors: Any) -> bool:
    """Whether the anchors are few enough; what else they must be, the model checks."""
    if isinstance(anchors, list):
        counts = [len(level) for level in anchors if isinstance(level, list)]
        return len(anchors) <= MAX_SOURCES and max(counts, default=0) <= 2 * MAX_ANCHORS
    return not isinstance(anchors, int) or anchors <= MAX_ANCHORS
