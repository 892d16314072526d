"""From our modules to stand-ins of upstream's: class names, attributes and parts as upstream's files have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from checkpoints.pickled.rebuild import StandIn
from models.blocks.bottleneck import BottleneckCSP
from models.blocks.conv import Conv
from models.blocks.extra.csp import CSPBlock
from models.blocks.extra.transformer import TransformerBlock
from models.blocks.pooling import SPP, SPPCSPC, SPPF, PoolingPyramid
from models.blocks.rep import ConvBN, RepConv
from models.heads.base import DetectionHead
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
            "DownC", "Stem", "GhostStem", "SPP", "SPPF", "SPPCSPC", "GhostSPPCSPC", "GhostConv", "Bottleneck",
            "RepConv", "Res", "RepRes", "RepBottleneck", "ImplicitA", "ImplicitM",
            *(f"{unit}CSP{way}" for unit in ("Bottleneck", "Ghost", "Res", "ResX") for way in "ABC"),
            *(f"Rep{unit}CSP{way}" for unit in ("Bottleneck", "Res", "ResX") for way in "ABC"),
        )
    },
    "DWConv": f"{COMMON}.Conv",
    "GhostBottleneck": f"{COMMON}.Ghost",
    **{name: f"{EXPERIMENTAL}.{name}" for name in ("CrossConv", "MixConv2d")},
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
        in_place: whether SiLU works in place.
        shares_activation: whether all convolutions have one and the same SiLU.
        casts_head: whether upstream's change of the precision reaches the head's plain tensors too.
        empty_grid: shape of the head's grids before the first image.
    """

    title: str
    classes: dict[str, str]
    in_place: bool = True
    shares_activation: bool = False
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
PARSER_NOTES = ("i", "f", "type")  # which the parser leaves on each layer, and which are written anew


class ModuleWriter:
    """Turns modules into stand-ins of upstream's, in evaluation mode and without gradients.

    Args:
        style: of the release.
        dtype: of weights and floating-point buffers.
        strides: of the head's levels.
        count_parameters: each layer notes its number of parameters.
    """

    def __init__(self, style: Style, dtype: torch.dtype, strides: torch.Tensor, count_parameters: bool) -> None:
        self._style = style
        self._dtype = dtype
        self._head_dtype = dtype if style.casts_head else torch.float32
        self._strides = strides
        self._counts = count_parameters
        self._activation = self.module(nn.SiLU(), "activation")

    def layer(self, layer: nn.Module) -> StandIn:
        """One layer of a model's sequence, with what upstream's parser notes down on it.

        Raises:
            UserError: a block that the release does not have, or one whose BatchNorm is folded.
        """
        stand_in = self.module(layer, f"layer {layer.i} ({layer.type})")
        if isinstance(layer, DetectionHead):
            stand_in.attributes.update(self._head(layer))
        repeated = stand_in.short_name == "Sequential"
        block = stand_in.attributes["_modules"]["0"] if repeated else stand_in
        stand_in.attributes.update(i=layer.i, f=layer.f, type=block.class_name)
        if self._counts:
            stand_in.attributes["np"] = sum(parameter.numel() for parameter in layer.parameters())
        return stand_in

    def module(self, module: nn.Module, where: str) -> StandIn:
        """A module of ours or of PyTorch's, and everything below it; `where` is the layer, for an error."""
        bare = vars(nn.Module())  # what every module has: empty tables of hooks and the like
        class_name, attributes = self._identity(module, bare, where)
        return StandIn(
            class_name,
            attributes={
                **bare,
                "training": False,
                "_parameters": {name: self._parameter(value, where) for name, value in module._parameters.items()},
                "_buffers": {name: self._stored(value, where) for name, value in module._buffers.items()},
                "_non_persistent_buffers_set": set(module._non_persistent_buffers_set),
                "_modules": {
                    name: self._part(module, part, where) for name, part in _parts(module).items() if part is not None
                },
                **attributes,
            },
        )

    def _identity(self, module: nn.Module, bare: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
        """Upstream's class, and what its objects keep besides parts and tensors."""
        kind = type(module)
        if isinstance(module, ConvBN):
            return _path(nn.Sequential), {}
        if kind.__module__.startswith("torch.nn."):
            attributes = {k: v for k, v in vars(module).items() if k not in bare and k not in PARSER_NOTES}
            if isinstance(module, nn.SiLU):
                attributes["inplace"] = self._style.in_place
            return _path(kind), attributes
        name = str(module.type) if isinstance(module, CSPBlock) else kind.__name__
        if name not in self._style.classes:
            raise UserError(
                f"{where}: files of {self._style.title} cannot hold the block {name}; keep this model in our own format"
            )
        _check_unfused(module, where)
        attributes = ATTRIBUTES[name](module) if name in ATTRIBUTES else {}
        optional = OPTIONAL_PARTS.get(kind)
        if optional is not None and getattr(module, optional) is None:
            attributes[optional] = None
        return self._style.classes[name], attributes

    def _part(self, parent: nn.Module, part: nn.Module, where: str) -> StandIn:
        default = isinstance(parent, Conv) and parent.default_act and isinstance(part, nn.SiLU)
        return self._activation if default and self._style.shares_activation else self.module(part, where)

    def _stored(self, tensor: torch.Tensor | None, where: str) -> torch.Tensor | None:
        """A copy on the CPU, contiguous, in the file's precision; counters stay integers."""
        if tensor is None:
            return None
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        stored = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        if not stored.isfinite().all():
            raise UserError(f"{where}: a weight is not finite in {str(dtype)[6:]}; give finite weights, or half=False")
        return stored

    def _parameter(self, parameter: nn.Parameter | None, where: str) -> nn.Parameter | None:
        value = self._stored(parameter, where)
        return None if value is None else nn.Parameter(value, requires_grad=False)

    def _head(self, head: DetectionHead) -> dict[str, Any]:
        strides = self._strides.to(self._head_dtype, copy=True)
        attributes: dict[str, Any] = {"nc": head.nc, "nl": head.num_levels, "no": head.no, "stride": strides}
        if head.bins is not None:
            empty = {name: torch.empty(0, dtype=self._head_dtype) for name in ("anchors", "strides")}
            return attributes | {"reg_max": head.bins, "inplace": True} | empty
        attributes |= {"na": head.per_cell, "grid": self._empty_grids(head)}
        if "anchor_grid" not in head._buffers:  # else they are a buffer, and the head has no flag for working in place
            attributes |= {"anchor_grid": self._empty_grids(head), "inplace": True}
        return attributes

    def _empty_grids(self, head: DetectionHead) -> list[torch.Tensor]:
        return [torch.zeros(self._style.empty_grid, dtype=self._head_dtype) for _ in range(head.num_levels)]


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_unfused(module: nn.Module, where: str) -> None:
    folded = isinstance(module, RepConv) and module.rbr_reparam is not None
    if folded or (isinstance(module, Conv | BottleneckCSP) and isinstance(module.bn, nn.Identity)):
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
