"""From our modules to stand-ins of upstream's: class names, attributes and parts as upstream's files have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from engine.rebuild import StandIn
from models.blocks.csp import CSPBlock
from models.blocks.pooling import SPP, SPPCSPC, SPPF, PoolingPyramid
from models.blocks.rep import ConvBN, RepConv
from models.blocks.transformer import TransformerBlock
from models.heads.anchor import AnchorHead
from models.heads.anchor_free import AnchorFreeDetect
from utils.errors import UserError

COMMON, EXPERIMENTAL, ULTRALYTICS = "models.common", "models.experimental", "ultralytics.nn.modules"
# Where each block lives, by the name of our class; a block that is missing here has no counterpart in the family.
YOLOV5_CLASSES: dict[str, str] = {
    **{
        name: f"{COMMON}.{name}"
        for name in (
            "Conv", "DWConv", "Focus", "Concat", "Contract", "Expand", "Bottleneck", "BottleneckCSP", "C3", "C3TR",
            "C3SPP", "C3Ghost", "SPP", "SPPF", "GhostConv", "GhostBottleneck", "TransformerLayer", "TransformerBlock",
        )
    },
    "Detect": "models.yolo.Detect",
}  # fmt: skip
# Blocks whose place in the releases before is not known.
YOLOV5_7_CLASSES = {
    **YOLOV5_CLASSES,
    "CrossConv": f"{COMMON}.CrossConv",
    "C3x": f"{COMMON}.C3x",
    "MixConv2d": f"{EXPERIMENTAL}.MixConv2d",
}
YOLOV7_CLASSES: dict[str, str] = {
    **{
        name: f"{COMMON}.{name}"
        for name in (
            "Conv", "Focus", "Concat", "Chuncat", "Foldcut", "Shortcut", "ReOrg", "Contract", "Expand", "MP", "SP",
            "DownC", "Stem", "SPP", "SPPF", "SPPCSPC", "GhostSPPCSPC", "GhostConv", "Bottleneck", "RepConv", "Res",
            "RepRes", "RepBottleneck", "ImplicitA", "ImplicitM",
            *(f"{unit}CSP{way}" for unit in ("Bottleneck", "Ghost", "Res", "ResX") for way in "ABC"),
            *(f"Rep{unit}CSP{way}" for unit in ("Bottleneck", "Res", "ResX") for way in "ABC"),
        )
    },
    "DWConv": f"{COMMON}.Conv",
    "GhostBottleneck": f"{COMMON}.Ghost",
    "CrossConv": f"{EXPERIMENTAL}.CrossConv",
    **{name: f"models.yolo.{name}" for name in ("Detect", "IDetect", "IAuxDetect")},
}  # fmt: skip
YOLOV8_CLASSES: dict[str, str] = {
    **{
        name: f"{ULTRALYTICS}.conv.{name}"
        for name in ("Conv", "DWConv", "ConvTranspose", "Focus", "GhostConv", "Concat")
    },
    **{
        name: f"{ULTRALYTICS}.block.{name}"
        for name in (
            "Bottleneck", "BottleneckCSP", "C1", "C2", "C2f", "C3", "C3x", "C3TR", "C3Ghost", "GhostBottleneck", "SPP",
            "SPPF", "DFL",
        )
    },
    **{name: f"{ULTRALYTICS}.transformer.{name}" for name in ("TransformerLayer", "TransformerBlock")},
    "CrossConv": f"{ULTRALYTICS}.block.Bottleneck",
    "AnchorFreeDetect": f"{ULTRALYTICS}.head.Detect",
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How the modules of one release are pickled.

    Attributes:
        title: of the release, for an error.
        classes: name of our block -> upstream's class.
        dtype: of weights and floating-point buffers.
        in_place: whether SiLU works in place.
        casts_head: whether upstream's change of the precision reaches the head's plain tensors too.
        empty_grid: shape of the head's grids before the first image.
    """

    title: str
    classes: dict[str, str]
    dtype: torch.dtype
    in_place: bool = True
    casts_head: bool = True
    empty_grid: tuple[int, ...] = (0,)


