"""Outputs, features, folded and deployed forms against the upstream implementations, with weights from a formula.

The reference was computed in float64 and stored as float32 samples and float64 sums, so these tests compute in float64
too: what is left is the rounding of the samples.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from models.yolo import Model
from tests.golden import ROOT, golden_files, load_npz, meta
from tests.parity.formula import formula_tensor, load_formula_weights

CONFIGS = {
    "yolov5n": "yolov5/yolov5n",
    "yolov5s6": "yolov5/yolov5s6",
    "yolov7-tiny": "yolov7/yolov7-tiny",
    "yolov7": "yolov7/yolov7",
    "yolov7-deploy": "yolov7/yolov7",
    "yolov7-w6": "yolov7/yolov7-w6",
    "yolov8n": "yolov8/yolov8n",
    "mobile-yolo5s": "mobile/mobilenetv2-yolov5s",
}
NAMES = [path.stem for path in golden_files("forward", "*.npz")]
ROUNDING = 1e-7  # relative, of a float32 sample; 6e-8 by itself
FOLDING = 2e-6  # relative, where the reference was folded in float32


class Case:
    """One golden file with the model that it describes, in float64 and evaluation mode."""

    def __init__(self, name: str) -> None:
        self.arrays = load_npz(f"forward/{name}.npz")
        self.meta: dict[str, Any] = meta(self.arrays)
        cfg: Any = ROOT / "cfg" / f"{CONFIGS[name]}.yaml"
        if name.endswith("deploy"):
            with torch.device("meta"):
                cfg = Model(cfg).reparameterize().yaml
        self.model = Model(cfg)
        load_formula_weights(self.model, self.meta["gain"], self.meta["head_gain"])
        self.model.double().eval()

    def image(self, prefix: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return (torch.from_numpy(self.arrays[f"image_{prefix}"]).float() / 255).to(dtype)[None]

    def check(self, name: str, tensor: torch.Tensor, relative: float = ROUNDING) -> None:
        facts = self.meta["arrays"][name]
        assert list(tensor.shape) == facts["shape"]
        values = tensor.detach().double().flatten().numpy()
        scale = facts["abs_sum"] / values.size
        np.testing.assert_allclose(values[:: facts["step"]], self.arrays[name], rtol=relative, atol=relative * scale)
        averaged = relative / 100  # over many values the differences of single ones cancel
        assert values.sum() == pytest.approx(facts["sum"], abs=averaged * facts["abs_sum"])
        assert np.square(values).sum() == pytest.approx(facts["sq_sum"], rel=averaged)

    def has(self, name: str) -> bool:
        return name in self.meta["arrays"]


@pytest.fixture(params=NAMES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@torch.no_grad()
def test_square_image(case: Case) -> None:
    wanted = case.meta["feat_layers"]
    everything = range(case.meta["n_layers"] - 1)
    (decoded, raw), features = case.model(case.image("sq"), extra_features=everything)
    for layer, (feature, sums) in enumerate(zip(features, case.arrays["layer_sums_sq"])):
        found = [feature.sum(), feature.abs().sum(), feature.abs().max()]
        np.testing.assert_allclose(found, sums, rtol=1e-10, atol=1e-10 * sums[1], err_msg=f"layer {layer}")
    for layer in wanted:
        case.check(f"sq_feat{layer}", features[layer])
    for level, one in enumerate(raw):
        case.check(f"sq_raw{level}", one)
    case.check("sq_dec", decoded)
    if case.has("sq_tta_dec"):
        augmented, none = case.model(case.image("sq"), augment=True)
        case.check("sq_tta_dec", augmented)
        assert none is None


@torch.no_grad()
def test_rectangular_image_and_training_maps(case: Case) -> None:
    decoded, raw = case.model(case.image("rect"))
    case.check("rect_dec", decoded)
    case.model.head.training = True
    maps = case.model(case.image("rect"))
    case.model.head.training = False
    assert len(maps) == case.meta["rect_train_n_outputs"]
    for level, one in enumerate(raw):
        case.check(f"rect_raw{level}", one)
        assert torch.equal(one, maps[level])
    for index in range(len(raw), len(maps)):
        case.check(f"rect_train{index}", maps[index])


@torch.no_grad()
def test_fused(case: Case) -> None:
    model = copy.deepcopy(case.model).fuse()
    decoded, _ = model(case.image("sq"))
    case.check("sq_fused_dec" if case.has("sq_fused_dec") else "sq_dec", decoded)
    state = model.state_dict()
    for name in case.meta["arrays"]:
        if name.startswith("fusedw:"):
            case.check(name, state[name.removeprefix("fusedw:")])
    model.fuse()
    again = model.state_dict()
    assert list(again) == list(state)
    assert all(torch.equal(again[key], value) for key, value in state.items()), "fusing twice changes the weights"


@torch.no_grad()
@pytest.mark.parametrize("case", [name for name in NAMES if name in ("yolov7", "yolov7-w6")], indirect=True)
def test_reparameterized(case: Case) -> None:
    model = copy.deepcopy(case.model).reparameterize()
    assert len(model.model) == case.meta["reparam_head_index"] + 1
    assert sum(p.numel() for p in model.parameters()) == case.meta["reparam_params"]
    state = model.state_dict()
    for name in case.meta["arrays"]:
        if name.startswith("reparamw:"):
            case.check(name, state[name.removeprefix("reparamw:")], FOLDING)
    case.check("rect_reparam_dec", model(case.image("rect"))[0], FOLDING)
    case.check("sq_reparam_fused_dec", model.fuse()(case.image("sq"))[0], FOLDING)


@torch.no_grad()
@pytest.mark.parametrize("case", [n for n in NAMES if n in ("yolov5n", "yolov7-tiny", "yolov8n")], indirect=True)
def test_single_precision(case: Case) -> None:
    """In float32 the outputs lie as near to the reference as upstream's own float32 run."""
    decoded, _ = copy.deepcopy(case.model).float()(case.image("sq", torch.float32))
    facts = case.meta["arrays"]["sq_dec"]
    deviation = np.abs(decoded.flatten().numpy()[:: facts["step"]] - case.arrays["sq_dec"]).max()
    assert deviation < 4 * facts["f32_maxdev"]


def test_formula() -> None:
    """The numbers by which the golden values' README describes the formula."""
    first = formula_tensor("model.0.conv.weight", (32, 3, 3, 3), 1.5)
    np.testing.assert_allclose(first.flatten()[:3], [-0.07990903, 0.15392390, -0.15369724], atol=5e-9)
    assert first.sum(dtype=np.float64) == pytest.approx(0.696492812, abs=1e-8)
    assert formula_tensor("model.0.bn.running_var", (32,), 1.0)[0] == pytest.approx(0.87938094, abs=5e-8)
    assert formula_tensor("model.77.im.0.implicit", (1, 255, 1, 1), 1.0).flat[0] == pytest.approx(1.01582801, abs=1e-7)
