"""Every architecture that comes with the software, narrow: its modes, forms, sizes, features and numbers of classes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from models.heads.anchor import AnchorHead, IAuxDetect, IDetect
from models.yolo import Model
from tests.golden import ROOT
from utils.yaml_io import load_yaml

CFG = ROOT / "cfg"
# One of each structure; the others differ in their multiples alone.
STRUCTURES = [
    "yolov5/yolov5n",
    "yolov5/yolov5n6",
    "yolov5/yolov5p",
    "yolov7/yolov7-tiny",
    "yolov7/yolov7",
    "yolov7/yolov7x",
    "yolov7/yolov7-w6",
    "yolov7/yolov7-e6",
    "yolov7/yolov7-d6",
    "yolov7/yolov7-e6e",
    "yolov8/yolov8n",
    "mobile/mobilenetv2-yolov5s",
]


def narrow(name: str) -> dict[str, Any]:
    """An architecture with an eighth of its widths."""
    cfg = load_yaml(CFG / f"{name}.yaml")
    if "scales" in cfg:
        return {**cfg, "scales": {"n": [0.33, 0.125, 1024]}}
    return {**cfg, "depth_multiple": 0.33, "width_multiple": 0.125}


@pytest.fixture(params=STRUCTURES, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    """In float64 and evaluation mode, for three classes, with statistics that are not neutral."""
    torch.manual_seed(0)
    built = Model(narrow(request.param), nc=3)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return built.double().eval()


def sources_of(model: Model) -> list[int]:
    """The layers that the head reads."""
    return [index if index >= 0 else len(model.model) - 1 + index for index in model.head.f]


def image_for(model: Model, rows: int, columns: int) -> torch.Tensor:
    """A batch of one image of so many cells of the coarsest level."""
    stride = int(model.stride.max())
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, rows * stride, columns * stride, generator=generator, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("cells", [(1, 1), (1, 3), (2, 1)])
def test_shapes(model: Model, cells: tuple[int, int]) -> None:
    """For square, wide and high images; with auxiliary maps in training alone."""
    image = image_for(model, *cells)
    height, width = image.shape[2:]
    levels = [(height // int(s), width // int(s)) for s in model.stride]
    decoded, raw = model(image)
    model.head.training = True
    maps = model(image)
    model.head.training = False
    assert len(maps) == len(levels) * (2 if isinstance(model.head, IAuxDetect) else 1)
    assert decoded.isfinite().all()
    if model.family == "yolov8":
        assert [one.shape for one in raw] == [(1, 67, *level) for level in levels]
        assert decoded.shape == (1, 7, sum(h * w for h, w in levels))
    else:
        assert [one.shape for one in raw] == [(1, 3, *level, 8) for level in levels]
        assert decoded.shape == (1, sum(3 * h * w for h, w in levels), 8)
    assert [one.shape for one in maps[: len(levels)]] == [one.shape for one in raw]


@torch.no_grad()
def test_forms_predict_the_same(model: Model) -> None:
    image = image_for(model, 1, 2)
    expected = model(image)[0]
    folded = copy.deepcopy(model).fuse()
    deployed = copy.deepcopy(model).reparameterize()
    both = copy.deepcopy(deployed).fuse()
    for other in (folded, deployed, both):
        torch.testing.assert_close(other(image)[0], expected, rtol=1e-8, atol=1e-8)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert not isinstance(deployed.head, IDetect)
    assert not any("implicit" in key or ".m2." in key for key in deployed.state_dict())
    rebuilt = Model(deployed.yaml).double().eval()
    rebuilt.load_state_dict(deployed.state_dict(), strict=True)
    torch.testing.assert_close(rebuilt(image)[0], expected, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_features_come_in_the_order_asked_for(model: Model) -> None:
    image = image_for(model, 1, 2)
    sources = sources_of(model)[: model.head.num_levels]
    wanted = [sources[-1], 0, *sources, sources[-1]]
    (decoded, _raw), features = model(image, extra_features=wanted)
    assert torch.equal(decoded, model(image)[0])
    assert features[0] is features[-1] is features[wanted.index(sources[-1])]
    strides = [int(s) for s in model.stride]
    assert [image.shape[3] // feature.shape[3] for feature in features[2:-1]] == strides
    _last, early = model(image, extra_features=wanted, features_only=True)
    assert all(torch.equal(a, b) for a, b in zip(early, features))
    for one in (copy.deepcopy(model).fuse(), copy.deepcopy(model).reparameterize()):
        for other, feature in zip(one(image, extra_features=wanted)[1], features):
            torch.testing.assert_close(other, feature, rtol=1e-8, atol=1e-8)


def head_parameters(model: Model) -> int:
    """How many parameters the predictions need, by the formula of the head."""
    side = int(model.stride.max())
    with torch.no_grad():
        _last, features = model.eval()(torch.zeros(1, 3, side, side), extra_features=sources_of(model))
    widths = [feature.shape[1] for feature in features]
    if not isinstance(model.head, AnchorHead):
        hidden = max(widths[0], min(model.nc, 100))
        box = sum(9 * 64 * w + 128 + 9 * 64 * 64 + 128 + 64 * 64 + 64 for w in widths)
        classes = sum(9 * hidden * w + 9 * hidden**2 + 4 * hidden + (hidden + 1) * model.nc for w in widths)
        return box + classes + 16
    outputs = 3 * (model.nc + 5)
    implicit = sum(w + outputs for w in widths[: model.head.num_levels]) if isinstance(model.head, IDetect) else 0
    return sum(outputs * (w + 1) for w in widths) + implicit


@pytest.mark.parametrize("name", STRUCTURES[:-1])  # the last has a test of its own
def test_parameters_for_any_number_of_classes(name: str) -> None:
    """What is before the predictions stays the same."""
    before = set()
    for nc in (1, 3, 91):
        model = Model(narrow(name), nc=nc)
        assert model.nc == nc
        before.add(sum(p.numel() for p in model.parameters()) - head_parameters(model))
        assert model.head.no == nc + (64 if model.family == "yolov8" else 5)
    assert len(before) == 1


@pytest.mark.parametrize("nc", [1, 3, 27, 91, 365])
def test_mobile_with_any_number_of_classes(nc: int) -> None:
    """With 3, 27 and 91 classes the predictions are as wide as another layer, which upstream's lookup confuses."""
    with torch.device("meta"):
        model = Model(CFG / "mobile" / "mobilenetv2-yolov5s.yaml", nc=nc)
    assert sources_of(model) == [29, 24, 19]
    assert [model.model[i].out_channels for i in (29, 24, 19)] == [3 * (nc + 5)] * 3
    widths = [model.model[i].in_channels for i in (29, 24, 19)]
    assert sum(p.numel() for p in model.parameters()) == MOBILE_BODY + sum(3 * (nc + 5) * (w + 1) for w in widths)


