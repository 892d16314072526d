"""Reading and checking an architecture: a yaml in the upstream repositories' format, or the dict of one."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.families import FAMILIES, Family, Traits, head_keys
from models.registry import ELSEWHERE
from utils.errors import UserError, unknown_name
from utils.logging import LOGGER
from utils.text import printable, shown, shown_path
from utils.yaml_io import check_keys, load_yaml

REQUIRED_KEYS = ("nc", "backbone", "head")
LARGEST_COUNT = 100_000  # of classes and channels: far above any real one, far below what memory holds
MOST_REPEATS = 1000
SCALED_NAME = re.compile(r"(yolov?\d+)([a-z])")  # the scale is the letter behind the generation
LONGEST_VALUE = 200  # characters of a value in an error
TEXT_KEYS = ("names", "scale", "family", "yaml_file")
KNOWN_KEYS = (
    *REQUIRED_KEYS,
    "anchors",
    "depth_multiple",
    "width_multiple",
    "max_channels",
    "scales",
    "scale",
    "activation",
    "ch",
    "channels",
    "family",
    "yaml_file",
    "names",
    "inplace",
    "task",
    "channel_plan",
)


@dataclass(frozen=True)
class Row:
    """One line of the yaml's backbone or head.

    Attributes:
        index: of the layer.
        source: the layers it reads, -1 for the one before.
        repeats: before the depth multiple.
        module: name of the block.
        arguments: as written.
    """

    index: int
    source: int | list[int]
    repeats: int
    module: str
    arguments: list[Any]

    @property
    def sources(self) -> list[int]:
        """`source` as a list."""
        return self.source if isinstance(self.source, list) else [self.source]


@dataclass(frozen=True)
class ModelConfig:
    """A checked architecture.

    Attributes:
        where: what to call it in an error.
        yaml: the complete dict; building from it gives the same architecture.
        rows: the layers.
        depth, width, max_channels: multiples of repeats and widths, and the bound of widths before the multiple.
        family: one of FAMILIES; decides how a few blocks and heads are meant.
    """

    where: str
    yaml: dict[str, Any]
    rows: list[Row]
    depth: float
    width: float
    max_channels: float
    family: str

    @property
    def num_classes(self) -> int:
        return self.yaml["nc"]

    @property
    def meaning(self) -> Family:
        """What the family means by its names."""
        return FAMILIES[self.family]

    @property
    def in_channels(self) -> int:
        return self.yaml["ch"]

    @property
    def anchors_per_level(self) -> int | None:
        """None where the yaml has no anchors."""
        anchors = self.yaml.get("anchors")
        return len(anchors[0]) // 2 if isinstance(anchors, list) else anchors

    @property
    def argument_names(self) -> dict[str, Any]:
        """What argument strings can refer to."""
        names = {"nc": self.num_classes, "na": self.anchors_per_level, "anchors": self.yaml.get("anchors")}
        return {name: value for name, value in names.items() if value is not None}

    @property
    def unscaled_width(self) -> int:
        """The width that is taken for the head's outputs and not scaled, in the family's rule."""
        na = self.anchors_per_level
        return self.num_classes if na is None else na * (self.num_classes + 5)


def read_model_config(
    cfg: str | Path | Mapping[str, Any],
    ch: int = 3,
    nc: int | None = None,
    anchors: int | Sequence[Sequence[float]] | None = None,
) -> ModelConfig:
    """Reads an architecture and checks everything that can be checked before building it.

    Args:
        cfg: path of a yaml, or its content. Where there is no yolov8s-p2.yaml, yolov8-p2.yaml is read at the scale s.
        ch: channels of the image, unless the content records them.
        nc: replaces the number of classes.
        anchors: replaces the anchors: a list a level of w, h, w, h, ... in pixels, or their number a level.

    Raises:
        UserError: names the yaml, the layer, and what is wrong.
    """
    if isinstance(cfg, Mapping):
        content, where = copy.deepcopy(dict(cfg)), "architecture"
        stem = Path(str(content.get("yaml_file", ""))).stem
    else:
        content = load_yaml(_file_of_all_scales(Path(cfg)), "architecture", TEXT_KEYS)
        where = f"architecture {shown_path(cfg)}"
        stem = Path(cfg).stem
    check_keys(content, (*KNOWN_KEYS, *sorted(head_keys())), where)
    for key in REQUIRED_KEYS:
        if content.get(key) is None:
            raise UserError(f"{where}: the key {key!r} is missing; add it")
    if nc is not None:
        content["nc"] = nc
    if anchors is not None:
        content["anchors"] = round(anchors) if isinstance(anchors, int | float) else [list(level) for level in anchors]
    if not _is_count(content["nc"]):
        raise UserError(f"{where}: nc is {shortened(content['nc'])}; give a number of classes, 1 to {LARGEST_COUNT}")
    if content.get("anchors") is not None:
        check_anchors(content["anchors"], where)
    content.setdefault("ch", content.get("channels") or ch)
    if not _is_count(content["ch"]):
        raise UserError(f"{where}: ch is {shortened(content['ch'])}; give the number of an image's channels, such as 3")
    rows = _read_rows(content, where)
    depth, width, max_channels = _read_multiples(content, stem, where)
    if content.get("family") is None:
        content["family"] = infer_family(rows)
    family = content["family"]
    if family not in list(FAMILIES):  # which may be no name at all
        raise unknown_name("family", family, FAMILIES, where)
    check_keys(content, (*KNOWN_KEYS, *sorted(head_keys(family, rows[-1].module))), where)
    return ModelConfig(where, content, rows, depth, width, max_channels, family)


def shortened(value: Any) -> str:
    """A value as an error shows it."""
    return shown(value, LONGEST_VALUE)


def is_number(value: Any) -> bool:
    """Whether a value is a positive, finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and is_number(value) and value <= LARGEST_COUNT


