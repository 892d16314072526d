"""engine.exporting.export: every form gives what the model gives, says what it is, and is refused where it does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from checkpoints.checkpoint import load_model
from checkpoints.pickled.unpickle import unpickle
from engine.exporting import check as export_check
from engine.exporting.check import relative_difference, sample_images, suppression_difference, verify
from engine.exporting.export import ExportOptions, load_for_export, run_export
from engine.exporting.modules import Decoded, Suppressed
from models.yolo import Model
from tests.golden import ROOT
from tests.unit.engine.exporting.export_toys import NAMES, detector, write_checkpoint
from tests.unit.models.architectures import TINY
from utils.errors import UsageError, UserError
from utils.nms import non_max_suppression

FAMILIES = list(TINY)


def onnx_output(path: Path, images: torch.Tensor) -> torch.Tensor:
    """What a user's own ten lines of onnxruntime give."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["output"], {"images": images.numpy()})[0])


def exported(folder: Path, family: str, *include: str, **options: Any) -> tuple[Model, list[Path]]:
    """The model of a family as it was before, and its exported files."""
    model = detector(family)
    weights = write_checkpoint(folder / "best.pt", model)
    options = {"img_size": (64, 96)} | options
    return model, run_export(ExportOptions(str(weights), include or ("onnx",), **options))


def own_suppression(model: Model, images: torch.Tensor, **options: Any) -> torch.Tensor:
    """Rows [image, x1, y1, x2, y2, class, confidence] by utils.nms."""
    with torch.no_grad():
        found = non_max_suppression(model(images)[0], layout=model.layout, **options)
    rows = [torch.cat((torch.full((len(f), 1), i), f[:, :4], f[:, 5:], f[:, 4:5]), 1) for i, f in enumerate(found)]
    return torch.cat(rows)


