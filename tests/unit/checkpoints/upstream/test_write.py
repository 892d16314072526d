"""Files for the upstream repositories: what they hold, who can read them, and what cannot be written."""

from __future__ import annotations

import pickletools
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from checkpoints.checkpoint import load_checkpoint, load_model
from checkpoints.pickled.rebuild import StandIn
from checkpoints.pickled.unpickle import unpickle
from checkpoints.upstream.write import RELEASES, save_upstream
from models.yolo import Model
from pruning import prune
from tests.golden import ROOT
from tests.unit.models.architectures import TINY, tiny_mobile, tiny_yolov5, tiny_yolov7, tiny_yolov8
from utils.errors import UserError

ARCHITECTURES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "cfg").rglob("*.yaml") if path.parent.name in RELEASES
)
EVERY_RELEASE = [(family, release) for family, releases in RELEASES.items() for release in releases]
NAMES = ["cat", "dog", "zèbre"]


def lively(cfg: dict[str, Any]) -> Model:
    """A model in evaluation mode, of half-precision numbers, with BatchNorm statistics of its own."""
    torch.manual_seed(0)
    model = Model(cfg)
    model.names = list(NAMES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.half().float().eval()


def narrow(path: str) -> dict[str, Any]:
    """An architecture that comes with the software, with few channels."""
    content = yaml.safe_load((ROOT / path).read_text())
    if "scales" in content:
        return {**content, "nc": 3, "scales": {"n": [0.33, 0.0625, 256]}, "scale": "n"}
    return {**content, "nc": 3, "width_multiple": 0.0625}


def written(model: Model, tmp_path: Path, **options: Any) -> tuple[dict[str, Any], StandIn]:
    """The top level and the model of a written file."""
    content = unpickle(save_upstream(model, tmp_path / "up.pt", **options)).content
    return content, content["model"]


def layers(model: StandIn) -> list[StandIn]:
    return list(model.attributes["_modules"]["model"].attributes["_modules"].values())


def parts(module: StandIn) -> dict[str, StandIn]:
    return module.attributes["_modules"]


def globals_of(path: Path) -> set[str]:
    """Every name that a file's pickle refers to."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return {
            str(argument).replace(" ", ".")
            for opcode, argument, _ in pickletools.genops(archive.read(name))
            if opcode.name == "GLOBAL"
        }


# -- our own reader ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ARCHITECTURES)
def test_every_architecture_comes_back(path: str, tmp_path: Path) -> None:
    model = lively(narrow(path))
    checkpoint = load_checkpoint(save_upstream(model, tmp_path / "up.pt"))
    assert (checkpoint.kind, checkpoint.family, checkpoint.nc) == ("upstream", model.family, 3)
    assert (checkpoint.names, checkpoint.stride, checkpoint.epoch) == (NAMES, model.stride.tolist(), -1)
    assert {**checkpoint.yaml, "nc": 3} == model.yaml
    weights = model.state_dict()
    assert list(checkpoint.state_dict) == list(weights)
    assert all(torch.equal(checkpoint.state_dict[key], weights[key]) for key in weights)
    if model.family != "yolov8":
        assert checkpoint.anchors == [level.flatten().tolist() for level in model.head.anchors_px]  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(("family", "release"), EVERY_RELEASE)
def test_every_release_gives_the_same_predictions(family: str, release: str, tmp_path: Path) -> None:
    model = lively(TINY[family]())
    image = torch.rand(1, 3, 32, 32)
    back = load_model(save_upstream(model, tmp_path / "up.pt", release=release), fuse=False)
    with torch.no_grad():
        assert torch.equal(back(image)[0], model(image)[0])


def test_weights_are_rounded_to_half_precision_or_kept(tmp_path: Path) -> None:
    model = lively(tiny_yolov5())
    weight = model.get_parameter("model.0.conv.weight")
    nn.init.constant_(weight, 1 + 2**-12)  # half precision has 10 bits after the point
    half = load_checkpoint(save_upstream(model, tmp_path / "half.pt"))
    full = load_checkpoint(save_upstream(model, tmp_path / "full.pt", half=False))
    assert half.state_dict["model.0.conv.weight"].unique().tolist() == [1.0]
    assert full.state_dict["model.0.conv.weight"].unique().tolist() == [1 + 2**-12]
    assert weight.unique().tolist() == [1 + 2**-12], "the model itself is changed"


def test_a_pruned_model_comes_back_with_its_own_sizes(tmp_path: Path) -> None:
    model = lively(tiny_yolov8())
    image = torch.rand(1, 3, 32, 32)
    prune(model, 0.4, image=image, by="params", round_to=1)
    model.half().float().eval()
    path = save_upstream(model, tmp_path / "up.pt")
    with torch.no_grad():
        assert torch.equal(load_model(path, fuse=False)(image)[0], model(image)[0])
    block = layers(unpickle(path).content["model"])[2]
    assert "channel_plan" in model.yaml, "nothing was pruned"
    split = model.model[2].cv1.conv.out_channels // 2  # type: ignore[union-attr, operator]
    assert block.attributes["c"] == split
    assert parts(parts(block)["cv1"])["conv"].attributes["out_channels"] == 2 * split


# -- what is in the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "release", "expected"),
    [
        ("yolov5", "7.0", {"opt", "git", "date"}),
        ("yolov5", "6.1", {"wandb_id", "date"}),
        ("yolov7", "0.1", {"wandb_id", "training_results"}),
        ("yolov8", "8.2", {"date", "version", "license", "docs", "train_args", "train_metrics", "train_results"}),
    ],
)
def test_entries_of_the_file(family: str, release: str, expected: set[str], tmp_path: Path) -> None:
    content, _ = written(lively(TINY[family]()), tmp_path, release=release, epoch=7)
    assert set(content) == {"epoch", "best_fitness", "model", "ema", "updates", "optimizer"} | expected
    assert content["epoch"] == 7
    assert [content[key] for key in ("best_fitness", "ema", "updates", "optimizer")] == [None] * 4


def test_class_names_are_a_list_before_yolov5_6_2(tmp_path: Path) -> None:
    model = lively(tiny_yolov5())
    old, new = (written(model, tmp_path, release=release)[1] for release in ("6.1", "6.2"))
    assert (old.class_name, old.attributes["names"]) == ("models.yolo.Model", NAMES)
    assert (new.class_name, new.attributes["names"]) == ("models.yolo.DetectionModel", dict(enumerate(NAMES)))


def test_anchors_of_the_releases(tmp_path: Path) -> None:
    """YOLOv5 works its pixel anchors out before the first image, YOLOv7 keeps them in a buffer, in float32 strides."""
    new, old = (written(lively(tiny_yolov5()), tmp_path, release=release)[1] for release in ("7.0", "6.1"))
    for model, shape in ((new, (0,)), (old, (1,))):
        head = layers(model)[-1].attributes
        assert [tuple(grid.shape) for grid in head["anchor_grid"]] == [shape] * 2
        assert list(head["_buffers"]) == ["anchors"] and head["stride"].dtype == torch.float16
    head = layers(written(lively(tiny_yolov7()), tmp_path)[1])[-1].attributes
    assert "anchor_grid" not in head and head["stride"].dtype == torch.float32
    assert head["_buffers"]["anchor_grid"].flatten().tolist() == [10, 13, 16, 30, 30, 61, 62, 45]


def test_layers_carry_the_parsers_notes(tmp_path: Path) -> None:
    _, model = written(lively(tiny_yolov5()), tmp_path)
    first, head = layers(model)[0].attributes, layers(model)[-1].attributes
    assert (first["i"], first["f"], first["type"]) == (0, -1, "models.common.Conv")
    assert first["np"] == 3 * 8 * 9 + 2 * 8  # the weights, and BatchNorm's scale and shift
    assert (head["i"], head["f"], head["type"]) == (5, [2, 4], "models.yolo.Detect")
    assert model.attributes["save"] == [2, 4]


def test_a_repeated_block_is_of_the_blocks_type(tmp_path: Path) -> None:
    cfg = tiny_yolov5()
    cfg["backbone"][2] = [-1, 2, "Bottleneck", [16]]
    layer = layers(written(lively(cfg), tmp_path)[1])[2]
    assert layer.class_name == "torch.nn.modules.container.Sequential"
    assert layer.attributes["type"] == "models.common.Bottleneck"
    assert [part.class_name for part in parts(layer).values()] == ["models.common.Bottleneck"] * 2


def test_pooling_pyramids_are_upstreams(tmp_path: Path) -> None:
    """SPPF applies one pool of 5 x 5 again and again, SPPCSPC pools of 5 x 5, 9 x 9 and 13 x 13 in parallel."""
    one = parts(layers(written(lively(tiny_yolov5()), tmp_path)[1])[4])["m"]
    assert one.short_name == "MaxPool2d"
    assert [one.attributes[key] for key in ("kernel_size", "stride", "padding")] == [5, 1, 2]
    pools = parts(parts(layers(written(lively(tiny_yolov7()), tmp_path)[1])[4])["m"]).values()
    assert [(pool.attributes["kernel_size"], pool.attributes["padding"]) for pool in pools] == [(5, 2), (9, 4), (13, 6)]


def test_rep_conv_keeps_its_branches(tmp_path: Path) -> None:
    cfg = tiny_yolov7()
    cfg["head"][1] = [2, 1, "RepConv", [24, 3, 1]]  # wider than its input: no identity branch
    cfg["head"][2] = [2, 1, "Conv", [24, 3, 1]]
    model = layers(written(lively(cfg), tmp_path)[1])
    assert list(parts(model[2])) == ["act", "rbr_identity", "rbr_dense", "rbr_1x1"]
    assert list(parts(model[5])) == ["act", "rbr_dense", "rbr_1x1"] and model[5].attributes["rbr_identity"] is None
    assert [model[5].attributes[key] for key in ("deploy", "groups", "in_channels", "out_channels")] == [
        False, 1, 16, 24,
    ]  # fmt: skip


def test_training_and_deployment_form_keep_their_heads(tmp_path: Path) -> None:
    model = lively(tiny_yolov7())
    assert layers(written(model, tmp_path)[1])[-1].class_name == "models.yolo.IAuxDetect"
    model.reparameterize()
    head = layers(written(model, tmp_path)[1])[-1]
    assert head.class_name == "models.yolo.Detect" and set(parts(head)) == {"m"}


def test_a_block_goes_by_its_familys_name(tmp_path: Path) -> None:
    rows = [[-1, 1, "GhostBottleneck", [24, 3, 2]], [-1, 1, "Ghost", [24, 3, 2]]]
    for cfg, row, expected in zip((tiny_yolov5(), tiny_yolov7()), rows, ("GhostBottleneck", "Ghost")):
        cfg["backbone"][3] = row
        assert layers(written(lively(cfg), tmp_path)[1])[3].class_name == f"models.common.{expected}"
    cfg = tiny_yolov7()
    cfg["backbone"][2] = [-1, 1, "RepResXCSPB", [16, False, 4]]
    layer = layers(written(lively(cfg), tmp_path)[1])[2]
    assert layer.class_name == layer.attributes["type"] == "models.common.RepResXCSPB"
    assert "cv4" not in parts(layer)


def test_hyper_parameters_that_upstream_knows_are_kept(tmp_path: Path) -> None:
    hyp = {"lr0": 0.02, "obj": 0.7, "dfl": 1.5, "paste_in": 0.1, "kd_losses": {"fgd": {}}, "mosaic9": 0.2}
    kept = {"yolov5": {"lr0", "obj"}, "yolov7": {"lr0", "obj", "paste_in"}, "yolov8": {"lr0", "dfl"}}
    for family, keys in kept.items():
        content, model = written(lively(TINY[family]()), tmp_path, hyp=hyp)
        found = model.attributes["args" if family == "yolov8" else "hyp"]
        assert set(found) - {"task", "mode"} == keys and found["lr0"] == 0.02
        if family == "yolov8":
            assert content["train_args"] == found == {"task": "detect", "mode": "train", "lr0": 0.02, "dfl": 1.5}


def test_own_keys_stay_out_of_the_yaml(tmp_path: Path) -> None:
    _, model = written(lively(tiny_yolov8()), tmp_path)
    assert model.attributes["yaml"] == {**tiny_yolov8(), "ch": 3}


# -- for whoever has the classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", RELEASES)
def test_nothing_of_ours_is_named_and_nothing_imported(family: str, tmp_path: Path) -> None:
    model = lively(TINY[family]())
    before = dict(sys.modules)
    names = globals_of(save_upstream(model, tmp_path / "up.pt"))
    assert dict(sys.modules) == before
    theirs = ("ultralytics.nn.",) if family == "yolov8" else ("models.yolo.", "models.common.")
    assert all(name.startswith((*theirs, "torch.", "collections.OrderedDict", "__builtin__.set")) for name in names)
    assert sum(name.startswith(theirs) for name in names) >= 5


@pytest.mark.parametrize(("family", "release"), EVERY_RELEASE)
def test_pytorch_makes_objects_of_the_classes(
    family: str, release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively(TINY[family]())
    path = save_upstream(model, tmp_path / "up.pt", release=release)
    for name in unpickle(path).classes:
        module, _, short = name.rpartition(".")
        if module.startswith("torch."):
            continue
        for end in range(1, module.count(".") + 2):
            package = ".".join(module.split(".")[:end])
            if getattr(sys.modules.get(package), "stands_in", False) is False:
                monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
                sys.modules[package].stands_in = True  # type: ignore[attr-defined]
        setattr(sys.modules[module], short, type(short, (nn.Module,), {"__module__": module}))

    loaded = torch.load(path, weights_only=False)["model"]

    assert isinstance(loaded, nn.Module) and not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    theirs, ours = loaded.state_dict(), model.half().state_dict()
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[key], ours[key]) and theirs[key].dtype == ours[key].dtype for key in ours)
    conv = loaded.get_submodule(f"model.{1 if family == 'yolov7' else 0}")
    assert type(conv).__name__ == "Conv"
    inner, bn, act = (conv.float().get_submodule(name) for name in ("conv", "bn", "act"))
    with torch.no_grad():  # PyTorch's own layers work
        assert act(bn(inner(torch.rand(1, inner.get_parameter("weight").shape[1], 8, 8)))).isfinite().all()
    acts = {id(module) for module in loaded.modules() if isinstance(module, nn.SiLU)}
    assert (len(acts) == 1) == (release in ("7.0", "8.2")), "these releases share one activation"


# -- what cannot be written --------------------------------------------------------------------------------------------


def refused(model: Model, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        save_upstream(model, tmp_path / "up.pt", **options)
    assert not list(tmp_path.iterdir()) and "\n" not in str(caught.value)
    return str(caught.value)


def test_the_mobile_fork_is_refused(tmp_path: Path) -> None:
    message = refused(Model(tiny_mobile()), tmp_path)
    assert "'mobile'" in message and "yolov5, yolov7, yolov8" in message


def test_an_unknown_release_is_named(tmp_path: Path) -> None:
    assert "'6.3'" in refused(Model(tiny_yolov5()), tmp_path, release="6.3")


@pytest.mark.parametrize("family", RELEASES)
def test_a_folded_model_is_refused(family: str, tmp_path: Path) -> None:
    message = refused(Model(TINY[family]()).eval().fuse(), tmp_path)
    assert "layer" in message and "BatchNorm is folded" in message and "fuse=False" in message


def test_a_block_without_counterpart_is_named(tmp_path: Path) -> None:
    cfg = tiny_yolov8()
    cfg["backbone"][2] = [-1, 1, "Stem", [16]]
    cfg["backbone"][3] = [-1, 1, "Conv", [24, 3, 1]]
    assert "layer 2 (Stem): files of YOLOv8 cannot hold the block Stem" in refused(Model(cfg), tmp_path)


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    model = lively(tiny_yolov5())
    nn.init.constant_(model.get_buffer("model.3.bn.running_var"), 70_000.0)  # half precision ends at 65504
    message = refused(model, tmp_path)
    assert "layer 3 (Conv)" in message and "half=False" in message
    assert load_checkpoint(save_upstream(model, tmp_path / "up.pt", half=False)).nc == 3
