"""Blocks: what they compute, and that every name in the table builds, trains and folds."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.blocks.bottleneck import C3, C2f
from models.blocks.conv import Conv, same_padding
from models.blocks.extra.attention import CBAM, position_code
from models.blocks.extra.conv import DWConv, Focus, MixConv2d
from models.blocks.extra.csp import CSP_BLOCKS
from models.blocks.extra.gelan import CBFuse, CBLinear
from models.blocks.extra.orepa import OREPA
from models.blocks.extra.reshape import Chuncat, Contract, Expand, Foldcut, Sum
from models.blocks.extra.swin import from_windows, logarithmic_offsets, offset_index, shift_mask, to_windows
from models.blocks.pooling import MP, SP, SPP, SPPF, PoolingPyramid
from models.blocks.rep import RepConv
from models.blocks.reshape import Concat, ReOrg, Shortcut
from models.families import FAMILIES, known_blocks
from models.fuse import fold_batchnorm, fuse_modules
from models.yolo import Model
from tests.parity.formula import formula_tensor, load_formula_weights
from tests.unit.models.architectures import ANCHORS
from tests.unit.models.block_facts import BLOCK_FACTS, HEAD_FACTS, BlockFact, HeadFact
from utils.errors import UserError

ARGUMENTS: dict[str, list[Any]] = {
    "nn.Conv2d": [64, 3, 1, 1],
    "nn.ConvTranspose2d": [64, 2, 2],
    "nn.Upsample": [None, 2, "nearest"],
    "nn.UpsamplingNearest2d": [None, 2],
    "nn.UpsamplingBilinear2d": [None, 2],
    "nn.MaxPool2d": [2],
    "nn.AvgPool2d": [2],
    "nn.AdaptiveAvgPool2d": [4],
    "nn.AdaptiveMaxPool2d": [4],
    "nn.ZeroPad2d": [[0, 1, 0, 1]],
    "nn.ReflectionPad2d": [1],
    "nn.ReplicationPad2d": [1],
    "nn.ConstantPad2d": [1, 0.5],
    "nn.GroupNorm": [4, 64],
    "Sum": [2],
    "GhostBottleneck": [64, 3, 2],
    "RepResXCSPA": [128],
    "RepResXCSPC": [128],
    "SCDown": [64, 3, 2],
    "OREPA_3x3_RepConv": [64, 64],
    "RepNCSPELAN4": [64, 32, 16],
    "ELAN1": [64, 32, 16],
    "SPPELAN": [64, 32],
    "HGStem": [32, 64],
    "HGBlock": [24, 64],
    "ResNetLayer": [64, 32, 2, False, 2],
    "PSA": [64, 1.0],
    "TransformerBlock": [64, 64, 4, 2],
    "SwinTransformerBlock": [64, 2, 2],
    "SwinTransformer2Block": [64, 2, 2],
}
RAW_TRANSPOSED = [64, 64, 2, 2]  # in YOLOv7 the input's width is written too
TAKES_TWO = ("Concat", "Chuncat", "Shortcut", "Sum")


def randomize(module: nn.Module) -> nn.Module:
    """Statistics and scales that are not neutral."""
    for one in module.modules():
        if isinstance(one, nn.BatchNorm2d):
            nn.init.uniform_(one.weight, 0.5, 1.5)
            nn.init.normal_(one.bias, 0, 0.1)
            one.running_mean.normal_(0, 0.1)
            one.running_var.uniform_(0.5, 1.5)
    return module


CASES = [
    (family, name)
    for family in FAMILIES
    for name in known_blocks(family)
    if (family == "yolov5" or name in FAMILIES[family].blocks) and not name.startswith("CB")
]


@pytest.mark.parametrize(("family", "name"), CASES, ids=lambda value: value)
def test_every_block_of_the_table(family: str, name: str) -> None:
    """In a model: builds, gives gradients to all of its parameters, and computes the same after folding."""
    torch.manual_seed(0)
    block = known_blocks(family)[name]
    arguments = ARGUMENTS.get(name, [64] if block.widths == 2 else [])
    if family == "yolov7" and name == "nn.ConvTranspose2d":
        arguments = RAW_TRANSPOSED
    source: Any = [-1, 0] if name in TAKES_TWO else -1
    repeats = 1 if name in TAKES_TWO or block.widths < 2 else 2
    rows = [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [64, 3, 1]], [source, repeats, name, arguments]]
    rows.append([-1, 1, "nn.AdaptiveAvgPool2d", [8]])  # a size that a head can have, whatever the block does
    head: list[Any] = [[3, 1, "Detect", ["nc"] if family == "yolov8" else ["nc", "anchors"]]]
    if family == "mobile":
        head = [[3, 1, "nn.Conv2d", ["na * (nc + 5)", 1]], [4, 1, "Detect", ["nc", "anchors"]]]
    model = Model({"nc": 1, "anchors": ANCHORS[:1], "backbone": rows, "head": head, "family": family})
    randomize(model)
    image = torch.rand(2, 3, 32, 32)
    sum(level.square().mean() for level in model(image)).backward()
    assert all(p.grad is not None for p in model.model[2].parameters())
    with torch.no_grad():
        model.double().eval()
        before, _ = model(image.double())
        fuse_modules(model)
        torch.testing.assert_close(model(image.double())[0], before, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("fact", BLOCK_FACTS, ids=lambda fact: f"{fact.family}-{fact.block}-{fact.arguments}")
def test_numbers_of_upstream_s_blocks(fact: BlockFact) -> None:
    """Keys, shapes and arguments too: the weights are formulas of the keys."""
    row = [-1, fact.repeats, fact.block, fact.arguments]
    layer = formula_layers(fact.family, [[-1, 1, "Conv", [fact.in_channels, 3, 2]], row])[1]
    assert len(layer.state_dict()) == fact.state_entries
    assert sum(p.numel() for p in layer.parameters()) == fact.parameters
    image = torch.from_numpy(formula_tensor("input", (1, fact.in_channels, 8, 12), 1.0)).double()
    with torch.no_grad():
        for _ in range(2):  # as built, then folded
            output = layer(image)
            assert output.shape[1:] == fact.shape
            assert output.abs().sum().item() == pytest.approx(fact.absolute_sum, rel=1e-6)
            fuse_modules(nn.Sequential(layer))


@torch.no_grad()
@pytest.mark.parametrize(
    "block", ["SwinTransformerBlock", "SwinTransformer2Block", "AIFI", "RepConv_OREPA", "RobustConv"]
)
def test_half_precision_of_blocks(block: str) -> None:
    """Finite and near, also where a map is filled up with zeros to whole windows."""
    arguments = [32, 2, 2] if block.startswith("Swin") else [32]
    layer = formula_layers("yolov7", [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, block, arguments]])[1]
    image = torch.from_numpy(formula_tensor("input", (1, 32, 8, 12), 1.0))
    expected = layer.float()(image)
    found = layer.half()(image.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def formula_layers(family: str, rows: list[Any], head: str = "Detect", sources: Any = (0,)) -> nn.Sequential:
    """The layers of a model of these rows, with weights from the formula, in float64 and evaluation mode."""
    arguments = ["nc"] if family == "yolov8" else ["nc", "anchors"]
    anchors = ANCHORS if len(sources) == 2 else [[10, 13, 16, 30, 33, 23]]
    cfg = {
        "nc": 3,
        "anchors": anchors,
        "family": family,
        "backbone": rows,
        "head": [[list(sources), 1, head, arguments]],
    }
    model = Model(cfg)
    load_formula_weights(model, 1.0, 1.0)
    return model.double().eval().model


@pytest.mark.parametrize("fact", HEAD_FACTS, ids=lambda fact: f"{fact.family}-{fact.head}")
def test_numbers_of_upstream_s_heads(fact: HeadFact) -> None:
    layers = formula_layers(fact.family, [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [48, 3, 2]]], fact.head, (0, 1))
    assert len(layers[2].state_dict()) == fact.state_entries
    assert sum(p.numel() for p in layers[2].parameters()) == fact.parameters
    image = torch.from_numpy(formula_tensor("input", (1, 3, 32, 48), 1.0)).double()
    with torch.no_grad():
        for _ in range(2):  # as built, then folded
            first = layers[0](image)
            decoded, _raw = layers[2]([first, layers[1](first)])
            assert decoded.shape[1:] == fact.shape
            assert decoded.abs().sum().item() == pytest.approx(fact.absolute_sum, rel=1e-6)
            fuse_modules(layers)


def test_same_padding() -> None:
    assert [same_padding(kernel) for kernel in (1, 3, 5, (1, 3))] == [0, 1, 2, (0, 1)]
    assert same_padding(3, dilation=2) == 2


def test_windows_and_their_inverse() -> None:
    """A 4 x 4 map in windows of 2 x 2: the second window holds row 0 and 1, columns 2 and 3."""
    x = torch.arange(16.0).view(1, 4, 4, 1)
    windows = to_windows(x, 2)
    assert windows[1].flatten().tolist() == [2, 3, 6, 7]
    assert torch.equal(from_windows(windows, 2, 4, 4), x)


def test_shifted_windows_do_not_mix_opposite_borders() -> None:
    """4 x 4 rolled by 1: the last row and column come from the other side, so in the last window each cell is alone.

    Window 0 holds true neighbours; in window 1 (upper right) the right column came around, in window 2 the lower row.
    """
    free = shift_mask(4, 4, 2, 1, torch.zeros(1)) == 0  # (4 windows, 4 cells, 4 cells)
    assert free[0].all()
    assert free[1].int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert free[2].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert torch.equal(free[3], torch.eye(4, dtype=torch.bool))


def test_offsets_of_a_window() -> None:
    """2 x 2 cells have 9 offsets; the own place is offset (0, 0), number 1 * 3 + 1 = 4."""
    index = offset_index(2)
    assert index.diagonal().tolist() == [4] * 4
    assert index[0].tolist() == [4, 3, 1, 0]
    assert logarithmic_offsets(2)[0, 2, 0].tolist() == pytest.approx([math.log2(9) / 3, -math.log2(9) / 3])


@torch.no_grad()
def test_orepa_starts_without_its_cosines_and_folds() -> None:
    """Kernel: 0.25 (origin + average of the 1 x 1) + 0.5 (the 3 x 3 behind the identity + the separable one)."""
    torch.manual_seed(0)
    block = OREPA(4, 6)
    depthwise = block.weight_rbr_gconv_dw.view(4, 8, 3, 3)
    separable = torch.stack([(block.weight_rbr_gconv_pw[o].view(4, 8, 1, 1) * depthwise).sum(1) for o in range(6)])
    averaged = block.weight_rbr_avg_conv.expand(-1, -1, 3, 3) / 9
    expected = 0.25 * (block.weight_rbr_origin + averaged) + 0.5 * (block.weight_rbr_1x1_kxk_conv2 + separable)
    torch.testing.assert_close(block.kernel(), expected)
    block.fuse()
    assert list(block.state_dict()) == ["merged.weight", "merged.bias"]


def test_split_maps_meet_again() -> None:
    """CBLinear's second map of 4 x 4 comes to the 8 x 8 of the last one and is added."""
    split, fuse = CBLinear(3, [2, 5]), CBFuse([1])
    small, large = torch.rand(1, 3, 4, 4), torch.rand(1, 5, 8, 8)
    maps = split(small)
    assert [one.shape[1] for one in maps] == [2, 5]
    torch.testing.assert_close(fuse([maps, large]), large + F.interpolate(maps[1], scale_factor=2))
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "CBLinear", [[8, 16]]], [0, 1, "Conv", [16, 3, 1]]]
    head = [[[1, 2], 1, "CBFuse", [[1]]], [-1, 1, "Detect", ["nc"]]]
    assert Model({"nc": 1, "backbone": rows, "head": head})(torch.rand(1, 3, 16, 16))[0].shape == (1, 65, 8, 8)
    with pytest.raises(UserError, match=r"layer 2 \(Conv\): cannot read the several maps of a CBLinear"):
        Model({"nc": 1, "backbone": [*rows[:2], [1, 1, "Conv", [16]]], "head": head})


