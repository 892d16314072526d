"""What a training takes that no file says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from checkpoints.checkpoint import save_checkpoint
from engine.config.defaults import (
    PLAIN_FILES,
    RECIPE,
    kind_of_architecture,
    kind_of_student,
    resolve_hyp,
    training_hyp,
)
from engine.config.hyp import AUTO, read_hyp
from engine.config.options import TrainOptions
from engine.training.state import model_entry
from models.yolo import Model
from tests.golden import ROOT

FILES = {
    "yolov5/yolov5n": "scratch-low", "yolov5/yolov5p": "scratch-low", "yolov5/yolov5x": "scratch-low",
    "yolov5/yolov5s6": "scratch-low", "mobile/mobilenetv2-yolov5s": "scratch-low",
    "yolov7/yolov7": "scratch.p5", "yolov7/yolov7x": "scratch.p5", "yolov7/yolov7-w6": "scratch.p5",
    "yolov7/yolov7-e6": "scratch.p5", "yolov7/yolov7-d6": "scratch.p5", "yolov7/yolov7-e6e": "scratch.p5",
    "yolov7/yolov7-tiny": "scratch.tiny", "yolov7/yolov7-half": "scratch.tiny", "yolov7/yolov7-quarter": "scratch.tiny",
    "yolov8/yolov8n": "scratch.v8", "yolov8/yolov8x": "scratch.v8",
}  # fmt: skip


def test_the_table_in_the_documentation_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "architectures.md").read_text()
    assert all(f"`{path}`" in text for path in PLAIN_FILES.values())
    assert all((ROOT / path).is_file() for path in (*PLAIN_FILES.values(), RECIPE))


@pytest.mark.parametrize(("cfg", "plain"), FILES.items())
def test_plain_values_follow_the_family(cfg: str, plain: str) -> None:
    found = training_hyp(TrainOptions(cfg=str(ROOT / f"cfg/{cfg}.yaml")), distil=False)
    assert found.hyp == read_hyp(ROOT / f"hyp/{plain}.yaml")
    assert found.notes[0].startswith(f"hyper-parameters: hyp/{plain}.yaml, for ")


def test_fine_tuning_of_yolov7_has_values_of_its_own(tmp_path: Path) -> None:
    expected = {
        "yolov5/yolov5p": "scratch-low",
        "yolov7/yolov7-quarter": "scratch.custom",
        "yolov8/yolov8p": "scratch.v8",
    }
    for cfg, plain in expected.items():
        weights = str(tmp_path / f"{Path(cfg).name}.pt")
        save_checkpoint(weights, {"model": model_entry(Model(ROOT / f"cfg/{cfg}.yaml", nc=1))})
        for options in (
            TrainOptions(weights=weights),
            TrainOptions(weights=weights, cfg=str(ROOT / f"cfg/{cfg}.yaml")),
        ):
            assert training_hyp(options, distil=False).hyp == read_hyp(ROOT / f"hyp/{plain}.yaml")


def test_an_architecture_is_known_by_its_rows(tmp_path: Path) -> None:
    for name, kind in (("yolov8n", "yolov8"), ("yolov7-tiny", "yolov7, small"), ("yolov7", "yolov7")):
        content = yaml.safe_load((ROOT / f"cfg/{name.partition('-')[0][:6]}/{name}.yaml").read_text())
        path = tmp_path / "yolov5n.yaml"
        path.write_text(yaml.safe_dump(content))
        assert kind_of_architecture(path) == kind
    assert kind_of_student("", "") == "yolov5"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_a_file_stands_over_the_plain_values_of_the_family(tmp_path: Path) -> None:
    path = write(tmp_path, "lr0: 0.5\n")
    for kind, plain in PLAIN_FILES.items():
        expected = {**read_hyp(ROOT / plain).to_dict(), "lr0": 0.5}
        assert resolve_hyp(path, kind, distil=False).hyp.to_dict() == expected
        assert resolve_hyp(path, kind, distil=True).hyp.to_dict() == expected, (
            "train_distill.py reads a file as train.py"
        )


def test_a_distillation_takes_auto_unless_its_file_says_otherwise(tmp_path: Path) -> None:
    for text, numbers in (
        ("kd_losses: {fgd: {}}", (AUTO, AUTO)),
        ("kd_losses: {fgd: {}}\nnbs: 32", (32, AUTO)),
        (f"base: {ROOT / 'hyp/scratch-low.yaml'}\nkd_losses: {{fgd: {{}}}}", (64, 2000.0)),
        ("lr0: 0.1", (64, 2000.0)),
        ("kd_losses: {}\nstudent_kd_layers: auto", (64, 2000.0)),
    ):
        for distil in (True, False):  # or weights of 0 would not give what train.py gives
            hyp = resolve_hyp(write(tmp_path, text), "yolov5", distil).hyp
            assert (hyp.nbs, hyp.ema_ramp) == numbers, text


def test_without_a_file_a_distillation_has_the_default_recipe() -> None:
    for kind, plain in PLAIN_FILES.items():
        found, named = resolve_hyp("", kind, distil=True), resolve_hyp(ROOT / RECIPE, kind, distil=False)
        assert found.hyp == named.hyp and found.hyp.distills
        assert found.hyp.box == read_hyp(ROOT / plain).box
        assert found.notes == (f"hyper-parameters: '{RECIPE}' over {plain}, for {kind}",)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("student_kd_layers: [75, 88, 101]\nteacher_kd_layers: [75, 88, 101]", ([75, 88, 101], [75, 88, 101])),
        ("student_kd_layers: '12,15,18'\nteacher_kd_layers: '12, 15, 18'", ([12, 15, 18], [12, 15, 18])),
        ("student_kd_layers: [17, 20, 23]", ([17, 20, 23], "auto")),
    ],
)
def test_layers_alone_mean_the_default_recipe_there(tmp_path: Path, text: str, layers: tuple[object, object]) -> None:
    path, recipe = write(tmp_path, text), read_hyp(ROOT / RECIPE)
    hyp, notes = (found := resolve_hyp(path, "yolov7", distil=True)).hyp, found.notes
    assert (hyp.student_kd_layers, hyp.teacher_kd_layers) == layers
    assert (hyp.kd_losses, hyp.kd_schedule, hyp.nbs) == (recipe.kd_losses, recipe.kd_schedule, AUTO)
    keys = " , ".join(text.split(":")[0] for text in text.splitlines()).replace(" ,", ",")
    assert f"'{path}' has {keys} and no kd_losses: the losses of {RECIPE} at those layers" in notes


def test_layers_of_the_forks_keep_their_decay(tmp_path: Path) -> None:
    path = write(
        tmp_path, "student_kd_layers: '1,2'\nteacher_kd_layers: '1,2'\nkd_loss_decay: linear\nkd_loss_epoch: 0.5"
    )
    hyp = resolve_hyp(path, "yolov5", distil=True).hyp
    assert hyp.kd_losses == read_hyp(ROOT / RECIPE).kd_losses
    assert hyp.kd_schedule == {"shape": "linear", "stop_epoch": 0.5}


def test_the_values_of_a_run_give_the_same_run(tmp_path: Path) -> None:
    for kind in PLAIN_FILES:
        for path in ("", ROOT / "hyp/distill.fgd-output.yaml"):
            hyp = resolve_hyp(path, kind, distil=True).hyp
            written = write(tmp_path, yaml.safe_dump(hyp.to_dict()))
            for other in PLAIN_FILES:
                assert resolve_hyp(written, other, distil=True).hyp == hyp, "nothing of another family comes in"
