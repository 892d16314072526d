"""The model: features, modes, copies, precision, folding."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from models.yolo import Model
from tests.unit.models.architectures import TINY, tiny_mobile, tiny_yolov5, tiny_yolov7, tiny_yolov8
from utils.errors import UserError

IMAGE = (2, 3, 32, 48)


@pytest.fixture(params=TINY)
def model(request: pytest.FixtureRequest) -> Model:
    """One tiny model a family, with statistics that are not neutral."""
    torch.manual_seed(0)
    built = Model(TINY[request.param]())
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return built


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(IMAGE, generator=torch.Generator().manual_seed(1))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))


@torch.no_grad()
def test_outputs(model: Model, image: torch.Tensor) -> None:
    maps = model.train()(image)
    strides = [int(s) for s in model.stride]
    decoded, raw = model.eval()(image)
    cells = [(32 // s, 48 // s) for s in strides]
    if model.family == "yolov8":
        assert [m.shape for m in raw] == [(2, 64 + 3, h, w) for h, w in cells]
        assert decoded.shape == (2, 4 + 3, sum(h * w for h, w in cells))
    else:
        assert [m.shape for m in raw] == [(2, 2, h, w, 8) for h, w in cells]
        assert decoded.shape == (2, sum(2 * h * w for h, w in cells), 8)
    assert len(maps) == (4 if model.family == "yolov7" else 2), "auxiliary maps follow the lead maps"
    assert [m.shape for m in maps[:2]] == [m.shape for m in raw]


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_extra_features(model: Model, image: torch.Tensor, training: bool) -> None:
    model.train(training)
    taken: dict[int, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, i=i: taken.update({i: output}))
        for i, layer in enumerate(model.model)
    ]
    output, features = model(image, extra_features=[3, 0, 2, 3])
    assert [same(feature, taken[i]) for feature, i in zip(features, [3, 0, 2, 3])] == [True] * 4
    assert same(output, taken[len(model.model) - 1])
    for hook in hooks:
        hook.remove()
    if not training:
        assert same(model(image), output), "asking for features changes nothing"
        assert same(model(image, extra_features=[]), (output, []))


@torch.no_grad()
def test_features_only_stops_early(model: Model, image: torch.Tensor) -> None:
    model.eval()
    calls: list[int] = []
    for i, layer in enumerate(model.model):
        layer.register_forward_hook(lambda _, __, ___, i=i: calls.append(i))
    last, features = model(image, extra_features=[2, 1], features_only=True)
    assert calls == [0, 1, 2]
    assert last is features[0]
    with pytest.raises(ValueError, match="needs extra_features"):
        model(image, features_only=True)


@pytest.mark.parametrize("layer", [-1, 5, 99])
def test_features_of_a_layer_that_gives_none(layer: int) -> None:
    with pytest.raises(UserError, match=f"layer {layer} gives no features.*0 to 4"):
        Model(tiny_yolov5())(torch.zeros(1, 3, 32, 32), extra_features=[layer])


def test_gradient_flows_from_features(image: torch.Tensor) -> None:
    model = Model(tiny_yolov5())
    _, (feature,) = model(image, extra_features=[1])
    feature.sum().backward()
    assert model.model[0].conv.weight.grad is not None
    assert model.model[3].conv.weight.grad is None


@torch.no_grad()
def test_copies_and_rebuilding(model: Model, image: torch.Tensor) -> None:
    model.eval()
    expected = model(image)
    rebuilt = Model(model.yaml)
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), rebuilt.eval()):
        assert same(other(image), expected)
        assert list(other.state_dict()) == list(model.state_dict())
        assert other.yaml == model.yaml
        next(other.parameters()).add_(1)
    assert same(model(image), expected), "a copy shares no weights with its original"


def test_building_leaves_statistics_and_the_random_stream_alone() -> None:
    """The random stream moves by the initial weights alone: as many numbers as the same layers drawn directly."""
    model = Model(tiny_yolov5())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0
            assert module.running_var.eq(1).all()
            assert module.training
    torch.manual_seed(3)
    first = Model(tiny_yolov5()).state_dict()
    torch.manual_seed(3)
    second = Model(tiny_yolov5()).state_dict()
    assert all(torch.equal(first[key], value) for key, value in second.items())
    torch.manual_seed(3)
    assert torch.equal(first["model.0.conv.weight"], nn.Conv2d(3, 8, 3, bias=False).weight)


def test_start_of_the_biases() -> None:
    """Stride 4, image 640: 160 * 160 cells. Objectness log(8 / 25600); classes log(0.6 / (3 - margin))."""
    for cfg, margin in ((tiny_yolov5(), 0.99999), (tiny_yolov7(), 0.99), (tiny_mobile(), 0.99)):
        torch.manual_seed(0)
        model = Model(cfg)
        stride = float(model.stride[0])
        conv = model.model[1] if model.family == "mobile" else model.head.m[0]
        bias = conv.bias.view(2, 8)
        default = 1 / math.sqrt(conv.in_channels)  # the bound of the convolution's own start
        assert (bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs().max() <= default
        assert (bias[:, 5:] - math.log(0.6 / (3 - margin))).abs().max() <= default
        assert bias[:, :4].abs().max() <= default
    free = Model(tiny_yolov8())
    assert free.head.cv2[1][-1].bias.eq(1).all()
    expected = math.log(5 / 3 / (640 / 8) ** 2)
    torch.testing.assert_close(free.head.cv3[1][-1].bias, torch.full((3,), expected))


@torch.no_grad()
def test_one_class() -> None:
    for cfg in (tiny_yolov5(nc=1), tiny_yolov7(nc=1), tiny_yolov8(nc=1)):
        decoded, _ = Model(cfg).eval()(torch.rand(IMAGE))
        assert decoded.isfinite().all()


@torch.no_grad()
def test_channels_last(model: Model, image: torch.Tensor) -> None:
    model.eval()
    expected, _ = model(image)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decoded, raw = model(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-3)
    assert model.family == "yolov8" or raw[0].is_contiguous()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model: Model, image: torch.Tensor, dtype: torch.dtype) -> None:
    """Raw maps keep the half dtype; what is decoded comes as float32, near the float32 model's."""
    model.eval()
    expected, _ = model(image)
    decoded, raw = model.to(dtype)(image.to(dtype))
    assert {m.dtype for m in raw} == {dtype}
    assert decoded.dtype == torch.float32
    assert (decoded - expected).abs().max() < (1 if dtype == torch.float16 else 8)  # pixels


