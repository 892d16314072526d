"""Mutations of what a checkpoint holds: its values, and the attributes and tensors of pickled modules."""

from __future__ import annotations

import io
import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from checkpoints.pickled.rebuild import StandIn
from checkpoints.pickled.unpickle import unpickle
from checkpoints.upstream.pickle import StandInPickle
from fuzz.scalars import mutate_holder
from utils.errors import UserError


def mutate_content(data: bytes, rng: random.Random) -> bytes | None:
    """The checkpoint with one value, attribute or tensor changed; None where it cannot be read or written again."""
    with tempfile.NamedTemporaryFile(suffix=".pt") as stream:
        stream.write(data)
        stream.flush()
        try:
            content = unpickle(Path(stream.name)).content
        except UserError:
            return None
    for _ in range(rng.choice((1, 1, 2))):
        _change(content, rng)
    written = io.BytesIO()
    try:
        torch.save(content, written, pickle_module=StandInPickle)
    except Exception:  # a value that cannot be pickled, or a text that cannot be encoded
        return None
    return written.getvalue()


def _change(content: Any, rng: random.Random) -> None:
    """Changes one place in nested values, in place."""
    holders: list[Any] = []
    stack, met = [content], set[int]()
    while stack and len(holders) < 5000:
        one = stack.pop()
        one = one.attributes if isinstance(one, StandIn) else one
        if not isinstance(one, dict | list) or not one or id(one) in met:
            continue
        met.add(id(one))
        holders.append(one)
        stack += one.values() if isinstance(one, dict) else one
    if not holders:
        return
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    tensors = [key for key in keys if isinstance(holder[key], torch.Tensor)]
    if tensors and rng.random() < 0.7:
        key = rng.choice(tensors)
        holder[key] = _changed_tensor(holder[key], rng)
    else:
        mutate_holder(holder, rng)


def _changed_tensor(tensor: torch.Tensor, rng: random.Random) -> Any:
    kind = rng.randrange(9)
    if kind == 0:
        return tensor.to(rng.choice((torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8)))
    if kind == 1:
        return tensor.flatten()
    if kind == 2:
        return tensor[..., None]
    if kind == 3 and tensor.dim():
        return tensor[: rng.randrange(len(tensor) + 1)]
    if kind == 4 and tensor.dim():
        return torch.cat([tensor, tensor])
    if kind == 5 and tensor.is_floating_point() and tensor.numel():
        changed = tensor.clone(memory_format=torch.contiguous_format)
        changed.view(-1)[rng.randrange(tensor.numel())] = rng.choice((float("nan"), float("inf"), 3e38, -3e38, 0.0))
        return changed
    if kind == 6:
        return tensor.t() if tensor.dim() == 2 else tensor.new_empty(0)
    if kind == 7:
        return tensor.flatten().tolist()
    return torch.zeros(())
