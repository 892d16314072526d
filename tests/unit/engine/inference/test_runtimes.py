"""engine.inference.runtimes: an exported file in the place of a model."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch

from checkpoints.checkpoint import load_checkpoint, load_model
from checkpoints.exported import ExportMetadata, existing_weights, exported_kind, read_strings
from data.dataset import DetectionDataset
from data.records import DatasetIndex, ImageRecord
from engine.exporting.check import relative_difference, sample_images
from engine.exporting.export import ExportOptions, run_export
from engine.inference.ensemble import Ensemble, load_detector
from engine.inference.predict import Predictor
from engine.inference.runtimes import ExportedModel
from tests.unit.engine.exporting.export_toys import NAMES, detector, write_checkpoint
from utils.boxes import cxcywh_to_xyxy, scale_boxes
from utils.detector import ANCHOR_LAYOUT
from utils.errors import UsageError, UserError
from utils.nms import non_max_suppression

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of one YOLOv5: "any" takes all shapes, "fixed" two images of 64 x 96, "ended" has suppression inside."""
    folder = tmp_path_factory.mktemp("exported")
    weights = {name: write_checkpoint(folder / f"{name}.pt", detector("yolov5")) for name in ("any", "fixed", "ended")}
    sizes: dict[str, Any] = {"img_size": (64, 96)}
    forms = ("torchscript", "onnx", "openvino")
    any_shape = run_export(ExportOptions(str(weights["any"]), forms, dynamic=True, **sizes))
    fixed = run_export(ExportOptions(str(weights["fixed"]), ("onnx", "openvino"), batch_size=2, **sizes))
    limits: dict[str, Any] = {"conf_thres": 0.3, "iou_thres": 0.4, "topk_all": 50}
    ended = run_export(ExportOptions(str(weights["ended"]), ("onnx",), end2end=True, batch_size=2, **limits, **sizes))
    return dict(zip(forms, any_shape)) | {
        "pt": weights["any"], "fixed": fixed[0], "fixed_openvino": fixed[1], "ended": ended[0],
    }  # fmt: skip


