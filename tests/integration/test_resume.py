"""What becomes of a run that was killed, damaged or moved, or that is to be trained for longer."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import engine.training.finish
from checkpoints.checkpoint import save_checkpoint
from data.synthetic import render_dataset
from engine.config.flags import (
    add_distillation,
    given_flags,
    refuse_beside_resume,
    training_options,
    training_parser,
)
from engine.config.options import TrainOptions
from engine.training.loop import Trainer
from engine.training.resume import EVALUATION, EXTENSION, TRAINING, Resumption, plan_resumption
from engine.training.state import model_entry, run_state
from engine.training.train import run_training
from models.yolo import Model
from tests.integration.test_training import assert_same_weights, rows_of
from utils.errors import UsageError, UserError


class Killed(BaseException):
    """Stands for whatever ends a process."""


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Leaves the logger as it is, so that what a training says can be read."""
    monkeypatch.setattr("engine.training.train.setup_logging", lambda rank: None)
    caplog.set_level(logging.INFO, "yolo-distill")


@pytest.fixture(scope="module")
def mini(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """Four epochs of two batches, of a distillation with adapters under an untrained teacher."""
    folder = tmp_path_factory.mktemp("mini")
    data = render_dataset(folder / "set", num_train=6, num_val=4, num_test=2, img_size=64, seed=1)
    nc = yaml.safe_load(data.read_text())["nc"]
    torch.manual_seed(0)
    save_checkpoint(folder / "teacher.pt", {"model": model_entry(Model(tiny / "large.yaml", nc=nc)), "hyp": {}})
    return TrainOptions(
        cfg=str(tiny / "small.yaml"), data=str(data), hyp=str(tiny / "distill.yaml"), epochs=4, batch_size=4,
        img_size=(64, 64), workers=0, noplots=True, device="cpu", noautoanchor=True, project=str(folder / "runs"),
        name="whole", teacher_weights=str(folder / "teacher.pt"),
    )  # fmt: skip


def kill_in_epoch(epoch: int, start: Callable[[], Any]) -> None:
    """Runs a training that ends when it has begun this epoch."""
    train_epoch = Trainer.train_epoch

    def ending(self: Trainer, number: int) -> dict[str, float]:
        if number == epoch:
            raise Killed
        return train_epoch(self, number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "train_epoch", ending)
        start()


@pytest.fixture(scope="module")
def whole(mini: TrainOptions) -> Path:
    """The folder of the training that was never interrupted."""
    return run_training(mini, distil=True).folder


@pytest.fixture(scope="module")
def killed(mini: TrainOptions) -> Path:
    """The folder of one that was killed in its third epoch; for copies."""
    kill_in_epoch(2, lambda: run_training(replace(mini, name="killed"), distil=True))
    return Path(mini.project) / "killed"


@pytest.fixture
def run(killed: Path, tmp_path: Path) -> Path:
    """A copy of the killed run."""
    return Path(shutil.copytree(killed, tmp_path / "run"))


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def parsed(*words: object) -> tuple[TrainOptions, set[str]]:
    """Options and given flags of a train_distill.py command line."""
    parser = training_parser("", project="runs/distill", hyp="hyp/distill.yaml")
    add_distillation(parser)
    texts = [str(word) for word in words]
    namespace = parser.parse_args(texts)
    refuse_beside_resume(namespace)
    return TrainOptions(**training_options(namespace)), given_flags(parser, texts)


def plan(run: Path, *words: object) -> Resumption:
    """What `--resume RUN` and these flags come to."""
    options, given = parsed("--resume", run, *words)
    return plan_resumption(str(run), options, given)


def resume(run: Path, *words: object) -> Path:
    options, given = parsed("--resume", run, *words)
    return run_training(options, resume=str(run), given=given).folder


def change(run: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    path = run / "weights" / "last.pt"
    content = torch.load(path, weights_only=True)
    how(content)
    torch.save(content, path)


def timeless(run: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if "time" not in key} for row in rows_of(run)]


def manifest_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


# A killed run equals an uninterrupted one


def test_with_a_damaged_table_in_between(whole: Path, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run_state(run) == "interrupted"
    table = run / "results.csv"
    table.write_bytes(table.read_bytes()[:-40])
    resume(run)
    assert_same_weights(whole, run)
    assert timeless(run) == [row for row in timeless(whole) if row["epoch"] != "1"]
    assert "results.csv is damaged: 1 of its 2 rows cannot be used" in caplog.text
    assert run_state(run) == "finished"


def test_with_data_and_teacher_moved_in_between(
    mini: TrainOptions, whole: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = Path(shutil.copytree(Path(mini.data).parent, tmp_path / "elsewhere"))
    hidden = Path(mini.data).parent.with_name("hidden")
    teacher = Path(shutil.copy(mini.teacher_weights, tmp_path / "renamed.pt"))
    content = yaml.safe_load((moved / "data.yaml").read_text())
    (moved / "data.yaml").write_text(yaml.safe_dump({**content, "path": str(moved)}))
    Path(mini.data).parent.rename(hidden)
    try:
        with pytest.raises(UserError, match="named with --data"):
            resume(run)
        resume(run, "--data", moved / "data.yaml", "--teacher-weights", teacher, "--workers", 1)
    finally:
        hidden.rename(Path(mini.data).parent)
    assert_same_weights(whole, run)
    assert timeless(run) == timeless(whole)
    assert "have changed" not in caplog.text
    assert yaml.safe_load((run / "opt.yaml").read_text())["data"] == str(moved / "data.yaml")


def test_data_that_changed_in_between_are_noticed(
    mini: TrainOptions, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = Path(shutil.copytree(Path(mini.data).parent, tmp_path / "elsewhere"))
    content = yaml.safe_load((moved / "data.yaml").read_text())
    names = content["names"]
    (moved / "data.yaml").write_text(yaml.safe_dump({**content, "path": str(moved), "names": names[::-1]}))
    with pytest.raises(UserError, match="has the classes of this run in another order now"):
        resume(run, "--data", moved / "data.yaml")
    other = [*names[:-1], "something else"]
    (moved / "data.yaml").write_text(yaml.safe_dump({**content, "path": str(moved), "names": other}))
    with pytest.raises(UserError, match="its class names are others"):
        resume(run, "--data", moved / "data.yaml")
    label = sorted((moved / "labels" / "train").glob("*.txt"))[0]
    label.write_text("0 0.5 0.5 0.25 0.25\n")
    checkpoint = torch.load(run / "weights" / "last.pt", weights_only=True)
    checkpoint["training"]["options"]["data"] = str(moved / "data.yaml")  # as if it had always been there
    torch.save(checkpoint, run / "weights" / "last.pt")
    resume(run)
    line = "the data have changed since this run began (training images or labels, class names)"
    assert line in caplog.text
    assert (
        manifest_of(run)["train_hash"]
        != json.loads((Path(mini.project) / "killed/manifest.json").read_text())["train_hash"]
    )


# Flags beside --resume


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--batch", 2], "--batch-size 2 does not count with --resume: this run has 4"),
        (["--batch-s", 2], "--batch-size 2"),
        (["--img", 128], "this run has (64, 64)"),
        (["--seed", 1], "--seed 1"),
        (["--adam"], "--optimizer 'Adam'"),
        (["--weights", "other.pt"], "--weights 'other.pt'"),
        (["--cfg", "cfg/yolov5/yolov5n.yaml"], "--cfg"),
        (["--hyp", "hyp/scratch-low.yaml"], "--hyp 'hyp/scratch-low.yaml'"),
        (["--rect"], "--rect"),
        (["--freeze", 3], "--freeze"),
        (["--unlabeled", "folder"], "--unlabeled"),
        (["--teacher-weights", "hyp/scratch-low.yaml"], "its content is another"),
        (["--teacher-weights", "nowhere.pt"], "the teacher nowhere.pt does not exist"),
        (["--teacher-weights", "ema", "ema"], "names 2 files, this run has 1"),
        (["--name", "other"], "goes on in its own folder"),
        (["--project", "other"], "goes on in its own folder"),
        (["--epochs", 1], "2 epochs of this run are done already; give at least 2"),
        (["--list-layers"], "leave --resume out"),
        (["--teacher-assistants", "a.yaml"], "does not count with --resume"),
    ],
)
def test_flags_that_do_not_count(run: Path, words: list[object], line: str) -> None:
    with pytest.raises(UserError) as error:
        plan(run, *words)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_flags_that_say_what_the_run_has_anyway(mini: TrainOptions, run: Path, tiny: Path) -> None:
    words = ["--data", mini.data, "--cfg", mini.cfg, "--hyp", mini.hyp, "--epochs", 4, "--batch", 4, "--img", 50]
    words += ["--teacher-weights", mini.teacher_weights, "--noplots", "--noautoanchor", "--workers", 0]
    again = plan(run, *words, "--project", run.parent, "--name", "run", "--device", "cpu", "--exist-ok")
    assert (again.kind, again.changed, again.notes) == (TRAINING, False, [])
    copied = tiny / "copied.yaml"
    copied.write_text(f"base: {mini.hyp}\n")
    assert not plan(run, "--hyp", copied).changed, "the same values in another file"


def test_places_that_may_change(run: Path) -> None:
    again = plan(run, "--workers", 3, "--device", "cpu", "--cache", "--patience", 7)
    assert (again.options.workers, again.options.cache, again.options.patience) == (3, "ram", 7)
    assert again.notes == ["resuming with --cache-images 'ram' instead of None, --workers 3 instead of 0, "
                           "--patience 7 instead of 100"]  # fmt: skip


def test_the_newest_run_of_a_project_and_name(run: Path, tmp_path: Path) -> None:
    options, given = parsed("--resume", "--project", tmp_path, "--name", "run")
    assert plan_resumption(True, options, given).checkpoint.path == run / "weights" / "last.pt"
    options, given = parsed("--resume", "--project", tmp_path, "--name", "other")
    with pytest.raises(UserError, match="no last.pt of a run 'other' below"):
        plan_resumption(True, options, given)


def test_edited_files_of_the_folder_are_named(run: Path) -> None:
    for name, key, value in (("hyp.yaml", "lr0", 0.5), ("opt.yaml", "batch_size", 64)):
        content = yaml.safe_load((run / name).read_text())
        (run / name).write_text(yaml.safe_dump({**content, key: value}))
    notes = plan(run).notes
    assert ["hyp.yaml is not what is trained with: lr0 is 0.5 there and 0.01 in last.pt" in n for n in notes] == [
        True,
        False,
    ]
    assert "opt.yaml is not what is trained with: batch_size is 64 there and 4 in last.pt" in notes[1]
    (run / "hyp.yaml").write_text("lr0: [")
    assert "hyp.yaml" in plan(run).notes[0]


def test_another_number_of_epochs(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    resume(run, "--epochs", 3)
    assert "--epochs 3 instead of 4: the learning rates change from here on" in caplog.text
    assert [row["epoch"] for row in rows_of(run)] == ["0", "1", "2"]
    manifest = manifest_of(run)
    assert manifest["epochs_changed"] == [{"epoch": 2, "from": 4, "to": 3}] and "extended" not in manifest
    assert manifest["finished"]["epochs"] == 3


def test_a_run_can_be_ended_where_it_is(run: Path) -> None:
    resume(run, "--epochs", 2)
    assert run_state(run) == "finished" and len(rows_of(run)) == 2


# The final evaluation


@pytest.mark.parametrize("place", ["strip_run", "evaluate"])
def test_a_killed_end_of_a_training_is_finished(
    place: str, whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def draw(content: dict[str, Any]) -> None:
        content["training"]["options"]["noplots"] = False

    def killing(*_: Any, **__: Any) -> None:
        raise Killed

    if place == "evaluate":
        change(run, draw)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(engine.training.finish, place, killing)
        resume(run)
    assert run_state(run) == ("interrupted" if place == "strip_run" else "evaluating")
    assert plan(run, "--epochs", 4).kind == (TRAINING if place == "strip_run" else EVALUATION)
    assert not (run / "results.png").exists()
    caplog.clear()
    resume(run)
    assert "epoch 4/4" not in caplog.text, "nothing is trained"
    assert run_state(run) == "finished" and manifest_of(run)["finished"]["epochs"] == 4
    assert_same_weights(whole, run)
    if place == "evaluate":
        assert (run / "results.png").is_file() and (run / "PR_curve.png").is_file()


def test_a_lost_best_is_replaced_by_the_last(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "weights" / "best.pt").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.training.loop.Trainer._validated", lambda self, epoch: {})  # nothing becomes better
        resume(run)
    assert "best.pt cannot be used" in caplog.text
    best, last = (torch.load(run / "weights" / f"{name}.pt", weights_only=True) for name in ("best", "last"))
    assert best["epoch"] == last["epoch"] == 3 and run_state(run) == "finished"


# Extension


def test_a_finished_run_says_how_to_extend_it(done: Path) -> None:
    with pytest.raises(UserError, match="this run is finished, after 4 epochs; to train it for more, add --epochs"):
        plan(done)
    for epochs in (3, 4):
        with pytest.raises(UsageError, match="4 epochs of this run are done already; give more than 4"):
            plan(done, "--epochs", epochs)
    with pytest.raises(UserError, match="name .*last.pt, or start a new one"):
        plan_resumption(str(done / "weights" / "best.pt"), *parsed())


def test_an_extension_goes_on_and_can_be_killed(whole: Path, done: Path, tmp_path: Path) -> None:
    killed = Path(shutil.copytree(done, tmp_path / "killed"))
    before = torch.load(done / "weights" / "best.pt", weights_only=True)
    extension = plan(done, "--epochs", 7)
    assert (extension.kind, extension.state.first_epoch) == (EXTENSION, 4)
    assert "adapters of the distillation start afresh" in extension.notes[-1]
    resume(done, "--epochs", 7)
    rows = rows_of(done)
    assert [row["epoch"] for row in rows] == list("0123456")
    assert timeless(done)[:4] == timeless(whole)
    # The warm-up, three epochs of two batches, begins again; after 3 of its 6 steps half of 0.01 times the cosine's
    # 1 - 0.99 * (1 - cos(pi / 3)) / 2 = 0.7525 is reached.
    assert float(rows[5]["x/lr1"]) == pytest.approx(0.01 * 0.7525 / 2)
    manifest = manifest_of(done)
    assert manifest["extended"] == [{"from": 4, "to": 7}] and manifest["finished"]["epochs"] == 7
    best = torch.load(done / "weights" / "best.pt", weights_only=True)
    assert best["best_fitness"] >= before["best_fitness"], "the best of both"

    for epoch in (4, 6):  # in its first epoch, and later
        kill_in_epoch(epoch, lambda: resume(killed, *(["--epochs", 7] if epoch == 4 else [])))  # noqa: B023
        assert run_state(killed) == "interrupted"
    resume(killed)
    assert_same_weights(done, killed)
    assert timeless(done) == timeless(killed)
    assert manifest_of(killed)["extended"] == [{"from": 4, "to": 7}]


# Damage


NAN = float("nan")
TOP: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"no {key}": (lambda c, key=key: c.pop(key)) for key in ("epoch", "best_fitness", "teacher", "hyp")},
    **{f"text as {k}": (lambda c, k=k: c.update({k: "x"})) for k in ("epoch", "best_fitness", "teacher", "hyp")},
    "no lr0": lambda c: c["hyp"].pop("lr0"),
    "nan as lr0": lambda c: c["hyp"].update(lr0=NAN),
    "an unknown hyper-parameter": lambda c: c["hyp"].update(lr1=1.0),
    "a huge epoch": lambda c: c.update(epoch=2**40),
    "a teacher without hash": lambda c: c["teacher"].pop("sha256"),
}  # fmt: skip
ENTRY: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"state: {k} {v!r}": (lambda t, k=k, v=v: t["state"].update({k: v}))
       for k, values in {
           "epoch": ("x", -1, 2**70, NAN, 3), "first_epoch": (9, -1), "best_fitness": ("x", NAN, 1e300),
           "best_ap": ("x",), "best_epoch": (7, "x"), "last_step": (-9, 10**15, 2.0),
           "metrics": ([1], {"a": "b"}), "class_ap": ([0.1], "x"), "stopped": (1, "no"), "changes": ({}, [1]),
           "unknown": (1,),
       }.items() for v in values},
    **{f"option {k} {v!r}": (lambda t, k=k, v=v: t["options"].update({k: v}))
       for k, values in {
           "batch_size": (0, "x", 2**80, 4.0, None, True), "epochs": (0, "x", 1),
           "img_size": ([64], 64, [64, "x"], [1, 1]),
           "freeze": ([], "x", [-1]), "cache": ("disc", 1), "optimizer": (1,), "seed": (-1, 1e300), "data": (None,),
           "label_smoothing": (NAN, 2), "sparsity": (-1.0, NAN), "teacher_weights": (["a"],), "workers": (10**9,),
           "more_teachers": ("x", [1]), "unknown": (1,),
       }.items() for v in values},
    "no batch_size": lambda t: t["options"].pop("batch_size"),
    "no stopped": lambda t: t["state"].pop("stopped"),
    "data": lambda t: t["data"].update(train_hash=1),
    "no processes": lambda t: t.update(world_size=0),
}  # fmt: skip


