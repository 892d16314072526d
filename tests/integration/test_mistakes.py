"""A user's mistakes: each is answered by one line on stderr and an exit code, and leaves nothing behind.

The command lines run in this process, by the very files that a user calls. `@` stands for the folder of `files`.
"""

from __future__ import annotations

import os
import resource
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from checkpoints.checkpoint import save_checkpoint
from models.yolo import Model
from tests.golden import ROOT
from tests.unit.data.sources.test_sources import write_image

Ask = Callable[..., str]

SHARED = ("--data", "@/tiny.yaml", "--img", 96, "--workers", 0, "--device", "cpu", "--noplots")
TRAIN = ("train.py", *SHARED, "--cfg", "@/small.yaml", "--hyp", "@/hyp.yaml", "--batch", 8, "--epochs", 1)
DISTIL = ("train_distill.py", *TRAIN[1:], "--hyp", "@/distill.yaml", "--teacher-weights", "@/whole.pt")
TEST = ("test.py", *SHARED, "--weights", "@/whole.pt")
DETECT = ("detect.py", "--weights", "@/whole.pt", "--source", "@/images/images/val", "--img", 96, "--device", "cpu")
PRUNE = ("prune.py", "prune", *SHARED, "--weights", "@/whole.pt")
COMPARE = ("compare.py", "--experiment", "@/experiment.yaml")


