"""Pictures: that they are written, show what they should, and never end a run."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from warnings import catch_warnings, simplefilter

import cv2
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from tests.golden import ROOT
from utils import plots
from utils.evaluation.confusion import ConfusionMatrix
from utils.evaluation.metrics import YOLOV7_FIGURES, ClassMetrics, class_metrics
from utils.fonts import _font_with, default_font, legible
from utils.logging import LOGGER


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The house logger's records, whatever another test made of it."""
    monkeypatch.setattr(LOGGER, "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def metrics(num_classes: int) -> ClassMetrics:
    generator = np.random.default_rng(0)
    correct = generator.random((200, 10)) > 0.4
    predicted, true = (generator.integers(0, max(num_classes, 1), 200) for _ in range(2))
    if not num_classes:
        true = true[:0]
    return class_metrics(correct, generator.random(200), predicted, true, YOLOV7_FIGURES)


def read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None, path
    return picture


def test_class_colors_are_stable_and_differ() -> None:
    colors = [plots.class_color(i) for i in range(20)]
    assert colors == [plots.class_color(i) for i in range(20)]
    distances = [np.abs(np.subtract(a, b)).max() for i, a in enumerate(colors) for b in colors[:i]]
    assert min(distances) > 25


def caption(text: str, index: int = 0) -> np.ndarray:
    return plots.draw_boxes(np.zeros((120, 400, 3), np.uint8), np.array([[10, 40, 180, 110]]), [text], [index])


@pytest.mark.parametrize("names", [("红色", "绿色"), ("고양이", "강아지"), ("😀", "😁"), ("\U00020000", "\U00020001")])
@pytest.mark.parametrize("fonts", ["of this system", "none"])
def test_no_two_captions_look_the_same(
    names: tuple[str, str], fonts: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    if fonts == "none":
        monkeypatch.setattr("utils.fonts.system_fonts", lambda: ())
    _font_with.cache_clear()
    try:
        first, second = (caption(f"{name} 0.90") for name in names)
        assert (first != second).any() and not recwarn.list
    finally:
        _font_with.cache_clear()


def test_letters_without_a_font_are_spelled_behind_the_number_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.fonts.system_fonts", lambda: ())
    _font_with.cache_clear()
    try:
        assert legible("红色 0.87", 3) == ("3: u7ea2+8272 0.87", default_font())
        assert legible("Straße é Ж", 3) == ("Straße é Ж", default_font())
        assert legible("a\x1b[2J\nb", 3) == ("a?[2J?b", default_font())
        assert legible("x" * 50, 3, 10) == ("3: xxxxxxx...", default_font())
    finally:
        _font_with.cache_clear()


def test_a_font_of_the_system_that_has_the_letters_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A font of 红 and the letters of ASCII, and a file that is no font at all."""
    letters = [chr(code) for code in range(32, 127)] + ["红"]
    builder = FontBuilder(1000)
    names = [".notdef", *(f"g{ord(letter):x}" for letter in letters)]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"g{ord(letter):x}" for letter in letters})
    pen = TTGlyphPen(None)
    for point in ((0, 0), (0, 700), (500, 700), (500, 0)):
        (pen.lineTo if point[0] or point[1] else pen.moveTo)(point)
    pen.closePath()
    shape = pen.glyph()
    builder.setupGlyf(dict.fromkeys(names, shape))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Toy", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "toy.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fonts = tuple(tmp_path / name for name in ("broken.ttf", "toy.ttf"))
    monkeypatch.setattr("utils.fonts.system_fonts", lambda: fonts)
    _font_with.cache_clear()
    try:
        assert legible("红 0.9", 1) == ("红 0.9", tmp_path / "toy.ttf")
        assert legible("红色", 1) == ("1: u7ea2+8272", default_font()), "one letter is lacking"
        assert caption("红").any()
    finally:
        _font_with.cache_clear()


def test_draw_boxes_draws_on_a_copy_in_the_class_color() -> None:
    image = np.full((200, 300, 3), 30, np.uint8)
    drawn = plots.draw_boxes(image, np.array([[50.0, 60.0, 150.0, 160.0]]), ["zebra"], classes=[3])
    assert (image == 30).all()
    assert tuple(drawn[110, 50]) == tuple(drawn[160, 100]) == plots.class_color(3)
    assert (drawn[80:140, 70:130] == 30).all()  # nothing inside the box
    assert (drawn[50:60, 50:60] != 30).any()  # the caption above it
    assert (drawn[:40] == 30).all() and (drawn[:, 200:] == 30).all()


def test_draw_boxes_grows_with_the_image() -> None:
    def share(side: int) -> float:
        canvas = np.zeros((side, side, 3), np.uint8)
        drawn = plots.draw_boxes(canvas, np.array([[0.2, 0.4, 0.8, 0.9]]) * side, ["a caption"])
        return float((drawn.max(2) > 0).mean())

    assert share(1600) == pytest.approx(share(800), rel=0.25)


@pytest.mark.parametrize("box", [[-50, -50, 30, 30], [90, 90, 300, 300], [0, 0, 100, 100], [-900, -900, 900, 900]])
def test_draw_boxes_survives_boxes_beyond_the_image(box: list[float]) -> None:
    drawn = plots.draw_boxes(np.zeros((100, 100, 3), np.uint8), np.array([box]), ["a very long caption " * 10])
    assert drawn.shape == (100, 100, 3)


def test_draw_boxes_of_nothing_changes_nothing() -> None:
    image = np.full((20, 20, 3), 9, np.uint8)
    assert np.array_equal(plots.draw_boxes(image, np.zeros((0, 4)), []), image)


@pytest.mark.parametrize("columns", [6, 7])
def test_plot_batch_puts_boxes_on_their_tiles(tmp_path: Path, columns: int) -> None:
    images = torch.full((3, 3, 320, 320), 200, dtype=torch.uint8)
    targets = torch.tensor([[1, 0, 0.5, 0.5, 0.5, 0.5, 0.9]])[:, :columns]
    plots.plot_batch(images, targets, tmp_path / "batch.png", names=["zebra"], paths=["a.jpg", "b.jpg", "c.jpg"])
    mosaic = read(tmp_path / "batch.png")
    side = mosaic.shape[0] // 2  # 2 x 2 tiles
    tiles = [mosaic[y : y + side, x : x + side][5 : side // 2] for y in (0, side) for x in (0, side)]
    untouched = [bool((tile[:, 5:-5] == 200).all()) for tile in tiles]
    assert untouched == [True, False, True, False]  # the fourth is white: there is no such image
    assert (tiles[3][:, 5:-5] == 255).all()


def test_plot_batch_keeps_red_red(tmp_path: Path) -> None:
    images = torch.zeros(1, 3, 64, 64)
    images[:, 0] = 1.0  # red, as floats
    plots.plot_batch(images, torch.zeros(0, 6), tmp_path / "batch.png")
    assert read(tmp_path / "batch.png")[10, 10].tolist() == [0, 0, 255]


def test_panels_group_what_belongs_together() -> None:
    names = ["epoch", "train/box", "train/kd/fgd/P3", "train/kd/fgd/P4", "val/box", "metrics/AP", "metrics/AP50"]
    panels = plots._panels(
        [*names, "metrics/new", "schedule/kd", "share/kd/fgd", "factor/kd/fgd", "x/lr0", "x/lr1", "time/epoch"]
    )
    assert panels == {
        "box": {"train": "train/box", "val": "val/box"},
        "kd/fgd": {"P3": "train/kd/fgd/P3", "P4": "train/kd/fgd/P4"},
        "average precision": {"AP": "metrics/AP", "AP50": "metrics/AP50"},
        "new": {"new": "metrics/new"},
        "schedule: factor on all weights": {"kd": "schedule/kd"},
        "share of the detection loss's gradient": {"kd/fgd": "share/kd/fgd"},
        "weights that follow from shares": {"kd/fgd": "factor/kd/fgd"},
        "learning rate": {"lr0": "x/lr0", "lr1": "x/lr1"},
    }


def test_plot_results_draws_incomplete_tables(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "results.csv"
    table.write_text(
        "epoch,train/box,train/kd/fgd/P3,metrics/AP50,metrics/AP,metrics/AP_small,x/lr0\n"
        "0,1.5,,,,,0.1\n1,1.2,0.4,0.3,0.2,nan,0.1\n"
    )
    plots.plot_results(table)
    picture = read(tmp_path / "results.png")
    assert picture.shape[1] > 1000 and picture.std() > 5 and not warnings.records


@pytest.mark.parametrize("num_classes", [0, 1, 5, 40])
def test_curves_and_matrix_are_drawn(tmp_path: Path, num_classes: int, warnings: pytest.LogCaptureFixture) -> None:
    names = [f"class {i}" for i in range(max(num_classes, 1))]
    plots.plot_pr_curves(metrics(num_classes), names, tmp_path / "PR_curve.png")
    plots.plot_confidence_curves(metrics(num_classes), names, tmp_path)
    confusion = ConfusionMatrix(len(names))
    confusion.matrix += np.eye(len(names) + 1, dtype=np.int64)
    plots.plot_confusion_matrix(confusion, names, tmp_path / "confusion_matrix.png")
    assert not warnings.records
    written = {path.name: read(path).std() for path in tmp_path.iterdir()}
    assert set(written) == {"PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png", "confusion_matrix.png"}
    assert min(written.values()) > 1


def test_names_of_any_kind_are_drawn_in_figures(
    tmp_path: Path, warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No empty boxes (matplotlib would warn of letters that it lacks), no formulas, and no name is left out."""
    names = ["红色", "绿色", "_hidden", "a$b$c", "$\\frac{$", "x" * 500, "d\x1b[2J\n"]
    shown: list[str] = []
    monkeypatch.setattr(plots, "legible", lambda *a: shown.append(a[0]) or legible(*a))
    confusion = ConfusionMatrix(len(names))
    confusion.matrix += np.eye(len(names) + 1, dtype=np.int64)
    with catch_warnings():
        simplefilter("error")
        plots.plot_pr_curves(metrics(len(names)), names, tmp_path / "PR_curve.png")
        plots.plot_confidence_curves(metrics(len(names)), names, tmp_path)
        plots.plot_confusion_matrix(confusion, names, tmp_path / "confusion_matrix.png")
        targets = torch.tensor([[0, i, 0.5, 0.5, 0.2, 0.2] for i in range(len(names))])
        plots.plot_batch(
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8), targets, tmp_path / "b.jpg", names, ["图\udcff.png"]
        )
    assert not warnings.records and len(list(tmp_path.iterdir())) == 6 and set(names) <= set(shown)


def test_failing_plot_is_a_warning(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    plots.plot_results(tmp_path / "absent.csv")
    plots.plot_batch(torch.zeros(0, 3, 8, 8), torch.zeros(0, 6), tmp_path / "no.jpg")
    plots.plot_batch(torch.zeros(1, 3, 8, 8), torch.zeros(0, 6), tmp_path / "no" / "folder.jpg")
    assert [record.getMessage().split(":")[1].strip() for record in warnings.records] == [
        "plot_results drew nothing", "plot_batch drew nothing", "plot_batch drew nothing",
    ]  # fmt: skip


def test_matplotlib_is_imported_when_needed() -> None:
    code = "import sys, utils.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
