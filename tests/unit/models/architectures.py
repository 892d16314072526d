"""Small architectures for tests."""

from __future__ import annotations

from typing import Any

ANCHORS = [[10, 13, 16, 30], [30, 61, 62, 45]]


def tiny_yolov5(**changes: Any) -> dict[str, Any]:
    """Two levels at strides 4 and 8, head at layer 5."""
    return {
        "nc": 3,
        "anchors": ANCHORS,
        "backbone": [
            [-1, 1, "Conv", [8, 3, 2]],
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 1, "C3", [16]],
            [-1, 1, "Conv", [24, 3, 2]],
        ],
        "head": [[-1, 1, "SPPF", [24, 5]], [[2, 4], 1, "Detect", ["nc", "anchors"]]],
        **changes,
    }


def tiny_yolov7(**changes: Any) -> dict[str, Any]:
    """Two levels at strides 4 and 8 with auxiliary convolutions and a RepConv that has an identity branch."""
    return {
        "nc": 3,
        "anchors": ANCHORS,
        "backbone": [
            [-1, 1, "ReOrg", []],  # 0
            [-1, 1, "Conv", [16, 3, 2]],  # 1
            [-1, 1, "RepConv", [16, 3, 1]],  # 2
            [-1, 1, "DownC", [24]],  # 3
        ],
        "head": [
            [-1, 1, "SPPCSPC", [24]],  # 4
            [2, 1, "Conv", [16, 3, 1]],  # 5
            [2, 1, "Conv", [16, 3, 1]],  # 6
            [4, 1, "Conv", [24, 3, 1]],  # 7
            [[5, 4, 6, 7], 1, "IAuxDetect", ["nc", "anchors"]],  # 8
        ],
        **changes,
    }


def tiny_yolov8(**changes: Any) -> dict[str, Any]:
    """Two levels at strides 4 and 8, head at layer 5."""
    return {
        "nc": 3,
        "backbone": [
            [-1, 1, "Conv", [8, 3, 2]],
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 1, "C2f", [16, True]],
            [-1, 1, "Conv", [24, 3, 2]],
        ],
        "head": [[-1, 1, "SPPF", [24, 5]], [[2, 4], 1, "Detect", ["nc"]]],
        **changes,
    }


def tiny_mobile(**changes: Any) -> dict[str, Any]:
    """Two levels at strides 2 and 4, whose prediction convolutions are layers 1 and 3."""
    return {
        "nc": 3,
        "anchors": ANCHORS,
        "backbone": [[-1, 1, "InvertedResidual", [8, 2, 2]]],
        "head": [
            [-1, 1, "nn.Conv2d", ["na * (nc + 5)", 1]],
            [0, 1, "BottleneckCSP", [16]],
            [-1, 1, "nn.MaxPool2d", [2, 2]],
            [-1, 1, "nn.Conv2d", ["na * (nc + 5)", 1]],
            [[1, -1], 1, "Detect", ["nc", "anchors"]],
        ],
        **changes,
    }


TINY = {"yolov5": tiny_yolov5, "yolov7": tiny_yolov7, "yolov8": tiny_yolov8, "mobile": tiny_mobile}
