"""data.config: what a data yaml may say, and what is told when it is wrong."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from data.config import DatasetConfig, load_class_names, load_dataset_config
from data.synthetic import CLASS_NAMES, ensure_dataset
from tests.golden import ROOT
from utils.errors import UserError

GOOD = {"train": "images/train", "val": "images/val", "nc": "2", "names": "[cat, dog]"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
    return tmp_path


def load(folder: Path, **changes: str | None) -> DatasetConfig:
    """The config of a good yaml with some lines changed, or left out (None)."""
    lines = {key: value for key, value in (GOOD | changes).items() if value is not None}
    path = folder / "data.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()), encoding="utf-8")
    return load_dataset_config(path)


def test_paths_count_from_the_yaml(folder: Path) -> None:
    config = load(folder)
    assert config.train == (folder / "images/train",)
    assert config.val == (folder / "images/val",)
    assert config.test == ()
    assert (config.nc, config.names) == (2, ("cat", "dog"))
    assert config.synthetic is None


def test_lists_mappings_and_several_folders(folder: Path) -> None:
    (folder / "more.txt").write_text("")
    config = load(folder, train="[images/train, more.txt]", names="{0: cat, 1: dog}", nc=None)
    assert config.train == (folder / "images/train", folder / "more.txt")
    assert config.names == ("cat", "dog")


def test_path_key_is_the_root(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    absolute = load(elsewhere, path=str(folder))
    assert absolute.root == folder and absolute.train == (folder / "images/train",)
    relative = load(elsewhere, path=f"../{folder.name}" if folder.parent == elsewhere.parent else str(folder))
    assert relative.train == (folder / "images/train",)


def test_relative_path_is_looked_for_in_the_working_folder_too(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert load(elsewhere, path="images", train="train", val="val").train == (folder / "images/train",)
    assert load(elsewhere).val == (folder / "images/val",)  # without `path:`


def test_the_yaml_folder_comes_before_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub/images/train").mkdir(parents=True)
    (folder / "sub/images/val").mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert load(folder / "sub").train == (folder / "sub/images/train",)


def test_roboflow_export_with_a_leading_parent(folder: Path) -> None:
    config = load(folder, train="../images/train", val="../images/val", roboflow="{workspace: x}")
    assert config.train == (folder / "images/train",)


def test_missing_test_folder_is_no_error_until_used(folder: Path) -> None:
    assert load(folder, test="images/test").split("test") == (folder / "images/test",)
    with pytest.raises(UserError, match=r"no `test:` entry"):
        load(folder).split("test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nc": "3"}, r"nc is 3, but there are 2 names"),
        ({"nc": "two"}, r"nc is 'two', expected a whole number"),
        ({"names": None, "nc": None}, r"no `names:`"),
        ({"names": "cat"}, r"names is 'cat', expected a list"),
        ({"names": "{0: cat, 2: dog}"}, r"names has no class 1; number the classes 0 to 1"),
        ({"names": "{a: cat, b: dog}"}, r"keys that are not whole numbers"),
        ({"names": "[cat, null]"}, r"name of class 1 is None; write a text"),
        ({"train": None}, r"no `train:` entry"),
        ({"val": "images/vall"}, r"val images '.*images/vall' do not exist"),
        ({"train": "{a: b}"}, r"train is \{'a': 'b'\}, expected a folder"),
        ({"path": "[a]"}, r"path is \['a'\]"),
        ({"trian": "x"}, r"unknown key 'trian'; did you mean 'train'\?"),
        ({"synthetic": "yes"}, r"synthetic must hold"),
    ],
)
def test_mistakes_are_named_in_one_line(folder: Path, changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(folder, **changes)
    assert "\n" not in str(caught.value)
    assert "data.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None, "nc": "1000000000000"}, "nc is 1000000000000, expected a whole number from 1 to 100000"),
        ({"nc": "-1"}, "nc is -1, expected a whole number of at least 1"),
        ({"nc": "2.0"}, "nc is 2.0, expected a whole number"),
        ({"nc": "1:30"}, "nc is '1:30', expected a whole number"),
        ({"names": "{0: cat, '0': dog}"}, "the key '0' stands in line 4 and again in line 4"),
        ({"names": "{00: cat, 1: dog}"}, "keys that are not whole numbers, such as '00'"),
        ({"names": "{cat: 0, dog: 1}"}, "keys that are not whole numbers, such as 'cat'"),
        ({"names": "[cat, [dog]]"}, r"the name of class 1 is ['dog']; write a text"),
        ({"names": "[cat, '']"}, "the name of class 1 is ''; write a text"),
        ({"names": r'[cat, "dog\e[31m"]'}, "the name of class 1 has control characters, 'dog?[31m'"),
        ({"names": f"[cat, {'x' * 300}]"}, "the name of class 1 has 300 characters; at most 250"),
        ({"train": "x" * 5000}, "do not exist; correct `train:` or `path:` there"),
        ({"train": r'"a\0b"'}, "do not exist; correct `train:` or `path:` there"),
        ({"nmes": "[a]"}, "unknown key 'nmes'; did you mean 'names'?"),
        ({"tset": "images/val"}, "unknown key 'tset'; did you mean 'test'?"),
    ],
)
def test_odd_values_are_one_line(folder: Path, changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(folder, **changes)
    assert message in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 700


def test_names_are_taken_as_they_are_written(folder: Path) -> None:
    assert load(folder, nc=None, names="[no, yes, 010, 1_0, 12:30, 2024-01-01, 1.50]").names == (
        "no", "yes", "010", "1_0", "12:30", "2024-01-01", "1.50",
    )  # fmt: skip
    assert load(folder, names="{'0': no, 1: on}").names == ("no", "on")
    assert load(folder, names="[猫 咪, a\u200cb]").names == ("猫 咪", "a\u200cb"), (
        "what scripts need is no control character"
    )
    assert load_class_names(folder / "data.yaml") == ("猫 咪", "a\u200cb")


def test_keys_of_other_tools_are_passed_over(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = {
        "license": "CC BY 4.0", "kpt_shape": "[17, 3]", "flip_idx": "[0, 2, 1]", "roboflow": "{version: 1}",
        "download": "https://a.example/b.zip", "minival": "x", "version": "1.0", "description": "y", "url": "z",
        "author": "me", "date": "2024-01-01", "tags": "[a]", "channels": "3", "name": "a data set",
    }  # fmt: skip
    assert load(folder, **others).names == ("cat", "dog")
    assert not caplog.records
    load(folder, weather="sunny", channels="1")
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2 and "not used, as unknown: 'weather'" in told[0] and "images are read with 3" in told[1]


def test_two_classes_of_one_name_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(folder, nc=None, names="[cat, dog, cat]").nc == 3
    assert "classes 0 and 2 have one name, 'cat'" in caplog.text


def test_only_the_splits_that_are_used_must_be_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"train images '.*images/elsewhere' do not exist"):
        load(folder, train="images/elsewhere")
    assert load_dataset_config(folder / "data.yaml", needs=("val",)).split("val") == (folder / "images/val",)
    with pytest.raises(UserError, match=r"no `train:` entry"):
        load(folder, train=None)
    assert load_dataset_config(folder / "data.yaml", needs=("val",)).train == ()


def test_names_are_numbered_where_only_nc_is_given(folder: Path) -> None:
    assert load(folder, names=None).names == ("class0", "class1")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped yaml files in a checkout of their own: data sets may lie in and beside the real one."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "data", checkout / "data", ignore=lambda _, names: [n for n in names if ".yaml" not in n])
    monkeypatch.chdir(checkout)
    monkeypatch.setattr("data.config.REPOSITORY", checkout)
    return checkout


@pytest.mark.parametrize("name", ["bccd", "coco", "voc"])
def test_shipped_yaml_asks_for_its_data(shipped: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"datasets/{name}/images/train' do not exist"):
        load_dataset_config(shipped / f"data/{name}.yaml")
    for split in ("train", "val"):
        (shipped / f"datasets/{name}/images/{split}").mkdir(parents=True)
    config = load_dataset_config(shipped / f"data/{name}.yaml")
    assert config.train == (shipped / f"datasets/{name}/images/train",)
    assert config.nc == len(config.names) > 1


def test_shipped_synthetic_yaml_agrees_with_the_renderer(shipped: Path) -> None:
    config = load_dataset_config(shipped / "data/synthetic.yaml")
    assert config.names == CLASS_NAMES
    assert config.root == shipped / "datasets/synthetic"


def test_synthetic_set_is_rendered_on_first_use(tmp_path: Path) -> None:
    names = "[" + ", ".join(CLASS_NAMES) + "]"
    parameters = "{num_train: 2, num_val: 1, num_test: 1, img_size: 64}"
    config = load(tmp_path, path="rendered", nc=None, names=names, test="images/test", synthetic=parameters)
    assert not config.root.exists()
    assert ensure_dataset(config) is config
    assert sorted(path.name for path in config.train[0].iterdir()) == ["000000.png", "000001.png"]


def test_unknown_synthetic_key(tmp_path: Path) -> None:
    config = load(tmp_path, path="rendered", synthetic="{image_size: 64}")
    with pytest.raises(UserError, match=r"unknown key 'image_size'; did you mean 'img_size'\?"):
        ensure_dataset(config)
