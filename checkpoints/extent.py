"""How much a file's content is once nothing in it is shared: the bound on what working with it may cost."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from utils.errors import UserError

CONTAINERS = (dict, list, tuple, set, frozenset)
MAX_CONTENT = 2_000_000  # values; a pickle needs an instruction for each, unless it names one value many times


def check_extent(content: Any, file_size: int, where: str) -> None:
    """Refuses a content that is small only as long as equal parts of it are one and the same.

    A pickle may name one list or tensor a million times. Copying, converting or writing it takes the memory of each.

    Args:
        content: plain values and tensors; what is inside any other object is not looked at.
        file_size: bytes.
        where: the file, for an error.

    Raises:
        UserError: more values than any checkpoint, or more numbers in tensors than the file has bytes.
    """
    counts: dict[int, tuple[int, int]] = {}  # of values and of numbers in tensors, by the identity of a container
    entered: set[int] = set()
    stack = [content]
    while stack:
        value = stack[-1]
        inside = [item for item in _items(value) if isinstance(item, CONTAINERS)]
        pending = [item for item in inside if id(item) not in counts]
        if pending and id(value) in entered:  # one of them holds it
            raise UserError(f"{where}: its values are nested without end; it is damaged or malicious")
        entered.add(id(value))
        stack.extend(pending)
        if pending:
            continue
        stack.pop()
        values = len(_items(value)) + sum(counts[id(item)][0] for item in inside)
        elements = sum(map(_elements, _items(value))) + sum(counts[id(item)][1] for item in inside)
        if values > MAX_CONTENT:
            raise UserError(f"{where}: its values are nested without end; it is damaged or malicious")
        if elements > file_size:
            raise UserError(
                f"{where}: its tensors repeat themselves beyond the size of the file; it is damaged or malicious"
            )
        counts[id(value)] = values, elements


def _items(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, CONTAINERS) else (value,)


def _elements(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    return value.size if isinstance(value, np.ndarray) else 0
