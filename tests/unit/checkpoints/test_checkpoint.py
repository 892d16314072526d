"""Checkpoints: the own format, what is read from upstream's, and how weights are taken over."""

from __future__ import annotations

import errno
import json
import resource
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import models.yolo
from checkpoints.__main__ import convert_checkpoint
from checkpoints.checkpoint import (
    load_checkpoint,
    load_model,
    save_checkpoint,
    strip_checkpoint,
    to_payload,
    transfer_weights,
)
from checkpoints.inspect import describe
from checkpoints.pickled.rebuild import StandIn
from checkpoints.pickled.unpickle import unpickle
from checkpoints.upstream.read import plain
from checkpoints.upstream.write import save_upstream
from models.yolo import Model
from utils.errors import UserError

YAML: dict[str, Any] = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30, 33, 23]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]],
    "head": [[[2], 1, "Detect", ["nc", "anchors"]]],
}
ULTRALYTICS = "ultralytics.nn"
MODULES = "ultralytics.nn.modules"
Upstream = Callable[[str], type[nn.Module]]


def tiny() -> Model:
    model = Model(YAML)
    model.names = ["cat", "dog"]
    return model


def payload(model: Model, **entries: Any) -> dict[str, Any]:
    entry = {
        "yaml": model.yaml,
        "state_dict": model.state_dict(),
        "names": model.names,
        "nc": model.nc,
        "stride": [int(stride) for stride in model.stride],
    }
    return {"model": entry, "hyp": {"lr0": 0.01}, "epoch": 3, "best_fitness": 0.5, **entries}


# -- own files ---------------------------------------------------------------------------------------------------------


def test_own_file_round_trip(tmp_path: Path) -> None:
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model.train()(torch.zeros(1, 3, 64, 64))[0].sum().backward()
    optimizer.step()
    training = {"optimizer": optimizer.state_dict(), "state_dict": model.state_dict(), "rng": torch.get_rng_state()}
    path = tmp_path / "last.pt"
    save_checkpoint(path, payload(model, training=training, teacher={"path": "t.pt"}, metrics={"AP": 0.1}))

    safe = torch.load(path, weights_only=True)
    assert safe["format"] == "yolo-distill" and safe["format_version"] == 1
    checkpoint = load_checkpoint(path)
    assert (checkpoint.kind, checkpoint.family, checkpoint.epoch, checkpoint.best_fitness) == ("own", "yolov5", 3, 0.5)
    assert checkpoint.names == ["cat", "dog"] and checkpoint.nc == 2 and checkpoint.stride == [8.0]
    assert checkpoint.hyp == {"lr0": 0.01}
    assert checkpoint.extra == {"teacher": {"path": "t.pt"}, "metrics": {"AP": 0.1}}
    assert checkpoint.anchors == [[10, 13, 16, 30, 33, 23]]
    assert torch.equal(checkpoint.training["rng"], training["rng"])
    restored = torch.optim.SGD(tiny().parameters(), 0.1, momentum=0.9)
    assert checkpoint.optimizer is not None
    restored.load_state_dict(checkpoint.optimizer)
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    for ours, theirs in zip((state["momentum_buffer"] for state in restored.state.values()), momenta):
        assert torch.equal(ours, theirs)


def test_strip_leaves_a_plain_student(tmp_path: Path) -> None:
    model = tiny()
    plain_path, path = tmp_path / "plain.pt", tmp_path / "last.pt"
    save_checkpoint(plain_path, payload(model, teacher={"path": "t.pt"}))
    live = {key: torch.full_like(tensor, 7) for key, tensor in model.state_dict().items()}
    training = {"state_dict": live, "extra_losses": [{"adapter.weight": torch.zeros(1000)}]}
    content = payload(model, training=training, teacher={"path": "t.pt"})
    content["model"]["channel_plan"] = [8, 8, 8]
    save_checkpoint(path, content)
    strip_checkpoint(path)
    stripped = load_checkpoint(path)
    assert stripped.training == {} and stripped.optimizer is None and stripped.raw_state_dict is None
    assert stripped.extra == {"teacher": {"path": "t.pt"}} and stripped.epoch == 3
    assert stripped.model_extra == {"channel_plan": [8, 8, 8]}
    assert list(stripped.state_dict) == list(load_checkpoint(plain_path).state_dict) == list(model.state_dict())
    assert all(torch.equal(stripped.state_dict[key], tensor) for key, tensor in model.state_dict().items())
    before = path.stat().st_mtime_ns
    strip_checkpoint(path)
    assert path.stat().st_mtime_ns == before


