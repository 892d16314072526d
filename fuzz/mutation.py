"""Mutations of bytes, of plain values, and the choice of the mutation that fits a reader's files.

A mutation takes an input and a random generator and returns another input. It keeps most of the file's structure, so
that the change reaches the code behind the first check. Whatever it cannot parse is changed as bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from fuzz.containers import mutate_cache, mutate_checkpoint
from fuzz.scalars import flipped_bytes
from fuzz.texts import mutate_annotations, mutate_rows, mutate_yaml

Mutation = Callable[[bytes, random.Random], bytes]

MUTATIONS: dict[str, Mutation] = {
    "checkpoint": mutate_checkpoint,
    "yaml": mutate_yaml,
    "labels": mutate_rows,
    "cache": mutate_cache,
    "convert": mutate_annotations,
}
BLIND_SHARE = 0.1  # of inputs that are changed as bytes, whatever they hold
MOST_STEPS = 4


def mutate(reader: str, pool: Sequence[bytes], rng: random.Random) -> bytes:
    """An input made from one of `pool` by a few mutations.

    Args:
        reader: a key of MUTATIONS.
        pool: inputs to begin with.
        rng: decides everything.
    """
    data = rng.choice(pool)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, MOST_STEPS))):
        data = mutate_once(reader, data, rng)
    return data


def mutate_once(reader: str, data: bytes, rng: random.Random) -> bytes:
    """`data` after one mutation of its format or, now and then, of its bytes."""
    if rng.random() < BLIND_SHARE:
        return flipped_bytes(data, rng)
    try:
        return MUTATIONS[reader](data, rng)
    except Exception:  # a value that its format cannot express, deep inside one of the libraries
        return flipped_bytes(data, rng)