@torch.no_grad()
def test_channel_and_spatial_attention_by_hand() -> None:
    """Averages 2 and -2 through a neutral convolution: sigmoid(2) = 0.8808, sigmoid(-2) = 0.1192."""
    block = CBAM(2, 3)
    block.channel_attention.fc.weight.copy_(torch.eye(2).view(2, 2, 1, 1))
    block.channel_attention.fc.bias.zero_()
    block.spatial_attention.cv1.weight.zero_()  # sigmoid(0) = 0.5 everywhere
    x = torch.tensor([2.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    expected = torch.tensor([2 * 0.880797, -2 * 0.119203]) / 2
    torch.testing.assert_close(block(x)[0, :, 1, 2], expected, rtol=1e-5, atol=1e-6)


def test_position_code_tells_rows_from_columns() -> None:
    """Two rows of three cells, 4 channels: sin and cos of the row, then of the column, in radians."""
    code = position_code(2, 3, torch.zeros(1, 6, 4))
    row, column = 1, 2
    expected = [math.sin(row), math.cos(row), math.sin(column), math.cos(column)]
    assert code[row * 3 + column].tolist() == pytest.approx(expected)


def test_units_of_a_late_split_have_upstream_s_shortcuts() -> None:
    """Arrangement B: residual units of ResNet's kind keep their shortcut, bottlenecks have one only on demand."""
    for name, expected in (("Res", True), ("ResX", True), ("Bottleneck", False), ("RepRes", False)):
        assert CSP_BLOCKS[f"{name}CSPB"](64, 64, 1).m[0].add is expected
        assert CSP_BLOCKS[f"{name}CSPB"](64, 64, 1, not expected).m[0].add is not expected


def test_space_to_depth_order() -> None:
    """A 2 x 2 image 1 2 / 3 4: (row 0, column 0), (1, 0), (0, 1), (1, 1) are 1 3 2 4."""
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert ReOrg()(x).flatten().tolist() == [1, 3, 2, 4]
    focus = Focus(1, 4)
    focus.conv = nn.Identity()  # type: ignore[assignment]
    assert torch.equal(focus(x), ReOrg()(x))


def test_contract_and_expand() -> None:
    """Contract puts cell rows, then cell columns, before the channels; Expand is its inverse."""
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    contracted = Contract(2)(x)
    assert contracted.shape == (1, 8, 2, 2)
    assert contracted[0, :, 0, 0].tolist() == [0, 16, 1, 17, 4, 20, 5, 21]
    assert torch.equal(Expand(2)(contracted), x)


def test_joining_and_splitting() -> None:
    a, b = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert Concat(1)([a, b]).flatten().tolist() == [1, 2, 3, 4]
    assert Chuncat(1)([a, b]).flatten().tolist() == [1, 3, 2, 4]
    assert Foldcut(1)(a).flatten().tolist() == [3]
    assert Shortcut(1)([a, b]).flatten().tolist() == [4, 6]
    assert Sum(2)([a, b]).flatten().tolist() == [4, 6]
    weighted = Sum(2, True)  # 2 * sigmoid(-0.5) = 0.7551
    torch.testing.assert_close(weighted([a, b]).flatten(), torch.tensor([1 + 3 * 0.755082, 2 + 4 * 0.755082]))


def test_pooling_pyramid_equals_direct_pools() -> None:
    x = torch.randn(2, 3, 11, 7)
    pools = [F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13)]
    assert torch.equal(PoolingPyramid((5, 9, 13))(x), torch.cat([x, *pools], 1))
    assert torch.equal(SP(5)(x), pools[0])
    assert MP()(x).shape == (2, 3, 5, 3)


def test_sppf_is_spp() -> None:
    x = torch.randn(1, 8, 9, 9)
    fast, plain = SPPF(8, 16, 5).eval(), SPP(8, 16, (5, 9, 13)).eval()
    plain.load_state_dict(fast.state_dict())
    assert torch.equal(fast(x), plain(x))


@torch.no_grad()
def test_c3_and_c2f_by_their_formula() -> None:
    x = torch.randn(1, 8, 5, 5)
    c3 = C3(8, 8, 2).eval()
    assert torch.equal(c3(x), c3.cv3(torch.cat((c3.m(c3.cv1(x)), c3.cv2(x)), 1)))
    c2f = C2f(8, 8, 2, True).eval()
    kept, y = c2f.cv1(x)[:, :4], c2f.cv1(x)[:, 4:]
    first = c2f.m[0](y)
    torch.testing.assert_close(c2f(x), c2f.cv2(torch.cat((kept, y, first, c2f.m[1](first)), 1)))


@torch.no_grad()
@pytest.mark.parametrize(("letter", "keys"), [("A", 3), ("B", 3), ("C", 4)])
def test_csp_arrangements(letter: str, keys: int) -> None:
    x = torch.randn(1, 8, 5, 5)
    block = CSP_BLOCKS[f"BottleneckCSP{letter}"](8, 16, 1).eval()
    assert sum(name.startswith("cv") for name, child in block.named_children() if child is not None) == keys
    if letter == "A":
        expected = block.cv3(torch.cat((block.m(block.cv1(x)), block.cv2(x)), 1))
    elif letter == "B":
        y = block.cv1(x)
        expected = block.cv3(torch.cat((block.m(y), block.cv2(y)), 1))
        assert y.shape[1] == 16
        assert not block.m[0].add, "no shortcut by default"
    else:
        expected = block.cv4(torch.cat((block.cv3(block.m(block.cv1(x))), block.cv2(x)), 1))
    assert torch.equal(block(x), expected)


@torch.no_grad()
def test_fold_batchnorm_by_hand() -> None:
    """w = 3, no bias; mean 1, variance 4 - eps, gamma 10, beta 5: 10 * (3 x - 1) / 2 + 5 = 15 x + 0."""
    conv, bn = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1)
    conv.weight.fill_(3)
    bn.running_mean.fill_(1)
    bn.running_var.fill_(4 - bn.eps)
    bn.weight.fill_(10)
    bn.bias.fill_(5)
    folded = fold_batchnorm(conv, bn)
    assert (folded.weight.item(), folded.bias.item()) == pytest.approx((15, 0), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("widths", "stride", "groups"), [((8, 8), 1, 1), ((8, 8), 1, 4), ((8, 12), 1, 2), ((8, 8), 2, 1)]
)
def test_repconv_folds_to_one_convolution(widths: tuple[int, int], stride: int, groups: int) -> None:
    torch.manual_seed(0)
    block = randomize(RepConv(*widths, 3, stride, None, groups)).double().eval()
    assert (block.rbr_identity is not None) is (widths == (8, 8) and stride == 1)
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    expected = block(x)
    block.fuse()
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    assert list(block.state_dict()) == ["rbr_reparam.weight", "rbr_reparam.bias"]
    block.fuse()
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_folding_keeps_frozen_weights_frozen() -> None:
    conv = Conv(3, 4, 3)
    conv.conv.requires_grad_(False)
    conv.fuse()
    assert not conv.conv.weight.requires_grad


def test_depthwise_groups_and_mixed_kernels() -> None:
    assert DWConv(12, 18, 3).conv.groups == 6
    mixed = MixConv2d(6, 10, (1, 3, 5))
    assert [conv.out_channels for conv in mixed.m] == [4, 3, 3]
    assert [conv.out_channels for conv in MixConv2d(4, 64, (1, 3, 5, 7, 9)).m] == [13, 13, 12, 13, 13]
    equal = MixConv2d(4, 100, (1, 3), equal_widths=False)  # 1 : 1/9
    assert [conv.out_channels for conv in equal.m] == [90, 10]
    assert mixed(torch.zeros(2, 6, 8, 8)).shape == (2, 10, 8, 8)


def test_wide_repeated_block_shares_nothing() -> None:
    """An activation given in a row is one module for each convolution of a deep copy, and copies are independent."""
    conv = Conv(3, 4, 3, activation=nn.LeakyReLU(0.1))
    other = copy.deepcopy(conv)
    assert other.act is not conv.act
    assert not conv.default_act
