from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import engine.comparing.trainings as compare
from checkpoints.checkpoint import save_checkpoint
from data.synthetic import render_dataset
from engine.comparing.compare import run_experiment
from engine.comparing.experiment import Experiment, automatic, check_files, load_experiment, merged_values
from engine.comparing.runs import merged_hyp, train_all
from engine.comparing.trainings import Training, train_one
from engine.config.hyp import read_hyp
from engine.training.state import model_entry
from models.yolo import Model
from pruning import plan_inheritance
from tests.golden import ROOT
from utils.errors import UserError

CONTENT: dict[str, Any] = {
    "name": "try",
    "data": "data/synthetic.yaml",
    "student": "cfg/yolov5/yolov5n.yaml",
    "teacher": {"cfg": "cfg/yolov5/yolov5s.yaml", "epochs": 7, "seed": 5},
    "arms": {
        "baseline": {"hyp": str(ROOT / "hyp/scratch-low.yaml")},
        "fgd": {"hyp": str(ROOT / "hyp/distill.fgd.yaml"), "changes": {"lr0": 0.5}},
    },
    "hyp": str(ROOT / "hyp/scratch-low.yaml"),
    "changes": {"nbs": 64, "ema_ramp": 2000},  # or the data set would be looked at
    "epochs": 3,
    "seeds": [0, 4],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "try.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**CONTENT, **changes}.items() if v is not None}))
    return path


def experiment(folder: Path, **changes: Any) -> Experiment:
    return load_experiment(written(folder, **changes))


# The file


def test_a_file_is_read(tmp_path: Path) -> None:
    found = experiment(tmp_path, flags=["--patience", 5, "--rect"], arms={"plain": None, "other": {"distil": False}})
    assert (found.name, found.epochs, found.seeds, found.split) == ("try", 3, (0, 4), "val")
    assert found.flags == ("--patience", "5", "--rect"), "words of a command line are text"
    assert found.arms == {"plain": {}, "other": {"distil": False}}
    assert experiment(tmp_path, seeds=3).seeds == (3,)


def test_words_are_text_and_null_is_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, device="replaced", epochs="replaced")
    path.write_text(
        path.read_text().replace("device: replaced", "device: 0").replace("epochs: replaced", "epochs: null")
    )
    path.write_text(path.read_text().replace("name: try", "name: 2024-01-01"))
    found = load_experiment(path)
    assert (found.name, found.device, found.epochs) == ("2024-01-01", "0", Experiment.epochs)