def test_half_precision_is_an_option(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "half.pt"
    save_checkpoint(path, payload(model))
    strip_checkpoint(path, half=True)
    stored = torch.load(path, weights_only=True)["model"]["state_dict"]
    assert stored["model.0.conv.weight"].dtype == torch.float16
    assert stored["model.0.bn.num_batches_tracked"].dtype == torch.int64
    read = load_checkpoint(path).state_dict["model.0.conv.weight"]
    assert read.dtype == torch.float32
    assert torch.equal(read, model.state_dict()["model.0.conv.weight"].half().float())


def test_a_view_does_not_carry_its_storage(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "view.pt", {"model": {"w": torch.zeros(1_000_000)[:10]}})
    assert (tmp_path / "view.pt").stat().st_size < 10_000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float64(0.5), r"'training\.metrics\[1\]' is a numpy\.float64"),
        (np.zeros(2), "is a numpy.ndarray"),
        (Path("x"), "is a pathlib"),
        ({1, 2}, "is a builtins.set"),
        (nn.ReLU(), "is a torch.nn.modules"),
        (lambda: None, "is a builtins.function"),
        (torch.float16, "is a torch.dtype"),
        ({(1, 2): 0}, "has the key"),
        (torch.Size([1]), "is a torch.Size"),
    ],
)
def test_only_plain_values_are_stored(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(UserError, match=message):
        save_checkpoint(path, {"model": {}, "training": {"metrics": [0, value]}})
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_contains_itself_is_refused(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["again"] = [loop]
    with pytest.raises(UserError, match=r"'x\.again\[0\]' contains itself"):
        save_checkpoint(tmp_path / "x.pt", {"x": loop})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, payload(tiny()))
    before = path.read_bytes()

    def full(content: Any, stream: Any, **options: Any) -> None:
        stream.write(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(path, payload(tiny()))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_a_real_write_error(tmp_path: Path) -> None:
    """The operating system refuses to let the file grow, as it does on a full disk."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, payload(tiny()))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written: File too large") as error:
            save_checkpoint(path, {"model": {"w": torch.zeros(1_000_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        save_checkpoint(tmp_path / "none" / "x.pt", {})


def test_files_that_are_not_ours_to_understand(tmp_path: Path) -> None:
    for content, message in (
        ({"format": "yolo-distill", "format_version": 99}, "newer than 1"),
        ({"format": "yolo-distill", "format_version": 1, "model": None}, "not those of a checkpoint of ours"),
        ({"format": "yolo-distill", "format_version": 1, "model": {"yaml": {}, "nc": 1}}, "not those of a checkpoint"),
        (OrderedDict(w=torch.zeros(1)), "plain state_dict"),
        ({"state_dict": {"w": torch.zeros(1)}, "epoch": 1}, "plain state_dict"),
        ({"model": {"w": torch.zeros(1)}}, "plain state_dict"),
        ({"weights": 1, "epoch": 2}, r"holds no YOLO model \(found: weights, epoch\)"),
        ([1, 2], "holds a list, not a checkpoint"),
        ({}, "found: nothing"),
    ):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(UserError, match=message) as error:
            load_checkpoint(tmp_path / "x.pt")
        assert "\n" not in str(error.value)


def test_nan_weights(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.state_dict()["model.1.conv.weight"][0, 0, 0, 0] = float("nan")
    save_checkpoint(tmp_path / "nan.pt", payload(model))
    with pytest.raises(UserError, match=r"NaN in 1 of \d+ tensors \(first: model\.1\.conv\.weight\)"):
        load_checkpoint(tmp_path / "nan.pt")
    lines = "\n".join(describe(load_checkpoint(tmp_path / "nan.pt", allow_nan=True)))
    assert "1 tensors hold NaN or infinite values, first model.1.conv.weight" in lines


# -- upstream's files --------------------------------------------------------------------------------------------------


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Upstream:
    """Makes module classes that pickle under an upstream name."""

    made: dict[str, type[nn.Module]] = {}

    def make(path: str) -> type[nn.Module]:
        if path in made:
            return made[path]
        module_name, _, name = path.rpartition(".")
        cls = made[path] = type(name, (nn.Module,), {"__module__": module_name})
        parts = module_name.split(".")
        for package in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
            if package not in sys.modules:
                monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        monkeypatch.setattr(sys.modules[module_name], name, cls, raising=False)
        return cls

    return make


def detector(upstream: Upstream, model: str, head: str, blocks: tuple[str, ...] = ()) -> nn.Module:
    """A model of an upstream class: one convolution, perhaps further blocks, and a head with one prediction layer."""
    last = upstream(head)()
    last.nc = 2  # type: ignore[assignment]
    last.m = nn.ModuleList([nn.Conv2d(4, 21, 1)])
    last.register_buffer("anchors", torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]))
    last.register_buffer("grid", torch.zeros(1), persistent=False)
    detector = upstream(model)()
    detector.model = nn.Sequential(nn.Conv2d(3, 4, 1), *(upstream(block)() for block in blocks), last)
    detector.yaml = YAML  # type: ignore[assignment]
    detector.names = {0: "cat", 1: "dog"}  # type: ignore[assignment]
    detector.stride = torch.tensor([8.0])
    detector.hyp = {"lr0": 0.02}  # type: ignore[assignment]
    return detector


@pytest.mark.parametrize(
    ("model", "head", "blocks", "family"),
    [
        ("models.yolo.Model", "models.yolo.Detect", (), "yolov5"),
        ("models.yolo.DetectionModel", "models.yolo.Detect", ("models.common.C3",), "yolov5"),
        ("models.yolo.Model", "models.yolo.Detect", ("models.common.MP",), "yolov7"),
        ("models.yolo.Model", "models.yolo.IDetect", (), "yolov7"),
        ("models.yolo.Model", "models.yolo.IAuxDetect", (), "yolov7"),
        (f"{ULTRALYTICS}.tasks.DetectionModel", f"{MODULES}.head.Detect", (f"{MODULES}.block.DFL",), "yolov8"),
        ("ultralytics.yolo.nn.tasks.DetectionModel", f"{MODULES}.Detect", (f"{MODULES}.DFL",), "yolov8"),
    ],
)
def test_family_comes_from_the_head_and_the_blocks(
    tmp_path: Path, upstream: Upstream, model: str, head: str, blocks: tuple[str, ...], family: str
) -> None:
    torch.save({"model": detector(upstream, model, head, blocks), "epoch": 4}, tmp_path / "u.pt")
    checkpoint = load_checkpoint(tmp_path / "u.pt")
    assert (checkpoint.kind, checkpoint.family) == ("upstream", family)
    assert checkpoint.yaml["family"] == family
    assert checkpoint.head == head.rpartition(".")[2] and checkpoint.epoch == 4


def test_a_head_without_weights_is_the_mobile_fork(tmp_path: Path, upstream: Upstream) -> None:
    model = detector(upstream, "models.yolo.Model", "models.yolo.Detect")
    del model.model[-1].m  # type: ignore[index,operator,union-attr]
    torch.save({"model": model}, tmp_path / "u.pt")
    assert load_checkpoint(tmp_path / "u.pt").family == "mobile"


def test_averaged_weights_are_preferred_and_half_becomes_float(tmp_path: Path, upstream: Upstream) -> None:
    live = detector(upstream, "models.yolo.Model", "models.yolo.Detect")
    ema = detector(upstream, "models.yolo.Model", "models.yolo.Detect")
    for module, value in ((live, 1.0), (ema, 2.0)):
        for parameter in module.parameters():
            nn.init.constant_(parameter, value)
    optimizer = torch.optim.SGD(live.parameters(), 0.1).state_dict()
    content = {
        "epoch": 7,
        "best_fitness": np.array([0.25]),
        "model": live.half(),
        "ema": ema.half(),
        "optimizer": optimizer,
    }
    torch.save(content, tmp_path / "u.pt")
    checkpoint = load_checkpoint(tmp_path / "u.pt")
    weight = checkpoint.state_dict["model.0.weight"]
    assert weight.dtype == torch.float32 and weight.unique().tolist() == [2.0]
    assert checkpoint.ema is checkpoint.state_dict
    assert checkpoint.raw_state_dict is not None
    assert checkpoint.raw_state_dict["model.0.weight"].unique().tolist() == [1.0]
    assert (checkpoint.epoch, checkpoint.best_fitness) == (7, 0.25)
    assert checkpoint.optimizer == optimizer
    assert checkpoint.names == ["cat", "dog"] and checkpoint.hyp == {"lr0": 0.02}
    assert checkpoint.anchors == [[8, 16, 24, 32, 40, 48]]  # times the stride of 8

    torch.save({**content, "model": None}, tmp_path / "u.pt")
    checkpoint = load_checkpoint(tmp_path / "u.pt")
    assert checkpoint.raw_state_dict is None and checkpoint.state_dict["model.0.weight"].unique().tolist() == [2.0]


def test_keys_are_those_of_state_dict(tmp_path: Path, upstream: Upstream) -> None:
    model = detector(upstream, "models.yolo.Model", "models.yolo.Detect", ("models.common.C3",))
    model.model[1].bn = nn.BatchNorm2d(3)  # type: ignore[index,union-attr]
    expected = list(model.state_dict())
    model.register_buffer("total_ops", torch.zeros(1))  # what a FLOPs counter leaves behind
    torch.save(model, tmp_path / "whole.pt")  # the module itself, not in a dict
    checkpoint = load_checkpoint(tmp_path / "whole.pt")
    assert list(checkpoint.state_dict) == expected
    assert "model.2.anchors" in expected and "model.2.grid" not in expected
    assert checkpoint.state_dict["model.1.bn.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("model", "head", "blocks", "message"),
    [
        (
            "models.yolo.SegmentationModel",
            "models.yolo.Segment",
            (),
            r"holds a model for segmentation \(SegmentationModel\), not",
        ),
        ("models.yolo.ClassificationModel", "models.yolo.Classify", (), "holds a model for classification"),
        (
            f"{ULTRALYTICS}.tasks.PoseModel",
            f"{MODULES}.head.Pose",
            (),
            r"poses .* for yolov8n-pose\.pt",
        ),
        ("models.yolo.Model", "models.yolo.Segment", (), r"a model for segmentation \(Segment\)"),
        (f"{ULTRALYTICS}.tasks.DetectionModel", f"{MODULES}.head.Detect", (f"{MODULES}.block.C3k2",), "YOLO11"),
        ("models.common.DetectMultiBackend", "models.yolo.Detect", (), "a pickled models.common.DetectMultiBackend"),
    ],
)
def test_other_models_are_named(
    tmp_path: Path, upstream: Upstream, model: str, head: str, blocks: tuple[str, ...], message: str
) -> None:
    torch.save({"model": detector(upstream, model, head, blocks)}, tmp_path / "u.pt")
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(tmp_path / "u.pt")
    assert "\n" not in str(error.value)


def test_a_model_without_architecture(tmp_path: Path, upstream: Upstream) -> None:
    model = detector(upstream, "models.yolo.Model", "models.yolo.Detect")
    model.yaml = {}  # type: ignore[assignment]
    torch.save({"model": model}, tmp_path / "u.pt")
    with pytest.raises(UserError, match="has no architecture"):
        load_checkpoint(tmp_path / "u.pt")


def test_missing_names_are_numbered(tmp_path: Path, upstream: Upstream) -> None:
    model = detector(upstream, "models.yolo.Model", "models.yolo.Detect")
    model.names = ["cat"]  # type: ignore[assignment]
    torch.save({"model": model}, tmp_path / "u.pt")
    assert load_checkpoint(tmp_path / "u.pt").names == ["cat", "class1"]


def test_names_and_counts_that_are_none(tmp_path: Path, upstream: Upstream) -> None:
    """Values of the wrong kind that would grow without end when printed."""
    doubling: Any = ()
    for _ in range(60):
        doubling = (doubling, doubling)
    model = detector(upstream, "models.yolo.Model", "models.yolo.Detect")
    model.names = [doubling, "\x1b[31mdog\n"]  # type: ignore[assignment]
    model.stride = [doubling]  # type: ignore[assignment]
    model.hyp = {"lr0": doubling}  # type: ignore[assignment]
    torch.save({"model": model, "epoch": doubling, "best_fitness": doubling, "format": np.zeros(2)}, tmp_path / "u.pt")
    checkpoint = load_checkpoint(tmp_path / "u.pt")
    assert checkpoint.names == ["class0", "?[31mdog?"]
    assert (checkpoint.stride, checkpoint.hyp, checkpoint.epoch, checkpoint.best_fitness) == ([], {}, -1, None)
    model.model[-1].nc = doubling  # type: ignore[index,union-attr]
    torch.save({"model": model}, tmp_path / "u.pt")
    with pytest.raises(UserError, match="does not say how many classes"):
        load_checkpoint(tmp_path / "u.pt")
    save_checkpoint(tmp_path / "own.pt", payload(tiny()))
    content = torch.load(tmp_path / "own.pt", weights_only=True)
    torch.save({**content, "hyp": {"lr0": doubling}}, tmp_path / "own.pt")
    with pytest.raises(UserError, match="nested without end"):
        load_checkpoint(tmp_path / "own.pt")


def test_modules_inside_themselves_and_shared_without_end(tmp_path: Path, upstream: Upstream) -> None:
    model = detector(upstream, "models.yolo.Model", "models.yolo.Detect")
    model.model[0]._modules["again"] = model.model[0]  # type: ignore[index,union-attr,assignment]
    torch.save({"model": model}, tmp_path / "u.pt")
    with pytest.raises(UserError, match="nested without end"):
        load_checkpoint(tmp_path / "u.pt")
    model = detector(upstream, "models.yolo.Model", "models.yolo.Detect")
    conv = nn.Conv2d(32, 32, 3)
    for i in range(100):
        model.model[0]._modules[f"again{i}"] = conv  # type: ignore[index,union-attr]
    torch.save({"model": model}, tmp_path / "u.pt")
    with pytest.raises(UserError, match="repeat themselves beyond the size of the file"):
        load_checkpoint(tmp_path / "u.pt")


def test_plain_values_are_bounded() -> None:
    value: list[Any] = []
    for _ in range(60):
        value = [value]
    with pytest.raises(ValueError, match="nested"):
        plain(value)
    doubling: list[Any] = [0]
    for _ in range(35):
        doubling = [doubling, doubling]
    with pytest.raises(ValueError, match="nested"):
        plain(doubling)
    names = StandIn("argparse.Namespace", attributes={"lr": 0.1, "path": StandIn("models.yolo.Model")})
    assert plain({"a": names, 2: (1, np.array([2.5]), torch.tensor(3))}) == {
        "a": {"lr": 0.1, "path": "<models.yolo.Model>"},
        2: [1, [2.5], 3],
    }


# -- taking weights over -----------------------------------------------------------------------------------------------


def test_transfer_takes_what_fits_and_says_so() -> None:
    model = nn.Sequential(
        OrderedDict(a=nn.Linear(2, 3), b=nn.Linear(3, 1, bias=False), anchors=nn.Linear(1, 1, bias=False))
    )
    source = {
        "a.weight": torch.full((3, 2), 5.0),
        "b.weight": torch.zeros(2, 3),
        "anchors.weight": torch.zeros(1, 1),
        "c.weight": torch.zeros(4),
    }
    bias = model.a.bias.detach().clone()  # type: ignore[union-attr,operator]
    report = transfer_weights(model, source, exclude=("anchor",))
    assert report.taken == ("a.weight",)
    assert report.mismatched == (("b.weight", (2, 3), (1, 3)),)
    assert report.missing == ("a.bias",)
    assert report.unused == ("c.weight",)
    assert report.excluded == ("anchors.weight",)
    assert not report.complete
    assert model.a.weight.unique().tolist() == [5.0]  # type: ignore[union-attr,operator]
    assert torch.equal(model.a.bias, bias)  # type: ignore[arg-type]
    text = report.describe()
    assert text.splitlines()[0] == "took 1 of the model's 4 tensors from the checkpoint"
    assert "b.weight 2x3 -> 1x3" in text and "a.bias" in text and "c.weight" in text
    complete = transfer_weights(model, model.state_dict())
    assert complete.complete and complete.describe() == "took 4 of the model's 4 tensors from the checkpoint"


def test_transfer_names_the_first_only() -> None:
    report = transfer_weights(nn.Sequential(*(nn.Linear(1, 1) for _ in range(10))), {})
    assert "0.weight, 0.bias, 1.weight, 1.bias, ... (20 in all)" in report.describe()


# -- loading a model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", [False, True])
def test_load_model_gives_the_same_outputs(tmp_path: Path, fuse: bool) -> None:
    model = tiny()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    save_checkpoint(tmp_path / "m.pt", payload(model))
    loaded = load_model(tmp_path / "m.pt", fuse=fuse)
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        expected, output = model.eval()(image)[0], loaded(image)[0]
    assert not loaded.training and loaded.names == ["cat", "dog"]
    assert any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules()) is not fuse
    if fuse:
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-4)
    else:
        assert torch.equal(output, expected)


def test_load_model_of_a_fused_file(tmp_path: Path) -> None:
    """Some files are saved after BatchNorm was folded away."""
    model = tiny().eval().fuse()
    save_checkpoint(tmp_path / "fused.pt", payload(model))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "fused.pt", fuse=False)(image)[0], model(image)[0])


def test_load_model_is_complete_or_an_error(tmp_path: Path) -> None:
    model = tiny()
    content = payload(model)
    state = content["model"]["state_dict"]
    content["model"]["state_dict"] = {key: tensor for key, tensor in state.items() if key != "model.1.bn.weight"}
    save_checkpoint(tmp_path / "m.pt", content)
    with pytest.raises(UserError, match=r"not in the checkpoint, left as built: model\.1\.bn\.weight"):
        load_model(tmp_path / "m.pt")
    content["model"]["state_dict"] = {**state, "model.9.weight": torch.zeros(1)}
    save_checkpoint(tmp_path / "m.pt", content)
    with pytest.raises(UserError, match=r"in the checkpoint but not in the model: model\.9\.weight"):
        load_model(tmp_path / "m.pt")
    content["model"]["state_dict"] = {**state, "model.0.conv.weight": torch.zeros(8, 1, 3, 3)}
    save_checkpoint(tmp_path / "m.pt", content)
    with pytest.raises(UserError, match=r"model\.0\.conv\.weight 8x1x3x3 -> 8x3x3x3") as error:
        load_model(tmp_path / "m.pt")
    assert "\n" not in str(error.value)


def test_anchors_come_from_the_file_not_from_its_yaml(tmp_path: Path) -> None:
    """Automatic anchors change the buffer, and not always the yaml."""
    model = tiny()
    content = payload(model)
    content["model"]["state_dict"]["model.3.anchors"] *= 2
    save_checkpoint(tmp_path / "m.pt", content)
    loaded = load_model(tmp_path / "m.pt")
    assert loaded.head.anchors_px.flatten().tolist() == [20, 26, 32, 60, 66, 46]  # type: ignore[operator,union-attr]


# -- the command line --------------------------------------------------------------------------------------------------


def test_describe_an_upstream_file(tmp_path: Path, upstream: Upstream) -> None:
    torch.save({"ema": detector(upstream, "models.yolo.Model", "models.yolo.Detect")}, tmp_path / "u.pt")
    text = "\n".join(describe(load_checkpoint(tmp_path / "u.pt")))
    # A 1x1 convolution 3 -> 4 (16), a prediction layer 4 -> 21 (105); buffers are not parameters.
    for part in ("upstream", "head Detect", "121 parameters", "2: cat, dog", "models.yolo: Detect, Model", "lr0=0.02"):
        assert part in text


def test_convert(tmp_path: Path) -> None:
    source, target = save_upstream(tiny(), tmp_path / "u.pt"), tmp_path / "own.pt"
    convert_checkpoint(source, target)
    assert json.dumps(torch.load(target, weights_only=True)["model"]["yaml"])
    assert load_checkpoint(target).kind == "own"
    with pytest.raises(UserError, match="overwritten by its own conversion"):
        convert_checkpoint(target, target)
    with pytest.raises(UserError, match="folder of"):
        convert_checkpoint(source, tmp_path / "none" / "x.pt")
    with pytest.raises(UserError, match="is an upstream file"):
        strip_checkpoint(source)


def test_convert_for_an_upstream_release(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "own.pt", payload(tiny()))
    convert_checkpoint(tmp_path / "own.pt", tmp_path / "u.pt", release="6.1")
    assert unpickle(tmp_path / "u.pt").content["model"].class_name == "models.yolo.Model"
    with pytest.raises(UserError, match="unknown release '9'"):
        convert_checkpoint(tmp_path / "own.pt", tmp_path / "v.pt", release="9")
    assert not (tmp_path / "v.pt").exists()


def test_payload_of_a_checkpoint_is_storable(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", payload(tiny()))
    first = load_checkpoint(tmp_path / "a.pt")
    save_checkpoint(tmp_path / "b.pt", to_payload(first))
    second = load_checkpoint(tmp_path / "b.pt")
    assert (second.yaml, second.hyp, second.epoch) == (first.yaml, first.hyp, first.epoch)


def test_the_real_class_is_never_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: Upstream) -> None:
    """An upstream file names models.yolo.Model, which exists here too."""
    torch.save({"model": detector(upstream, "models.yolo.Model", "models.yolo.Detect")}, tmp_path / "u.pt")

    class Trap:
        def __new__(cls, *_: Any) -> Trap:
            raise AssertionError("the class of the file's choice was built")

    monkeypatch.setattr(models.yolo, "Model", Trap)
    assert load_checkpoint(tmp_path / "u.pt").family == "yolov5"
