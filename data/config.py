"""The data yaml: where the images of each split lie, and what the classes are called."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError
from utils.logging import LOGGER
from utils.paths import REPOSITORY
from utils.text import printable, shown, shown_path
from utils.yaml_io import load_yaml

SPLITS = ("train", "val", "test")
KEYS = ("path", *SPLITS, "nc", "names", "synthetic")
TEXT_KEYS = ("path", *SPLITS, "names")
# What stands in the yaml files of other tools and of data set hubs, and is not needed here.
KEYS_OF_OTHERS = frozenset({
    "author", "authors", "augmentations", "channels", "citation", "colors", "contributor", "created", "dataset",
    "date", "date_created", "description", "download", "flip_idx", "homepage", "info", "kpt_names", "kpt_shape",
    "license", "licenses", "minival", "oks_sigmas", "palette", "preprocessing", "project", "roboflow", "size",
    "skeleton", "source", "splits", "stride", "stuff_names", "tags", "task", "title", "type", "updated", "url",
    "version", "yaml_file", "year",
})  # fmt: skip
SIMILAR = 0.75  # from here on an unknown key is taken for a misspelt one
MAX_CLASSES = 100_000  # as many as an architecture takes
MAX_NAME = 250  # characters of a class name; it becomes the name of a folder


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
            raise UserError(f"data file {shown_path(self.path)} has no `{name}:` entry; add one that names its images")
        return sources


def load_dataset_config(path: str | Path, needs: Sequence[str] = ("train", "val")) -> DatasetConfig:
    """Reads a data yaml in upstream's format.

    `train`, `val` and `test` each name a folder of images, a .txt list of image paths, or a list of those. They count
    from `path:` if that is given. A relative `path:`, or an entry where there is no `path:`, is looked for below the
    yaml's own folder, then the working folder, then this repository; the first that exists is taken. A leading `../`
    that leads nowhere is ignored, as exports of Roboflow need it.

    `names` is a list, or a mapping from 0, 1, 2, ...; names are taken as they are written (no, 010). `nc` may be left
    out. A `synthetic:` mapping holds the parameters of a data set that is rendered on first use, see `ensure_dataset`;
    its folders need not exist yet. Keys that other tools write are passed over, unknown ones with a warning.

    Args:
        path: the yaml file.
        needs: the splits that are going to be used; the others may be missing.

    Raises:
        UserError: the file is missing or not yaml; a key is misspelt or missing; nc and names contradict each other;
            the entry of a needed split is missing, or names what does not exist.
    """
    path = Path(path)
    content = load_yaml(path, "data file", TEXT_KEYS)
    where = f"data file {shown_path(path)}"
    _check_keys(content, where)
    names = _class_names(content, where)
    synthetic = content.get("synthetic")
    if synthetic is not None and not isinstance(synthetic, Mapping):
        raise UserError(f"{where}: synthetic must hold `key: value` lines, found {shown(synthetic)}")
    root = _root(content.get("path"), path, where)
    sources = {name: _sources(name, content.get(name), root, "path" in content, where) for name in SPLITS}
    for name in needs:
        if not sources[name]:
            raise UserError(f"{where}: no `{name}:` entry; add one that names a folder of images or a .txt list")
        for source in sources[name]:
            if synthetic is None and not os.path.exists(source):
                remedy = f"correct `{name}:` or `path:` there"
                raise UserError(f"{where}: {name} images {shown_path(source)} do not exist; {remedy}")
    return DatasetConfig(path, root, **sources, nc=len(names), names=names, synthetic=synthetic)


def load_class_names(path: str | Path) -> tuple[str, ...]:
    """The class names of a data yaml, whose images need not be there.

    Raises:
        UserError: the file is missing or not yaml, or has no usable `names`.
    """
    content = load_yaml(path, "data file", TEXT_KEYS)
    if content.get("names") is None:
        raise UserError(f"data file {shown_path(path)} has no list of names; name the data set of this model")
    return _class_names(content, f"data file {shown_path(path)}")


def write_data_yaml(folder: Path, splits: Sequence[str], names: Sequence[str]) -> Path:
    """Writes data.yaml for a data set of images/<split> below `folder`; returns its path."""
    content = {"path": ".", **{split: f"images/{split}" for split in splits}, "nc": len(names), "names": list(names)}
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _check_keys(content: Mapping[str, Any], where: str) -> None:
    """Refuses a key that looks like a misspelt one; of other unknown keys it tells."""
    title = "names" in content and isinstance(content.get("name"), str)  # of the data set
    others = {*KEYS_OF_OTHERS, "name"} if title else KEYS_OF_OTHERS
    unknown = [key for key in content if key not in KEYS and key not in others]
    for key in unknown:
        guess = difflib.get_close_matches(key[:MAX_NAME].lower(), KEYS, n=1, cutoff=SIMILAR)
        if guess:
            raise UserError(f"{where}: unknown key {shown(key)}; did you mean {guess[0]!r}?")
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        LOGGER.warning(f"{where}: not used, as unknown: {', '.join(map(shown, unknown[:5]))}{more}")
    if content.get("channels", 3) != 3:
        LOGGER.warning(f"{where}: channels is {shown(content['channels'])}, but images are read with 3")


def _class_names(content: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names, nc = content.get("names"), content.get("nc")
    if nc is not None and (not isinstance(nc, int) or isinstance(nc, bool) or not 1 <= nc <= MAX_CLASSES):
        bounds = "of at least 1" if not isinstance(nc, int) or nc < 1 else f"from 1 to {MAX_CLASSES}"
        raise UserError(f"{where}: nc is {shown(nc)}, expected a whole number {bounds}")
    if names is None:
        if nc is None:
            raise UserError(f"{where}: no `names:`; add the list of class names")
        return tuple(f"class{i}" for i in range(nc))
    if isinstance(names, Mapping):
        names = _numbered_names(names, where)
    if not isinstance(names, list) or not names:
        raise UserError(f"{where}: names is {shown(names)}, expected a list such as [cat, dog]")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{where}: there are {len(names)} names; at most {MAX_CLASSES} classes are possible")
    for i, name in enumerate(names):
        _check_name(i, name, where)
    if nc is not None and nc != len(names):
        raise UserError(f"{where}: nc is {nc}, but there are {len(names)} names; correct one of them")
    if len(set(names)) < len(names):
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        again = next(i for i, name in enumerate(names) if first[name] != i)
        LOGGER.warning(f"{where}: classes {first[names[again]]} and {again} have one name, {shown(names[again])}")
    return tuple(names)


def _numbered_names(names: Mapping[str, Any], where: str) -> list[Any]:
    """The names of a mapping from class numbers, in their order."""
    wrong = next((key for key in names if not (key.isascii() and key.isdecimal() and str(int(key[:9])) == key)), None)
    if wrong is not None:
        hint = "number the classes 0, 1, 2, ..."
        raise UserError(f"{where}: names has keys that are not whole numbers, such as {shown(wrong)}; {hint}")
    gap = next((i for i in range(len(names)) if str(i) not in names), None)
    if gap is not None:
        raise UserError(f"{where}: names has no class {gap}; number the classes 0 to {len(names) - 1} without gaps")
    return [names[str(i)] for i in range(len(names))]


def _check_name(number: int, name: Any, where: str) -> None:
    where = f"{where}: the name of class {number}"
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where} is {shown(name)}; write a text, in quotes where needed")
    if len(name) > MAX_NAME:
        raise UserError(f"{where} has {len(name)} characters; at most {MAX_NAME} are possible")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise UserError(f"{where} has control characters, {printable(name, 60)!r}; remove them")


def _root(entry: Any, yaml_path: Path, where: str) -> Path:
    if entry is not None and not isinstance(entry, str):
        raise UserError(f"{where}: path is {shown(entry)}, expected a folder")
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
        expected = "a folder of images, a .txt list, or a list of those"
        raise UserError(f"{where}: {name} is {shown(entry)}, expected {expected}")
    bases = [root] if below_root else [root, Path.cwd(), REPOSITORY]
    return tuple(_first_existing(os.path.expanduser(item), bases) for item in entries)


def _first_existing(entry: str, bases: list[Path]) -> Path:
    """The first of base/entry that exists, absolute; base/entry of the first base when none does."""
    spellings = [entry] + ([entry[3:]] if entry.startswith("../") else [])
    candidates = [Path(os.path.abspath(base / spelling)) for spelling in spellings for base in bases]
    return next((candidate for candidate in candidates if os.path.exists(candidate)), candidates[0])
