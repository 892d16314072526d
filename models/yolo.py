"""The detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.channel_plan import PLAN_KEY, apply_plan, check_plan, plan_from_state_dict
from models.config import read_model_config
from models.families import FAMILIES
from models.fuse import fuse_modules
from models.heads.base import DetectionHead
from models.parser import (
    absolute_sources,
    build_layers,
    count_auxiliary_layers,
    gather_inputs,
    kept_layers,
)
from models.summary import ModelSummary, summarize
from models.tta import predict_augmented
from utils.detector import Layout
from utils.errors import UserError
from utils.evaluation.metrics import Convention


class Model(nn.Module):
    """A YOLOv5, YOLOv7 or YOLOv8 detector, built from an architecture yaml in the upstream repositories' format.

    Attributes:
        yaml: everything needed to build the same architecture again: `Model(model.yaml)`.
        family: yolov5, yolov7, yolov8 or mobile.
        nc: number of classes.
        names: their names.
        stride: (levels,) pixels per cell of each level.
        model: the layers, each with `.i` (index), `.f` (what it reads) and `.type` (name of its block).
        save: indices of the layers whose outputs later layers read.
        head: the last layer.
        input_hw: None, as images may have any size.

    Args:
        cfg: path of the yaml, or its content.
        ch: channels of the image.
        nc: replaces the yaml's number of classes.
        anchors: replaces the yaml's anchors: a list a level of w, h, w, h, ... in pixels, or their number a level.

    Raises:
        UserError: names the yaml, the layer, and what is wrong.
    """

    def __init__(
        self,
        cfg: str | Path | Mapping[str, Any],
        ch: int = 3,
        nc: int | None = None,
        anchors: int | Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.input_hw: tuple[int, int] | None = None
        config = read_model_config(cfg, ch, nc, anchors)
        self.yaml = config.yaml
        self.family = config.family
        self.model = build_layers(config)
        self.save = kept_layers(config.rows)
        if self.yaml.get(PLAN_KEY):
            apply_plan(self, self.yaml[PLAN_KEY], config.where)
            check_plan(self.model, config.in_channels, config.where)
        self.names = [str(index) for index in range(config.num_classes)]
        sources = [self.model[index] for index in absolute_sources(config.rows[-1])]
        self.head.initialize_biases(sources)

    @property
    def head(self) -> DetectionHead:
        return self.model[-1]  # type: ignore[return-value]

    @property
    def nc(self) -> int:
        return self.head.nc

    @property
    def layout(self) -> Layout:
        """How the decoded predictions are laid out."""
        return self.head.layout

    @property
    def convention(self) -> Convention:
        """How the family's original program computes its figures."""
        return FAMILIES[self.family].convention

    @property
    def stride(self) -> torch.Tensor:
        return torch.tensor(self.head.strides)

    def forward(
        self,
        x: torch.Tensor,
        extra_features: Sequence[int] | None = None,
        features_only: bool = False,
        augment: bool = False,
    ) -> Any:
        """Detects.

        Args:
            x: (N, C, H, W) images in [0, 1], H and W multiples of the largest stride.
            extra_features: layer indices whose outputs are returned too, in this order.
            features_only: stop after the last listed layer; needs `extra_features`.
            augment: test-time augmentation, in evaluation: the predictions of three sizes, one of them mirrored.

        Returns:
            Raw maps in training, `(decoded, raw maps)` in evaluation, `(decoded, None)` with `augment`; with
            `extra_features`, `(that, features)`; with `features_only`, `(the last listed layer's output, features)`.

        Raises:
            UserError: an index that is no layer before the head.
        """
        if augment:
            if self.training or extra_features is not None:
                raise ValueError("test-time augmentation works in evaluation, without extra features")
            views_overlap = FAMILIES[self.family].views_overlap
            traits = int(self.stride.max()), self.layout, self.head.per_cell, views_overlap
            return predict_augmented(self.forward_once, x, *traits), None
        return self.forward_once(x, extra_features, features_only)

    def forward_once(
        self, x: torch.Tensor, extra_features: Sequence[int] | None = None, features_only: bool = False
    ) -> Any:
        """`forward` without test-time augmentation."""
        wanted = self._checked_layers(extra_features)
        if features_only and not wanted:
            raise ValueError("features_only needs extra_features")
        last = max(wanted) if features_only else len(self.model) - 1
        kept = set(self.save)
        taken: dict[int, Any] = {}
        outputs: list[Any] = []
        for index, layer in enumerate(self.model):
            x = layer(gather_inputs(layer.f, x, outputs))  # type: ignore[arg-type]
            outputs.append(x if index in kept else None)
            if index in wanted:
                taken[index] = x
            if index == last:
                break
        return x if extra_features is None else (x, [taken[index] for index in wanted])

    def _checked_layers(self, layers: Sequence[int] | None) -> list[int]:
        layers = list(layers or ())
        last = len(self.model) - 1
        for index in layers:
            if not 0 <= index < last:
                raise UserError(
                    f"layer {index} gives no features; this model's layers before the head are 0 to {last - 1}"
                )
        return layers

    def fuse(self) -> Model:
        """Folds BatchNorm, RepConv and implicit layers into convolutions, in place, for inference; twice is once."""
        fuse_modules(self.model)
        return self

    @torch.no_grad()
    def reparameterize(self) -> Model:
        """Makes this the deployment form, in place: implicit layers folded, auxiliary maps and their layers dropped.

        The predictions stay the same; the state_dict is that of upstream's deployment architecture, where a RepConv
        still has its branches (`fuse` folds them). A model that has neither stays as it is.
        """
        head = self.head
        plain = head.deployed()
        if plain is head:
            return self
        rows = read_model_config(self.yaml).rows
        sources = absolute_sources(rows[-1])[: head.num_levels]
        index = len(self.model) - 1 - count_auxiliary_layers(rows, head.num_levels)
        plain.i, plain.f, plain.type = index, sources, type(plain).__name__  # type: ignore[assignment]
        self.model = nn.Sequential(*self.model[:index], plain)
        head_rows = self.yaml["head"][: index - len(self.yaml["backbone"])]
        arguments = self.yaml["head"][-1][3]
        self.yaml = {**self.yaml, "head": [*head_rows, [sources, 1, plain.type, arguments]]}
        self.save = kept_layers(read_model_config(self.yaml).rows)
        if PLAN_KEY in self.yaml:  # the head has another number now
            self.record_channels()
        return self

    def record_channels(self) -> None:
        """Notes in `yaml` where the widths are not those that its rows give, as after pruning."""
        self.yaml = with_channel_plan(self.yaml, self.state_dict())

    def summary(self, img_size: int = 640) -> ModelSummary:
        """Counts layers, parameters and floating-point operations for a square image of `img_size` pixels a side."""
        return summarize(self, self.yaml["ch"], int(self.stride.max()), img_size)


def with_channel_plan(yaml: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """An architecture with the channel plan that these weights need; without one where the rows say it all.

    Args:
        yaml: the architecture; a plan that it has already is replaced.
        state_dict: weights of its layers, pruned or not, folded or not.
    """
    rows = {key: value for key, value in yaml.items() if key != PLAN_KEY}
    with torch.device("meta"):
        full = Model(rows)
    plan = plan_from_state_dict(full, state_dict)
    return {**rows, PLAN_KEY: plan} if plan else rows