def write_yaml(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(path: Path, target: Path, **changes: Any) -> Path:
    """A copy of a yaml with other values; None takes a key out."""
    content = yaml.safe_load(path.read_text()) | changes
    return write_yaml(target, {key: value for key, value in content.items() if value is not None})


def write_model(path: Path, cfg: Path, nc: int) -> Path:
    """A checkpoint with the random weights of an architecture."""
    with torch.random.fork_rng():
        model = Model(cfg, nc=nc)
    entry = {
        "yaml": model.yaml, "state_dict": model.state_dict(), "names": [f"class{i}" for i in range(nc)], "nc": nc,
        "stride": model.stride.tolist(), "family": model.family,
    }  # fmt: skip
    save_checkpoint(path, {"model": entry, "epoch": 0})
    return path


@pytest.fixture(scope="session")
def files(tiny: Path) -> Path:
    """The tiny data set with its architectures and recipes, checkpoints of 12 and 2 classes, and some that are none."""
    whole = write_model(tiny / "whole.pt", tiny / "small.yaml", 12).read_bytes()
    write_model(tiny / "two.pt", tiny / "small.yaml", 2)
    anchor_free = ROOT / "cfg/yolov8/yolov8n.yaml"
    write_model(tiny / "v8.pt", changed(anchor_free, tiny / "yolov8n.yaml", scales={"n": [0.1, 0.0625, 64]}), 12)
    (tiny / "text.pt").write_text("no checkpoint at all\n")
    (tiny / "empty.pt").write_bytes(b"")
    (tiny / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tiny / "folder.pt").mkdir()
    experiment = {
        "name": "try", "data": f"{tiny}/tiny.yaml", "student": f"{tiny}/small.yaml", "device": "cpu",
        "teacher": {"weights": f"{tiny}/whole.pt"}, "arms": {"baseline": {}},
    }  # fmt: skip
    write_yaml(tiny / "experiment.yaml", experiment)
    return tiny


@pytest.fixture
def ask(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Ask]:
    """Calls a command line that must refuse; returns what stands after "error: "."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = tmp_path / "runs"

    def call(script: str, *words: object, code: int = 1, started: bool = False) -> str:
        words = words if "--project" in words else (*words, "--project", project)
        monkeypatch.setattr(sys, "argv", [script, *(str(word).replace("@", str(files)) for word in words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        said = capsys.readouterr().err
        lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
        assert len(lines) == 1 and lines[0].startswith("error: "), said
        assert end.value.code == code, lines[0]
        assert started or not project.exists(), "a refused command left a run folder behind"
        return lines[0].removeprefix("error: ")

    yield call
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*TRAIN, "--weights", "nowhere.pt"), "checkpoint 'nowhere.pt' does not exist"),
        ((*TRAIN, "--cfg", "nowhere.yaml"), "architecture 'nowhere.yaml' does not exist"),
        ((*TRAIN, "--data", "nowhere.yaml"), "data file 'nowhere.yaml' does not exist"),
        ((*TRAIN, "--hyp", "nowhere.yaml"), "hyper-parameter file 'nowhere.yaml' does not exist"),
        ((*TRAIN, "--resume", "nowhere.pt"), "checkpoint 'nowhere.pt' does not exist"),
        ((*TRAIN, "--resume", "--project", "@/folder.pt/train"), "no last.pt below"),
        ((*DISTIL, "--teacher-weights", "nowhere.pt"), "--teacher-weights 'nowhere.pt' does not exist"),
        ((*TEST, "--weights", "nowhere.pt"), "--weights 'nowhere.pt' does not exist"),
        ((*TEST, "--weights", "@/whole.pt", "nowhere.pt"), "--weights 'nowhere.pt' does not exist"),
        ((*TEST, "--data", "nowhere.yaml"), "data file 'nowhere.yaml' does not exist"),
        ((*TEST, "--annotations", "nowhere.json"), "--annotations 'nowhere.json' does not exist"),
        ((*TEST, "--task", "test", "--data", "@/no_test.yaml"), "no `test:` entry"),
        ((*DETECT, "--weights", "nowhere.pt"), "--weights 'nowhere.pt' does not exist"),
        ((*DETECT, "--source", "nowhere"), "--source: 'nowhere' does not exist"),
        ((*DETECT, "--source", "nowhere/*.jpg"), "no images or videos match 'nowhere/*.jpg'"),
        ((*DETECT, "--source", "@"), "no images or videos in the folder"),
        ((*DETECT, "--data", "nowhere.yaml"), "data file 'nowhere.yaml' does not exist"),
        ((*COMPARE, "--experiment", "nowhere.yaml"), "experiment file 'nowhere.yaml' does not exist"),
        ((*COMPARE, "--data", "nowhere.yaml"), "data file 'nowhere.yaml' does not exist"),
    ],
)
def test_no_such_file(ask: Ask, files: Path, words: Sequence[object], message: str) -> None:
    changed(files / "tiny.yaml", files / "no_test.yaml", test=None)
    assert message in ask(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*TRAIN, "--batch", 0), "--batch-size must be at least 1, got 0"),
        ((*TRAIN, "--batch", "many"), "argument --batch-size/--batch: invalid int value: 'many'"),
        ((*TRAIN, "--epochs", 0), "--epochs must be at least 1"),
        ((*TRAIN, "--img", 16), "--img-size must be at least 32 pixels, got 16"),
        ((*TRAIN, "--img", 96, 16), "--img-size must be at least 32 pixels, got 16"),
        ((*TRAIN, "--img", 96, 96, 96), "--img-size takes one or two numbers"),
        ((*TRAIN, "--workers", -1), "--workers must be at least 0"),
        ((*TRAIN, "--seed", -1), "--seed must be at least 0"),
        ((*TRAIN, "--label-smoothing", 2), "--label-smoothing must be at least 0 and less than 1"),
        ((*TRAIN, "--epoch-count", 3), "did you mean --epochs?"),
        ((*TRAIN, "--optimizer", "sgd"), "choose from"),
        ((*TRAIN, "--evolve"), "evolution is not built in"),
        ((*TRAIN, "--freeze", 99), "the model has layers 0 to 24"),
        ((*TRAIN, "--cfg", ""), "nothing to train: give --cfg"),
        ((*DISTIL, "--teacher-weights", ""), "--teacher-weights is missing"),
        ((*DISTIL, "--weights", "@/whole.pt", "--cfg", ""), "the student would be its own teacher"),
        ((*DISTIL, "--teacher-assistants", "small"), "'small': expected cfg.yaml, cfg.yaml:weights.pt or weights.pt"),
        ((*TEST, "--batch", 0), "--batch-size must be at least 1, got 0"),
        ((*TEST, "--img", 8), "--img-size must be at least 32 pixels, got 8"),
        ((*TEST, "--task", "nothing"), "invalid choice: 'nothing'"),
        ((*DETECT, "--img", 8), "at least 32 pixels"),
        ((*DETECT, "--conf-thres", 25), "--conf-thres must be from 0 to 1"),
        ((*DETECT, "--classes", 12), "--classes 12: the model has classes 0 to 11"),
        ((*TRAIN, "--seed", 10**20), "--seed must be at most 4294967295, got 100000000000000000000"),
        ((*TRAIN, "--epochs", "9" * 5000), "invalid int value: '99"),
        ((*TRAIN, "--batch", -1), "choosing it by the GPU's memory is not built in; give a number such as 16"),
        ((*TRAIN, "--workers", 10**9), "--workers must be at most 1024"),
        ((*TRAIN, "--img", 200000), "--img-size must be at most 16384 pixels, got 200000"),
        ((*TRAIN, "--freeze", -1), "--freeze must be at least 0, got -1"),
        ((*TRAIN, "--freeze", 3, -2), "--freeze must be at least 0, got -2"),
        ((*TRAIN, "--freeze", 10**12), "--freeze must be at most"),
        ((*TRAIN, "--save-period", -7), "--save-period must be at least -1, got -7"),
        ((*TRAIN, "--label-smoothing", "nan"), "--label-smoothing must be at least 0 and less than 1"),
        ((*TRAIN, "--name", "x" * 300), "is longer than 240 bytes"),
        ((*TRAIN, "--name", "../../x"), "--name '../../x' must name a folder below --project"),
        ((*TRAIN, "--name", "/tmp/x"), "must name a folder below --project"),
        ((*TRAIN, "--name", ""), "must name a folder below --project"),
        ((*TRAIN, "--name", "a\x1b[31m"), "has control characters"),
        ((*TRAIN, "--device", "cuda:"), "is not a device"),
        ((*TRAIN, "--device", "\u00b2"), "is not a device"),
        ((*DISTIL, "--teacher-img-size", 7), "--teacher-img-size must be at least 32 pixels, got 7"),
        ((*DISTIL, "--unlabeled-batch", -1), "--unlabeled-batch must be at least 0"),
        ((*TEST, "--conf-thres", "nan"), "--conf-thres must be from 0 to 1, got nan"),
        ((*TEST, "--iou-thres", 2), "--iou-thres must be from 0 to 1, got 2.0"),
        ((*TEST, "--max-det", 0), "--max-det must be at least 1"),
        ((*TEST, "--workers", 10**9), "--workers must be at most 1024"),
        ((*TEST, "--name", "../x"), "must name a folder below --project"),
        ((*DETECT, "--img", 200000), "--img-size must be at most 16384 pixels"),
        ((*DETECT, "--conf-thres", "nan"), "--conf-thres must be from 0 to 1, got nan"),
        ((*DETECT, "--classes", -5), "--classes -5: the model has classes 0 to 11"),
        ((*DETECT, "--vid-stride", 0), "--vid-stride must be at least 1, got 0"),
        ((*DETECT, "--line-thickness", 0), "--line-thickness must be at least 1, got 0"),
        ((*DETECT, "--line-thickness", 10**9), "--line-thickness must be at most"),
        ((*DETECT, "--max-det", 10**12), "--max-det must be at most"),
        ((*DETECT, "--name", "../x"), "must name a folder below --project"),
        ((*DETECT, "--source", ""), "--source is empty"),
        ((*COMPARE, "--epochs", 0), "--epochs must be at least 1, got 0"),
        ((*COMPARE, "--seeds", -1), "--seeds must be at least 0, got -1"),
        ((*COMPARE, "--name", "../x"), "must name a folder below --project"),
        ((*PRUNE, "--target", "nan"), "target is nan"),
        ((*PRUNE, "--steps", 10**9), "--steps must be at most"),
        ((*PRUNE, "--finetune-epochs", -1), "--finetune-epochs must be at least 0, got -1"),
        ((*PRUNE, "--sparsity", "inf"), "--sparsity must be at most"),
        ((*PRUNE, "--sparsity", "nan"), "--sparsity must be more than 0"),
        ((*DETECT, "--weights"), "expected at least one argument"),
        ((*COMPARE, "--seeds", "one"), "invalid int value: 'one'"),
    ],
)
def test_wrong_usage(ask: Ask, words: Sequence[object], message: str) -> None:
    answer = ask(*words, code=1 if "target" in message else 2)
    assert message in answer and answer.isprintable() and len(answer) < 700


@pytest.mark.parametrize("words", [TRAIN, DISTIL, TEST, DETECT, COMPARE], ids=lambda words: words[0])
def test_device_that_is_not_there(ask: Ask, words: Sequence[object]) -> None:
    assert "there is no GPU 99 here; use one of: " in ask(*words, "--device", 99)
    assert "is not a device; use one of: " in ask(*words, "--device", "gpu", code=2)


YAMLS = [(*TRAIN, "--data"), (*TRAIN, "--cfg"), (*TRAIN, "--hyp"), (*DETECT, "--data"), (*COMPARE, "--experiment")]


@pytest.mark.parametrize("words", YAMLS, ids=lambda words: words[-1])
def test_yaml_that_is_none(ask: Ask, tmp_path: Path, words: Sequence[object]) -> None:
    path = tmp_path / "broken.yaml"
    for content, message in (
        ("a: [1, 2\nb: 3\n", "line 2, column 2: expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", "line 2, column 1: found character '\\t'"),
        ("", "must hold `key: value` lines, found nothing"),
        ("- 1\n", "must hold `key: value` lines, found list"),
    ):
        answer = ask(*words, write_yaml(path, content))
        assert str(path) in answer and message in answer
    assert "not valid yaml" in ask(*words, "@/whole.pt")
    assert "is a folder" in ask(*words, "@/folder.pt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*TRAIN, "--cfg", "data/synthetic.yaml"), "is a file for --data (data file); name one for --cfg"),
        ((*TRAIN, "--data", "cfg/yolov5/yolov5n.yaml"), "is a file for --cfg (architecture); name one for --data"),
        ((*TRAIN, "--hyp", "data/synthetic.yaml"), "is a file for --data (data file); name one for --hyp"),
        ((*TRAIN, "--data", "hyp/scratch-low.yaml"), "is a file for --hyp (hyper-parameter file); name one for --data"),
        ((*TEST, "--data", "cfg/yolov8/yolov8n.yaml"), "is a file for --cfg (architecture); name one for --data"),
        ((*DETECT, "--data", "cfg/yolov8/yolov8n.yaml"), "is a file for --cfg (architecture); name one for --data"),
        (
            (*COMPARE, "--experiment", "hyp/distill.fgd.yaml"),
            "is a file for --hyp (hyper-parameter file); name one for",
        ),
        ((*DETECT, "--source", "@/tiny.yaml"), "neither an image nor a video"),
        ((*DETECT, "--data", "data/coco.yaml"), "has 80 names, but the model has 12 classes"),
        ((*TEST, "--weights", "@/two.pt"), "has 2 classes, but"),
        ((*TEST, "--weights", "@/whole.pt", "@/two.pt"), "they cannot vote"),
        ((*TEST, "--annotations", "@/tiny.yaml"), "annotation"),
        ((*TRAIN, "--resume", "@/whole.pt"), "this run is finished"),
        ((*TRAIN, "--cfg", "@/small.yaml", "--weights", "@/v8.pt", "--freeze", 25), "--freeze leaves nothing"),
        ((*DISTIL, "--hyp", "@/hyp.yaml"), "/hyp.yaml' has no kd_losses"),
        ((*DISTIL, "--teacher-weights", "@/two.pt"), "the student has 12 classes, the teacher 2"),
        ((*DISTIL, "--teacher-weights", "@/whole.pt", "none.pt"), "--teacher-weights 'none.pt' does not exist"),
        ((*DISTIL, "--unlabeled", "@/nowhere"), "/nowhere' does not exist; name a folder of images"),
    ],
)
def test_wrong_file(ask: Ask, words: Sequence[object], message: str) -> None:
    assert message in ask(*words, code=2 if "--freeze" in words else 1)


@pytest.mark.parametrize(
    ("flag", "source", "changes", "message"),
    [
        ("--hyp", "hyp.yaml", {"kd_loses": {}}, "unknown key 'kd_loses'; did you mean 'kd_losses'?"),
        ("--hyp", "hyp.yaml", {"lr0": "1e-3"}, "lr0 must be a number, found '1e-3'"),
        ("--hyp", "hyp.yaml", {"momentum": 1}, "momentum is 1, expected at least 0 and less than 1"),
        ("--data", "tiny.yaml", {"name": ["x"]}, "unknown key 'name'; did you mean 'names'?"),
        ("--data", "tiny.yaml", {"nc": 3}, "nc is 3, but there are 12 names"),
        ("--data", "tiny.yaml", {"names": {1: "x"}, "nc": None}, "names has no class 0"),
        ("--data", "tiny.yaml", {"train": "nowhere"}, "nowhere' do not exist; correct `train:` or `path:`"),
        ("--data", "tiny.yaml", {"val": None}, "no `val:` entry"),
        ("--data", "tiny.yaml", {"val": "data.yaml"}, "expected a folder or a .txt list"),
        ("--data", "tiny.yaml", {"synthetic": {"num_trian": 1}}, "did you mean 'num_train'?"),
        ("--cfg", "small.yaml", {"deph_multiple": 1}, "unknown key 'deph_multiple'; did you mean 'depth_multiple'?"),
        ("--cfg", "small.yaml", {"backbone": [[-1, 1, "Conf", [64, 6, 2, 2]]]}, "points forward"),
        ("--cfg", "small.yaml", {"anchors": [[1, 2], [3, 4]]}, "anchors for 2 levels, but the head reads 3"),
        ("--cfg", "small.yaml", {"activation": "__import__('os').abort()"}, "unknown activation"),
        ("--cfg", "small.yaml", {"ch": 1}, "is for images of 1 channels"),
    ],
)
def test_wrong_value_in_a_yaml(
    ask: Ask, files: Path, tmp_path: Path, flag: str, source: str, changes: dict[str, Any], message: str
) -> None:
    path = changed(files / source, tmp_path / "changed.yaml", **changes)
    answer = ask(*TRAIN, flag, path)
    assert message in answer and ("changed.yaml" in answer or "expected a folder" in answer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kd_losses": {"fdg": {"weight": 1.0}}}, "kd_losses: unknown loss 'fdg'; did you mean 'fgd'?"),
        ({"kd_losses": {"fgd": {"weigth": 1.0}}}, "kd_losses.fgd: unknown key 'weigth'; did you mean 'weight'?"),
        ({"kd_losses": {"fgd": {"temprature": 1.0}}}, "did you mean 'temperature'?"),
        ({"kd_losses": {"fgd": {"weight": "1e-3"}}}, "kd_losses.fgd: weight is '1e-3'"),
        ({"kd_losses": {"fgd": 1}}, "kd_losses.fgd is 1; expected {weight: 1.0, ...}"),
        ({"kd_losses": ["fgd"]}, "kd_losses must be a mapping"),
        ({"kd_losses": {}}, "has no kd_losses"),
        ({"kd_schedule": {"shap": "cosine"}}, "kd_schedule: unknown key 'shap'; did you mean 'shape'?"),
        ({"kd_schedule": {"shape": "cosin"}}, "kd_schedule: unknown shape 'cosin'; did you mean 'cosine'?"),
        ({"student_kd_layers": [17, 20, 99]}, "student_kd_layers[2] is 99, but the student's layers before its head"),
        ({"student_kd_layers": [17, 20, 23], "teacher_kd_layers": [17, 20, 99]}, "teacher_kd_layers[2] is 99"),
        ({"student_kd_layers": [17, 20], "teacher_kd_layers": [17, 20, 23]}, "so give both the same number"),
        ({"student_kd_layers": [17, 20], "teacher_kd_layers": [20, 17]}, "pair equal strides"),
        ({"student_kd_layers": "all"}, "student_kd_layers has 'all'; write indices such as [12, 15, 18], or auto"),
        ({"student_kd_layers": 17}, "expected a list of layers, or auto"),
        ({"kd_teachers": [{}, {}]}, "kd_teachers describes 2 teachers, --teacher-weights names 1"),
        ({"kd_teachers": [{"classes": ["arow"]}]}, "classes are chosen by name"),
        ({"kd_loss_type": "feature", "kd_losses": None}, "feature_loss_type is missing"),
        ({"kd_schedule": {"stop_epoch": "close_mosaic"}}, "but mosaics never stop"),
        ({"student_kd_layers": [], "teacher_kd_layers": []}, "FGD compares feature maps; list student_kd_layers"),
    ],
)
def test_wrong_recipe(ask: Ask, files: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in ask(*DISTIL, "--hyp", changed(files / "distill.yaml", tmp_path / "recipe.yaml", **changes))


WEIGHTS = [(*TRAIN, "--weights"), (*TRAIN, "--resume"), (*DISTIL, "--teacher-weights"), (*TEST, "--weights"),
           (*DETECT, "--weights")]  # fmt: skip


@pytest.mark.parametrize("words", WEIGHTS, ids=lambda words: f"{words[0]} {words[-1]}")
def test_checkpoint_that_is_none(ask: Ask, tmp_path: Path, words: Sequence[object]) -> None:
    for name, message in (
        ("text.pt", "is not a PyTorch checkpoint"),
        ("empty.pt", "is empty"),
        ("cut.pt", "is cut short"),
        ("folder.pt", "is a folder"),
    ):
        answer = ask(*words, f"@/{name}")
        assert name in answer and message in answer
    marker = tmp_path / "executed"

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    torch.save({"model": Malicious()}, tmp_path / "evil.pt")
    assert "it names posix.system, which no supported YOLO checkpoint contains" in ask(*words, tmp_path / "evil.pt")
    assert not marker.exists()


# Data sets


def data_set(folder: Path, rows: Sequence[str | None], **changes: Any) -> Path:
    """A data set of one image for each row of labels (None: no label file), the same for training and validation."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number, row in enumerate(rows):
        write_image(folder / "images" / f"{number}.png")
        if row is not None:
            (folder / "labels" / f"{number}.txt").write_text(row)
    content = {"path": str(folder), "train": "images", "val": "images", "names": ["cat", "dog"]}
    return write_yaml(folder / "data.yaml", content | changes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no images in"),
        ([None, None], "2 images but not one box; labels are looked for as"),
        (["", ""], "2 images but not one box"),
        (["2 0.5 0.5 0.2 0.2", "7 0.5 0.5 0.2 0.2"], "2 of 2 labels are of a class that nc = 2 does not have"),
        (["0 50 50 20 20"], "not one box"),
        (["0.5 0.5 0.2 0.2"], "not one box"),
    ],
)
def test_data_set_that_teaches_nothing(ask: Ask, tmp_path: Path, rows: Sequence[str | None], message: str) -> None:
    data = data_set(tmp_path / "set", rows)
    answer = ask(*TRAIN, "--data", data)
    assert message in answer and answer.startswith("train: ")


