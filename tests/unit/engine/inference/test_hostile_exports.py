"""Exported files that fail, mislead, or are programs: one line each, and no program runs unless it is trusted."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from checkpoints.exported import read_strings
from engine.inference.ensemble import load_detector
from engine.inference.predict import PredictOptions, run_predict
from engine.inference.runtimes import ExportedModel
from utils.errors import UsageError, UserError

CPU = torch.device("cpu")
NAMES = json.dumps({str(index): "c" for index in range(12)})
ENTRIES = {"names": NAMES, "stride": "32", "layout": "yolov5"}
IMAGES = torch.zeros(1, 3, 64, 64)
SOURCE = """
import torch
class Writes(torch.nn.Module):
    def forward(self, x):
        torch.save(x[0, 0, 0], "{marker}")
        return torch.zeros(1, 100, 17)
class Fails(torch.nn.Module):
    def forward(self, x):
        assert False, "boom"
        return torch.zeros(1, 100, 17)
class Narrow(torch.nn.Module):
    def forward(self, x): return torch.zeros(1, 100, 5)
class Flat(torch.nn.Module):
    def forward(self, x): return torch.zeros(100)
class More(torch.nn.Module):
    def forward(self, x): return torch.zeros(7, 100, 17)
class Text(torch.nn.Module):
    def forward(self, x): return "text"
class Good(torch.nn.Module):
    def forward(self, x): return torch.zeros(x.shape[0], 100, 17)
class Rows(torch.nn.Module):
    def forward(self, x): return torch.tensor([[{row}]])