def decoded_by_pytorch(files: dict[str, Path], images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_model(files["pt"])(images)[0]


# -- like a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["torchscript", "onnx", "openvino"])
def test_behaves_as_the_model(files: dict[str, Path], form: str) -> None:
    model = ExportedModel(files[form], CPU, trust=True).eval()
    assert (model.names, model.nc, model.layout) == (NAMES, 3, ANCHOR_LAYOUT)
    assert model.stride.tolist() == [8] and model.input_hw is None and not model.suppressed
    images = sample_images((3, 3, 96, 64))
    decoded, raw = model(images)
    assert raw is None and decoded.dtype == torch.float32
    assert relative_difference(decoded_by_pytorch(files, images), decoded) < 1e-4


@pytest.mark.parametrize("form", ["fixed", "fixed_openvino"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_fixed_number_of_images(files: dict[str, Path], form: str, count: int) -> None:
    model = ExportedModel(files[form], CPU, trust=True)
    assert (model.input_hw, model.num_images) == ((64, 96), 2)
    images = sample_images((count, 3, 64, 96))
    assert relative_difference(decoded_by_pytorch(files, images), model(images)[0]) < 1e-4


def test_fixed_size_is_said(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"takes images of \(64, 96\) pixels only, found \(64, 64\)"):
        ExportedModel(files["fixed"], CPU)(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(("family", "num_classes"), [("yolov5", 3), ("yolov7", 1), ("yolov8", 3)])
def test_suppression_inside_passes_through_ours(tmp_path: Path, family: str, num_classes: int) -> None:
    """What comes out is what our suppression gives at the limits of the file, though it runs again afterwards."""
    model = detector(family, names=NAMES[:num_classes])
    weights = str(write_checkpoint(tmp_path / "a.pt", model))
    limits = {"conf_thres": 0.3, "iou_thres": 0.4}
    (path,) = run_export(ExportOptions(weights, img_size=(64,), batch_size=2, end2end=True, topk_all=50, **limits))
    images = sample_images((3, 3, 64, 64), seed=4)  # the second call is filled up
    exported = ExportedModel(path, CPU)
    with torch.no_grad():
        expected = non_max_suppression(model(images)[0], layout=model.layout, max_det=50, **limits)
    found = non_max_suppression(exported(images)[0], layout=exported.layout, max_det=50, **limits)
    assert exported.suppressed and sum(map(len, expected)) > 20
    for rows, by_file in zip(expected, found):
        assert relative_difference(rows, by_file) < 1e-3
    wanted = non_max_suppression(exported(images)[0], layout=exported.layout, classes=[0], conf_thres=0.5)
    assert all((rows[:, 5] == 0).all() and (rows[:, 4] > 0.5).all() for rows in wanted)


def test_suppression_inside_may_find_nothing(files: dict[str, Path]) -> None:
    model = ExportedModel(files["ended"], CPU)

    class Nothing:
        dtype = torch.float32

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(0, 7)

    model.runtime = Nothing()  # type: ignore[assignment]
    decoded, _ = model(torch.zeros(3, 3, 64, 96))
    assert [len(rows) for rows in non_max_suppression(decoded, layout=ANCHOR_LAYOUT)] == [0, 0, 0]


def test_suppression_inside_is_announced(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ExportedModel(files["ended"], CPU)
    assert "has suppression inside (conf_thres 0.3, iou_thres 0.4)" in caplog.text


# -- in the place of a checkpoint --------------------------------------------------------------------------------------


def test_predictor_letterboxes_to_the_fixed_size(files: dict[str, Path]) -> None:
    """A 96 x 48 image in 64 x 96 pixels: scaled by 2/3 to 64 x 32, with 32 grey columns on each side."""
    seen = []

    class Recorder(ExportedModel):
        def forward(self, images: torch.Tensor, augment: bool = False) -> tuple[torch.Tensor, None]:
            seen.append(images)
            return super().forward(images, augment)

    image = np.random.default_rng(0).integers(0, 256, (96, 48, 3)).astype(np.uint8)
    boxes = Predictor(Recorder(files["fixed"], CPU), 640, CPU)(image)
    (batch,) = seen
    assert batch.shape == (1, 3, 64, 96)
    grey = torch.full((3, 64, 32), 114 / 255)
    assert torch.allclose(batch[0, :, :, :32], grey) and torch.allclose(batch[0, :, :, 64:], grey)
    assert (boxes[:, 0:4:2] <= 48).all() and (boxes[:, 1:4:2] <= 96).all()


def test_predictor_with_a_file_of_any_size(files: dict[str, Path]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    by_file = Predictor(load_detector([str(files["onnx"])], CPU), 64, CPU)(image)
    by_model = Predictor(load_detector([str(files["pt"])], CPU), 64, CPU)(image)
    assert len(by_model) > 5 and relative_difference(by_model, by_file) < 1e-3


def test_files_and_checkpoints_vote_together(files: dict[str, Path]) -> None:
    model = load_detector([str(files["pt"]), str(files["fixed"])], CPU)
    assert isinstance(model, Ensemble) and model.input_hw == (64, 96)
    decoded = model(sample_images((1, 3, 64, 96)))[0].detach()
    half = decoded.shape[1] // 2
    assert relative_difference(decoded[:, :half], decoded[:, half:]) < 1e-4


def test_files_of_different_sizes_cannot_vote(files: dict[str, Path], tmp_path: Path) -> None:
    weights = str(write_checkpoint(tmp_path / "a.pt", detector("yolov5")))
    (other,) = run_export(ExportOptions(weights, img_size=(64,)))
    with pytest.raises(UserError, match=r"images of \(64, 96\) pixels and .* of \(64, 64\); they cannot vote"):
        load_detector([str(files["fixed"]), str(other)], CPU)


def test_no_augmentation(files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="--augment needs a checkpoint"):
        load_detector([str(files["onnx"])], CPU, augment=True)
    with pytest.raises(UsageError, match="--augment needs a checkpoint"):
        ExportedModel(files["onnx"], CPU)(torch.zeros(1, 3, 64, 64), augment=True)


@pytest.mark.parametrize("form", ["torchscript", "onnx", "openvino"])
def test_nothing_trains_from_an_exported_file(files: dict[str, Path], form: str) -> None:
    with pytest.raises(UserError, match=r"exported model.*name the \.pt it was made from"):
        load_checkpoint(files[form])


# -- files of other exporters ------------------------------------------------------------------------------------------


def foreign(files: dict[str, Path], path: Path, keep: dict[str, str] | None = None, source: str = "onnx") -> Path:
    """The same graph with other properties."""
    graph = onnx.load(files[source])
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, keep or {})
    onnx.save(graph, path)
    return path


def test_a_foreign_file_needs_names(files: dict[str, Path], tmp_path: Path) -> None:
    path = foreign(files, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="does not name its classes; give --data, a yaml with `names`"):
        ExportedModel(path, CPU)
    model = ExportedModel(path, CPU, names=("a", "b", "c"))
    assert model.names == ["a", "b", "c"] and model.layout == ANCHOR_LAYOUT and model.stride.tolist() == [32]
    images = sample_images((2, 3, 64, 64))
    assert relative_difference(decoded_by_pytorch(files, images), model(images)[0]) < 1e-4


def test_a_foreign_file_of_other_classes(files: dict[str, Path], tmp_path: Path) -> None:
    path = foreign(files, tmp_path / "foreign.onnx")
    with pytest.raises(UserError) as caught:  # 64 x 64: 2 * (16 * 16 + 8 * 8) = 640 boxes of 5 + 3 numbers
        ExportedModel(path, CPU, names=("a", "b"))
    assert "gives an output of shape (1, 640, 8); a detector of 2 classes gives (N, boxes, 7)" in str(caught.value)
    assert "check --data" in str(caught.value)


def test_a_foreign_file_with_suppression(files: dict[str, Path], tmp_path: Path) -> None:
    model = ExportedModel(foreign(files, tmp_path / "a.onnx", source="ended"), CPU, names=NAMES)
    images = sample_images((2, 3, 64, 96))
    assert model.suppressed
    assert torch.equal(model(images)[0], ExportedModel(files["ended"], CPU)(images)[0])


def test_python_notation_of_upstream_is_understood(files: dict[str, Path], tmp_path: Path) -> None:
    entries = {"stride": "16", "names": "{0: 'cat', 1: 'dog', 2: 'bird'}", "imgsz": "[64, 64]", "date": "2024: [x"}
    model = ExportedModel(foreign(files, tmp_path / "a.onnx", entries), CPU)
    assert model.names == ["cat", "dog", "bird"] and model.stride.tolist() == [16]


def test_a_graph_that_takes_no_images(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 10])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 10])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [output])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "relu.onnx")
    with pytest.raises(UserError, match=r"takes an input of shape \(1, 10\), not images"):
        ExportedModel(tmp_path / "relu.onnx", CPU)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.onnx", "an ONNX model"), ("a.torchscript", "a TorchScript file"), ("a.xml", "an OpenVINO model")],
)
def test_a_file_of_a_wrong_kind(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(UserError, match=f"cannot be read as {kind}, as its name says") as caught:
        ExportedModel(tmp_path / name, CPU, trust=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_named_as_an_exported_file(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.torchscript"
    path.write_bytes(files["pt"].read_bytes())
    with pytest.raises(UserError, match="cannot be read as a TorchScript file"):
        ExportedModel(path, CPU, trust=True)


@pytest.mark.parametrize(("form", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_package(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, form: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package} is not installed; do so with: pip install"):
        ExportedModel(files[form], CPU, trust=True)


def test_a_trace_for_another_device(files: dict[str, Path], tmp_path: Path) -> None:
    network = torch.jit.load(str(files["torchscript"]))
    torch.jit.save(network, tmp_path / "gpu.torchscript", _extra_files={"device": "cuda", "names": '{"0": "a"}'})
    with pytest.raises(
        UserError, match="was traced for the device cuda; give --device cuda, or export it with --device cpu"
    ):
        ExportedModel(tmp_path / "gpu.torchscript", CPU, trust=True)


# -- what a file says --------------------------------------------------------------------------------------------------


def test_kinds_by_name(files: dict[str, Path]) -> None:
    names = ["a.onnx", "A.ONNX", "a.torchscript", "a.torchscript.pt", "a.pt", "a.xml", "folder"]
    assert [exported_kind(name) for name in names] == [
        "onnx",
        "onnx",
        "torchscript",
        "torchscript",
        None,
        "openvino",
        None,
    ]
    assert exported_kind(files["openvino"]) == "openvino" and existing_weights(files["openvino"]).is_dir()
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        existing_weights(files["pt"].parent)


def test_strings_come_back() -> None:
    metadata = ExportMetadata("yolov7", "yolov7", ("a: b", "no", "1", "q\"'", "naïve"), 32, (64, 96), 2, nms=True)
    strings = metadata.to_strings()
    assert json.loads(strings["names"])["4"] == "naïve" and strings["conf_thres"] == "null"
    values = read_strings(strings)
    assert list(values["names"].values()) == ["a: b", "no", "1", "q\"'", "naïve"]
    assert (values["family"], values["imgsz"], values["batch"], values["nms"]) == ("yolov7", [64, 96], 2, True)
    assert values["conf_thres"] is None and values["half"] is False


# -- images of a fixed size --------------------------------------------------------------------------------------------


def test_samples_of_a_fixed_size_lead_back_to_the_image() -> None:
    """A tall 120 x 60 image in 64 x 96 pixels is 64 x 32, with 32 columns of padding on each side."""
    labels = np.array([[1, 0.5, 0.25, 0.5, 0.25]], dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        cv2.imwrite(str(path), np.zeros((120, 60, 3), np.uint8))
        index = DatasetIndex([ImageRecord(str(path), 60, 120, labels, ())], [], {}, "")
        sample = DetectionDataset(index, 96, None, fixed_hw=(64, 96))[0]
    assert sample.image.shape == (3, 64, 96)
    assert (sample.image[:, :, 32:64] == 0).all() and (sample.image[:, :, :32] == 114).all()
    # In the image x 15..45, y 15..45; 64 / 120 of that, moved by 32: x 40..56, y 8..24.
    boxes = cxcywh_to_xyxy(sample.labels[:, 1:] * torch.tensor([96, 64, 96, 64]))
    assert boxes.tolist() == [pytest.approx([40, 8, 56, 24])]
    back = scale_boxes(boxes, (64, 96), sample.shape.original_hw, sample.shape.ratio_pad)
    assert back.tolist() == [pytest.approx([15, 15, 45, 45], abs=1e-4)]
