"""Upstream files that are not the common ones: changed code, pruned widths, wrapped models, weights alone, others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from checkpoints.__main__ import convert_checkpoint, inspect_file
from checkpoints.architecture import MAX_REPEATS
from checkpoints.checkpoint import (
    fitted_model,
    fitted_yaml,
    interpret,
    load_checkpoint,
    load_model,
    save_checkpoint,
    write_archive,
)
from checkpoints.inspect import describe, describe_unknown
from checkpoints.pickled.rebuild import StandIn
from checkpoints.pickled.unpickle import unpickle
from checkpoints.upstream.pickle import StandInPickle
from checkpoints.upstream.write import save_upstream
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.training.model import build_model
from models.yolo import Model
from utils.errors import UsageError, UserError

YAML: dict[str, Any] = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30, 33, 23]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C3", [8]]],
    "head": [[-1, 1, "Conv", [8, 3, 2]], [[3], 1, "Detect", ["nc", "anchors"]]],
}
YOLOV8 = {
    "nc": 2,
    "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C2f", [16]]],
    "head": [[-1, 1, "Conv", [16, 3, 2]], [[3], 1, "Detect", ["nc"]]],
}
Change = Callable[[dict[str, Any]], None]


def toy(yaml: dict[str, Any] = YAML, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    model = Model(yaml)
    model.names = ["cat", "dog"]
    return model.eval()


def rewritten(path: Path, change: Change) -> Path:
    """An upstream file whose content, as stand-ins, was changed."""
    content = unpickle(path).content
    change(content)
    write_archive(path, content, StandInPickle)
    return path


def upstream_file(path: Path, change: Change | None = None, yaml: dict[str, Any] = YAML) -> Path:
    save_upstream(toy(yaml), path, half=False)
    return rewritten(path, change) if change else path


def modules(content: dict[str, Any]) -> dict[str, StandIn]:
    """The layers of a file's model, by index."""
    return content["model"].attributes["_modules"]["model"].attributes["_modules"]


def each(stand_in: StandIn) -> list[StandIn]:
    """A stand-in and all modules below it."""
    below = [child for child in (stand_in.attributes.get("_modules") or {}).values() if isinstance(child, StandIn)]
    return [stand_in, *(module for child in below for module in each(child))]


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(1)))[0]


# -- what the layers do, beside what the yaml says ---------------------------------------------------------------------


