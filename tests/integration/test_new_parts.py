"""The guides tried: head and block of docs/adding_a_*.md as they stand there, from a yaml to an exported file."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import models.registry
from checkpoints.checkpoint import load_model
from data.config import load_dataset_config
from data.dataset import DetectionDataset
from data.labels import build_index
from data.loader import create_loader
from distill import Distiller
from engine.config.options import TrainOptions
from engine.distilling.distillers import head_spec
from engine.exporting.check import finished_difference
from engine.exporting.export import ExportOptions, run_export
from engine.inference.ensemble import load_detector
from engine.inference.predict import Predictor
from engine.inference.testing import TestOptions, run_test
from engine.training.train import TrainResult, run_training
from models.blocks.block import Block
from models.heads.base import HeadPlan
from models.yolo import Model
from pruning import PruneError, plan_inheritance, prune
from tests.golden import ROOT
from utils.errors import UsageError, UserError

CPU = torch.device("cpu")
HYP = {"box": 7.5, "cls": 0.5, "dfl": 1.5}


def code_of(guide: str, name: str, folder: Path) -> ModuleType:
    """The parts of a guide's example that are files of one module, as a module."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / guide).read_text(), flags=re.S)
    path = folder / f"{name}.py"
    path.write_text("\n\n".join(block for block in blocks if "class " in block))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Both examples put into the tables, for the tests of this module."""
    folder = tmp_path_factory.mktemp("guides")
    head, block = code_of("adding_a_head.md", "plain", folder), code_of("adding_a_block.md", "gated", folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PlainDetect", "FinalDetect"):
            patch.setitem(models.registry.HEADS, name, getattr(head, name))
        entry = Block(block.GatedConv, order=("kernel", "stride", "squeeze"))
        patch.setitem(models.registry.BLOCKS, "GatedConv", entry)
        yield head
    del sys.modules["plain"], sys.modules["gated"]


def architecture(head: str, nc: int = 12) -> dict[str, Any]:
    return {
        "nc": nc,
        "bins": 6,
        "family": "yolov8",
        "backbone": [
            [-1, 1, "Conv", [8, 3, 2]],
            [-1, 1, "GatedConv", [16, 3, 2]],
            [-1, 1, "C2f", [16, True]],
            [-1, 1, "GatedConv", [24, 3, 2, 2]],
            [-1, 1, "C2f", [24, True]],
        ],
        "head": [[[2, 4], 1, head, ["nc"]]],
    }


@pytest.fixture(scope="module", params=["PlainDetect", "FinalDetect"])
def trained(request: pytest.FixtureRequest, guides: ModuleType, tiny: Path) -> TrainResult:
    folder = tiny / request.param
    folder.mkdir()
    (folder / "cfg.yaml").write_text(yaml.safe_dump(architecture(request.param)))
    (folder / "hyp.yaml").write_text(yaml.safe_dump(HYP))
    options = TrainOptions(
        cfg=str(folder / "cfg.yaml"), data=str(tiny / "tiny.yaml"), hyp=str(folder / "hyp.yaml"), epochs=1,
        batch_size=8, img_size=(96, 96), workers=0, device="cpu", noplots=True, project=str(folder), name="run",
    )  # fmt: skip
    return run_training(options)


def weights(trained: TrainResult) -> str:
    return str(trained.folder / "weights" / "best.pt")


def test_it_trains_validates_and_loads(trained: TrainResult, guides: ModuleType, tiny: Path) -> None:
    model = load_model(weights(trained))
    assert type(model.head).__name__ in ("PlainDetect", "FinalDetect") and model.head.bins == 6
    assert type(model.model[1]).__name__ == "GatedConv" and model.model[3].gate[1].out_channels == 12
    rows = (trained.folder / "results.csv").read_text().splitlines()
    assert len(rows) == 2 and {"train/box", "train/cls", "train/dfl", "val/dfl"} <= {
        name.strip() for name in rows[0].split(",")
    }
    options = TestOptions(
        weights=(weights(trained),), data=str(tiny / "tiny.yaml"), img_size=96, batch_size=8, device="cpu", workers=0,
        project=str(trained.folder), name="test", noplots=True, task="val",
    )  # fmt: skip
    result = run_test(options)[0]
    assert result.coco.ap == pytest.approx(trained.metrics["metrics/AP"], abs=1e-6)


def test_it_detects_and_exports(trained: TrainResult, tiny: Path) -> None:
    model = load_model(weights(trained))
    images = torch.rand(2, 3, 64, 64)
    final = model.layout.end_to_end
    decoded = model(images)[0]
    assert decoded.shape == ((2, 100, 6) if final else (2, 16, 16**2 + 8**2))
    exported = load_detector([str(run_export(ExportOptions(weights(trained), img_size=(64,), dynamic=True))[0])], CPU)
    assert exported.layout == model.layout and list(exported.names) == list(model.names)
    again = exported.eval()(images)[0]
    if final:
        assert finished_difference(decoded.double(), again.double(), 1e-5) < 1e-4
    else:
        torch.testing.assert_close(again, decoded, rtol=1e-4, atol=1e-4)
    picture = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    found = Predictor(model, 64, CPU, conf_thres=0.0, max_det=7)(picture)
    assert found.shape == (7, 6) and (found[:, 4].diff() <= 0).all()


def test_what_final_boxes_cannot_do(trained: TrainResult) -> None:
    model = load_model(weights(trained))
    if not model.layout.end_to_end:
        assert model(torch.rand(1, 3, 64, 64), augment=True)[0].shape[:2] == (1, 16)
        return
    with pytest.raises(UsageError, match="cannot be merged over views"):
        model(torch.rand(1, 3, 64, 64), augment=True)
    with pytest.raises(UsageError, match="--end2end: the boxes that .* gives are final"):
        run_export(ExportOptions(weights(trained), img_size=(64,), end2end=True))


def test_it_teaches_learns_and_is_pruned(trained: TrainResult, tiny: Path) -> None:
    teacher, student = load_model(weights(trained)), Model(architecture("PlainDetect"))
    config = load_dataset_config(tiny / "tiny.yaml")
    dataset = DetectionDataset(build_index(config.train, config.nc, quiet=True), 64, None)
    batch = next(iter(create_loader(dataset, 4, workers=0, shuffle=False)))
    heads: Any = {"student_head": head_spec(student), "teacher_head": head_spec(teacher)}
    losses = {"fgd": {}, "output": {}, "ld": {}}
    kd = Distiller(student, teacher, "auto", "auto", losses, image_size=64, **heads)
    images = batch.images.float() / 255
    predictions, features = student(images, extra_features=kd.layers)
    loss, items = kd(images, predictions, features, batch.targets)
    loss.backward()
    assert loss.isfinite() and {name.split("/")[1] for name in items} == set(losses)
    before = sum(parameter.numel() for parameter in student.parameters())
    prune(student, 0.3, by="params", image=images[:1], round_to=2)
    assert sum(parameter.numel() for parameter in student.parameters()) < before


def test_mistakes_are_one_line(guides: ModuleType) -> None:
    with pytest.raises(PruneError, match=r"\(PlainDetect\) is a head whose outputs nobody knows to hand on"):
        plan_inheritance(Model(architecture("PlainDetect")), Model(architecture("PlainDetect")))
    with pytest.raises(UserError, match=r"layer 5 \(PlainDetect\): takes \[nc\], found"):
        Model({**architecture("PlainDetect"), "head": [[[2, 4], 1, "PlainDetect", ["nc", 3]]]})
    with pytest.raises(UserError, match=r"layer 5 \(PlainDetect\): cannot be built: invalid literal"):
        Model({**architecture("PlainDetect"), "bins": "many"})
    with pytest.raises(UserError, match="unknown key 'bins'"):
        Model(architecture("Detect"))  # which has no such key
    assert guides.PlainDetect(HeadPlan(2, [8], [16])).bins == 8
