"""Numbers of the upstream implementations' own blocks, taken by running them; see test_blocks.py.

The weights are those of tests/parity/formula.py with a gain of 1, by the keys that the layer has as layer 1 of a model;
the input is the formula's tensor of the name "input". Everything in float64, BatchNorm's eps 1e-3.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class BlockFact(NamedTuple):
    """One row of a yaml, what it becomes, and what it gives for an input of 8 x 12 cells."""

    family: str
    block: str
    repeats: int
    arguments: list[Any]
    in_channels: int
    state_entries: int
    parameters: int
    shape: tuple[int, int, int]
    absolute_sum: float


class HeadFact(NamedTuple):
    """A head for 3 classes on two levels of 32 and 48 channels, and the predictions decoded for an image of 32 x 48."""

    family: str
    head: str
    state_entries: int
    parameters: int
    shape: tuple[int, int]
    absolute_sum: float


BLOCK_FACTS = [
    BlockFact("yolov7", "GhostStem", 1, [32], 32, 48, 5256, (32, 2, 3), 11.30833),
    BlockFact("yolov7", "Stem", 1, [32], 32, 24, 8352, (32, 2, 3), 14.58939),
    BlockFact("yolov7", "RobustConv", 1, [48], 32, 9, 3264, (48, 8, 12), 530.6434),
    BlockFact("yolov7", "RobustConv2", 1, [48, 5, 2], 32, 9, 7104, (48, 8, 12), 408.851),
    BlockFact("yolov7", "RepConv_OREPA", 1, [32], 32, 27, 33408, (32, 8, 12), 225.5098),
    BlockFact("yolov7", "RepConv_OREPA", 1, [48, 3, 2], 32, 22, 48304, (48, 4, 6), 80.15227),
    BlockFact("yolov7", "OREPA_3x3_RepConv", 1, [32, 32, 3, 1, 1], 32, 16, 32256, (32, 8, 12), 321.6678),
    BlockFact("yolov7", "SwinTransformerBlock", 1, [32, 2, 3, 4], 32, 42, 38406, (32, 8, 12), 3968.81),
    BlockFact("yolov7", "SwinTransformerBlock", 1, [48, 2, 2], 32, 34, 59076, (48, 8, 12), 6863.089),
    BlockFact("yolov7", "SwinTransformer2Block", 1, [32, 2, 3, 4], 32, 57, 45702, (32, 8, 12), 5564.215),
    BlockFact("yolov7", "SwinTransformer2Block", 1, [48, 2, 2], 32, 44, 63204, (48, 8, 12), 6679.609),
    BlockFact("yolov7", "STCSPA", 2, [64], 32, 46, 32258, (64, 8, 12), 3495.888),
    BlockFact("yolov7", "STCSPB", 2, [64], 32, 46, 115588, (64, 8, 12), 3470.24),
    BlockFact("yolov7", "STCSPC", 2, [64], 32, 52, 33346, (64, 8, 12), 3437.436),
    BlockFact("yolov7", "ST2CSPA", 2, [64], 32, 56, 35842, (64, 8, 12), 4541.87),
    BlockFact("yolov7", "ST2CSPB", 2, [64], 32, 56, 119684, (64, 8, 12), 3796.031),
    BlockFact("yolov7", "ST2CSPC", 2, [64], 32, 62, 36930, (64, 8, 12), 2581.42),
    BlockFact("yolov7", "BottleneckCSPA", 2, [32], 32, 42, 7424, (32, 8, 12), 246.7682),
    BlockFact("yolov7", "BottleneckCSPB", 2, [32], 32, 42, 25024, (32, 8, 12), 267.0454),
    BlockFact("yolov7", "BottleneckCSPC", 2, [32], 32, 48, 7712, (32, 8, 12), 269.4462),
    BlockFact("yolov7", "ResCSPA", 2, [32], 32, 54, 3968, (32, 8, 12), 239.0386),
    BlockFact("yolov7", "ResCSPB", 2, [32], 32, 54, 11200, (32, 8, 12), 272.829),
    BlockFact("yolov7", "ResCSPC", 2, [32], 32, 60, 4256, (32, 8, 12), 273.3322),
    BlockFact("yolov7", "RepResCSPA", 2, [32], 32, 76, 4160, (32, 8, 12), 233.3763),
    BlockFact("yolov7", "RepResCSPB", 2, [32], 32, 76, 11840, (32, 8, 12), 215.6934),
    BlockFact("yolov7", "RepResCSPC", 2, [32], 32, 82, 4448, (32, 8, 12), 258.3298),
    BlockFact("yolov7", "GhostCSPA", 2, [32], 32, 66, 3128, (32, 8, 12), 342.4057),
    BlockFact("yolov7", "GhostCSPB", 2, [32], 32, 66, 6704, (32, 8, 12), 320.2903),
    BlockFact("yolov7", "GhostCSPC", 2, [32], 32, 72, 3416, (32, 8, 12), 303.3302),
    BlockFact("yolov7", "ResXCSPA", 2, [128], 32, 54, 40448, (128, 8, 12), 977.5176),
    BlockFact("yolov7", "ResXCSPB", 2, [128], 32, 54, 130304, (128, 8, 12), 945.1534),
    BlockFact("yolov7", "ResXCSPC", 2, [128], 32, 60, 44672, (128, 8, 12), 878.9829),
    BlockFact("yolov7", "RepResXCSPB", 2, [64], 32, 76, 24320, (64, 8, 12), 447.3223),
    BlockFact("yolov7", "MixConv2d", 1, [32], 32, 7, 5184, (32, 8, 12), 202.6957),
    BlockFact("yolov7", "MixConv2d", 1, [32, [1, 3, 5], 1, False], 32, 8, 2624, (32, 8, 12), 201.9659),
    BlockFact("yolov7", "DownC", 1, [48], 32, 18, 8864, (48, 4, 6), 83.33678),
    BlockFact("yolov7", "SPPCSPC", 1, [32], 32, 42, 28096, (32, 8, 12), 186.3134),
    BlockFact("yolov7", "GhostSPPCSPC", 1, [32], 32, 84, 17072, (32, 8, 12), 163.0286),
    BlockFact("yolov7", "RepConv", 1, [32], 32, 17, 10432, (32, 8, 12), 362.8735),
    BlockFact("yolov7", "Ghost", 1, [48, 3, 2], 32, 42, 4252, (48, 4, 6), 286.1743),
    BlockFact("yolov5", "C3", 2, [48], 32, 42, 15744, (48, 8, 12), 351.1336),
    BlockFact("yolov5", "C3x", 2, [48], 32, 42, 11136, (48, 8, 12), 342.9449),
    BlockFact("yolov5", "C3TR", 2, [48], 32, 38, 15192, (48, 8, 12), 2490.693),
    BlockFact("yolov5", "C3Ghost", 2, [48], 32, 66, 5652, (48, 8, 12), 468.9198),
    BlockFact("yolov5", "C3SPP", 1, [48], 32, 30, 5544, (48, 8, 12), 276.9327),
    BlockFact("yolov5", "BottleneckCSP", 2, [48], 32, 43, 16368, (48, 8, 12), 378.5664),
    BlockFact("yolov5", "CrossConv", 1, [48], 32, 12, 11712, (48, 8, 12), 333.9267),
    BlockFact("yolov5", "Focus", 1, [48], 32, 6, 6240, (48, 4, 6), 75.94428),
    BlockFact("yolov5", "SPP", 1, [48], 32, 12, 3712, (48, 8, 12), 324.7869),
    BlockFact("yolov5", "SPPF", 1, [48], 32, 12, 3712, (48, 8, 12), 324.7869),
    BlockFact("yolov5", "GhostConv", 1, [48], 32, 12, 1464, (48, 8, 12), 292.8406),
    BlockFact("yolov5", "MixConv2d", 1, [50, [1, 3, 5]], 32, 8, 18512, (56, 8, 12), 311.7207),
    BlockFact("yolov5", "MixConv2d", 1, [96, [1, 3, 5, 7], 2, False], 32, 9, 8064, (96, 4, 6), 139.709),
    BlockFact("yolov5", "DWConvTranspose2d", 1, [48, 4, 2, 1], 32, 2, 1584, (48, 16, 24), 1598.402),
    BlockFact("yolov5", "TransformerBlock", 1, [32, 32, 4, 2], 32, 20, 19744, (32, 8, 12), 9093.392),
    BlockFact("yolov5", "GhostBottleneck", 1, [48, 3, 2], 32, 42, 4252, (48, 4, 6), 286.1743),
    BlockFact("yolov8", "C1", 2, [48], 32, 18, 43296, (48, 8, 12), 383.2109),
    BlockFact("yolov8", "C2", 2, [48], 32, 36, 24960, (48, 8, 12), 367.7578),
    BlockFact("yolov8", "C2f", 2, [48], 32, 36, 27264, (48, 8, 12), 311.1124),
    BlockFact("yolov8", "C3", 2, [48], 32, 42, 15744, (48, 8, 12), 351.1336),
    BlockFact("yolov8", "RepC3", 2, [48], 32, 36, 49728, (48, 8, 12), 523.5405),
    BlockFact("yolov8", "C2fCIB", 2, [48], 32, 72, 13344, (48, 8, 12), 322.5175),
    BlockFact("yolov8", "BottleneckCSP", 2, [48], 32, 43, 25584, (48, 8, 12), 373.65),
    BlockFact("yolov8", "Bottleneck", 1, [48], 32, 12, 17424, (48, 8, 12), 338.4284),
    BlockFact("yolov8", "ConvTranspose", 1, [48], 32, 6, 6240, (48, 16, 24), 937.3821),
    BlockFact("yolov8", "C2fCIB", 2, [48, True, True], 32, 84, 18240, (48, 8, 12), 358.7363),
    BlockFact("yolov8", "RepC3", 2, [48, 0.5], 32, 42, 14592, (48, 8, 12), 400.5559),
    BlockFact("yolov8", "PSA", 1, [128], 128, 42, 63424, (128, 8, 12), 1437.056),
    BlockFact("yolov8", "SCDown", 1, [48, 3, 2], 32, 12, 2160, (48, 4, 6), 155.6043),
    BlockFact("yolov8", "HGStem", 1, [16, 48], 32, 30, 11216, (48, 2, 3), 24.04321),
    BlockFact("yolov8", "HGBlock", 4, [16, 32, 3, True, True], 32, 60, 4256, (32, 8, 12), 254.4838),
    BlockFact("yolov8", "HGBlock", 6, [16, 48, 3], 32, 48, 20688, (48, 8, 12), 297.4061),
    BlockFact("yolov8", "ResNetLayer", 1, [32, 16, 2, False, 2], 32, 42, 10752, (64, 4, 6), 236.5335),
    BlockFact("yolov8", "AIFI", 1, [64, 4], 32, 12, 8544, (32, 8, 12), 2365.215),
    BlockFact("yolov8", "RepNCSPELAN4", 1, [48, 32, 16, 2], 32, 132, 15136, (48, 8, 12), 333.9322),
    BlockFact("yolov8", "ELAN1", 1, [48, 32, 16], 32, 24, 8928, (48, 8, 12), 260.595),
    BlockFact("yolov8", "ADown", 1, [48], 32, 12, 3936, (48, 4, 6), 72.7668),
    BlockFact("yolov8", "AConv", 1, [48], 32, 6, 13920, (48, 4, 6), 59.88385),
    BlockFact("yolov8", "SPPELAN", 1, [48, 16], 32, 12, 3712, (48, 8, 12), 281.6525),
]
HEAD_FACTS = [
    HeadFact("yolov7", "IBin", 14, 8480, (960, 8), 131531.6),
    HeadFact("yolov7", "IDetect", 10, 1424, (960, 8), 90802.44),
    HeadFact("yolov5", "Detect", 5, 1312, (960, 8), 86160.44),
    HeadFact("yolov8", "Detect", 57, 170582, (7, 480), 54971.09),
]