def activations_become(name: str, **attributes: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        for module in each(content["model"]):
            if module.short_name == "SiLU":
                module.class_name = f"torch.nn.modules.activation.{name}"
                module.attributes.update(attributes)

    return change


def test_an_activation_of_changed_code_is_taken_over(tmp_path: Path) -> None:
    """Whoever edits upstream's Conv leaves the yaml as it is; the modules in the file tell."""
    change = activations_become("LeakyReLU", negative_slope=0.1)
    path = upstream_file(tmp_path / "relu.pt", change)
    checkpoint = load_checkpoint(path)
    assert checkpoint.yaml["activation"] == "nn.LeakyReLU(0.1)"
    expected = toy({**YAML, "activation": "nn.LeakyReLU(0.1)"})
    assert torch.equal(output(load_model(path, fuse=False)), output(expected))
    assert not torch.equal(output(expected), output(toy()))
    convert_checkpoint(path, tmp_path / "own.pt")
    assert torch.equal(output(load_model(tmp_path / "own.pt", fuse=False)), output(expected))
    assert "activation" not in load_checkpoint(upstream_file(tmp_path / "silu.pt")).yaml


def test_activations_that_no_yaml_says_are_an_error(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        relu = StandIn("torch.nn.modules.activation.ReLU", attributes={"_modules": {}, "inplace": True})
        modules(content)["1"].attributes["_modules"]["act"] = relu  # the others share one activation

    with pytest.raises(UserError, match=r"model\.1\.act is a ReLU in the file, but SiLU by its architecture; .*--cfg"):
        load_model(upstream_file(tmp_path / "u.pt", change))


@pytest.mark.parametrize(
    ("child", "name", "value", "message"),
    [
        ("bn", "eps", 1e-5, r"model\.1\.bn is BatchNorm2d with eps 1e-05 in the file, but 0\.001 by its architecture"),
        ("conv", "stride", (1, 1), r"model\.1\.conv is Conv2d with stride 1 in the file, but 2"),
        ("conv", "padding", (2, 1), r"Conv2d with padding 2, 1 in the file, but 1"),
        ("conv", "dilation", (3, 3), r"with dilation 3 in the file"),
    ],
)
def test_layers_that_compute_something_else(tmp_path: Path, child: str, name: str, value: Any, message: str) -> None:
    def change(content: dict[str, Any]) -> None:
        modules(content)["1"].attributes["_modules"][child].attributes[name] = value

    with pytest.raises(UserError, match=message) as error:
        load_model(upstream_file(tmp_path / "u.pt", change))
    assert "\n" not in str(error.value)


def test_implicit_layers_that_upstream_has_folded_are_not_applied_again(tmp_path: Path) -> None:
    """Its fuse() leaves their values in the file, beside the weights that contain them."""
    head = [[-1, 1, "MP", []], [[3], 1, "IDetect", ["nc", "anchors"]]]
    yaml = {**YAML, "backbone": [[-1, 1, "Conv", [8, 3, 2]]] * 3, "head": head}

    def change(content: dict[str, Any]) -> None:
        last = modules(content)["4"]
        for part, value in (("ia", 0.5), ("im", 2.0)):
            layer = last.attributes["_modules"][part].attributes["_modules"]["0"]
            layer.attributes["_parameters"]["implicit"][:] = value
        last.attributes["forward"] = StandIn("models.yolo.IDetect.fuseforward")

    path = upstream_file(tmp_path / "u.pt", change, yaml)
    state = load_checkpoint(path).state_dict
    assert state["model.4.ia.0.implicit"].unique().tolist() == [0]
    assert state["model.4.im.0.implicit"].unique().tolist() == [1]


def pruned() -> Model:
    """Layer 0 gives five channels instead of eight."""
    return toy({**YAML, "channel_plan": {"model.0.conv": [None, 5], "model.0.bn": [5], "model.1.conv": [5, None]}})


def test_a_pruned_upstream_model_gets_its_channel_plan(tmp_path: Path) -> None:
    """Its yaml still says the full widths."""
    save_upstream(pruned(), tmp_path / "u.pt", half=False)
    path = rewritten(tmp_path / "u.pt", lambda content: content["model"].attributes["yaml"].pop("channel_plan", None))
    checkpoint = load_checkpoint(path)
    assert "channel_plan" not in checkpoint.yaml
    assert torch.equal(output(load_model(path, fuse=False)), output(pruned()))
    assert fitted_yaml(checkpoint)["channel_plan"]["model.0.conv"] == [None, 5]
    convert_checkpoint(path, tmp_path / "own.pt")
    assert torch.equal(output(load_model(tmp_path / "own.pt", fuse=False)), output(pruned()))
    student = build_model(TrainOptions(weights=str(path), data="x.yaml"), Hyp(), 2, ["a", "b"])
    assert student.state_dict()["model.0.conv.weight"].shape == (5, 3, 3, 3)


def test_a_tensor_of_another_rank_is_no_pruning(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        modules(content)["1"].attributes["_modules"]["bn"].attributes["_parameters"]["weight"] = torch.tensor(1.0)

    with pytest.raises(UserError, match=r"model\.1\.bn\.weight scalar -> 8"):
        load_model(upstream_file(tmp_path / "u.pt", change))


# -- how a model is kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["data_parallel.DataParallel", "distributed.DistributedDataParallel"])
def test_models_of_several_gpus(tmp_path: Path, wrapper: str) -> None:
    def change(content: dict[str, Any]) -> None:
        inner = content["model"]
        content["model"] = StandIn(
            f"torch.nn.parallel.{wrapper}", attributes={"_modules": {"module": inner}, "device_ids": [0, 1]}
        )

    model = load_model(upstream_file(tmp_path / "u.pt", change), fuse=False)
    assert torch.equal(output(model), output(toy()))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("entry", [None, "state_dict", "model", "model_state_dict"])
def test_weights_alone(tmp_path: Path, entry: str | None, prefix: str) -> None:
    weights = {f"{prefix}{key}": tensor for key, tensor in toy().state_dict().items()}
    path, cfg, own = tmp_path / "w.pt", tmp_path / "toy.yaml", tmp_path / "own.pt"
    torch.save(weights if entry is None else {entry: weights, "epoch": 3}, path)
    cfg.write_text(str({**YAML, "names": ["cat", "dog"]}))
    with pytest.raises(UserError, match=r"without an architecture \(a plain state_dict\); .* convert IN OUT --cfg CFG"):
        load_model(path)
    checkpoint = load_checkpoint(path, architecture=False)
    assert (checkpoint.kind, checkpoint.yaml, checkpoint.names) == ("weights", {}, [])
    assert list(checkpoint.state_dict) == list(toy().state_dict())
    convert_checkpoint(path, own, cfg=str(cfg))
    assert torch.equal(output(load_model(own, fuse=False)), output(toy()))
    assert load_checkpoint(own).names == ["cat", "dog"]
    started = build_model(TrainOptions(weights=str(path), cfg=str(cfg), data="x.yaml"), Hyp(), 2, ["a", "b"])
    assert torch.equal(output(started.eval()), output(toy()))


def test_an_architecture_that_is_not_that_of_the_weights(tmp_path: Path) -> None:
    torch.save(toy().state_dict(), tmp_path / "w.pt")
    cfg = tmp_path / "other.yaml"
    cfg.write_text(str({**YAML, "nc": 5}))
    with pytest.raises(UserError, match=r"model\.4\.m\.0\.weight 21x8x1x1 -> 30x8x1x1"):
        convert_checkpoint(tmp_path / "w.pt", tmp_path / "own.pt", cfg=str(cfg))
    with pytest.raises(UsageError, match="leave out --cfg"):
        convert_checkpoint(upstream_file(tmp_path / "u.pt"), tmp_path / "own.pt", cfg=str(cfg))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    def change(content: dict[str, Any]) -> None:
        modules(content)["1"].attributes["_modules"]["bn"].attributes["_buffers"]["running_var"][3] = value

    upstream_file(tmp_path / "u.pt", change)
    kind = "NaN" if value != value else "infinite values"
    with pytest.raises(UserError, match=rf"holds {kind} in 1 of \d+ tensors \(first: model\.1\.bn\.running_var\)"):
        load_checkpoint(tmp_path / "u.pt")


# -- what a file says of itself ----------------------------------------------------------------------------------------


def text_of(path: Path) -> str:
    return "\n".join(describe(load_checkpoint(path)))


def test_facts_of_yolov5(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content.update(date="2023-04-05T06:07:08.999", opt={"imgsz": 416, "epochs": 3}, epoch=11)
        content.update(best_fitness=np.array([0.4321]))

    text = text_of(upstream_file(tmp_path / "u.pt", change))
    for line in ("upstream, YOLOv5 7.0", "2023-04-05T06:07:08", "image size:   416", "epoch:        11", "0.4321"):
        assert line in text
    assert "one set; " in text and "stored as float32" in text and "stripped of:  optimizer, ema" in text


def test_facts_of_yolov7(tmp_path: Path) -> None:
    row = "     9/9     1.2G   0.05  0.01  0.02  0.08   14   640   0.61   0.52   0.55   0.333   0.06   0.02   0.01\n"
    head = [[-1, 1, "MP", []], [[3], 1, "IDetect", ["nc", "anchors"]]]
    yaml = {**YAML, "backbone": [[-1, 1, "Conv", [8, 3, 2]]] * 3, "head": head}
    path = upstream_file(tmp_path / "u.pt", lambda content: content.update(training_results="x\n" + row), yaml)
    text = text_of(path)
    assert "P 0.61, R 0.52, mAP50 0.55, mAP50-95 0.333" in text
    assert "YOLOv7, training form" in text and "kept of run:  training_results" in text


def test_facts_of_yolov8(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content.update(version="8.1.2", train_args={"imgsz": 320}, train_metrics={"metrics/mAP50(B)": 0.25})
        content["optimizer"] = {"state": {0: {"exp_avg": torch.zeros(3).half()}}, "param_groups": [{"params": [0]}]}

    path = upstream_file(tmp_path / "u.pt", change, YOLOV8)
    text = text_of(path)
    for part in ("ultralytics 8.1.2", "image size:   320", "metrics/mAP50(B) 0.25", "kept of run:  optimizer"):
        assert part in text
    assert load_checkpoint(path).img_size == 320


def test_the_release_of_early_ultralytics(tmp_path: Path) -> None:
    """Before 8.0.100 or so all blocks were in one module."""

    def change(content: dict[str, Any]) -> None:
        content.pop("version")
        for module in each(content["model"]):
            name = module.class_name.replace("modules.conv.", "modules.").replace("modules.block.", "modules.")
            module.class_name = name.replace("modules.head.", "modules.").replace("nn.tasks", "yolo.nn.tasks")

    path = upstream_file(tmp_path / "u.pt", change, YOLOV8)
    assert "ultralytics.nn.modules.Conv" in load_checkpoint(path).classes
    assert "ultralytics 8.0, early" in text_of(path)
    assert torch.equal(output(load_model(path, fuse=False)), output(toy(YOLOV8)))


# -- other models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "head", "block", "message"),
    [
        (None, "models.yolo.Segment", None, r"a model for segmentation \(Segment\), not a detector; .*-seg\.pt"),
        (None, "models.yolo.IKeypoint", None, r"a model for keypoints \(IKeypoint\), not a detector"),
        (None, "models.yolo.IBin", None, "holds YOLOv7 with binned box sizes"),
        (None, "models.yolo.DualDDetect", None, r"holds YOLOv9 \(found DualDDetect\)"),
        (None, "models.yolo.Detect", "models.common.RepNCSPELAN4", "holds YOLOv9"),
        (None, "models.yolo.Detect", "models.common.BottleneckCSP2", "holds YOLOv4"),
        (None, "ultralytics.nn.modules.head.v10Detect", None, "holds YOLOv10"),
        (None, "ultralytics.nn.modules.head.Detect", "ultralytics.nn.modules.block.C3k2", "holds YOLO11 or later"),
        (None, "ultralytics.nn.modules.head.Detect", "ultralytics.nn.modules.block.A2C2f", "holds YOLO12"),
        (None, "ultralytics.nn.modules.head.RTDETRDecoder", None, "holds RT-DETR"),
        (None, "models.yolo.MyHead", None, r"its last layer is models\.yolo\.MyHead, an unknown head"),
        ("ultralytics.nn.tasks.OBBModel", "x", None, r"for oriented boxes .*yolov8n-obb\.pt"),
        ("ultralytics.nn.tasks.RTDETRDetectionModel", "x", None, "holds RT-DETR"),
        ("models.models.Darknet", "x", None, r"a Darknet model \(YOLOv3, YOLOv4 or YOLOR\)"),
        ("models.experimental.Ensemble", "x", None, "holds several models in one"),
        ("torch.nn.modules.container.Sequential", "x", None, "holds a pickled torch.nn.modules.container.Sequential"),
    ],
)  # fmt: skip
def test_other_models_are_named(tmp_path: Path, model: str, head: str, block: str, message: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"].class_name = model or content["model"].class_name
        modules(content)["4"].class_name = head if "." in head else "models.yolo.Detect"
        if block:
            modules(content)["2"].class_name = block

    path = upstream_file(tmp_path / "u.pt", change)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("super_gradients.training.models.YoloNAS_S", "holds a YOLO-NAS model"),
        ("yolov6.models.yolo.Model", "holds a YOLOv6 model"),
        ("torchvision.models.resnet.ResNet", "holds a torchvision model"),
        ("mystery.Net", r"is refused: it names mystery\.Net"),
    ],
)
def test_other_software_is_named(tmp_path: Path, name: str, message: str) -> None:
    write_archive(tmp_path / "x.pt", {"model": StandIn(name, attributes={"a": 1})}, StandInPickle)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(error.value) and "nothing of it was run" in str(error.value)


def test_other_software_does_not_hide_a_command(tmp_path: Path) -> None:
    content = [StandIn("torchvision.models.resnet.ResNet"), StandIn("os.system")]
    write_archive(tmp_path / "x.pt", content, StandInPickle)
    with pytest.raises(UserError, match=r"is refused: it names os\.system, torchvision"):
        load_checkpoint(tmp_path / "x.pt")


def test_inspect_says_what_can_be_told_of_a_foreign_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(content: dict[str, Any]) -> None:
        modules(content)["4"].class_name = "models.yolo.Segment"
        content["no\x1b[31mte"] = "\x1b[31mred"

    path = upstream_file(tmp_path / "u.pt", change)
    with pytest.raises(UserError, match="a model for segmentation"):
        inspect_file(path)
    shown = capsys.readouterr().out
    parameters = sum(p.numel() for p in toy().parameters())
    assert f"a pickled models.yolo.DetectionModel of {parameters:,} parameters" in shown
    assert "models.yolo: DetectionModel, Segment" in shown
    assert "\x1b" not in shown
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds a list"):
        inspect_file(path)
    assert "2 values (list)" in capsys.readouterr().out


# -- architectures without end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": [[-1, MAX_REPEATS + 1, "Conv", [8]]]}, "repeats a block without end"),
        ({"backbone": [[-1, 1, "Conv", ["-" * 100_000 + "1"]]]}, "a row with an impossible block"),
        ({"depth_multiple": 1e9}, "a depth multiple of 1e\\+09"),
        ({"depth_multiple": float("nan")}, "a depth multiple of nan"),
        ({"scales": {"n": [1e9, 1.0, 8]}, "scale": "n"}, "a depth multiple of 1e\\+09"),
        ({"width_multiple": 1e3}, "more than [0-9,]+ parameters"),
        ({"backbone": [[-1, 1, "Conv", [1 << 14, 3]]] * 3}, "more than [0-9,]+ parameters"),
        ({"backbone": "abc"}, "no list of rows"),
        ({"head": [[1, 2]]}, "no list of rows"),
    ],
)
@pytest.mark.parametrize("own", [False, True], ids=["upstream", "own"])
def test_architectures_that_would_fill_the_memory(
    tmp_path: Path, change: dict[str, Any], message: str, own: bool
) -> None:
    path = tmp_path / "u.pt"
    if own:
        entry = {"yaml": {**YAML, **change}, "state_dict": toy().state_dict(), "names": [], "nc": 2, "stride": [8]}
        save_checkpoint(path, {"model": entry})
    else:
        upstream_file(path, lambda content: content["model"].attributes.update(yaml={**YAML, **change}))
    with pytest.raises(UserError, match=message) as error:
        load_model(path)
    assert "\n" not in str(error.value)


# -- values of every kind in every place -----------------------------------------------------------------------------


def hostile_values() -> list[Any]:
    doubling: Any = ()
    for _ in range(60):
        doubling = (doubling, doubling)
    deep: Any = ()
    for _ in range(50_000):
        deep = (deep,)
    return [
        None, True, -1, 2.5, float("nan"), 1 << 100_000, "\n\x1b[31m", b"\xff", "Conv", [], {}, doubling, deep,
        [doubling], {1: 2}, {"a": deep}, [-1, 1], [[1, 2, 3]], StandIn("models.yolo.Model"), torch.zeros(3),
        torch.zeros(0), np.zeros((8, 0)),
    ]  # fmt: skip


def places(value: Any, found: list[tuple[Any, Any]], met: set[int]) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    if id(value) in met:
        return found
    met.add(id(value))
    inside: Any = value.attributes if isinstance(value, StandIn) else value
    if isinstance(inside, dict | list):
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        for key in keys:
            found.append((inside, key))
            places(inside[key], found, met)
    return found


@pytest.mark.parametrize("kind", ["yolov5", "yolov8", "own"])
def test_a_wrong_value_anywhere_is_read_or_one_line(tmp_path: Path, kind: str) -> None:
    path, rng = tmp_path / "x.pt", np.random.default_rng(0)
    if kind == "own":
        save_upstream(toy(), tmp_path / "u.pt")
        convert_checkpoint(tmp_path / "u.pt", path)
    else:
        upstream_file(path, None, YAML if kind == "yolov5" else YOLOV8)
    values, outcomes = hostile_values(), set()
    for _ in range(40):
        unpickled = unpickle(path)
        found = places(unpickled.content, [], set())
        container, key = found[rng.integers(len(found))]
        container[key] = values[rng.integers(len(values))]
        try:
            checkpoint = interpret(path, unpickled)
            list(describe(checkpoint))
            fitted_model(checkpoint)
            outcomes.add("read")
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 800, str(error)
            list(describe_unknown(path, unpickled))
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
