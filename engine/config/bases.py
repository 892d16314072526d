"""Hyper-parameter files over their bases: mappings are merged key by key, anything else is replaced."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config.vocabulary import RECIPE_KEYS, translate
from utils.errors import UserError
from utils.text import printable, shown, shown_path
from utils.yaml_io import load_yaml

TEXT_KEYS = ("base", "classes")  # a file's name; classes of a teacher
LOSSES = "kd_losses"
MERGED = (LOSSES, "kd_schedule")
STRENGTHS = {"share": "weight", "weight": "share"}
"""Two ways to say how strong a loss is; over a base the one that is given replaces the other."""
LONGEST_CHAIN = 20  # of files that are based on one another
NOT_NEEDED = {"distillation.v8.yaml": "base: distillation.yaml serves every family now"}
"""Bases of earlier versions, with what to write instead."""


@dataclass(frozen=True)
class Loaded:
    """What a hyper-parameter file says.

    Attributes:
        values: with those of its bases, unchecked.
        notes: lines that tell which losses come from a base.
    """

    values: dict[str, Any]
    notes: tuple[str, ...] = ()


def load_hyp(path: str | Path) -> Loaded:
    """Reads a hyper-parameter file over the file that its key `base` names.

    `base` is relative to the file's folder, and may itself have a base. Mappings are merged key by key: `fgd: {weight:
    0.1}` keeps the base's other settings of fgd, `fgd: null` takes it out. Lists and single values are replaced.

    Raises:
        UserError: a file is missing or broken, the bases form a circle, or there is nothing to take out.
    """
    chain = _translated(_read_chain(Path(path)))
    values: dict[str, Any] = {}
    origins: dict[str, Path] = {}
    for file, layer in chain:
        _check_removals(values, layer, file)
        values = merge(values, layer)
        losses = values.get(LOSSES)
        origins = {name: origins.get(name, file) for name in losses} if isinstance(losses, Mapping) else {}
    own = chain[-1][1].get(LOSSES)
    own = own if isinstance(own, Mapping) else {}
    sources = {file: [name for name, of in origins.items() if of == file and name not in own] for file, _ in chain}
    notes = [f"{LOSSES} from base {shown_path(file)}: {_listed(names)}" for file, names in sources.items() if names]
    return Loaded(values, tuple(notes))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one file over those of another; neither is changed."""
    result = dict(base)
    for key, value in over.items():
        if key in MERGED and isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merge_losses(result[key], value) if key == LOSSES else _merge_mappings(result[key], value)
        else:
            result[key] = value
    return result


def _merge_losses(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    base = dict(base)
    for name, settings in over.items():
        if isinstance(settings, Mapping) and isinstance(base.get(name), Mapping):
            replaced = [other for key, other in STRENGTHS.items() if settings.get(key) is not None]
            base[name] = {key: value for key, value in base[name].items() if key not in replaced}
    return _merge_mappings(base, over)


def _merge_mappings(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        if value is None and key in result:
            del result[key]
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merge_mappings(result[key], value)
        else:
            result[key] = value
    return result


def _check_removals(base: Mapping[str, Any], layer: Mapping[str, Any], file: Path) -> None:
    """Refuses a loss that is taken out of nothing, which would else be taken for one with its defaults."""
    losses, known = layer.get(LOSSES), base.get(LOSSES)
    for name, settings in losses.items() if isinstance(losses, Mapping) else ():
        if settings is None and not (isinstance(known, Mapping) and name in known):
            remedy = f"write `{printable(name)}: {{}}` for its defaults, or leave it out"
            raise UserError(f"{shown_path(file)}: {LOSSES}: {printable(name)} is null, and no base has it; {remedy}")


def _translated(chain: Sequence[tuple[Path, dict[str, Any]]]) -> list[tuple[Path, dict[str, Any]]]:
    """The chain with the forks' keys as ours. They belong together, so the last file that has some takes all."""
    holders = [i for i, (_, layer) in enumerate(chain) if any(key in layer for key in RECIPE_KEYS)]
    if not holders:
        return list(chain)
    foreign = {key: value for _, layer in chain for key, value in layer.items() if key in RECIPE_KEYS}
    result = [(file, {k: v for k, v in layer.items() if k not in RECIPE_KEYS}) for file, layer in chain]
    file, own = result[holders[-1]]
    result[holders[-1]] = (file, translate({**own, **foreign}, str(file)))
    return result


def _read_chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files from the lowest base up to `path`, each with its own values."""
    layers: list[tuple[Path, dict[str, Any]]] = []
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        if following.resolve() in seen:
            remedy = "one file of the circle must have none"
            raise UserError(f"{printable(seen[0])}: base leads back to {shown_path(following.name)}; {remedy}")
        if len(seen) == LONGEST_CHAIN:
            raise UserError(f"{printable(seen[0])}: more than {LONGEST_CHAIN} files are based on one another")
        seen.append(following.resolve())
        values = load_yaml(following, "hyper-parameter file", TEXT_KEYS, filled=(LOSSES,))
        base = values.pop("base", None)
        layers.insert(0, (following, values))
        if base is not None and not isinstance(base, str):
            raise UserError(f"{following}: base is {shown(base)}; expected a file's name such as scratch-low.yaml")
        where, following = following, None if base is None else following.parent / base
        if following is not None and not os.path.isfile(following):
            remedy = NOT_NEEDED.get(following.name, "name a hyper-parameter file")
            raise UserError(f"{where}: base {shown_path(base)} does not exist in {where.parent}; {remedy}")
    return layers


def _listed(names: Sequence[str]) -> str:
    return printable(", ".join(names), 200)
