"""The data yaml: where the images of each split lie, and what the classes are called."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError
from utils.yaml_io import check_keys, load_yaml

SPLITS = ("train", "val", "test")
# `download` and `roboflow` stand in yaml files of other tools; nothing here needs them.
KNOWN_KEYS = ("path", *SPLITS, "nc", "names", "synthetic", "download", "roboflow")
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class DatasetConfig:
    """A data yaml with its paths resolved.

    Attributes:
        path: the yaml file.
        root: the folder that the entries count from.
        train: folders and .txt lists of training images, absolute.
        val: likewise for validation.
        test: likewise; () when the yaml has none.
        nc: number of classes.
        names: class names, one for each class.
        synthetic: parameters of the rendered set (data.synthetic), or None for a set of real files.
    """

    path: Path
    root: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    test: tuple[Path, ...]
    nc: int
    names: tuple[str, ...]
    synthetic: Mapping[str, Any] | None = field(default=None, compare=False)

    def split(self, name: str) -> tuple[Path, ...]:
        """The image sources of "train", "val" or "test"; a UserError when the yaml has none."""
        sources = {"train": self.train, "val": self.val, "test": self.test}[name]
        if not sources:
            raise UserError(f"data file {str(self.path)!r} has no `{name}:` entry; add one that names its images")
        return sources


def load_dataset_config(path: str | Path) -> DatasetConfig:
    """Reads a data yaml in upstream's format.

    `train`, `val` and `test` each name a folder of images, a .txt list of image paths, or a list of those. They count
    from `path:` if that is given. A relative `path:`, or an entry where there is no `path:`, is looked for below the
    yaml's own folder, then the working folder, then this repository; the first that exists is taken. A leading `../`
    that leads nowhere is ignored, as exports of Roboflow need it.

    `names` is a list, or a mapping from 0, 1, 2, ... `nc` may be left out. A `synthetic:` mapping holds the parameters
    of a data set that is rendered on first use, see `ensure_dataset`; its folders need not exist yet.

    Raises:
        UserError: the file is missing or not yaml; a key is unknown or missing; nc and names contradict each other; the
            folder of train or val does not exist (a missing test folder is an error only when it is used).
    """
    path = Path(path)
    content = load_yaml(path, "data file")
    where = f"data file {str(path)!r}"
    check_keys(content, KNOWN_KEYS, where)
    names = _class_names(content, where)
    synthetic = content.get("synthetic")
    if synthetic is not None and not isinstance(synthetic, Mapping):
        raise UserError(f"{where}: synthetic must hold `key: value` lines, found {synthetic!r}")
    root = _root(content.get("path"), path, where)
    sources = {name: _sources(name, content.get(name), root, "path" in content, where) for name in SPLITS}
    for name in ("train", "val"):
        if not sources[name]:
            raise UserError(f"{where}: no `{name}:` entry; add one that names a folder of images or a .txt list")
        for source in sources[name]:
            if synthetic is None and not source.exists():
                raise UserError(
                    f"{where}: {name} images {str(source)!r} do not exist; correct `{name}:` or `path:` there"
                )
    return DatasetConfig(path, root, **sources, nc=len(names), names=names, synthetic=synthetic)


def write_data_yaml(folder: Path, splits: Sequence[str], names: Sequence[str]) -> Path:
    """Writes data.yaml for a data set of images/<split> below `folder`; returns its path."""
    content = {"path": ".", **{split: f"images/{split}" for split in splits}, "nc": len(names), "names": list(names)}
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def ensure_dataset(config: DatasetConfig) -> DatasetConfig:
    """Renders the data set of a `synthetic:` yaml if it is not there yet, and returns `config`.

    Any other data set is left alone.
    """
    if config.synthetic is not None:
        from data.synthetic import ensure_rendered  # only such a yaml needs the renderer

        ensure_rendered(config.root, config.synthetic, str(config.path))
    return config


def _class_names(content: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names, nc = content.get("names"), content.get("nc")
    if nc is not None and (not isinstance(nc, int) or isinstance(nc, bool) or nc < 1):
        raise UserError(f"{where}: nc is {nc!r}, expected a whole number of at least 1")
    if names is None:
        if nc is None:
            raise UserError(f"{where}: no `names:`; add the list of class names")
        return tuple(f"class{i}" for i in range(nc))
    if isinstance(names, Mapping):
        if not all(isinstance(key, int) and not isinstance(key, bool) for key in names):
            raise UserError(f"{where}: names has keys that are not whole numbers; number the classes 0, 1, 2, ...")
        gap = next((i for i, key in enumerate(sorted(names)) if key != i), None)
        if gap is not None:
            raise UserError(f"{where}: names has no class {gap}; number the classes 0 to {len(names) - 1} without gaps")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise UserError(f"{where}: names is {names!r}, expected a list such as [cat, dog]")
    for i, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise UserError(f"{where}: the name of class {i} is read as {name!r}; put it in quotes")
    if nc is not None and nc != len(names):
        raise UserError(f"{where}: nc is {nc}, but there are {len(names)} names; correct one of them")
    return tuple(str(name) for name in names)


def _root(entry: Any, yaml_path: Path, where: str) -> Path:
    if entry is not None and not isinstance(entry, str):
        raise UserError(f"{where}: path is {entry!r}, expected a folder")
    if entry:
        return _first_existing(os.path.expanduser(entry), _bases(yaml_path))
    return Path(os.path.abspath(yaml_path.parent))


def _bases(yaml_path: Path) -> list[Path]:
    return [yaml_path.parent, Path.cwd(), REPOSITORY]


def _sources(name: str, entry: Any, root: Path, below_root: bool, where: str) -> tuple[Path, ...]:
    if entry is None:
        return ()
    entries = entry if isinstance(entry, list) else [entry]
    if not entries or not all(isinstance(item, str) and item for item in entries):
        raise UserError(f"{where}: {name} is {entry!r}, expected a folder of images, a .txt list, or a list of those")
    bases = [root] if below_root else [root, Path.cwd(), REPOSITORY]
    return tuple(_first_existing(os.path.expanduser(item), bases) for item in entries)


def _first_existing(entry: str, bases: list[Path]) -> Path:
    """The first of base/entry that exists, absolute; base/entry of the first base when none does."""
    spellings = [entry] + ([entry[3:]] if entry.startswith("../") else [])
    candidates = [Path(os.path.abspath(base / spelling)) for spelling in spellings for base in bases]
    return next((candidate for candidate in candidates if candidate.exists()), candidates[0])
