"""Detection on images: geometry, options, and every file that is written."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import detect
from checkpoints.checkpoint import save_checkpoint
from checkpoints.exported import LAYOUT_NAMES
from data.sources.frames import Frame
from engine.inference import predict
from engine.inference.output import Display, OutputOptions, ResultWriter, class_folders, label_lines
from engine.inference.predict import PredictOptions, Predictor, PredictResult, run_predict, summarize
from models.families import FAMILIES
from tests.golden import ROOT
from tests.unit.checkpoints.test_checkpoint import payload, tiny
from tests.unit.data.sources.test_sources import write_image, write_video
from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.running.cli import run_command


class Oracle(nn.Module):
    """Sees the same two boxes in every picture, as shares of the network input, whatever the letterbox."""

    nc = 3
    names = ["cat", "dog", "fire truck"]

    def __init__(self, layout: str = "yolov5") -> None:
        super().__init__()
        self.layout, self.convention, self.input_hw = LAYOUT_NAMES[layout], FAMILIES[layout].convention, None
        self.stride = torch.tensor([8.0, 32.0])
        self.inputs: list[torch.Tensor] = []
        self.augmented: list[bool] = []

    def forward(self, images: torch.Tensor, augment: bool = False) -> tuple[torch.Tensor, None]:
        self.inputs.append(images)
        self.augmented.append(augment)
        height, width = images.shape[2:]
        centre = torch.tensor([width / 2, height / 2, width / 4, height / 4])
        corner = torch.tensor([16.0, height / 2, 8.0, 16.0])
        scores = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.9]])
        rows = torch.cat([torch.stack([corner, centre]), scores], dim=1)  # (2, 4 + nc)
        if not self.layout.objectness:
            return rows.T[None], None  # (1, 4 + nc, 2)
        return torch.cat([rows[:, :4], torch.ones(2, 1), rows[:, 4:]], dim=1)[None], None  # (1, 2, 5 + nc)


CPU = torch.device("cpu")


# -- one image ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["yolov5", "yolov7", "yolov8"])
def test_boxes_come_back_in_the_pixels_of_the_image(layout: str) -> None:
    """A 200 x 400 image at 64: ratio 64/400 = 0.16, so 32 x 64, which is a multiple of 32: no padding."""
    found = Predictor(Oracle(layout), 64, CPU)(np.zeros((200, 400, 3), np.uint8))
    # centre box: (32, 16) of size 16 x 8 -> x 24..40, y 12..20, over 0.16
    np.testing.assert_allclose(found[0], [150, 75, 250, 125, 0.9, 2], rtol=1e-5)
    # corner box: (16, 16) of size 8 x 16 -> x 12..20, y 8..24
    np.testing.assert_allclose(found[1], [75, 50, 125, 150, 0.5, 1], rtol=1e-5)
    assert found.dtype == torch.float32 and found.shape == (2, 6)


def test_padding_is_taken_off_and_boxes_are_clipped() -> None:
    """A 400 x 300 image at 64: ratio 0.16 gives 64 x 48, padded to 64 x 64 by 8 on the left."""
    model = Oracle()
    found = Predictor(model, 64, CPU)(np.zeros((400, 300, 3), np.uint8))
    assert model.inputs[0].shape == (1, 3, 64, 64)
    # centre box: x 24..40 - 8 -> 16..32 over 0.16 = 100..200; y 24..40 -> 150..250
    np.testing.assert_allclose(found[0, :4], [100, 150, 200, 250], rtol=1e-5)
    # corner box: x 12..20 - 8 -> 4..12 -> 25..75
    np.testing.assert_allclose(found[1, :4], [25, 150, 75, 250], rtol=1e-5)


def test_the_network_sees_rgb_from_0_to_1_with_grey_borders() -> None:
    model = Oracle()
    image = np.zeros((64, 32, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = 255, 51, 0  # B, G, R
    Predictor(model, (64, 64), CPU)(np.ascontiguousarray(image[:, :20]))
    (seen,) = model.inputs
    assert seen.dtype == torch.float32
    assert seen[0, :, 32, seen.shape[3] // 2].tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert seen[0, :, 0, 0].tolist() == pytest.approx([114 / 255] * 3)


def test_thresholds_classes_and_augmentation_reach_the_model() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    assert Predictor(Oracle(), 64, CPU, conf_thres=0.6)(image)[:, 5].tolist() == [2]
    assert Predictor(Oracle(), 64, CPU, classes=(1,))(image)[:, 5].tolist() == [1]
    assert len(Predictor(Oracle(), 64, CPU, max_det=1)(image)) == 1
    assert Predictor(Oracle(), 64, CPU, conf_thres=0.95)(image).shape == (0, 6)
    model = Oracle()
    predictor = Predictor(model, 64, CPU, augment=True)
    predictor(image)
    assert model.augmented == [True]
    assert predictor.num_images == 1 and set(predictor.speed) == {"preprocess", "inference", "nms"}


def test_half_on_the_cpu_is_a_word_and_float32(caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.propagate = True
    with caplog.at_level(logging.WARNING, logger=LOGGER.name):
        predictor = Predictor(Oracle(), 64, CPU, half=True)
    assert "--half needs a GPU" in caplog.text
    assert predictor.dtype == torch.float32


# -- label lines -------------------------------------------------------------------------------------------------------


def test_label_lines_are_normalised_and_least_confident_first() -> None:
    detections = np.array([[10, 20, 30, 60, 0.875, 2], [0, 0, 100, 200, 0.25, 0]], np.float32)
    # (10 + 30) / 2 / 100 = 0.2, (20 + 60) / 2 / 200 = 0.2, 20 / 100 = 0.2, 40 / 200 = 0.2
    assert label_lines(detections, (200, 100)) == ["0 0.5 0.5 1 1", "2 0.2 0.2 0.2 0.2"]
    assert label_lines(detections, (200, 100), True) == ["0 0.5 0.5 1 1 0.25", "2 0.2 0.2 0.2 0.2 0.875"]
    assert label_lines(np.zeros((0, 6), np.float32), (200, 100)) == []


# -- a whole run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Oracle:
    model = Oracle()
    monkeypatch.setattr(predict, "load_detector", lambda *_: model)
    (tmp_path / "w.pt").touch()
    return model


def run(tmp_path: Path, source: Path | str, output: OutputOptions | None = None, **options: Any) -> PredictResult:
    fixed: dict[str, Any] = {"img_size": (64,), "device": "cpu", "project": str(tmp_path / "runs")} | options
    return run_predict(
        PredictOptions((str(tmp_path / "w.pt"),), str(source), output=output or OutputOptions(), **fixed)
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


EVERYTHING = OutputOptions(save_txt=True, save_conf=True, save_csv=True, save_crop=True)


def test_everything_that_is_written(tmp_path: Path, oracle: Oracle) -> None:
    write_image(tmp_path / "in" / "a.png", 90, (200, 400))
    write_image(tmp_path / "in" / "b.jpg", 90, (200, 400))
    result = run(tmp_path, tmp_path / "in", EVERYTHING)
    folder = tmp_path / "runs" / "exp"
    assert result.folder == folder and result.num_images == 2
    assert result.counts == {"fire truck": 2, "dog": 2}
    assert files(folder) == [
        "a.png", "b.jpg", "crops/dog/a.jpg", "crops/dog/b.jpg", "crops/fire truck/a.jpg", "crops/fire truck/b.jpg",
        "labels/a.txt", "labels/b.txt", "predictions.csv",
    ]  # fmt: skip
    # boxes as in the first test: 75..125 x 50..150 and 150..250 x 75..125 in 400 x 200
    assert (folder / "labels" / "a.txt").read_text() == "1 0.25 0.5 0.125 0.5 0.5\n2 0.5 0.5 0.25 0.25 0.9\n"
    with open(folder / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    assert rows[0] == {
        "image": str(tmp_path / "in" / "a.png"), "frame": "0", "class": "2", "name": "fire truck",
        "confidence": "0.9000", "x1": "150", "y1": "75", "x2": "250", "y2": "125",
    }  # fmt: skip
    # 100 x 50 plus 2 % and 10 pixels: 112 x 61, cut off to whole pixels
    assert cv2.imread(str(folder / "crops" / "fire truck" / "a.jpg")).shape == (61, 112, 3)
    drawn = cv2.imread(str(folder / "a.png"))
    assert drawn.shape == (200, 400, 3)
    assert (drawn[100, 150] != 90).any() and (
        drawn[10, 390] == 90
    ).all()  # a line at the box's left side, none elsewhere


def test_only_what_is_asked_for(tmp_path: Path, oracle: Oracle) -> None:
    write_image(tmp_path / "a.png", 90, (200, 400))
    run(tmp_path, tmp_path / "a.png", OutputOptions(save_images=False, save_txt=True))
    assert files(tmp_path / "runs" / "exp") == ["labels/a.txt"]
    assert (tmp_path / "runs" / "exp" / "labels" / "a.txt").read_text() == "1 0.25 0.5 0.125 0.5\n2 0.5 0.5 0.25 0.25\n"
    result = run(tmp_path, tmp_path / "a.png", OutputOptions(save_images=False))
    assert result.folder is None and not (tmp_path / "runs" / "exp2").exists()


def test_pictures_without_detections_have_no_label_file(tmp_path: Path, oracle: Oracle) -> None:
    write_image(tmp_path / "a.png", 90, (200, 400))
    result = run(tmp_path, tmp_path / "a.png", EVERYTHING, conf_thres=0.99)
    assert files(tmp_path / "runs" / "exp") == ["a.png", "predictions.csv"]
    assert result.counts == {} and "nothing found" in summarize(result)
    assert (cv2.imread(str(tmp_path / "runs" / "exp" / "a.png")) == 90).all()


def test_captions_can_be_hidden(tmp_path: Path, oracle: Oracle) -> None:
    write_image(tmp_path / "a.png", 90, (200, 400))
    pictures = []
    for options in ({}, {"hide_conf": True}, {"hide_labels": True}, {"line_thickness": 9}):
        result = run(tmp_path, tmp_path / "a.png", OutputOptions(**options))  # type: ignore[arg-type]
        assert result.folder is not None
        pictures.append(cv2.imread(str(result.folder / "a.png")))
    changed = [int((picture != 90).any(2).sum()) for picture in pictures]
    assert changed[0] > changed[1] > changed[2]  # name and confidence, name, lines only
    assert changed[3] > changed[0]


def test_same_names_do_not_overwrite_one_another(tmp_path: Path, oracle: Oracle) -> None:
    for name in ("in/x/a.png", "in/y/a.png", "in/y/a.jpg"):
        write_image(tmp_path / name, 90, (200, 400))
    run(tmp_path, f"{tmp_path}/in/**/*", OutputOptions(save_txt=True))
    assert files(tmp_path / "runs" / "exp") == [
        "labels/x_a.txt", "labels/y_a_jpg.txt", "labels/y_a_png.txt", "x_a.png", "y_a_jpg.jpg", "y_a_png.png"
    ]  # fmt: skip


def test_no_crop_takes_the_place_of_another(tmp_path: Path) -> None:
    """Two dogs in each picture: the second of x must not be called x_2, which is the first of x_2."""
    paths = [f"in/{name}.png" for name in ("x", "x_2", "x_3")]
    writer = ResultWriter(tmp_path / "out", OutputOptions(save_images=False, save_crop=True), ["dog"], paths)
    for number, path in enumerate(paths):
        found = np.array([[5, 5, 25, 25, 0.9, 0], [30, 30, 50, 50, 0.8, 0]], np.float32)
        writer.write(Frame(np.full((60, 60, 3), 40 * number, np.uint8), path), found)
    assert files(tmp_path / "out") == [f"crops/dog/{name}.jpg" for name in ("x", "x_2", "x_2_2", "x_3", "x_3_2", "x_4")]
    assert cv2.imread(str(tmp_path / "out/crops/dog/x_4.jpg")).max() < 10, "the second dog of x, which is black"


def test_pictures_beside_the_frames_of_a_video_keep_their_names(tmp_path: Path, oracle: Oracle) -> None:
    write_image(tmp_path / "in" / "clip_1.png", 90, (200, 400))
    write_image(tmp_path / "in" / "clip_01.png", 90, (200, 400))
    write_video(tmp_path / "in" / "clip.avi", 2, 12.0)
    run(tmp_path, tmp_path / "in", OutputOptions(save_txt=True, save_images=False))
    assert files(tmp_path / "runs" / "exp") == [
        f"labels/{name}.txt" for name in ("clip_01", "clip_1", "clip_avi_1", "clip_avi_2")
    ]


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["person", "fire truck", "st."], ["person", "fire truck", "st."]),
        (["..", ".", "", " "], ["class_0", "class_1", "class_2", "class_3"]),
        (["a/b", "a_b", "a\\b"], ["a_b_0", "a_b", "a_b_2"]),
        (["con", "NUL.txt", "console"], ["con_", "NUL.txt_", "console"]),
        (["\x1b[2J", "../../x", "crane", "crane"], ["_2J", ".._.._x", "crane", "crane_3"]),
        (["class_1", ".."], ["class_1", "class_1_1"]),
        (["红色", "绿色"], ["红色", "绿色"]),
    ],
)
def test_every_class_has_a_folder_of_its_own_below_the_crops(
    names: list[str], folders: list[str], tmp_path: Path
) -> None:
    assert class_folders(names) == folders
    writer = ResultWriter(tmp_path / "out", OutputOptions(save_images=False, save_crop=True), names, ["x.png"])
    found = np.array([[5, 5, 25, 25, 0.9, index] for index in range(len(names))], np.float32)
    writer.write(Frame(np.zeros((60, 60, 3), np.uint8), "x.png"), found)
    assert files(tmp_path) == sorted(f"out/crops/{folder}/x.jpg" for folder in folders)


def test_a_very_long_class_name_has_a_folder_too(tmp_path: Path) -> None:
    first, second = class_folders(["x" * 300 + "a", "x" * 300 + "b"])
    assert first != second and max(len(first), len(second)) <= 255


def test_file_names_that_are_no_text_are_written_about(tmp_path: Path) -> None:
    path = os.fsdecode(b"in/\xff\xfe.png")
    writer = ResultWriter(tmp_path, EVERYTHING, ["dog"], [path, "in/clip\udcff.avi"])
    image, found = np.zeros((60, 60, 3), np.uint8), np.array([[5, 5, 25, 25, 0.9, 0]], np.float32)
    writer.write(Frame(image, path), found)
    writer.write(Frame(image, "in/clip\udcff.avi", 0, 1, "video", 5.0), found)
    writer.close()
    assert os.fsdecode(b"labels/\xff\xfe.txt") in files(tmp_path) and len(files(tmp_path)) == 7
    assert b"\xff\xfe.png" in (tmp_path / "predictions.csv").read_bytes()


def test_class_names_reach_no_terminal_as_commands() -> None:
    line = summarize(PredictResult(None, 1, {"\x1b[2Jdog\n" + "x" * 500: 2}, {}, ()))
    assert line.startswith("1 images: 2 x ?[2Jdog?xxx") and len(line) < 120


def test_names_of_a_data_file_in_another_order_are_followed(
    tmp_path: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.png", 90, (200, 400))
    names = list(oracle.names)
    usual = run(tmp_path, tmp_path / "a.png", OutputOptions(save_images=False, save_csv=True))
    (tmp_path / "d.yaml").write_text(f"names: {list(reversed(names))}")
    found = run(
        tmp_path, tmp_path / "a.png", OutputOptions(save_images=False, save_csv=True), data=str(tmp_path / "d.yaml")
    )
    assert found.counts == usual.counts and usual.folder and found.folder
    for column, same in (("name", True), ("class", False)):
        tables = [list(csv.DictReader((folder / "predictions.csv").open())) for folder in (usual.folder, found.folder)]
        assert ([r[column] for r in tables[0]] == [r[column] for r in tables[1]]) is same


def test_run_folders_count_and_exist_ok_reuses(tmp_path: Path, oracle: Oracle) -> None:
    write_image(tmp_path / "a.png", 90, (200, 400))
    output = OutputOptions(save_images=False, save_txt=True)
    folders = [run(tmp_path, tmp_path / "a.png", output, exist_ok=again).folder for again in (False, False, True)]
    assert [folder.name for folder in folders if folder] == ["exp", "exp2", "exp"]
    # written anew, not appended to
    assert len((tmp_path / "runs" / "exp" / "labels" / "a.txt").read_text().splitlines()) == 2


def test_videos(tmp_path: Path, oracle: Oracle) -> None:
    write_video(tmp_path / "v.avi", 6, 12.0)
    result = run(tmp_path, tmp_path / "v.avi", EVERYTHING, vid_stride=2)
    folder = tmp_path / "runs" / "exp"
    assert result.num_images == 3
    assert [path.name for path in sorted((folder / "labels").iterdir())] == ["v_1.txt", "v_3.txt", "v_5.txt"]
    video = cv2.VideoCapture(str(folder / "v.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (3, 6.0)
    assert (video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (64, 48)
    assert [path.name for path in sorted((folder / "crops" / "dog").iterdir())] == ["v.jpg", "v_2.jpg", "v_3.jpg"]


def test_two_videos_after_one_another(tmp_path: Path, oracle: Oracle) -> None:
    write_video(tmp_path / "in1.avi", 3)
    write_video(tmp_path / "in2.avi", 4)
    run(tmp_path, f"{tmp_path}/in*.avi")
    counts = []
    for name in ("in1.mp4", "in2.mp4"):
        counts.append(cv2.VideoCapture(str(tmp_path / "runs" / "exp" / name)).get(cv2.CAP_PROP_FRAME_COUNT))
    assert counts == [3, 4]


def test_names_of_a_data_file(tmp_path: Path, oracle: Oracle) -> None:
    write_image(tmp_path / "a.png", 90, (200, 400))
    (tmp_path / "d.yaml").write_text("names: {0: Katze, 1: Hund, 2: a/b}\n")
    result = run(tmp_path, tmp_path / "a.png", EVERYTHING, data=str(tmp_path / "d.yaml"))
    assert result.counts == {"Hund": 1, "a/b": 1}
    assert "crops/a_b/a.jpg" in files(tmp_path / "runs" / "exp")
    (tmp_path / "d.yaml").write_text("names: [Katze]\n")
    with pytest.raises(UserError, match="has 1 names, but the model has 3 classes"):
        run(tmp_path, tmp_path / "a.png", data=str(tmp_path / "d.yaml"))


def test_skipped_files_are_counted(tmp_path: Path, oracle: Oracle) -> None:
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"x")
    result = run(tmp_path, tmp_path / "in")
    assert [Path(path).name for path in result.skipped] == ["b.png"]
    assert "1 files skipped" in summarize(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conf_thres": 1.5}, "--conf-thres must be from 0 to 1, got 1.5"),
        ({"iou_thres": -0.1}, "--iou-thres must be from 0 to 1"),
        ({"img_size": (16,)}, "at least 32 pixels"),
        ({"img_size": (64, 64, 64)}, "a side or height and width"),
        ({"max_det": 0}, "--max-det must be at least 1"),
        ({"vid_stride": 0}, "--vid-stride must be at least 1"),
        ({"classes": (3,)}, "--classes 3: the model has classes 0 to 2"),
    ],
)
def test_wrong_options(tmp_path: Path, oracle: Oracle, options: dict[str, Any], message: str) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(UsageError, match=message):
        run(tmp_path, tmp_path / "a.png", **options)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--weights tests/golden.py", 1, "is not a PyTorch checkpoint"),
        ("--source none", 1, "--source: 'none' does not exist"),
        ("--source tests/unit", 1, "no images or videos in the folder"),
        ("--conf-thres 2", 2, "--conf-thres must be from 0 to 1"),
        ("--conf-thres x", 2, "invalid float value"),
        ("--img-size 3", 2, "at least 32 pixels"),
        ("--classes 7", 2, "the model has classes 0 to 1"),
        ("--device 77", 1, "no GPU 77"),
        ("--update", 2, "checkpoints convert"),
        ("--data none.yaml", 1, "data file 'none.yaml' does not exist"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: str, code: int, message: str
) -> None:
    write_image(tmp_path / "a.png")
    save_checkpoint(tmp_path / "w.pt", payload(tiny()))
    given = f"--device cpu --project {tmp_path}/runs --weights {tmp_path}/w.pt --source {tmp_path}/a.png {words}"
    monkeypatch.setattr("sys.argv", ["detect.py", *given.split()])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ending:
        run_command(detect.main)
    assert ending.value.code == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_missing_weights_and_source(tmp_path: Path, oracle: Oracle) -> None:
    with pytest.raises(UserError, match=r"--source: .*none' does not exist"):
        run(tmp_path, tmp_path / "none")
    (tmp_path / "w.pt").unlink()
    with pytest.raises(UserError, match=r"--weights .*w\.pt' does not exist"):
        run(tmp_path, tmp_path)


def test_size_is_rounded_up_to_the_stride(tmp_path: Path, oracle: Oracle) -> None:
    write_image(tmp_path / "a.png", 90, (100, 100))
    run(tmp_path, tmp_path / "a.png", img_size=(65, 130))
    # 96 x 160 for a square image: the ratio is that of the lower side, and the padding a multiple of 32 less
    assert oracle.inputs[0].shape == (1, 3, 96, 96)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path / "run", OutputOptions(save_images=False, save_txt=True), ["cat"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "labels").write_text("a file where the folder should be")
    frame = Frame(np.zeros((10, 10, 3), np.uint8), "a.jpg")
    with pytest.raises(UserError, match="cannot write .*labels") as error:
        writer.write(frame, np.array([[1, 1, 5, 5, 0.9, 0]], np.float32))
    assert "\n" not in str(error.value)


def test_pictures_of_formats_that_cannot_be_written_become_jpeg(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path, OutputOptions(), ["cat"])
    writer.write(Frame(np.zeros((10, 10, 3), np.uint8), "in/a.mpo"), np.zeros((0, 6), np.float32))
    assert files(tmp_path) == ["a.jpg"]


def test_streams_are_named_by_their_address(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path, OutputOptions(), ["cat"])
    image = np.zeros((48, 64, 3), np.uint8)
    for address in ("0", "rtsp://user:secret@host:554/live?x=1", "0"):
        writer.write(Frame(image, address, 0, 0, "stream", 10.0), np.zeros((0, 6), np.float32))
    writer.close()
    assert files(tmp_path) == ["0.mp4", "host_554_live_x_1.mp4"]


def test_without_a_display(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.propagate = True
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delitem(os.environ, name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with caplog.at_level(logging.WARNING, logger=LOGGER.name):
        assert Display.open() is None
    assert "there is no display here" in caplog.text


def test_the_window_ends_the_run_with_q(tmp_path: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Window(Display):
        shown: list[str] = []

        @classmethod
        def open(cls) -> Window:
            return cls()

        def show(self, frame: Frame, drawn: np.ndarray) -> bool:
            assert drawn.shape == frame.image.shape
            self.shown.append(frame.path)
            return len(self.shown) < 2

        def close(self) -> None:
            self.shown.append("closed")

    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / "in" / name)
    monkeypatch.setattr(predict, "Display", Window)
    result = run(tmp_path, tmp_path / "in", OutputOptions(save_images=False), view_img=True)
    assert result.num_images == 2
    assert [Path(name).name for name in Window.shown] == ["a.png", "b.png", "closed"]