def check_anchors(anchors: Any, where: str) -> None:
    """Raises UserError unless these are one list a level of widths and heights, or their number a level."""
    if _is_count(anchors):
        return
    levels = anchors if isinstance(anchors, list) else []
    lengths = {len(level) if isinstance(level, list) and all(map(is_number, level)) else 0 for level in levels}
    if len(lengths) != 1 or 0 in lengths or lengths.pop() % 2:
        raise UserError(
            f"{where}: anchors must be one list a level of w, h, w, h, ... in pixels, of equal lengths, "
            f"or their number a level; found {shortened(anchors)}"
        )


def infer_family(rows: Sequence[Row]) -> str:
    """The family of an architecture, from its head and blocks."""
    head, modules = rows[-1], [row.module for row in rows]
    feeds = frozenset(modules[index] for index in _absolute(head))
    found = Traits(head.module, len(head.arguments), feeds, frozenset(modules))
    return next(name for name, family in FAMILIES.items() if family.recognized(found))


def _absolute(row: Row) -> list[int]:
    return [source if source >= 0 else row.index + source for source in row.sources]


def _read_rows(content: Mapping[str, Any], where: str) -> list[Row]:
    for key in ("backbone", "head"):
        if not isinstance(content[key], list) or not content[key]:
            raise UserError(f"{where}: {key!r} must be a list of [from, number, module, args] rows")
    return [_read_row(index, row, where) for index, row in enumerate(content["backbone"] + content["head"])]


def _read_row(index: int, row: Any, where: str) -> Row:
    where = f"{where}, layer {index}"
    if not isinstance(row, list) or len(row) != 4:
        raise UserError(f"{where}: a row must be [from, number, module, args], found {shortened(row)}")
    source, repeats, module, arguments = row
    if not isinstance(module, str) or len(module) > LONGEST_VALUE:
        raise UserError(f"{where}: the module must be a name, found {shortened(module)}")
    if module in ELSEWHERE:
        raise UserError(
            f"{where} ({module}): this module is {ELSEWHERE[module]}; "
            "here are detectors of the YOLOv5, YOLOv7 and YOLOv8 families"
        )
    if not _is_count(repeats) or repeats > MOST_REPEATS:
        raise UserError(
            f"{where} ({module}): the number of repeats must be an integer of 1 to {MOST_REPEATS}, "
            f"found {shortened(repeats)}"
        )
    if not isinstance(arguments, list):
        raise UserError(f"{where} ({module}): the arguments must be a list, found {shortened(arguments)}")
    sources = source if isinstance(source, list) else [source]
    if not sources:
        raise UserError(f"{where} ({module}): reads from no layer; list the layers it reads")
    for one in sources:
        if isinstance(one, bool) or not isinstance(one, int):
            raise UserError(f"{where} ({module}): from must be layer indices, found {shortened(one)}")
        lowest = -max(index, 1)
        if not lowest <= one < index:
            problem = "points forward, to a layer that" if one >= index else "points before the first layer;"
            reason = "is not computed yet" if one >= index else f"the lowest here is {lowest}"
            raise UserError(f"{where} ({module}): from {one} {problem} {reason}")
    return Row(index, source, repeats, module, arguments)


def _read_multiples(content: dict[str, Any], stem: str, where: str) -> tuple[float, float, float]:
    """Depth multiple, width multiple and the bound of widths, from the scale where the yaml has several."""
    scales = content.get("scales")
    if scales is not None:
        if not isinstance(scales, dict) or not scales:
            raise UserError(f"{where}: scales must map a letter to [depth, width, max_channels]")
        if content.get("scale") is None:
            content["scale"] = _scale_of(scales, stem, where)
        scale = content["scale"]
        if scale not in list(scales):
            raise unknown_name("scale", scale, map(str, scales), where)
        values = scales[scale]
    else:
        values = [
            content.get("depth_multiple", 1.0),
            content.get("width_multiple", 1.0),
            content.get("max_channels", math.inf),
        ]
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not (all(map(is_number, values[:2])) and (values[2] == math.inf or is_number(values[2])))
    ):
        raise UserError(
            f"{where}: depth, width multiple and widest layer must be three positive numbers, found {shortened(values)}"
        )
    return values[0], values[1], values[2]


def _file_of_all_scales(path: Path) -> Path:
    """The yaml without a scale in its name, where the one with it is missing."""
    general = path.with_name(SCALED_NAME.sub(r"\1", path.name, count=1))
    return general if os.path.isfile(general) and not os.path.exists(path) else path


def _scale_of(scales: Mapping[str, Any], stem: str, where: str) -> str:
    match = SCALED_NAME.search(stem)
    if match and match.group(2) in scales:
        return match.group(2)
    first = next(iter(scales))
    LOGGER.warning(f"{where} names no scale; taking {shown(first)} of {printable(', '.join(map(str, scales)), 100)}")
    return first