# What a block keeps besides its parts.
ATTRIBUTES: dict[str, Callable[[Any], dict[str, Any]]] = {
    **dict.fromkeys(("Bottleneck", "RepBottleneck", "CrossConv", "Res", "RepRes"), lambda block: {"add": block.add}),
    **dict.fromkeys(("Concat", "Chuncat", "Foldcut", "Shortcut"), lambda block: {"d": block.d}),
    **dict.fromkeys(("Contract", "Expand"), lambda block: {"gain": block.gain}),
    **dict.fromkeys(("C2", "C2f"), lambda block: {"c": block.cv1.conv.out_channels // 2}),
    "DFL": lambda block: {"c1": block.conv.in_channels},
    "ImplicitA": lambda block: {"channel": block.implicit.shape[1], "mean": 0.0, "std": 0.02},
    "ImplicitM": lambda block: {"channel": block.implicit.shape[1], "mean": 1.0, "std": 0.02},
    "TransformerBlock": lambda block: {"c2": block.linear.out_features},
    "RepConv": lambda block: {
        "deploy": False,
        "groups": block.rbr_dense.conv.groups,
        "in_channels": block.rbr_dense.conv.in_channels,
        "out_channels": block.rbr_dense.conv.out_channels,
    },
}
# Parts that upstream keeps as a plain None where they are absent.
OPTIONAL_PARTS = {RepConv: "rbr_identity", TransformerBlock: "conv"}


def layer_stand_in(layer: nn.Module, style: Style, strides: torch.Tensor, count_parameters: bool) -> StandIn:
    """One layer of a model's sequence, with what upstream's parser notes down on it.

    Args:
        layer: of `Model.model`.
        style: of the release.
        strides: of the head's levels.
        count_parameters: note the number of parameters, too.

    Raises:
        UserError: a block that the release does not have, or one whose BatchNorm is folded.
    """
    where = f"layer {layer.i} ({layer.type})"
    stand_in = module_stand_in(layer, style, where)
    if isinstance(layer, AnchorHead):
        stand_in.attributes.update(_anchor_head(layer, style, strides))
    elif isinstance(layer, AnchorFreeDetect):
        stand_in.attributes.update(_anchor_free_head(layer, style, strides))
    repeated = stand_in.short_name == "Sequential"
    block = stand_in.attributes["_modules"]["0"] if repeated else stand_in
    stand_in.attributes.update(i=layer.i, f=layer.f, type=block.class_name)
    if count_parameters:
        stand_in.attributes["np"] = sum(parameter.numel() for parameter in layer.parameters())
    return stand_in


def module_stand_in(module: nn.Module, style: Style, where: str) -> StandIn:
    """A module and everything below it as upstream pickles it, in evaluation mode and without gradients.

    Args:
        module: ours or PyTorch's.
        style: of the release.
        where: the layer, for an error.
    """
    bare = vars(nn.Module())  # what every module has: empty tables of hooks and the like
    kind = type(module)
    attributes: dict[str, Any] = {}
    if isinstance(module, ConvBN):
        class_name = _path(nn.Sequential)
    elif kind.__module__.startswith("torch.nn."):
        class_name = _path(kind)
        attributes = {k: v for k, v in vars(module).items() if k not in bare and k not in ("i", "f", "type")}
        if isinstance(module, nn.SiLU):
            attributes["inplace"] = style.in_place
    else:
        name = str(module.type) if isinstance(module, CSPBlock) else kind.__name__
        if name not in style.classes:
            raise UserError(f"{where}: {style.title} has no block {name}; only our own format can hold this model")
        _check_unfused(module, where)
        class_name = style.classes[name]
        attributes = ATTRIBUTES[name](module) if name in ATTRIBUTES else {}
    parts = _parts(module)
    optional = OPTIONAL_PARTS.get(kind)
    if optional is not None and getattr(module, optional) is None:
        attributes[optional] = None
    return StandIn(
        class_name,
        attributes={
            **bare,
            "training": False,
            "_parameters": {name: _parameter(value, style) for name, value in module._parameters.items()},
            "_buffers": {name: _stored(value, style) for name, value in module._buffers.items()},
            "_non_persistent_buffers_set": set(module._non_persistent_buffers_set),
            "_modules": {name: module_stand_in(part, style, where) for name, part in parts.items() if part is not None},
            **attributes,
        },
    )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_unfused(module: nn.Module, where: str) -> None:
    folded = isinstance(module, RepConv) and module.rbr_reparam is not None
    if folded or (isinstance(getattr(module, "bn", None), nn.Identity) and hasattr(module, "conv")):
        raise UserError(
            f"{where}: its BatchNorm is folded away, and upstream's loaders expect to fold it themselves; "
            "give the model before fuse(), as load_model(path, fuse=False) returns it"
        )


def _parts(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules below; a pooling pyramid is one pool that is applied again, or parallel ones, as upstream has it."""
    parts = dict(module._modules)
    if isinstance(module, SPP | SPPCSPC):
        assert isinstance(module.m, PoolingPyramid)
        steps = [pool.kernel_size for pool in module.m.pools]
        kernels = accumulate(steps, lambda kernel, step: kernel + step - 1)
        pools = [nn.MaxPool2d(kernel, stride=1, padding=kernel // 2) for kernel in kernels]
        parts["m"] = pools[0] if isinstance(module, SPPF) else nn.ModuleList(pools)
    return parts


def _stored(tensor: torch.Tensor | None, style: Style) -> torch.Tensor | None:
    """A copy on the CPU, contiguous, in the release's precision; counters stay integers."""
    if tensor is None:
        return None
    dtype = style.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def _parameter(parameter: nn.Parameter | None, style: Style) -> nn.Parameter | None:
    value = _stored(parameter, style)
    return None if value is None else nn.Parameter(value, requires_grad=False)


def _anchor_head(head: AnchorHead, style: Style, strides: torch.Tensor) -> dict[str, Any]:
    dtype = style.dtype if style.casts_head else torch.float32
    levels = range(head.num_levels)
    attributes: dict[str, Any] = {
        "nc": head.nc,
        "no": head.no,
        "nl": head.num_levels,
        "na": head.na,
        "grid": [torch.zeros(style.empty_grid, dtype=dtype) for _ in levels],
        "stride": strides.to(dtype, copy=True),
    }
    if not head.keep_pixel_anchors:  # else they are a buffer, and the head has no flag for working in place
        attributes["anchor_grid"] = [torch.zeros(style.empty_grid, dtype=dtype) for _ in levels]
        attributes["inplace"] = True
    return attributes


def _anchor_free_head(head: AnchorFreeDetect, style: Style, strides: torch.Tensor) -> dict[str, Any]:
    return {
        "nc": head.nc,
        "nl": head.num_levels,
        "reg_max": head.reg_max,
        "no": head.no,
        "stride": strides.to(style.dtype, copy=True),
        "inplace": True,
        "anchors": torch.empty(0, dtype=style.dtype),
        "strides": torch.empty(0, dtype=style.dtype),
    }