def test_autocast(model: Model, image: torch.Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = model.train()(image)
    sum(m.float().square().mean() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_fuse(model: Model, image: torch.Tensor) -> None:
    model.double().eval()
    image = image.double()
    expected, _ = model(image)
    trained = [p.requires_grad for p in model.parameters()]
    assert model.fuse() is model
    torch.testing.assert_close(model(image)[0], expected, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert any(trained)
    once = copy.deepcopy(model.state_dict())
    model.fuse()
    assert list(once) == list(model.state_dict())
    assert all(torch.equal(once[key], value) for key, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("fused_before", [False, True])
def test_reparameterize(image: torch.Tensor, fused_before: bool) -> None:
    torch.manual_seed(0)
    model = Model(tiny_yolov7()).double().eval()
    model.head.set_anchors(torch.tensor([[[5.0, 6], [7, 8]], [[20, 30], [40, 50]]]))
    image = image.double()
    expected, _ = model(image)
    if fused_before:
        model.fuse()
    assert model.reparameterize() is model
    decoded, raw = model(image)
    torch.testing.assert_close(decoded, expected, rtol=1e-9, atol=1e-9)
    assert [layer.type for layer in model.model] == ["ReOrg", "Conv", "RepConv", "DownC", "SPPCSPC", "Conv", "Detect"]
    assert not any("implicit" in key or ".m2." in key for key in model.state_dict())
    model.head.training = True
    assert len(model(image)) == len(raw) == 2
    model.reparameterize()
    again = Model(model.yaml).double().eval()
    if fused_before:
        again.fuse()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(image)[0], expected, rtol=1e-9, atol=1e-9)
    assert again.head.anchors_px.flatten().tolist() == [5, 6, 7, 8, 20, 30, 40, 50]


@torch.no_grad()
def test_reparameterize_leaves_a_plain_model(image: torch.Tensor) -> None:
    model = Model(tiny_yolov5()).eval()
    expected, yaml = model(image), copy.deepcopy(model.yaml)
    assert same(model.reparameterize()(image), expected)
    assert model.yaml == yaml


@torch.no_grad()
def test_augmented(model: Model) -> None:
    """Views of 64, 54 and 43 pixels a side, the latter two padded to multiples of the largest stride."""
    image = torch.rand(1, 3, 64, 64)
    model.eval()
    axis = 2 if model.family == "yolov8" else 1
    plain = model(image)[0]
    decoded, raw = model(image, augment=True)
    assert raw is None
    stride = int(model.stride.max())
    sides = [64, *(math.ceil(64 * ratio / stride) * stride for ratio in (0.83, 0.67))]
    anchors = 1 if model.family == "yolov8" else 2
    counts = [[anchors * (side // int(s)) ** 2 for s in model.stride] for side in sides]
    if model.family in (
        "yolov5",
        "yolov8",
    ):  # the largest view without its coarse level, the smallest without its fine one
        counts[0].pop()
        counts[2].pop(0)
    assert decoded.shape[axis] == sum(map(sum, counts))
    first = sum(counts[0])
    assert torch.equal(decoded.narrow(axis, 0, first), plain.narrow(axis, 0, first))
    with pytest.raises(ValueError, match="evaluation"):
        model.train()(image, augment=True)


@pytest.mark.parametrize(("family", "training"), [("yolov5", True), ("yolov7", True), ("yolov8", False)])
def test_compiles_to_one_graph(family: str, training: bool, image: torch.Tensor) -> None:
    model = Model(TINY[family]()).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    output = compiled(image, extra_features=[3, 1])
    expected = model(image, extra_features=[3, 1])
    for found, wanted in zip(tensors(output), tensors(expected), strict=True):
        torch.testing.assert_close(found, wanted)


def tensors(output: Any) -> list[torch.Tensor]:
    """All tensors of a nested output."""
    return [output] if isinstance(output, torch.Tensor) else [one for part in output for one in tensors(part)]


@torch.no_grad()
def test_trace_with_features(model: Model, image: torch.Tensor) -> None:
    class WithFeatures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, x: torch.Tensor) -> Any:
            return self.model(x, extra_features=[2, 0])

    traced = torch.jit.trace(WithFeatures(), image, strict=False, check_trace=False)
    (decoded, _raw), features = traced(image)
    (expected, _maps), expected_features = model(image, extra_features=[2, 0])
    torch.testing.assert_close(decoded, expected)
    assert same(features, expected_features)


@torch.no_grad()
def test_copy_and_pickle_of_the_deployed_forms(model: Model, image: torch.Tensor) -> None:
    model.eval().fuse().reparameterize()
    expected = model(image)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(other(image), expected)
        assert list(other.state_dict()) == list(model.state_dict())


@torch.no_grad()
def test_trace_takes_other_sizes(model: Model, image: torch.Tensor) -> None:
    """The grid of cells is part of the graph, so a traced model decodes images of another size."""
    model.eval()
    traced = torch.jit.trace(model, image[:1, :, :, :32], strict=False, check_trace=False)
    torch.testing.assert_close(traced(image)[0], model(image)[0])


def test_summary() -> None:
    model = Model(tiny_yolov5())
    summary = model.summary(64)
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.gradients == summary.parameters
    assert model.summary(128).gflops == pytest.approx(4 * summary.gflops)
    model.model[0].requires_grad_(False)
    assert summary.gradients - model.summary(64).gradients == 8 * 3 * 9 + 2 * 8
    assert list(model.state_dict()) == list(Model(tiny_yolov5()).state_dict()), "counting leaves nothing behind"
    assert "parameters" in str(summary)


def test_mobile_head_takes_its_maps_by_position() -> None:
    """2 * (3 + 5) = 16 is also the width of another layer; the head still reads what its row says."""
    cfg = tiny_mobile(backbone=[[-1, 1, "InvertedResidual", [16, 2, 2]]])
    model = Model(cfg)
    assert model.head.na * model.head.no == 16
    assert [m.shape[1:4] for m in model(torch.zeros(1, 3, 16, 16))] == [(2, 8, 8), (2, 4, 4)]
    wrong = tiny_mobile()
    wrong["head"][0][3] = [18, 1]
    with pytest.raises(UserError, match="na \\* \\(nc \\+ 5\\) = 16 needed"):
        Model(wrong)
