"""Architectures against tables taken from the upstream implementations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from models.yolo import Model
from tests.golden import ROOT, golden_files, load_json

NAMES = [path.stem for path in golden_files("models", "*.json")]


def family_of(name: str) -> str:
    return next((family for family in ("yolov5", "yolov7", "yolov8") if name.startswith(family)), "mobile")


def build(name: str) -> Model:
    """The architecture by its golden name; a deployment form is derived from the training form."""
    stem, _, form = name.partition("-deploy")
    stem = stem.removesuffix("-training")
    cfg: Any = ROOT / "cfg" / family_of(name) / f"{stem}.yaml"
    if stem == "yolov7-tiny-silu":
        tiny = Model(cfg.with_name("yolov7-tiny.yaml")).yaml
        cfg = {**tiny, **{part: [without_activation(row) for row in tiny[part]] for part in ("backbone", "head")}}
    model = Model(cfg)
    return model if name in (stem, f"{stem}-training") else model.reparameterize()


def without_activation(row: list[Any]) -> list[Any]:
    source, repeats, module, arguments = row
    return [source, repeats, module, arguments[:3] if module == "Conv" else arguments]


def shapes(output: Any) -> Any:
    return [shapes(one) for one in output] if isinstance(output, list | tuple) else list(output.shape)


@pytest.fixture(params=NAMES, scope="module")
def built(request: pytest.FixtureRequest) -> tuple[str, Model]:
    """Shapes and keys only: the largest has 166 million parameters."""
    with torch.device("meta"):
        return request.param, build(request.param).eval()


def test_architecture(built: tuple[str, Model]) -> None:
    name, model = built
    golden = load_json(f"models/{name}.json")
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == golden["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    assert model.save == golden["save"]
    assert model.stride.tolist() == golden["stride"]
    assert model.yaml.get("anchors") == golden["anchors_px"]
    assert model.family == family_of(name)
    norms = {(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert [list(one) for one in norms] == golden["bn_eps_momentum"]
    kinds = [type(m).__name__ for m in model.modules() if isinstance(m, nn.SiLU | nn.LeakyReLU | nn.ReLU6)]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    if model.family in ("yolov5", "yolov8"):  # where upstream has one instance for all convolutions
        counts = dict.fromkeys(counts, 1)
    assert counts == golden["activation_counts"]


def test_fused_layer_table(built: tuple[str, Model]) -> None:
    """Each layer's output shape, after folding: what changes then is the number of parameters alone."""
    name, model = built
    golden = load_json(f"models/{name}.json")
    parameters = [sum(p.numel() for p in layer.parameters()) for layer in model.model]
    model.fuse()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    if golden["fused"]:
        assert sum(p.numel() for p in model.parameters()) == golden["fused"]["params"]
        assert len(model.state_dict()) == golden["fused"]["state_keys"]
    image = torch.zeros(1, 3, 256, 256, device="meta")
    output, features = model(image, extra_features=range(golden["n_layers"] - 1))
    table = [
        [layer.i, layer.type, layer.f, count, shapes(feature)]
        for layer, count, feature in zip(model.model, parameters, [*features, output])
    ]
    assert table == [[row[0], row[1].rsplit(".", 1)[-1], *row[2:]] for row in golden["layers"]]
    model.head.training = True
    assert shapes(model(image)) == golden["train_output_shapes"]


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n6", "yolov7-tiny-training", "yolov8n", "mobilenetv2-yolov5s"])
def test_gflops_and_buffers(name: str) -> None:
    golden = load_json(f"models/{name}.json")
    model = build(name)
    summary = model.summary(640)
    assert summary.gflops == pytest.approx(golden["gflops_640"], rel=5e-4)
    assert summary.parameters == golden["params"]
    if golden["anchors_px"]:
        pixels = torch.tensor(golden["anchors_px"]).view_as(model.head.anchors_px)
        torch.testing.assert_close(model.head.anchors_px, pixels)
        cells = pixels / torch.tensor(golden["stride"]).view(-1, 1, 1)
        torch.testing.assert_close(model.state_dict()[f"model.{golden['n_layers'] - 1}.anchors"], cells)


def test_larger_p6_models() -> None:
    """YOLOv5 m6, l6, x6 have no table; their published sizes are 35.7, 76.8 and 140.7 million parameters."""
    for letter, millions in (("m", 35.7), ("l", 76.8), ("x", 140.7)):
        with torch.device("meta"):
            model = Model(ROOT / "cfg" / "yolov5" / f"yolov5{letter}6.yaml")
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
