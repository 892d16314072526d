"""Tiny detectors and inputs for the tests of distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill import DistillSetup, HeadSpec, Level

NUM_CLASSES = 3
STRIDES = (8, 16)
ANCHORS = [[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0]]]
BINS = 16
TARGETS = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.4], [0, 0, 0.2, 0.3, 0.1, 0.1], [1, 2, 0.9, 0.9, 0.4, 0.4]])
NO_TARGETS = torch.zeros(0, 6)
IMAGE_HW = (64, 96)


def head_spec(kind: str = "anchor", **changes: Any) -> HeadSpec:
    values = {"num_classes": NUM_CLASSES, "strides": STRIDES, "anchors": ANCHORS if kind == "anchor" else None}
    return HeadSpec(kind, **(values | changes))


def setup(student_channels: int = 8, teacher_channels: int = 12, kind: str = "anchor") -> DistillSetup:
    """Two levels and two heads, as a dry run would find them; the networks themselves are none."""
    levels = tuple(Level(f"P{i + 3}", 4 + i, 7 + i, student_channels, teacher_channels, STRIDES[i]) for i in range(2))
    networks = {"student": nn.Conv2d(3, student_channels, 1), "teacher": nn.Conv2d(3, teacher_channels, 1)}
    return DistillSetup(
        levels, head_spec(kind), head_spec(kind), cross_head=ToyHead(teacher_channels, kind=kind), **networks
    )


class ToyHead(nn.Module):
    """One 1x1 convolution a level, the same numbers for the same arguments; raw maps as `head_maps` has them."""

    def __init__(self, channels: int, levels: int = 2, kind: str = "anchor") -> None:
        super().__init__()
        self.kind = kind
        outputs = 2 * (5 + NUM_CLASSES) if kind == "anchor" else 4 * BINS + NUM_CLASSES
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.convs = nn.ModuleList(nn.Conv2d(channels, outputs, 1) for _ in range(levels))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = [conv(x) for conv, x in zip(self.convs, features)]
        if self.kind == "anchor_free":
            return maps
        return [x.unflatten(1, (2, 5 + NUM_CLASSES)).permute(0, 1, 3, 4, 2).contiguous() for x in maps]


def feature_maps(channels: int, seed: int, scale: float = 1.0, num_images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(IMAGE_HW[0] // stride, IMAGE_HW[1] // stride) for stride in STRIDES]
    return [scale * torch.randn(num_images, channels, *size, generator=generator) for size in sizes]


def head_maps(kind: str, seed: int, scale: float = 1.0) -> list[Tensor]:
    """Raw maps of an anchor head (N, na, H, W, 5 + nc), or of an anchor-free one (N, 4 * bins + nc, H, W)."""
    if kind == "anchor_free":
        return feature_maps(4 * BINS + NUM_CLASSES, seed, scale)
    maps = feature_maps(2 * (5 + NUM_CLASSES), seed, scale)
    return [x.unflatten(1, (2, 5 + NUM_CLASSES)).permute(0, 1, 3, 4, 2).contiguous() for x in maps]


class ToyDetector(nn.Module):
    """Five layers, of which 3 and 4 (strides 8 and 16) feed an anchor head; called as the project's models are."""

    def __init__(self, width: int = 4, num_classes: int = NUM_CLASSES, bias: bool = True) -> None:
        super().__init__()
        self.outputs = 5 + num_classes
        self.model = nn.Sequential(
            self._block(3, width),
            self._block(width, width),
            self._block(width, width),
            nn.Conv2d(width, width, 3, 1, 1),
            self._block(width, 2 * width),
            nn.ModuleList(nn.Conv2d(c, 2 * self.outputs, 1, bias=bias) for c in (width, 2 * width)),
        )
        self.head = self.model[-1]
        self.head.f = [3, 4]
        self.stride = torch.tensor([8.0, 16.0])
        self.calls: list[dict[str, Any]] = []

    @staticmethod
    def _block(channels_in: int, channels_out: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, 2, 1), nn.BatchNorm2d(channels_out), nn.SiLU())

    def forward(self, x: Tensor, extra_features: Any = (), features_only: bool = False) -> Any:
        self.calls.append({"layers": list(extra_features), "features_only": features_only, "training": self.training})
        maps = []
        for layer in list(self.model)[:-1]:
            x = layer(x)
            maps.append(x)
        found = [maps[i] if i < len(maps) else None for i in extra_features]
        if features_only and not self.training:
            return x, found
        raw = []
        for source, predict in zip(self.head.f, self.head):
            y = predict(maps[source]).unflatten(1, (2, self.outputs))
            raw.append(y.permute(0, 1, 3, 4, 2).contiguous())
        output = raw if self.training else (torch.cat([r.flatten(1, 3) for r in raw], 1).sigmoid(), raw)
        return (output, found) if len(extra_features) else output
