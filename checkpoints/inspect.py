"""What is in a checkpoint file, line by line, for a person."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from checkpoints.checkpoint import Checkpoint, not_finite
from checkpoints.pickled.rebuild import StandIn, printable
from checkpoints.pickled.unpickle import Unpickled
from checkpoints.upstream.read import tensor_entries, walk
from utils.text import printable as one_line

LABEL_WIDTH = 14
LINE_WIDTH = 120
MOST_NAMES = 20
MOST_ENTRIES = 12
MOST_KEYS = 40
MOST_PAIRS = 100
WRITERS = {"own": "this software", "upstream": "upstream", "weights": "unknown, weights without an architecture"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "anchors", "anchor_grid")


def describe(checkpoint: Checkpoint) -> Iterator[str]:
    """What a checkpoint holds, a line each."""
    facts = checkpoint.facts
    names = ", ".join(map(printable, checkpoint.names[:MOST_NAMES]))
    names += f", ... ({checkpoint.nc} in all)" if checkpoint.nc > MOST_NAMES else ""
    broken = not_finite(checkpoint.state_dict)
    yield from _rows(
        {
            "file": _file(checkpoint.path),
            "written by": f"upstream, {facts['release']}" if facts else WRITERS[checkpoint.kind],
            "date": facts.get("date"),
            "family": checkpoint.family or "unknown",
            "architecture": _architecture(checkpoint),
            "weights": _weights(checkpoint),
            "not finite": f"{len(broken)} tensors hold NaN or infinite values, first {broken[0]}" if broken else None,
            "classes": f"{checkpoint.nc}: {names}" if checkpoint.nc else None,
            "strides": ", ".join(f"{stride:g}" for stride in checkpoint.stride),
            "anchors": "; ".join(" ".join(f"{v:g}" for v in level) for level in checkpoint.anchors or ()),
            "image size": checkpoint.img_size,
            "epoch": checkpoint.epoch if checkpoint.epoch >= 0 else None,
            "best fitness": None if checkpoint.best_fitness is None else f"{checkpoint.best_fitness:.4g}",
            "metrics": facts.get("metrics") or _pairs(checkpoint.extra.get("metrics")),
            "stripped of": facts.get("stripped of"),
            "kept of run": facts.get("kept of the run"),
            "training": _listed(checkpoint.training),
            "also in it": _listed([*checkpoint.extra, *checkpoint.model_extra]),
            "hyp": _pairs(checkpoint.hyp),
            "pickled": _by_module(checkpoint.classes),
        }
    )


def describe_unknown(path: Path, unpickled: Unpickled) -> Iterator[str]:
    """What can be said of a file that was read, but is no checkpoint that this software understands."""
    content = unpickled.content
    entries: Mapping[Any, Any] = content if isinstance(content, Mapping) else {"(the file)": content}
    rows: dict[str, Any] = {"file": _file(path)}
    for key, value in list(entries.items())[:MOST_ENTRIES]:
        rows[f"[{printable(key)}]"] = _kind(value, str(path))
    more = len(entries) - MOST_ENTRIES
    yield from _rows(
        {**rows, "more": f"{more} entries" if more > 0 else None, "pickled": _by_module(unpickled.classes)}
    )


def _rows(rows: Mapping[str, Any]) -> Iterator[str]:
    """`label: value` lines, long values wrapped below their beginning; nothing for an empty value."""
    width = max(LABEL_WIDTH, *(len(label) + 2 for label, value in rows.items() if value))
    for label, value in rows.items():
        if value not in (None, ""):
            yield textwrap.fill(
                f"{label + ':':{width}}{value}", LINE_WIDTH, subsequent_indent=" " * width, break_long_words=False,
                break_on_hyphens=False,
            )  # fmt: skip


def _file(path: Path) -> str:
    return f"{one_line(path)} ({path.stat().st_size / 1e6:.1f} MB)"


def _architecture(checkpoint: Checkpoint) -> str:
    yaml = checkpoint.yaml
    layers = len(yaml.get("backbone") or ()) + len(yaml.get("head") or ())
    parts = [
        Path(printable(yaml.get("yaml_file") or "")).stem,
        f"scale {printable(yaml['scale'])}" if yaml.get("scale") else "",
        f"{layers} layers" if layers else "",
        f"head {checkpoint.head}" if checkpoint.head else "",
        f"{_count_parameters(checkpoint.state_dict):,} parameters",
        f"{printable(yaml['activation'])} in every Conv" if yaml.get("activation") else "",
        "pruned" if yaml.get("channel_plan") else "",
    ]
    return ", ".join(part for part in parts if part)


def _count_parameters(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for key, tensor in tensors.items() if not key.endswith(STATISTICS))


def _weights(checkpoint: Checkpoint) -> str:
    if checkpoint.training:
        kind = "averaged (EMA), and the live ones of a run that can be resumed"
    elif checkpoint.ema is not None:
        kind = "averaged (EMA)" + (", and the live ones" if checkpoint.raw_state_dict is not None else "")
    else:
        kind = "one set"
    stored = checkpoint.facts.get("stored as")
    return f"{kind}; {len(checkpoint.state_dict)} tensors" + (f", stored as {stored}" if stored else "")


def _listed(keys: Iterable[Any]) -> str:
    """Keys in their order, each in one line, and how many more there are."""
    texts = sorted(map(printable, keys))
    more = [f"... ({len(texts)} in all)"] if len(texts) > MOST_KEYS else []
    return ", ".join([*texts[:MOST_KEYS], *more])


def _pairs(values: Any) -> str:
    """The numbers and words of a mapping; what is unset or nested says little and is left out."""
    if not isinstance(values, Mapping):
        return ""
    shown = {key: value for key, value in values.items() if isinstance(value, int | float | str) and value is not False}
    more = [f"... ({len(shown)} in all)"] if len(shown) > MOST_PAIRS else []
    return ", ".join([*(f"{printable(k)}={_short(v)}" for k, v in list(shown.items())[:MOST_PAIRS]), *more])


def _short(value: int | float | str) -> str:
    return f"{value:.5g}" if isinstance(value, float) else printable(value)


def _by_module(classes: Iterable[str]) -> str:
    """Class names behind the module that they share; of PyTorch's own only their number."""
    modules = defaultdict(list)
    for path in sorted(classes):
        module, _, name = path.rpartition(".")
        modules["torch.nn" if module.startswith("torch.nn") else module].append(name)
    named = [f"{module}: {_listed(names)}" for module, names in modules.items() if module != "torch.nn"][:MOST_KEYS]
    layers = len(modules.get("torch.nn", ()))
    return "; ".join([*named, *([f"{layers} classes of torch.nn"] if layers else [])])


def _kind(value: Any, where: str) -> str:
    """One line on any entry."""
    if isinstance(value, StandIn):
        count = sum(
            tensor.numel()
            for _, module in walk(value, where)
            for name, tensor in tensor_entries(module)
            if isinstance(tensor, torch.Tensor) and name not in STATISTICS
        )
        return f"a pickled {value.class_name}" + (f" of {count:,} parameters" if count else "")
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return f"{len(value)} values ({type(value).__name__})"
    return printable(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