"""


def script(folder: Path, name: str, entries: dict[str, str] = ENTRIES, row: str = "0.0") -> Path:
    """A TorchScript file of one of these classes."""
    source = folder / f"{name}_source.py"
    source.write_text(SOURCE.format(marker=folder / "written", row=row))
    spec = importlib.util.spec_from_file_location("made", source)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = folder / f"{name}.torchscript"
    torch.jit.save(torch.jit.script(getattr(module, name)().eval()), path, _extra_files=entries)
    return path


def graph(
    path: Path,
    shape: Sequence[Any] = (1, 3, 64, 64),
    inputs: int = 1,
    kind: int = TensorProto.FLOAT,
    entries: dict[str, str] = ENTRIES,
    output: str = "big",
) -> Path:
    """An ONNX file whose output is a constant, or the images themselves."""
    values = [helper.make_tensor_value_info(f"images{i or ''}", kind, shape) for i in range(inputs)]
    big = helper.make_tensor("big", TensorProto.FLOAT, [1, 10, 17], np.zeros(170, np.float32))
    nodes = [helper.make_node("Identity", [output], ["output"])]
    result = helper.make_tensor_value_info("output", kind if output != "big" else TensorProto.FLOAT, None)
    made = helper.make_model(
        helper.make_graph(nodes, "g", values, [result], [big]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    helper.set_model_props(made, entries)
    onnx.save(made, path)
    return path


def one_line(caught: pytest.ExceptionInfo[UserError]) -> None:
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700


# -- programs ----------------------------------------------------------------------------------------------------------


def test_a_program_runs_only_if_it_is_trusted(tmp_path: Path) -> None:
    path = script(tmp_path, "Writes")
    other = graph(tmp_path / "a.onnx")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for use in (
        lambda: ExportedModel(path, CPU),
        lambda: load_detector([str(path)], CPU),
        lambda: load_detector([str(other), str(path)], CPU),
        lambda: run_predict(PredictOptions((str(path),), str(tmp_path), project=str(tmp_path / "runs"))),
    ):
        with pytest.raises(UsageError, match="is a program.*--trust") as caught:
            use()
        one_line(caught)
    assert not (tmp_path / "written").exists()
    load_detector([str(path)], CPU, trust=True)(IMAGES)
    assert (tmp_path / "written").exists()


def test_what_it_says_of_itself_is_read_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(tmp_path, "Good", {**ENTRIES, "device": "cuda"})
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match="traced for the device cuda"):
        ExportedModel(path, CPU, trust=True)


# -- outputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Fails", "fails on images of shape .*boom"),
        ("Narrow", r"output of shape \(1, 100, 5\); by what it says of itself and its 12 classes"),
        ("Flat", r"output of shape \(100,\)"),
        ("More", r"output of shape \(7, 100, 17\)"),
        ("Text", "fails on images of shape"),
    ],
)
def test_a_program_that_gives_something_else(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ExportedModel(script(tmp_path, name), CPU, trust=True).eval()(IMAGES)
    one_line(caught)


@pytest.mark.parametrize("row", ["0, 1, 1, 2, 2, 12, 0.5", "1, 1, 1, 2, 2, 0, 0.5", "0, 1, 1, 2, 2, -1, 0.5", "0, 1"])
def test_rows_that_are_none(tmp_path: Path, row: str) -> None:
    row = ", ".join(str(float(value)) for value in row.split(","))
    path = script(tmp_path, "Rows", {**ENTRIES, "nms": "true"}, row)
    with pytest.raises(UserError, match="it would be rows of 7") as caught:
        ExportedModel(path, CPU, trust=True).eval()(IMAGES)
    one_line(caught)


# -- what a file says of itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        "{x: a}", "[" * 3000, "{" * 3000, "7", "{-1: a}", "x" * 5_000_000, "[1, *a]", "\x1b[31m", "[]", "{}",
        f'{{"{"9" * 5000}": "a"}}', f"{{0x{'f' * 5000}: a}}", "{0: a, 2: b}",
    ],
    ids=[
        "words", "deep list", "deep map", "number", "negative", "long", "alias", "escape", "no list", "no map",
        "long number", "long hexadecimal number", "a gap",
    ],
)  # fmt: skip
def test_names_that_are_none(tmp_path: Path, names: str) -> None:
    path = graph(tmp_path / "a.onnx", entries={**ENTRIES, "names": names})
    with pytest.raises(UserError, match="does not name its classes; give --data") as caught:
        ExportedModel(path, CPU)
    one_line(caught)
    assert ExportedModel(path, CPU, names=["c"] * 12).nc == 12


@pytest.mark.parametrize("stride", ["0", "-32", "1e9", "1000000000", "true", "[[[", "x" * 100])
def test_strides_that_are_none(tmp_path: Path, stride: str) -> None:
    path = graph(tmp_path / "a.onnx", entries={**ENTRIES, "stride": stride})
    assert ExportedModel(path, CPU).stride.tolist() == [32]


def test_strings_that_are_hard_to_read_stay_text() -> None:
    deep, long = "[" * 100_000, "{0: 'a'" + ", 1: 'b'" * 50_000 + "}"
    assert read_strings({"a": deep, "b": long, "c": "{0: 'x'}", "d": "\x00"}) == {
        "a": deep, "b": long, "c": {0: "x"}, "d": "\x00",
    }  # fmt: skip


def test_names_do_not_reach_the_terminal_with_control_characters(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx", entries={**ENTRIES, "names": json.dumps(["\x1b[31m"] * 12)})
    assert all(name.isprintable() for name in ExportedModel(path, CPU).names)


# -- ONNX --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": 2}, "has 2 inputs; a detector has one"),
        ({"inputs": 0}, "has 0 inputs; a detector has one"),
        ({"shape": [1, 4, 64, 64]}, r"takes an input of shape \(1, 4, 64, 64\), not images"),
        ({"shape": [0, 3, 64, 64]}, "not images"),
        ({"shape": [1, 3, 1 << 40, 64]}, "not images"),
        ({"shape": [1, 3]}, "not images"),
        ({"shape": [1, 3, "h", 96]}, "fails on images of shape"),
        ({"kind": TensorProto.INT64, "output": "images"}, "fails on images of shape"),
        ({"kind": TensorProto.STRING, "output": "images"}, "fails on images of shape"),
        ({"output": "images"}, r"output of shape \(1, 3, 64, 64\)"),
        ({"output": "images", "entries": {"names": NAMES}}, "a detector of 12 classes gives"),
    ],
)
def test_graphs_that_are_no_detectors(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ExportedModel(graph(tmp_path / "a.onnx", **changes), CPU).eval()(IMAGES)
    one_line(caught)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/hostname", "/dev/zero", "secret.bin", "x\x1b\n.bin"])
def test_weights_outside_of_the_files_folder_are_not_read(tmp_path: Path, place: str) -> None:
    """External data may be named by any path. Only beside the file it may lie, and here it does not."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    made = onnx.load(str(graph(folder / "a.onnx")))
    held = made.graph.initializer[0]
    held.ClearField("float_data")
    held.ClearField("raw_data")
    held.data_location = TensorProto.EXTERNAL
    for key, value in (("location", place), ("offset", "0"), ("length", "680")):
        entry = held.external_data.add()
        entry.key, entry.value = key, value
    (folder / "a.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UserError, match="cannot be read as an ONNX model") as caught:
        ExportedModel(folder / "a.onnx", CPU)
    one_line(caught)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_an_onnx_file_cut_short(tmp_path: Path, share: float) -> None:
    path = graph(tmp_path / "a.onnx")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(UserError) as caught:
        ExportedModel(path, CPU).eval()(IMAGES)
    one_line(caught)


# -- OpenVINO ----------------------------------------------------------------------------------------------------------


def openvino_model(folder: Path) -> Path:
    openvino = pytest.importorskip("openvino")
    network = openvino.convert_model(str(graph(folder / "a.onnx", shape=[1, 3, 64, 64])))
    for key, text in ENTRIES.items():
        network.set_rt_info(text, ["model_info", key])
    openvino.save_model(network, folder / "model" / "a.xml", compress_to_fp16=False)
    return folder / "model" / "a.xml"


def test_openvino_files_that_are_damaged(tmp_path: Path) -> None:
    path = openvino_model(tmp_path)
    text, weights = path.read_text(), path.with_suffix(".bin").read_bytes()
    laughs = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    texts = {
        "bomb": f'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a0 "ha">{laughs}]><net name="&a11;" version="11"/>',
        "cut": text[: len(text) // 2],
        "deep": "<a>" * 100_000,
        "empty": "",
        "no layers": '<?xml version="1.0"?><net name="x" version="11"><layers/><edges/></net>',
        "version": text.replace('version="11"', 'version="x"', 1),
        "offset": text.replace('offset="0"', 'offset="99999999999"'),
        "shape": text.replace("<dim>64</dim>", "<dim>-7</dim>"),
        "inputs": text.replace('type="Parameter"', 'type="Nothing"'),
    }
    for what, changed in texts.items():
        path.write_text(changed)
        with pytest.raises(UserError) as caught:
            ExportedModel(path, CPU).eval()(IMAGES)
            pytest.fail(what)
        one_line(caught)
    path.write_text(text)
    path.with_suffix(".bin").write_bytes(weights[:100])
    with pytest.raises(UserError, match="cannot be read as an OpenVINO model"):
        ExportedModel(path, CPU)
    path.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match="cannot be read as an OpenVINO model") as caught:
        ExportedModel(path, CPU)
    one_line(caught)