def test_given_values_replace_those_of_the_file(tmp_path: Path) -> None:
    overrides = {"name": "again", "seeds": [7], "epochs": 2, "data": None, "device": None}
    found = load_experiment(written(tmp_path), overrides)
    assert (found.name, found.seeds, found.epochs, found.data) == ("again", (7,), 2, CONTENT["data"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": None}, "student:` is missing"),
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"teacher": "best.pt"}, "teacher and arms must be mappings"),
        ({"teacher": {"epochs": 3}}, "teacher needs `weights:`"),
        ({"teacher": {"cfg": "a.yaml", "epoch": 1}}, "teacher: unknown key 'epoch'"),
        ({"arms": {"one": {"hyps": "x"}}}, "arms: one: unknown key 'hyps'; did you mean 'hyp'"),
        ({"split": "valid"}, "split is 'valid'; expected one of train, val, test"),
        ({"epochs": 0}, "epochs is 0; expected a whole number of at least 1"),
        ({"teacher": {"cfg": "a.yaml", "epochs": "30"}}, "teacher: epochs is '30'; expected a whole number"),
        ({"seeds": [1, 1]}, "seeds are [1, 1]; expected different whole numbers"),
        ({"student": ["a.yaml"]}, "student is ['a.yaml']; expected text"),
        ({"changes": "lr0"}, "changes is 'lr0'; expected hyper-parameters"),
        ({"arms": {}}, "arms is empty"),
        ({"arms": {"one": "hyp.yaml"}}, "arms: one is 'hyp.yaml'; expected settings"),
        ({"arms": {"one": {"distil": "no"}}}, "arms: one: distil is 'no'; expected true or false"),
        ({"arms": {"one": {"init": "teacher"}}}, "one: init is 'teacher'; expected one of auto, inherit, scratch"),
        ({"arms": {"one": {"importance": 1}}}, "one: importance is 1; expected one of taylor, l1"),
        ({"arms": {"one": {"epochs": 0}}}, "one: epochs is 0; expected a whole number of at least 1"),
        ({"epochs": 10**12}, "epochs is 1000000000000; expected a whole number of at most"),
        ({"img_size": 8}, "img_size is 8; expected a whole number of at least 32"),
        ({"workers": 10**9}, "workers is 1000000000; expected a whole number of at most 1024"),
        ({"batch_size": -1}, "batch_size is -1; expected a whole number of at least 1"),
        ({"seeds": [2**40]}, "seeds are [1099511627776]; expected different whole numbers from 0 to"),
        ({"seeds": []}, "seeds are []; expected different whole numbers"),
        ({"seeds": [[0]]}, "seeds are [[0]]; expected different whole numbers"),
        ({"flags": [["--rect"]]}, "expected words such as"),
        ({"flags": ["--rect", "--resume", "/elsewhere/last.pt"]}, "--resume is set by compare.py itself"),
        ({"flags": ["--proj=/elsewhere"]}, "--project is set by compare.py itself"),
        ({"name": "../../x"}, "name '../../x' must name a folder below"),
        ({"name": "a\x1b[31m"}, "has control characters"),
        ({"arms": {"../x": {}}}, "'../x' is no name for an arm"),
        ({"arms": {"teacher": {}}}, "'teacher' is no name for an arm"),
        ({"arms": {"-x": {}}}, "'-x' is no name for an arm"),
        ({"headline": "fdg"}, "headline: unknown arm to compare 'fdg'; did you mean 'fgd'"),
        ({"headline": "baseline"}, "headline: unknown arm to compare 'baseline'"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        experiment(tmp_path, **changes)
    assert message in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.yaml"}, "data file 'nowhere.yaml' does not exist"),
        ({"student": "nowhere.yaml"}, "architecture 'nowhere.yaml' does not exist"),
        ({"student": "data/synthetic.yaml"}, "name one for --cfg (architecture)"),
        ({"student_weights": "nowhere.pt"}, "student weights 'nowhere.pt' does not exist"),
        ({"teacher": {"weights": "nowhere.pt"}}, "teacher weights 'nowhere.pt' does not exist"),
        ({"arms": {"one": {}, "two": {"hyp": "nowhere.yaml"}}}, "hyper-parameter file 'nowhere.yaml' does not exist"),
        ({"arms": {"one": {}, "two": {"changes": {"lr": 1}}}}, "unknown key 'lr'"),
        ({"device": "99"}, "--device 99"),
    ],
)
def test_every_file_is_looked_at_before_the_first_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    fake = FakeTraining(monkeypatch)
    with pytest.raises(UserError) as error:
        run_experiment(experiment(tmp_path, **changes), str(tmp_path / "runs"))
    assert message in str(error.value)
    assert not fake.commands and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a"], "have 1 classes, 'data/synthetic.yaml' has 12"), (["ladder"] + ["x"] * 11, "the order")],
)
def test_a_teacher_that_the_report_could_not_measure_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    model = Model("cfg/yolov5/yolov5p.yaml", nc=len(names))
    model.names = names
    save_checkpoint(tmp_path / "teacher.pt", {"model": model_entry(model)})
    with pytest.raises(UserError, match=message):
        check_files(experiment(tmp_path, teacher={"weights": str(tmp_path / "teacher.pt")}))


def test_changes_of_the_arm_come_after_those_of_the_experiment(tmp_path: Path) -> None:
    tried = experiment(tmp_path, changes={"lr0": 0.1, "nbs": 16})
    path = merged_hyp(tried, tried.arms["fgd"], tmp_path / "hyp" / "fgd.yaml")
    hyp = read_hyp(path)
    assert (hyp.lr0, hyp.nbs) == (0.5, 16)
    assert hyp.kd_losses == read_hyp(ROOT / "hyp/distill.fgd.yaml").kd_losses
    default = read_hyp(merged_hyp(tried, {"hyp": None, "changes": None}, tmp_path / "hyp" / "x.yaml"))
    assert (default.lr0, default.distills) == (0.1, False)
    with pytest.raises(UserError, match="unknown key 'lr'"):
        merged_hyp(tried, {"changes": {"lr": 0.5}}, tmp_path / "hyp" / "x.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_experiment_can_be_read_and_its_student_inherits(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    found = load_experiment(path)
    if "start" in found.teacher:  # upstream's file, which is not here
        start = str(tmp_path / "yolov5p.pt")
        save_checkpoint(start, {"model": model_entry(Model("cfg/yolov5/yolov5p.yaml", nc=1))})
        found = replace(found, teacher={**found.teacher, "start": start})
    assert found.name == path.stem and f"--experiment experiments/{path.name}" in path.read_text()
    for settings in (found.teacher, *found.arms.values()):
        merged_values(found, settings)
    assert automatic(found), "the arms with a recipe and those without make equally many steps"
    if "cfg" in found.teacher:
        with torch.device("meta"):
            student, teacher = Model(found.student), Model(found.teacher["cfg"])
        assert plan_inheritance(student, teacher).share == 1


# Trainings


class FakeTraining:
    """Stands for the subprocess: notes the command and leaves what a training leaves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
        self.commands: list[list[str]] = []
        self.code = code
        monkeypatch.setattr(compare, "run_child", self)
        monkeypatch.setattr(compare, "run_state", lambda folder: self.state)
        self.state = "empty"

    def __call__(self, command: list[str], environment: dict[str, str]) -> int:
        assert all(isinstance(word, str) for word in command) and command[0] == sys.executable
        self.commands.append([Path(command[1]).name, *command[2:]])
        if "--resume" in command:
            weights = Path(command[-1]).parent
        else:
            weights = Path(self.flag("--project"), self.flag("--name"), "weights")
        weights.mkdir(parents=True, exist_ok=True)
        (weights / "last.pt").write_bytes(b"last")
        if not self.code:
            (weights / "best.pt").write_bytes(b"best")
        return self.code

    def flag(self, name: str) -> str:
        return self.commands[-1][self.commands[-1].index(name) + 1]


def test_all_trainings_of_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTraining(monkeypatch)
    runs = train_all(experiment(tmp_path, flags=["--noplots"], device="cpu"), tmp_path)
    assert [(run.role, run.seed) for run in runs] == [
        ("teacher", 5), ("baseline", 0), ("baseline", 4), ("fgd", 0), ("fgd", 4)
    ]  # fmt: skip
    assert all(run.weights.read_bytes() == b"best" for run in runs)
    assert [command[0] for command in fake.commands] == ["train.py"] * 3 + ["train_distill.py"] * 2
    teacher, *arms = [dict(zip(command, command[1:])) for command in fake.commands]
    assert (teacher["--cfg"], teacher["--epochs"], teacher["--seed"]) == ("cfg/yolov5/yolov5s.yaml", "7", "5")
    for arm, seed in zip(arms, ("0", "4", "0", "4")):
        assert (arm["--cfg"], arm["--epochs"], arm["--seed"]) == (CONTENT["student"], "3", seed)
        assert (arm["--patience"], arm["--device"]) == ("0", "cpu"), "all arms are trained equally long"
    assert "--teacher-weights" not in arms[0]
    assert arms[2]["--teacher-weights"] == str(runs[0].weights)
    assert all("--noplots" in command for command in fake.commands)


def test_a_recipe_can_be_trained_without_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTraining(monkeypatch)
    (tmp_path / "t.pt").touch()
    arms = {"plain": {**CONTENT["arms"]["fgd"], "distil": False}}
    train_all(experiment(tmp_path, arms=arms, seeds=[0], teacher={"weights": str(tmp_path / "t.pt")}), tmp_path)
    assert len(fake.commands) == 1 and fake.commands[0][0] == "train.py"
    with pytest.raises(UserError, match="teacher weights .* does not exist"):
        train_all(experiment(tmp_path, teacher={"weights": "nowhere.pt"}), tmp_path)


def test_what_an_arm_starts_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTraining(monkeypatch)
    fgd, plain = CONTENT["arms"]["fgd"], CONTENT["arms"]["baseline"]
    arms = {
        "baseline": plain, "long": {**plain, "epochs": 12}, "inherited": {**plain, "init": "inherit"},
        "random": {**fgd, "distil": False, "init": "inherit", "importance": "random"},
        "distilled": fgd, "scratch": {**fgd, "init": "scratch"},
    }  # fmt: skip
    runs = train_all(experiment(tmp_path, arms=arms, seeds=[0]), tmp_path)
    words = {run.role: " ".join(command) for run, command in zip(runs, fake.commands)}
    inheriting = {role for role, line in words.items() if f" --inherit {runs[0].weights} " in line}
    assert inheriting == {"inherited", "random"} and words["random"].startswith("train.py")
    assert "--inherit-importance random" in words["random"]
    assert {role for role, line in words.items() if " --epochs 12 " in line} == {"long"}
    given = {role: line.partition("--init ")[2].split(" ")[0] for role, line in words.items() if "--init " in line}
    assert given == {"distilled": "auto", "scratch": "scratch"}


def test_auto_is_one_number_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTraining(monkeypatch)
    data = render_dataset(tmp_path / "set", num_train=40, num_val=2, num_test=2, img_size=64, seed=0)
    baseline, fgd = CONTENT["arms"]["baseline"], CONTENT["arms"]["fgd"]
    arms = {"baseline": {**baseline, "epochs": 40}, "fgd": fgd, "own": {**baseline, "changes": {"nbs": 32}}}
    changes: dict[str, Any] = {"lr0": 0.02}
    train_all(experiment(tmp_path, arms=arms, changes=changes, data=str(data), batch_size=16, epochs=10), tmp_path)
    numbers = {path.stem: read_hyp(path) for path in (tmp_path / "hyp").glob("*.yaml")}
    # 3 batches an epoch, a step after each: 30 steps, a fifth of which are 6
    assert {name: (hyp.nbs, hyp.ema_ramp) for name, hyp in numbers.items()} == {
        "teacher": (16, 6), "baseline": (16, 6), "fgd": (16, 6), "own": (32, 6)
    }  # fmt: skip


def test_a_finished_training_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTraining(monkeypatch)
    hyp = tmp_path / "a.yaml"
    hyp.write_text("lr0: 0.1")
    words = ["train.py", "--hyp", str(hyp)]
    tried = experiment(tmp_path)
    best = train_one(tried, tmp_path, Training("arm", tuple(words)))
    assert train_one(tried, tmp_path, Training("arm", tuple(words))) == best == tmp_path / "arm/weights/best.pt"
    train_one(experiment(tmp_path, workers=5, device="cpu"), tmp_path, Training("arm", tuple(words)))
    assert len(fake.commands) == 1, "where it is trained makes no other training of it"
    for other, changed in ((words, "lr0: 0.2"), ([*words, "--rect"], "lr0: 0.1")):
        hyp.write_text(changed)
        with pytest.raises(UserError, match="trained in another way; remove that folder, or use another --name"):
            train_one(tried, tmp_path, Training("arm", tuple(other)))


@pytest.mark.parametrize("state", ["interrupted", "evaluating"])
def test_an_interrupted_training_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    failing = FakeTraining(monkeypatch, code=1)
    words, tried = ["train.py", "--epochs", "3"], experiment(tmp_path)
    with pytest.raises(UserError, match="the training of arm failed"):
        train_one(tried, tmp_path, Training("arm", tuple(words)))
    assert not (tmp_path / "arm/done.json").exists() and "--exist-ok" in failing.commands[0]
    fake = FakeTraining(monkeypatch)
    fake.state = state
    train_one(tried, tmp_path, Training("arm", tuple(words)))
    assert fake.commands == [["train.py", "--resume", str(tmp_path / "arm/weights/last.pt")]]


def test_a_training_that_ended_unnoticed_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTraining(monkeypatch, code=-9)
    words, tried = ["train.py", "--epochs", "3"], experiment(tmp_path)
    with pytest.raises(UserError, match="was killed, most likely because the memory is full; the same command goes on"):
        train_one(tried, tmp_path, Training("arm", tuple(words)))
    best = tmp_path / "arm/weights/best.pt"
    best.write_bytes(b"best")
    fake = FakeTraining(monkeypatch)
    fake.state = "finished"
    assert train_one(tried, tmp_path, Training("arm", tuple(words))) == best
    assert not fake.commands and (tmp_path / "arm/done.json").exists()


@pytest.mark.parametrize("state", ["interrupted", "evaluating", "finished"])
def test_another_training_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    FakeTraining(monkeypatch, code=1)
    tried = experiment(tmp_path)
    with pytest.raises(UserError):
        train_one(tried, tmp_path, Training("arm", ("train.py", "--epochs", "3")))
    last = tmp_path / "arm/weights/last.pt"
    fake = FakeTraining(monkeypatch)
    fake.state = state
    monkeypatch.setattr(compare, "run_child", lambda *given: fake(*given) if not last.exists() else 99)
    train_one(tried, tmp_path, Training("arm", ("train.py", "--epochs", "4")))
    assert "--resume" not in fake.commands[0], "a last.pt of other options must not be there to be resumed later"


def test_a_damaged_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTraining(monkeypatch, code=1)
    with pytest.raises(UserError, match="failed"):
        train_one(experiment(tmp_path), tmp_path, Training("arm", ("train.py",)))
    for content in ("{", "[]", "\xff"):
        (tmp_path / "arm/started.json").write_text(content, encoding="latin-1")
        with pytest.raises(UserError, match=r"started.json' is damaged.*remove it"):
            train_one(experiment(tmp_path), tmp_path, Training("arm", ("train.py",)))