# -- the same numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_onnx_file_follows_number_and_size_of_the_images(tmp_path: Path, family: str) -> None:
    model, (path,) = exported(tmp_path, family, dynamic=True)
    for seed, shape in enumerate([(1, 3, 64, 96), (3, 3, 128, 64), (2, 3, 32, 160)]):
        images = sample_images(shape, seed)
        with torch.no_grad():
            decoded = model(images)[0]  # before anything was folded
        assert relative_difference(decoded, onnx_output(path, images)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_torchscript_file_follows_number_and_size_of_the_images(tmp_path: Path, family: str) -> None:
    model, (path,) = exported(tmp_path, family, "torchscript")
    network = torch.jit.load(str(path))
    images = sample_images((2, 3, 96, 128))
    with torch.no_grad():
        assert relative_difference(model(images)[0], network(images)) < 1e-4


def test_an_openvino_folder_gives_the_same(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model, (folder,) = exported(tmp_path, "yolov7", "openvino", dynamic=True)
    assert folder.name == "best_openvino_model" and {p.suffix for p in folder.iterdir()} == {".xml", ".bin"}
    network = openvino.compile_model(folder / "best.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = sample_images((2, 3, 96, 64))
    with torch.no_grad():
        assert relative_difference(model(images)[0], torch.from_numpy(network(images.numpy())[0])) < 1e-4


@pytest.mark.parametrize("name", ["yolov5/yolov5p", "yolov8/yolov8n", "yolov7/yolov7-tiny"])
def test_published_architectures(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = Model(ROOT / f"cfg/{name}.yaml", nc=2).eval()
    (path,) = run_export(ExportOptions(str(write_checkpoint(tmp_path / "a.pt", model)), img_size=(64,), dynamic=True))
    images = sample_images((2, 3, 64, 96))
    with torch.no_grad():
        assert relative_difference(model(images)[0], onnx_output(path, images)) < 1e-4


def test_a_fixed_file_takes_its_shape_alone(tmp_path: Path) -> None:
    _, (path,) = exported(tmp_path, "yolov5", batch_size=2)
    graph = onnx.load(path).graph
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert shape == [2, 3, 64, 96]
    # Two anchors a cell at strides 4 and 8: 2 * (16 * 24 + 8 * 12) = 960 boxes.
    assert [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == [2, 960, 8]


def test_dynamic_batch_goes_before_dynamic(tmp_path: Path) -> None:
    _, (path,) = exported(tmp_path, "yolov8", dynamic=True, dynamic_batch=True)
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 3, 64, 96]


def test_half_takes_and_keeps_sixteen_bits(tmp_path: Path) -> None:
    model, (path,) = exported(tmp_path, "yolov5", half=True)
    images = sample_images((1, 3, 64, 96))
    found = onnx_output(path, images.half())
    assert found.dtype == torch.float32  # pixels have no room in sixteen bits
    with torch.no_grad():
        assert 1e-6 < relative_difference(model(images)[0], found) < 0.1
    weights = {w.data_type for w in onnx.load(path).graph.initializer if len(w.dims) == 4}
    assert weights == {onnx.TensorProto.FLOAT16}


def test_simplifying_leaves_fewer_nodes(tmp_path: Path) -> None:
    counts = []
    for simplify in (False, True):
        _, (path,) = exported(tmp_path, "yolov5", simplify=simplify)
        counts.append(len(onnx.load(path).graph.node))
    assert counts[1] < counts[0]


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    contents = [exported(tmp_path, "yolov8")[1][0].read_bytes() for _ in range(2)]
    assert contents[0] == contents[1]


# -- suppression inside ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "agnostic"), [*((family, False) for family in FAMILIES), ("yolov7", True)])
def test_suppression_inside_is_ours(tmp_path: Path, family: str, agnostic: bool) -> None:
    limits = {"conf_thres": 0.3, "iou_thres": 0.4}
    model, (path,) = exported(
        tmp_path, family, dynamic=True, end2end=True, topk_all=40, agnostic_nms=agnostic, **limits
    )
    images = sample_images((3, 3, 96, 64), seed=5)
    expected = own_suppression(model, images, max_det=40, agnostic=agnostic, **limits)
    found = onnx_output(path, images)
    assert len(expected.unique(dim=0)) > 20 and len(expected[:, 5].unique()) == 3
    assert relative_difference(expected, found) < 1e-3


def test_a_single_class_of_yolov7_is_its_objectness(tmp_path: Path) -> None:
    model = detector("yolov7", names=["cat"])
    weights = str(write_checkpoint(tmp_path / "a.pt", model))
    (path,) = run_export(ExportOptions(weights, img_size=(64,), end2end=True))
    images = sample_images((1, 3, 64, 64), seed=2)
    expected = own_suppression(model, images, max_det=100)
    assert len(expected) > 3
    assert relative_difference(expected, onnx_output(path, images)) < 1e-3


def test_no_detection_is_no_row(tmp_path: Path) -> None:
    _, (path,) = exported(tmp_path, "yolov5", end2end=True, conf_thres=1.0)
    assert onnx_output(path, sample_images((1, 3, 64, 96))).shape == (0, 7)


def test_topk_keeps_the_most_confident(tmp_path: Path) -> None:
    model, (path,) = exported(tmp_path, "yolov5", end2end=True, topk_all=5, max_wh=4096)
    images = sample_images((1, 3, 64, 96))
    expected = own_suppression(model, images, max_det=5)
    assert relative_difference(expected, onnx_output(path, images)) < 1e-3


def test_torchscript_says_that_suppression_stays_outside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exported(tmp_path, "yolov5", "torchscript", end2end=True)
    assert "torchscript: without suppression inside" in caplog.text


# -- what a file says of itself ----------------------------------------------------------------------------------------


def test_metadata(tmp_path: Path) -> None:
    _, (script, graph) = exported(tmp_path, "yolov7", "torchscript", "onnx", end2end=True, dynamic=True)
    properties = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
    assert json.loads(properties["names"]) == {"0": NAMES[0], "1": NAMES[1], "2": NAMES[2]}
    texts = {key: properties[key] for key in ("family", "task", "stride", "imgsz", "batch", "nms", "conf_thres")}
    assert texts == {
        "family": "yolov7", "task": "detect", "stride": "8", "imgsz": "[64, 96]", "batch": "1",
        "nms": "true", "conf_thres": "0.25",
    }  # fmt: skip
    assert json.loads(properties["layout"]) == {
        "class_axis": 2, "objectness": True, "objectness_alone": True, "end_to_end": False,
    }  # fmt: skip
    extra = {"names": "", "nms": "", "stride": "", "dynamic_size": ""}
    torch.jit.load(str(script), _extra_files=extra)
    found = {key: json.loads(value) for key, value in extra.items()}
    assert found == {"names": json.loads(properties["names"]), "nms": False, "stride": 8, "dynamic_size": True}


# -- the comparison with PyTorch ---------------------------------------------------------------------------------------


def test_a_file_of_other_weights_is_found_out(tmp_path: Path) -> None:
    _, (path,) = exported(tmp_path, "yolov5")
    other = Decoded(load_model(tmp_path / "best.pt"))
    other.model.model[0].conv.bias.data[0] += 0.01  # type: ignore[union-attr]
    with pytest.raises(UserError, match="does not give what PyTorch gives at shape"):
        verify(path, other.eval(), [(1, 3, 64, 96)], torch.zeros(1))


def test_a_file_that_disagrees_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_check, "relative_difference", lambda *_: float("nan"))
    for include in ("onnx", "torchscript"):
        with pytest.raises(UserError, match="does not give what PyTorch gives"):
            exported(tmp_path, "yolov5", include)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def suppressed(tmp_path: Path, **options: Any) -> tuple[Suppressed, torch.Tensor, torch.Tensor]:
    """A module with suppression, images, and its rows for them."""
    weights = str(write_checkpoint(tmp_path / "best.pt", detector("yolov5")))
    export = load_for_export(ExportOptions(weights, img_size=(64,), **options), Path(weights), torch.device("cpu"))
    module = export.module(suppressed=True)
    assert isinstance(module, Suppressed)
    images = sample_images((1, 3, 64, 64), seed=7)
    return module, images, module(images).detach()


def test_what_counts_as_the_same_suppression(tmp_path: Path) -> None:
    module, images, rows = suppressed(tmp_path)
    assert suppression_difference(module, images, rows, 1e-4) == 0
    assert suppression_difference(module, images, rows.flip(0), 1e-4) == 0  # the order is the runtime's
    assert suppression_difference(module, images, rows[1:], 1e-4) == float("inf")  # one is missing
    assert suppression_difference(module, images, rows[:0], 1e-4) == float("inf")
    assert suppression_difference(module, images, torch.cat((rows, rows[:1])), 1e-4) == float("inf")  # one is twice
    for column in range(1, 7):
        changed = rows.clone()
        changed[0, column] += 1
        assert suppression_difference(module, images, changed, 1e-4) > 1e-4


def test_more_rows_than_asked_for_are_found_out(tmp_path: Path) -> None:
    module, images, rows = suppressed(tmp_path)
    module.topk_all = 3
    assert suppression_difference(module, images, rows[:3], 1e-4) == 0
    assert suppression_difference(module, images, rows[:4], 1e-4) == float("inf")
    assert suppression_difference(module, images, rows[1:4], 1e-4) == float("inf")  # the best one is missing


def test_relative_difference() -> None:
    """|200 - 201| / 200 = 0.005; |0.5 - 0.51| / 1 = 0.01."""
    found = relative_difference(torch.tensor([200.0, 0.5]), torch.tensor([201.0, 0.51]))
    assert found == pytest.approx(0.01, abs=1e-6)
    assert relative_difference(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert relative_difference(torch.zeros(0, 7), torch.zeros(0, 7)) == 0


def test_sample_images_are_images() -> None:
    images = sample_images((2, 3, 64, 96), seed=1)
    assert images.shape == (2, 3, 64, 96) and 0 <= images.min() < 0.1 and 0.9 < images.max() <= 1
    assert torch.equal(images, sample_images((2, 3, 64, 96), seed=1))
    assert not np.allclose(images, sample_images((2, 3, 64, 96), seed=2))


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ("onxx",)}, "--include: unknown format 'onxx'; did you mean 'onnx'?"),
        ({"img_size": (64, 64, 64)}, "--img-size takes a side or height and width"),
        ({"img_size": (16,)}, "at least 32 pixels"),
        ({"conf_thres": 1.5}, "--conf-thres must be from 0 to 1, got 1.5"),
        ({"opset": 9}, "--opset must be from 11 to 20, got 9"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"topk_all": 0}, "--topk-all must be at least 1, got 0"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ExportOptions("best.pt", **options)
    assert message in str(caught.value)


def test_sizes_are_rounded_up_to_the_stride(tmp_path: Path) -> None:
    _, (path,) = exported(tmp_path, "yolov5", img_size=(61, 90))
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [1, 3, 64, 96]


def test_an_exported_file_cannot_be_exported(tmp_path: Path) -> None:
    _, (path,) = exported(tmp_path, "yolov5")
    with pytest.raises(UserError, match=r"name the \.pt it was made from"):
        run_export(ExportOptions(str(path)))
    with pytest.raises(UserError, match="does not exist"):
        run_export(ExportOptions(str(tmp_path / "none.pt")))


@pytest.mark.parametrize("package", ["openvino", "onnxslim", "onnxruntime"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package} is not installed; do so with: pip install '{package}>="):
        exported(tmp_path, "yolov5", "openvino" if package == "openvino" else "onnx")


def test_upstream_format_goes_on_from_the_training_form(tmp_path: Path) -> None:
    model, (path,) = exported(tmp_path, "yolov5", "upstream")
    assert path.name == "best_upstream.pt"
    again = load_model(path, fuse=False)
    images = sample_images((1, 3, 64, 64))
    with torch.no_grad():  # stored in half precision, as upstream does
        assert relative_difference(model(images)[0], again(images)[0]) < 0.1
    assert set(again.state_dict()) == set(model.state_dict())


def test_the_release_of_an_upstream_file_can_be_chosen(tmp_path: Path) -> None:
    exported(tmp_path, "yolov5", "upstream", release="6.1")
    entries = unpickle(tmp_path / "best_upstream.pt").content
    assert entries["model"].class_name == "models.yolo.Model" and "opt" not in entries  # unlike 7.0


def test_a_release_that_is_none_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="upstream files of yolov5: unknown release '5.9'"):
        exported(tmp_path, "yolov5", "torchscript", "upstream", release="5.9")
    assert not (tmp_path / "best.torchscript").exists()
    with pytest.raises(UsageError, match="add --include upstream"):
        ExportOptions("best.pt", ("onnx",), release="6.1")
