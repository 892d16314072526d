"""From an architecture's rows to layers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from models.arguments import make_default_activation, resolve_argument
from models.config import (
    LARGEST_COUNT,
    LONGEST_VALUE,
    MOST_REPEATS,
    ModelConfig,
    Row,
    check_anchors,
    is_number,
    shortened,
)
from models.families import known_blocks, known_heads
from models.heads.base import DetectionHead, HeadPlan
from models.registry import Block
from utils.errors import UserError, nearest
from utils.text import shown

PROBE_SIZE = 256
# What a block can raise on arguments or inputs that it was not made for.
BLOCK_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Their backward pass needs the output alone, so the map before them need not be kept.
IN_PLACE_ACTIVATIONS = (nn.LeakyReLU, nn.ReLU, nn.ReLU6)


def absolute_sources(row: Row) -> list[int]:
    """Indices of the layers that a row reads; -1 at layer 0 is the image."""
    return [source if source >= 0 else row.index + source for source in row.sources]


def gather_inputs(source: int | list[int], x: Any, outputs: Sequence[Any]) -> Any:
    """What a layer reads: the output before it, a kept one, or a list of these.

    Args:
        source: the layer's `f`.
        x: output of the layer before.
        outputs: of all layers so far, None where not kept.
    """
    if isinstance(source, int):
        return x if source == -1 else outputs[source]
    return [x if one == -1 else outputs[one] for one in source]


def build_layers(config: ModelConfig) -> nn.Sequential:
    """Builds all layers; each has `.i` (index), `.f` (what it reads) and `.type` (name of its block).

    Each layer is tried on an empty batch as soon as it is built. So widths and strides come from the layers themselves,
    and a layer that does not fit is known by its number; no pixel is computed, no statistic touched.

    Raises:
        UserError: names the yaml, the layer, and what is wrong.
    """
    blocks, heads = known_blocks(config.family), known_heads(config.family)
    batch = 1 if torch.empty(0).is_meta else 0  # meta tensors cost nothing, and some operators refuse empty ones
    x = torch.zeros(batch, config.in_channels, PROBE_SIZE, PROBE_SIZE)
    outputs: list[torch.Tensor] = []
    layers: list[nn.Module] = []
    for row in config.rows:
        where = f"{config.where}, layer {row.index} ({row.module})"
        inputs = gather_inputs(row.source, x, outputs)
        if row.index == len(config.rows) - 1:
            layer: nn.Module = _build_head(config, row, inputs, where)
        else:
            if row.module in heads:
                raise UserError(f"{where}: a detection head must be the last layer")
            name = row.module.removeprefix("torch.")
            if name not in blocks:
                guess = nearest(name, [*blocks, *heads])
                hint = f"did you mean {guess!r}?" if guess else "docs/architectures.md lists the known ones"
                raise UserError(f"{where}: unknown block {shown(row.module)}; {hint}")
            layer = _build_block(blocks[name], config, row, inputs, where)
            x = _tried(layer, inputs, where)
            outputs.append(x)
        source = row.sources if isinstance(layer, DetectionHead) else row.source
        layer.i, layer.f, layer.type = row.index, source, row.module.split(".")[-1]  # type: ignore[assignment]
        layers.append(layer)
    model = nn.Sequential(*layers)
    _finish(model, config)
    return model


@torch.no_grad()
def _tried(layer: nn.Module, inputs: Any, where: str) -> torch.Tensor:
    """The layer's output for an empty batch."""
    try:
        output = layer.eval()(inputs)
        layer.train()
        for one in output if isinstance(output, tuple) else (output,):
            if not isinstance(one, torch.Tensor) or one.dim() != 4 or 0 in one.shape[1:]:
                raise ValueError("its output is not a map of channels, rows and columns")
        return output
    except BLOCK_ERRORS as error:
        shapes = ", ".join(_shapes(one) for one in _as_list(inputs))
        raise UserError(f"{where}: does not fit its inputs {shapes}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first line of an error, shortened; its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:LONGEST_VALUE]


def _shapes(value: Any) -> str:
    """Channels, height and width of a map, or of each of several."""
    return " and ".join(map(_shapes, value)) if isinstance(value, tuple) else str(tuple(value.shape[1:]))


def _as_list(inputs: Any) -> list[torch.Tensor]:
    return inputs if isinstance(inputs, list) else [inputs]


def kept_layers(rows: Sequence[Row]) -> list[int]:
    """Layers whose outputs are read later than by the next layer, once for each time, sorted."""
    return sorted(
        row.index + source if source < 0 else source for row in rows for source in row.sources if source != -1
    )


def count_auxiliary_layers(rows: Sequence[Row], num_levels: int) -> int:
    """How many of the last layers before the head serve nothing but its inputs after the first `num_levels`."""
    sources = absolute_sources(rows[-1])
    needed = {source for row in rows[:-1] for source in absolute_sources(row)} | set(sources[:num_levels])
    auxiliary = set(sources) - needed
    count = 0
    while rows[-1].index - 1 - count in auxiliary:
        count += 1
    return count


def _build_block(block: Block, config: ModelConfig, row: Row, inputs: Any, where: str) -> nn.Module:
    arguments = resolve_argument(row.arguments, config.argument_names, where)
    repeats = scaled_repeats(row.repeats, config, where)
    widths = []
    if block.widths:
        first = _as_list(inputs)[0]
        if not isinstance(first, torch.Tensor):
            raise UserError(f"{where}: cannot read the several maps of a CBLinear")
        widths.append(first.shape[1])
    if block.widths == 2:
        if not arguments or not is_number(arguments[0]) or arguments[0] > LARGEST_COUNT:
            raise UserError(f"{where}: the first argument must be the output width, found {shortened(row.arguments)}")
        widths.append(scaled_width(arguments.pop(0), config))
    positional, keywords = _bind(block, arguments, where)
    if block.repeats:
        return _construct(block.module, [*widths, repeats, *positional], keywords, where)
    modules = []
    for _ in range(repeats):
        modules.append(_construct(block.module, [*widths, *positional], keywords, where))
        widths[:1] = widths[-1:]  # the next one continues at the width that this one ends with
    return modules[0] if repeats == 1 else nn.Sequential(*modules)


def scaled_repeats(repeats: int, config: ModelConfig, where: str) -> int:
    """A layer's repeats after the depth multiple."""
    scaled = max(round(repeats * config.depth), 1) if repeats > 1 else 1
    if scaled > MOST_REPEATS:
        raise UserError(f"{where}: {scaled} repeats after the depth multiple, at most {MOST_REPEATS}")
    return scaled


def scaled_width(width: float, config: ModelConfig) -> int:
    """A layer's width after the width multiple, a multiple of 8; upstream leaves one particular width as it is."""
    if width == config.unscaled_width:
        return int(width)
    return math.ceil(min(width, config.max_channels) * config.width / 8) * 8


def _bind(block: Block, values: Sequence[Any], where: str) -> tuple[list[Any], dict[str, Any]]:
    """Arguments after the widths, by keyword where the block has an order of its own."""
    if not block.order:
        return list(values), {}
    order = list(block.order)
    if "dilation" in order:
        place = order.index("dilation")
        if len(values) > place and isinstance(values[place], bool | nn.Module):
            order.pop(place)
    if len(values) > len(order):
        raise UserError(f"{where}: {len(values) + 1} arguments, at most {len(order) + 1}: width, {', '.join(order)}")
    return [], dict(zip(order, values))


def _construct(
    factory: Callable[..., nn.Module], values: Sequence[Any], keywords: dict[str, Any], where: str
) -> nn.Module:
    try:
        return factory(*values, **keywords)
    except BLOCK_ERRORS as error:
        parameters = ", ".join(inspect.signature(factory).parameters)
        raise UserError(f"{where}: cannot be built: {_reason(error)}; it takes ({parameters})") from error


def _build_head(config: ModelConfig, row: Row, inputs: Any, where: str) -> DetectionHead:
    heads = known_heads(config.family)
    if row.module not in heads:
        raise UserError(f"{where}: the last layer must be a detection head; known: {', '.join(heads)}")
    head = heads[row.module]
    arguments = resolve_argument(row.arguments, config.argument_names, where)
    form = "[nc, anchors]" if head.takes_anchors else "[nc]"
    if len(arguments) != form.count(",") + 1:
        raise UserError(f"{where}: takes {form}, found {shortened(row.arguments)}")
    if arguments[0] != config.num_classes:
        written = shortened(arguments[0])
        raise UserError(f"{where}: has {written} classes, the model {config.num_classes}; write nc in its place")
    features = _as_list(inputs)
    strides = _strides(features, where)
    if len(strides) % head.inputs_per_level:
        raise UserError(f"{where}: reads {len(strides)} layers; it needs {head.inputs_per_level} for each level")
    strides = strides[: len(strides) // head.inputs_per_level]
    anchors = _level_anchors(arguments[1], strides, where) if head.takes_anchors else []
    for index in absolute_sources(row) if head.reads else ():
        if config.rows[index].module.removeprefix("torch.") != head.reads:
            raise UserError(f"{where}: has no weights, so it reads {head.reads} layers; layer {index} is none")
    options = {key: config.yaml[key] for key in head.yaml_keys if config.yaml.get(key) is not None}
    channels = [feature.shape[1] for feature in features]
    plan = HeadPlan(config.num_classes, strides, channels, anchors, config.meaning.anchors, options)
    return _construct(head, [plan], {}, where)  # type: ignore[return-value]


def _strides(features: Sequence[Any], where: str) -> list[float]:
    """Pixels a cell of each map."""
    strides = []
    for number, feature in enumerate(features):
        if not isinstance(feature, torch.Tensor):
            raise UserError(f"{where}: cannot read the several maps of a CBLinear")
        height, width = feature.shape[2:]
        if height != width or PROBE_SIZE % height:
            raise UserError(
                f"{where}: its input {number} is {height} x {width} for an image of {PROBE_SIZE} x {PROBE_SIZE}; "
                "a cell must be a whole number of pixels"
            )
        strides.append(PROBE_SIZE / height)
    return strides


def _level_anchors(anchors: Any, strides: Sequence[float], where: str) -> list[list[float]]:
    """Anchors of each level, the small ones on the small stride; numbers to be replaced where only a count is given."""
    check_anchors(anchors, where)
    if isinstance(anchors, int):
        return [[float(value) for value in range(2 * anchors)] for _ in strides]
    if len(anchors) != len(strides):
        raise UserError(f"{where}: anchors for {len(anchors)} levels, but the head reads {len(strides)} levels")
    sizes = [sum(w * h for w, h in zip(level[::2], level[1::2])) for level in anchors]
    backwards = (sizes[-1] - sizes[0]) * (strides[-1] - strides[0]) < 0
    return list(reversed(anchors)) if backwards else list(anchors)


def _finish(model: nn.Sequential, config: ModelConfig) -> None:
    """What the families set on all layers after construction."""
    text = config.yaml.get("activation") or config.meaning.activation
    activation = make_default_activation(text, config.where) if text else None
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = config.meaning.batchnorm_eps, 0.03
        if activation is not None and getattr(module, "default_act", False):
            module.act = copy.deepcopy(activation)
        if isinstance(getattr(module, "act", None), IN_PLACE_ACTIVATIONS):
            module.act.inplace = True  # type: ignore[union-attr]