@pytest.fixture(scope="module")
def damaged(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(killed, tmp_path_factory.mktemp("damaged") / "run"))


@pytest.fixture
def content(killed: Path) -> dict[str, Any]:
    return torch.load(killed / "weights" / "last.pt", weights_only=True)


def unfit(path: Path, content: dict[str, Any]) -> str:
    torch.save(content, path / "weights" / "last.pt")
    with pytest.raises(UserError) as error:
        plan(path)
    line = str(error.value)
    assert line.isprintable() and len(line) < 600
    return line


@pytest.mark.parametrize("how", TOP)
def test_a_changed_file(damaged: Path, content: dict[str, Any], how: str) -> None:
    TOP[how](content)
    line = unfit(damaged, content)
    assert "does not fit the run that it belongs to" in line or "is damaged" in line


@pytest.mark.parametrize("how", ENTRY)
def test_a_changed_entry(damaged: Path, content: dict[str, Any], how: str) -> None:
    ENTRY[how](content["training"])
    assert "does not fit the run that it belongs to" in unfit(damaged, content)


@pytest.mark.parametrize("value", ["x", [1], True, "nothing"])
def test_entries_of_other_types(damaged: Path, content: dict[str, Any], value: Any) -> None:
    for key in list(content["training"]):
        entry = {**content["training"], key: value}
        if value == "nothing":
            del entry[key]
            if key == "version":
                continue  # as an earlier version wrote it
        if value == [1] and key in ("extra_losses", "extra_gradients"):
            continue  # a list as it should be; what is in it is looked at beside the trainer
        assert "does not fit the run" in unfit(damaged, {**content, "training": entry}), key