def test_no_boxes_to_validate_with(ask: Ask, files: Path, tmp_path: Path) -> None:
    data_set(tmp_path / "set", [None])
    data = changed(files / "tiny.yaml", tmp_path / "data.yaml", val=str(tmp_path / "set/images"))
    assert "not one box" in ask(*TRAIN, "--data", data)


def test_broken_images(ask: Ask, tmp_path: Path) -> None:
    data = data_set(tmp_path / "set", ["0 0.5 0.5 0.2 0.2"])
    (tmp_path / "set/images/0.png").write_bytes(b"no image")
    assert "none of the 1 images" in ask(*TRAIN, "--data", data)
    assert "none of the 1 images" in ask(*TEST, "--data", data)


# The disk


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_says_what_to_free(answer: str, folder: Path) -> None:
    assert "free " in answer and " space" in answer and "--project" in answer
    assert not list(folder.rglob("*.tmp")), "a half-written file was left behind"


@pytest.mark.parametrize("size", [0, 300, 20_000])
def test_full_disk_in_a_training(ask: Ask, tmp_path: Path, size: int) -> None:
    with full_disk(size):
        answer = ask(*TRAIN, started=True)
    assert_says_what_to_free(answer, tmp_path)


def test_full_disk_in_evaluation_and_detection(ask: Ask, tmp_path: Path) -> None:
    data = data_set(tmp_path / "set", ["0 0.5 0.5 0.2 0.2"])
    for words in (
        [*TEST, "--data", data, "--weights", "@/two.pt"],
        [*DETECT, "--save-csv", "--save-txt"],
        [*DETECT, "--save-csv", "--nosave"],
        [*DETECT, "--save-txt", "--nosave", "--conf", 0],
    ):
        with full_disk(0):
            answer = ask(*words, started=True)
        assert_says_what_to_free(answer, tmp_path)


@pytest.mark.parametrize("words", [TRAIN, TEST, DETECT, COMPARE], ids=lambda words: words[0])
def test_project_that_cannot_be_written(
    ask: Ask, tmp_path: Path, words: Sequence[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("kept")
    ask(*words, "--project", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, os.strerror(30), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    ask(*words)


@pytest.mark.parametrize("epochs", [1, 2])
def test_divergence(ask: Ask, files: Path, tmp_path: Path, epochs: int) -> None:
    hyp = changed(files / "hyp.yaml", tmp_path / "hyp.yaml", lr0=1e9, warmup_epochs=0, nbs=8)
    ask(*TRAIN, "--hyp", hyp, "--epochs", epochs, started=True)
