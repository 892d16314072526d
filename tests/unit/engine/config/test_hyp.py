from __future__ import annotations

from pathlib import Path

import pytest

from engine.config.bases import load_hyp
from engine.config.hyp import Hyp, hyp_from_dict, read_hyp
from engine.config.options import TrainOptions
from engine.training.state_check import UnfitError, checked_options
from tests.golden import ROOT
from utils.errors import UserError


@pytest.mark.parametrize("path", sorted((ROOT / "hyp").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_file_is_valid_and_says_how_to_use_it(path: Path) -> None:
    hyp = read_hyp(path)
    assert hyp.distills == path.name.startswith("distill.")
    assert not load_hyp(path).notes, "no shipped file takes losses from another"
    assert f"hyp/{path.name}" in "\n".join(path.read_text().splitlines()[:12])


def test_plain_files_keep_the_numbers_of_upstream() -> None:
    for path in (ROOT / "hyp").glob("scratch*.yaml"):
        hyp = read_hyp(path)
        assert (hyp.nbs, hyp.ema_ramp) == (64, 2000), path.name
    few = read_hyp(ROOT / "hyp/few-images.yaml")
    assert (few.nbs, few.ema_ramp) == ("auto", "auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nbs: automatic", "nbs must be a number, found 'automatic'"),
        ("ema_ramp: 0", "ema_ramp is 0, expected a number of more than 0"),
        ("lr0: auto", "lr0 must be a number, found 'auto'"),
        ("lr_0: 0.1", "unknown key 'lr_0'; did you mean 'lr0'"),
        ("lr0: fast", "lr0 must be a number, found 'fast'"),
        ("lr0: 1e-3", "lr0 must be a number"),  # yaml reads this as text: the remedy is in the message
        ("mosaic: 1.5", "mosaic is 1.5, expected a share from 0 to 1"),
        ("lr0: 0", "lr0 is 0, expected a number of more than 0"),
        ("lr0: .nan", "lr0 is nan, expected a number of more than 0"),
        ("box: .inf", "box is inf, expected a number of at least 0"),
        ("weight_decay: -0.1", "weight_decay is -0.1, expected a number of at least 0"),
        ("momentum: 1", "momentum is 1, expected at least 0 and less than 1"),
        ("kd_losses: [fgd]", "kd_losses must be a mapping"),
        ("nbs: " + "9" * 18, "expected a number of at most 100000"),
        ("lr0: 1.0e+300", "lr0 is 1e+300, expected a number of at most 1e+06"),
        ("degrees: 181", "degrees is 181, expected a number of at most 180"),
        ("shear: 90", "shear is 90, expected a number of at most 60"),
        ("perspective: 0.1", "perspective is 0.1, expected a number of at most 0.001"),
        ("anchors: 1000", "anchors is 1000, expected a number of at most 100"),
        ("loss_ota: 2", "loss_ota is 2, expected a number of at most 1"),
        ("warmup_epochs: [1]", "warmup_epochs must be a number, found [1]"),
        ("box: 0x" + "F" * 30, "a number of 32 digits"),
        ("kd_resize: 'yes'", "kd_resize is 'yes', expected true or false"),
        ("kd_loss_type: [a]\nfeature_loss_type: {b: c}", "unknown kd_loss_type ['a']"),
        ("student_kd_layers: '" + "9" * 5000 + "'", "student_kd_layers has '999"),
        ("student_kd_layers: '\u0661,2'", "student_kd_layers has '\u0661'"),
        (
            "kd_loss_type: all\nkd_loss_epoch: .nan\nfeature_loss_type: cwd\nlogical_loss_type: l2",
            "kd_loss_epoch is nan",
        ),
        ("kd_loss_type: feature\nfeature_loss_type: cwd\nkd_schedule: [1]", "kd_schedule must be a mapping"),
        ("kd_teachers: [{share: .inf}]", "share is inf; expected a number"),
        ("kd_teachers: [{classes: [null]}]", "classes is [None]; expected a list of names"),
        ("base: " + "x" * 5000, "base 'xxx"),
        ('base: "a\\0"', "does not exist"),
        ("- 1", "must hold `key: value` lines"),
        ("a: [1", "line 1"),
        ("lr0: 2024-99-99", "lr0 must be a number, found '2024-99-99'"),  # not taken for a date
        ("a: " + "[" * 5000, "nest"),
        ("backbone: []", "is a file for --cfg (architecture); name one for --hyp (hyper-parameter file)"),
        ("", "found nothing"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "hyp.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_hyp(path)
    assert message in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_classes_of_a_teacher_are_names_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "hyp.yaml"
    path.write_text("kd_teachers: [{classes: [no, on, 010]}, {share: 0.5}]\n")
    assert read_hyp(path).kd_teachers[0]["classes"] == ["no", "on", "010"]


def test_values_of_a_checkpoint_may_be_of_any_size() -> None:
    for name, value in (("nbs", 10**5000), ("mosaic", 10**5000), ("lr0", [[["x"] * 9] * 9] * 9), ("k" * 10**6, 1)):
        with pytest.raises(UserError) as error:
            hyp_from_dict({name: value}, "last.pt")
        assert len(str(error.value)) < 3000 and str(error.value).isprintable()


def test_no_anchors_are_those_of_the_architecture(tmp_path: Path) -> None:
    path = tmp_path / "hyp.yaml"
    path.write_text("anchors: 0  # upstream's way to leave them")
    assert read_hyp(path).anchors is None


def test_missing_file() -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_hyp("nowhere.yaml")


def test_upstream_file_without_our_keys(tmp_path: Path) -> None:
    path = tmp_path / "hyp.yaml"
    path.write_text("lr0: 0.02\nanchors: 3\npaste_in: 0.15\nloss_ota: 1\n")
    hyp = read_hyp(path)
    assert (hyp.lr0, hyp.anchors, hyp.loss_ota, hyp.mosaic) == (0.02, 3, 1, 1.0)


def test_options_survive_a_checkpoint() -> None:
    options = TrainOptions(cfg="a.yaml", img_size=(320, 416), freeze=(1, 2))
    assert checked_options(options.to_dict()) == options
    with pytest.raises(UnfitError, match="the option 'epoch' is unknown"):
        checked_options({**options.to_dict(), "epoch": 3})


def test_plain_values_only() -> None:
    assert Hyp().to_dict()["kd_losses"] == {}


def test_a_file_can_be_based_on_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "plain.yaml").write_text(
        "lr0: 0.02\nmosaic: 0.5\nkd_losses: {fgd: {weight: 1.0}, cwd: {weight: 2.0}}\n"
    )
    (tmp_path / "more" / "middle.yaml").write_text("base: ../plain.yaml\nmosaic: 0.25\n")
    (tmp_path / "more" / "top.yaml").write_text("base: middle.yaml\nkd_losses: {cwd: {weight: 3.0}}\n")
    monkeypatch.chdir(tmp_path / "more")  # a base is relative to its file, not to where the command is called
    hyp = read_hyp(tmp_path / "more" / "top.yaml")
    assert (hyp.lr0, hyp.mosaic) == (0.02, 0.25)
    assert hyp.kd_losses == {"fgd": {"weight": 1.0}, "cwd": {"weight": 3.0}}
    assert "base" not in hyp.to_dict()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nowhere.yaml", "base 'nowhere.yaml' does not exist in"),
        ("top.yaml", "base leads back to 'top.yaml'"),
        ("other.yaml", "base leads back to 'top.yaml'"),
        ("[1]", "base is ['1']; expected a file's name"),
        ("broken.yaml", "broken.yaml' line 1"),
    ],
)
def test_mistakes_in_a_base_are_named(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "top.yaml").write_text(f"base: {base}\n")
    (tmp_path / "other.yaml").write_text("base: top.yaml\n")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError) as error:
        read_hyp(tmp_path / "top.yaml")
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
