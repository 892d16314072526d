"""data.config: what a data yaml may say, and what is told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.config import DatasetConfig, ensure_dataset, load_dataset_config
from data.synthetic import CLASS_NAMES
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
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
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
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


def test_names_are_numbered_where_only_nc_is_given(folder: Path) -> None:
    assert load(folder, names=None).names == ("class0", "class1")


@pytest.mark.parametrize("name", ["bccd", "coco", "voc"])
def test_shipped_yaml_asks_for_its_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever real data sets lie: beside a copy of the yaml, in a checkout of their own."""
    (tmp_path / "data").mkdir()
    path = tmp_path / f"data/{name}.yaml"
    path.write_text((ROOT / f"data/{name}.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data.config.REPOSITORY", tmp_path)
    with pytest.raises(UserError, match=rf"datasets/{name}/images/train' do not exist"):
        load_dataset_config(path)
    for split in ("train", "val"):
        (tmp_path / f"datasets/{name}/images/{split}").mkdir(parents=True)
    config = load_dataset_config(path)
    assert config.train == (tmp_path / f"datasets/{name}/images/train",)
    assert config.nc == len(config.names) > 1


def test_shipped_synthetic_yaml_agrees_with_the_renderer() -> None:
    config = load_dataset_config(ROOT / "data/synthetic.yaml")
    assert config.names == CLASS_NAMES
    assert config.root == ROOT / "datasets/synthetic"


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
