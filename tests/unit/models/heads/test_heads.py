"""Decoding with numbers that can be followed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from models.blocks.rep import ImplicitA, ImplicitM, fold_implicit
from models.heads.anchor import Detect, IAuxDetect, IDetect
from models.heads.anchor_free import DFL, AnchorFreeDetect
from models.heads.base import AnchorStyle, HeadPlan, cell_grid
from models.heads.binned import IBin
from models.yolo import Model
from tests.unit.models.architectures import tiny_yolov5


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_cell_grid() -> None:
    grid = cell_grid(2, 3, torch.zeros(1, dtype=torch.float64))
    assert grid.dtype == torch.float64
    assert grid.tolist() == [[[0, 0], [1, 0], [2, 0]], [[0, 1], [1, 1], [2, 1]]]


@pytest.mark.parametrize("keeps_pixels", [False, True])
def test_anchor_decoding(keeps_pixels: bool) -> None:
    """Level of stride 8, anchor 10 x 20, cell (column 2, row 1), sigmoids 0.75, 0.25, 0.5, 0.8:

    x = (1.5 - 0.5 + 2) * 8 = 24, y = (0.5 - 0.5 + 1) * 8 = 8, w = 1^2 * 10 = 10, h = 1.6^2 * 20 = 51.2.
    """
    head = Detect(HeadPlan(1, [8, 16], [4, 4], [[1, 1, 10, 20], [3, 3, 4, 4]], AnchorStyle(keeps_pixels)))
    fine = torch.zeros(1, 2, 2, 4, 6)
    fine[0, 1, 1, 2] = torch.tensor([logit(p) for p in (0.75, 0.25, 0.5, 0.8, 0.9, 0.3)])
    coarse = torch.zeros(1, 2, 1, 2, 6)
    decoded = head.decode([fine, coarse])
    assert decoded.shape == (1, 2 * 8 + 2 * 2, 6)
    row = 1 * 8 + 1 * 4 + 2  # anchor, row, column
    torch.testing.assert_close(decoded[0, row], torch.tensor([24, 8, 10, 51.2, 0.9, 0.3]))
    torch.testing.assert_close(decoded[0, -1, :4], torch.tensor([1.5 * 16, 0.5 * 16, 4, 4]))


@pytest.mark.parametrize("keeps_pixels", [False, True])
def test_set_anchors_keeps_both_buffers_together(keeps_pixels: bool) -> None:
    head = Detect(HeadPlan(1, [8, 16], [4, 4], [[1, 1], [2, 2]], AnchorStyle(keeps_pixels)))
    pixels = torch.tensor([[[16.0, 32.0]], [[64.0, 80.0]]])
    head.set_anchors(pixels)
    assert head.anchors.tolist() == [[[2, 4]], [[4, 5]]]
    assert torch.equal(head.anchors_px, pixels)
    assert ("anchor_grid" in head.state_dict()) is keeps_pixels
    if keeps_pixels:
        assert head.anchor_grid.shape == (2, 1, 1, 1, 1, 2)
        assert head.anchor_grid.flatten().tolist() == [16, 32, 64, 80]


def test_expectation_of_a_distribution() -> None:
    """Half on bin 3 and half on bin 4 of 16 is 3.5; everything on bin 15 is 15."""
    logits = torch.full((1, 2, 16, 1), -1e4)
    logits[0, 0, 3:5] = 0
    logits[0, 1, 15] = 0
    assert DFL(16)(logits).flatten().tolist() == [3.5, 15]
    assert not DFL(16).conv.weight.requires_grad


def test_anchor_free_decoding() -> None:
    """Stride 4, cell (column 1, row 0), centre (1.5, 0.5) cells. Distances left 1, top 2, right 3, bottom 4 cells:

    x from 0.5 to 4.5, y from -1.5 to 4.5; so centre (2.5, 1.5), size (4, 6) cells, times 4 pixels.
    """
    head = AnchorFreeDetect(HeadPlan(2, [4], [16]))
    raw = torch.zeros(1, 64 + 2, 1, 2)
    sides = raw[0, :64, 0, 1].view(4, 16)
    sides.fill_(-1e4)
    for side, distance in enumerate((1, 2, 3, 4)):
        sides[side, distance] = 0
    raw[0, 64:, 0, 1] = torch.tensor([logit(0.9), logit(0.2)])
    decoded = head.decode([raw])
    assert decoded.shape == (1, 6, 2)
    torch.testing.assert_close(decoded[0, :, 1], torch.tensor([10.0, 6, 16, 24, 0.9, 0.2]))


def test_class_branch_width() -> None:
    """max(first width, min(nc, 100)) hidden channels: 80 for COCO on 64, 64 for three classes, 100 for 365."""
    for num_classes, width in ((80, 80), (3, 64), (365, 100)):
        assert AnchorFreeDetect(HeadPlan(num_classes, [8], [64])).cv3[0][0].conv.out_channels == width


@torch.no_grad()
def test_implicit_layers() -> None:
    """One channel, w = 2, b = 1, added 3, multiplied 5: 5 * (2 * (x + 3) + 1) = 10 x + 35."""
    conv, added, multiplied = torch.nn.Conv2d(1, 1, 1), ImplicitA(1), ImplicitM(1)
    for parameter, value in ((conv.weight, 2), (conv.bias, 1), (added.implicit, 3), (multiplied.implicit, 5)):
        parameter.fill_(value)
    x = torch.full((1, 1, 1, 1), 7.0)
    assert multiplied(conv(added(x))).item() == 105
    fold_implicit(conv, added, multiplied)
    assert (conv.weight.item(), conv.bias.item()) == (10, 35)
    assert multiplied(conv(added(x))).item() == 105
    fold_implicit(conv, added, multiplied)
    assert (conv.weight.item(), conv.bias.item()) == (10, 35), "folding twice is folding once"


@torch.no_grad()
def test_start_of_the_implicit_layers() -> None:
    torch.manual_seed(0)
    head = IDetect(HeadPlan(80, [8], [512], [[1, 2, 3, 4, 5, 6]]))
    assert head.ia[0].implicit.mean().abs() < 0.005
    assert head.im[0].implicit.mean() == pytest.approx(1, abs=0.005)
    assert head.ia[0].implicit.std() == pytest.approx(0.02, rel=0.2)


def test_auxiliary_maps_only_in_training() -> None:
    head = IAuxDetect(HeadPlan(1, [8, 16], [4, 6, 8, 10], [[1, 2], [3, 4]]))
    features = [torch.rand(1, width, 4, 4) for width in (4, 6, 8, 10)]
    lead = [head.arrange(head.logits(level, features[level])) for level in range(2)]
    auxiliary = [head.arrange(conv(x)) for conv, x in zip(head.m2, features[2:])]
    maps = head(features)
    assert len(maps) == 4
    assert all(torch.equal(a, b) for a, b in zip(maps, [*lead, *auxiliary]))
    decoded, raw = head.eval()(features)
    assert len(raw) == 2
    assert decoded.shape == (1, 32, 6)


def test_sizes_from_bins() -> None:
    """21 bins over 0 .. 4 are 4/21 wide. Bin 5 has its middle at 5.5 * 4/21; a score of 0.5 adds nothing, 1 adds a bin.

    Level of stride 8, anchor 10 x 20, cell (0, 0): w = 22/21 * 10, h = 26/21 * 20; bin 20 corrected upwards ends at 4.
    """
    head = IBin(HeadPlan(1, [8, 16], [4, 4], [[10, 20], [3, 3]]))
    raw = [torch.zeros(1, 1, 2, 2, 2 + 44 + 2), torch.zeros(1, 1, 1, 1, 2 + 44 + 2)]
    assert head.no == 48
    raw[0][0, 0, 0, 0, 3 + 5] = 1  # width: correction, then bins
    raw[0][0, 0, 0, 0, 2 + 22] = 40  # height: correction 1
    raw[0][0, 0, 0, 0, 2 + 22 + 1 + 5] = 1
    raw[0][0, 0, 1, 1, 2] = 40
    raw[0][0, 0, 1, 1, 3 + 20] = 1
    raw[0][0, 0, 0, 0, 46] = logit(0.9)
    decoded = head.decode(raw)
    assert decoded.shape == (1, 5, 6)
    torch.testing.assert_close(decoded[0, 0], torch.tensor([4, 4, 220 / 21, 520 / 21, 0.9, 0.5]))
    assert decoded[0, 3, 2] == 40


def test_ibin_detects_but_has_no_plain_form() -> None:
    torch.manual_seed(0)
    model = Model(tiny_yolov5(head=[[-1, 1, "SPPF", [24]], [[2, 4], 1, "IBin", ["nc", "anchors"]]])).eval()
    assert model.family == "yolov7"
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        decoded, _ = model(image)
        assert decoded.shape == (1, 2 * (64 + 16), 5 + 3)
        torch.testing.assert_close(model.reparameterize().fuse()(image)[0], decoded, rtol=1e-4, atol=1e-3)
    assert type(model.head) is IBin
