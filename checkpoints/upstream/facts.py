"""What an upstream file says of itself beside its weights: for a person who asks what a file is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from checkpoints.pickled.rebuild import StandIn, printable

MAX_TEXT = 60
MAX_IMAGE_SIZE = 1 << 16
SIZE_KEYS = ("imgsz", "img_size")
OPTION_ENTRIES = ("train_args", "opt")
# Entries of a run that can be resumed; a finished run's file has them as None, or not at all.
RUN_ENTRIES = ("optimizer", "ema", "scaler", "training_results", "train_results")
YOLOV7_METRICS = ("P", "R", "mAP50", "mAP50-95")
YOLOV7_COLUMN = 8  # of its results, where these four begin


def file_facts(entries: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Date, metrics, precision, and what was taken out of a file, as text under the name of each.

    Args:
        entries: the file's top level.
        tensors: the weights as stored.
    """
    types = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point())
    date = entries.get("date")
    facts = {
        "stored as": ", ".join(name for name, _ in types.most_common()),
        "date": printable(date[:19]) if isinstance(date, str) else "",
        "metrics": ", ".join(f"{name} {value:.4g}" for name, value in _metrics(entries).items()),
        "stripped of": ", ".join(key for key in RUN_ENTRIES if key in entries and entries[key] is None),
        "kept of the run": ", ".join(key for key in RUN_ENTRIES if entries.get(key) is not None),
    }
    return {name: text for name, text in facts.items() if text}


def _metrics(entries: Mapping[str, Any]) -> dict[str, float]:
    held = entries.get("train_metrics")
    if isinstance(held, Mapping):
        return {printable(key)[:MAX_TEXT]: value for key, value in list(held.items())[:20] if isinstance(value, float)}
    results = entries.get("training_results")
    last = results[-1000:].splitlines()[-1].split() if isinstance(results, str) and results.strip() else []
    try:
        return dict(zip(YOLOV7_METRICS, map(float, last[YOLOV7_COLUMN : YOLOV7_COLUMN + len(YOLOV7_METRICS)])))
    except ValueError:
        return {}


def image_size(entries: Mapping[str, Any], hyp: Mapping[str, Any]) -> int | None:
    """The size of a training's images, from its options; None where the file does not hold it.

    Args:
        entries: the file's top level.
        hyp: what the model itself carries; ultralytics' model has the options in there.
    """
    holders: list[Any] = [*(entries.get(key) for key in OPTION_ENTRIES), hyp]
    for holder in holders:
        options = holder.attributes if isinstance(holder, StandIn) else holder
        for key in SIZE_KEYS if isinstance(options, Mapping) else ():
            value = options.get(key)
            size = max(value) if isinstance(value, list) and value and all(type(v) is int for v in value) else value
            if type(size) is int and 0 < size < MAX_IMAGE_SIZE:
                return size
    return None