MOBILE_BODY = 3_547_264  # parameters before the predictions


def test_published_sizes_of_the_pico_models() -> None:
    for name, nc, parameters in (
        ("yolov5/yolov5p", 80, 269_917),
        ("yolov5/yolov5p", 3, 232_264),
        ("yolov8/yolov8p", 80, 1_174_568),
        ("yolov8/yolov8p", 3, 912_929),
    ):
        with torch.device("meta"):
            model = Model(CFG / f"{name}.yaml", nc=nc)
        assert sum(p.numel() for p in model.parameters()) == parameters


def rewritten(name: str, **replacements: str) -> dict[str, Any]:
    """An architecture with blocks replaced by others, but for its first layer."""
    cfg = load_yaml(CFG / f"{name}.yaml")
    first, *backbone = cfg["backbone"]
    replaced = [[s, n, replacements.get(block, block), args] for s, n, block, args in backbone + cfg["head"]]
    return {**cfg, "backbone": [first, *replaced[: len(backbone)]], "head": replaced[len(backbone) :]}


def test_sizes_of_upstream_s_variants() -> None:
    """Parameters of yolov5s-ghost, yolov5s-transformer and yolov8n-ghost as upstream builds them."""
    transformer = load_yaml(CFG / "yolov5/yolov5s.yaml")
    transformer["backbone"][8][2] = "C3TR"
    variants: dict[int, dict[str, Any]] = {
        3_897_605: rewritten("yolov5/yolov5s", Conv="GhostConv", C3="C3Ghost"),
        7_235_645: transformer,
        1_865_316: rewritten("yolov8/yolov8n", Conv="GhostConv", C2f="C3Ghost"),
    }
    with torch.device("meta"):
        for parameters, cfg in variants.items():
            assert sum(p.numel() for p in Model(cfg).parameters()) == parameters
