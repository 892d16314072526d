"""Values that readers tend to stumble over, and mutations of bytes and of plain values."""

from __future__ import annotations

import copy
import datetime
import math
import random
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 127, 128, 255, 256, 1000, 65535, 65536, 100_000, 10**6, 2**31 - 1, 2**31, -(2**31),
    2**32, 2**40, 2**48, 2**53 + 1, 2**60, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**400, -(10**400),
    0.0, -0.0, 0.5, 1.5, -0.5, 1e-9, 1e-45, 5e-324, 1e9, 1e30, 1e38, 1e39, 1e308,
    math.inf, -math.inf, math.nan,
)  # fmt: skip
TEXTS = (
    "", " ", "0", "-1", "1.0", "1e-3", "nan", "null", "true", "auto", "a", "x" * 300, "x" * 5000, "\u00e9", "\u65e5",
    "\U0001f600", "\u202e", "a\nb", "a\tb", "\x1b[31mred", "\x00", "\ud800", "..", "../..", "/", "/dev/null", "a/b",
    "~", "~nobody/x", "%s", "{0}", "{", "nc", "anchors", "model", "nearest", "__class__", "9" * 5000, "1_000", "0x10",
    "con", "a" * 256, "\\", "*", "?", "[", "name.txt", "images/train", ".",
)  # fmt: skip
BYTES = (b"", b"\0", b"\xff", b"\r", b"\n", b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x05\x06", b"\x80\x02", b"\0" * 64)
LARGEST_INPUT = 1 << 16
"""Bytes of an input; larger ones are cut, as they would only be slower."""


def flipped_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with a few bytes changed, inserted, removed, repeated or moved."""
    content = bytearray(data[:LARGEST_INPUT]) or bytearray(b"\0")
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        place, length = rng.randrange(len(content) + 1), min(1 << rng.randrange(8), len(content))
        kind = rng.randrange(7)
        if kind == 0 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(content):
            content[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = rng.choice(BYTES) or rng.randbytes(length)
        elif kind == 4:
            content[place:place] = content[place : place + length]
        elif kind == 5:
            start = rng.randrange(len(content) + 1)
            content[place : place + length] = content[start : start + length]
        elif kind == 6:
            number = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(content)))
            content[place : place + 4] = number.to_bytes(4, rng.choice(("little", "big")))
        content = content or bytearray(b"\0")
    return bytes(content[:LARGEST_INPUT]) if rng.random() < 0.9 else bytes(content[: rng.randrange(len(content) + 1)])


def odd_value(rng: random.Random, depth: int = 2) -> Any:
    """A plain value of any kind."""
    kind = rng.randrange(9 if depth else 6)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 4:
        return rng.choice(TEXTS)
    if kind == 4:
        return rng.choice((None, True, False, b"bytes", datetime.date(2024, 1, 2), datetime.datetime(1, 1, 1)))
    if kind == 5:
        return rng.choice(([], {}, [[]], [None], {"a": 1}, {1: 2}, {None: 0}, {"": ""}))
    if kind == 6:
        return [odd_value(rng, depth - 1) for _ in range(rng.choice((1, 2, 4, 5, 20)))]
    if kind == 7:
        return {
            rng.choice((*TEXTS[:12], 0, 1, None, 2.5)): odd_value(rng, depth - 1) for _ in range(rng.randrange(1, 4))
        }
    nested: Any = odd_value(rng, 0)
    for _ in range(rng.choice((3, 30, 90))):
        nested = [nested] if rng.random() < 0.7 else {"a": nested}
    return nested


def near(value: Any, rng: random.Random) -> Any:
    """A value of the same kind, close to `value` or to a limit of its kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, float(value), str(value), 1 << 62))
    if isinstance(value, float):
        return rng.choice((value * 1.001, -value, value * 1e3, value * 1e300, math.nan, math.inf, str(value)))
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        odd = rng.choice(TEXTS)
        return rng.choice(
            (value[:place], value[place:] + value[:place], value[:place] + odd + value[place:], odd, [value])
        )
    return odd_value(rng)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A copy of a nested plain value in which one place was changed.

    A place is a value, an item of a list, or an entry of a mapping; it may be replaced, removed, repeated, moved,
    renamed or wrapped.
    """
    value = copy.deepcopy(value)
    holders: list[Any] = []
    stack = [value]
    while stack and len(holders) < 10_000:
        one = stack.pop()
        if isinstance(one, dict | list) and one:
            holders.append(one)
            stack += one.values() if isinstance(one, dict) else one
    if not holders or rng.random() < 0.02:
        return odd_value(rng)
    mutate_holder(rng.choice(holders), rng)
    if rng.random() < 0.1:  # a part of the value somewhere else in it
        source, target = rng.choice(holders), rng.choice(holders)
        if isinstance(target, list) and target:
            target[rng.randrange(len(target))] = copy.deepcopy(source)
    return value


def mutate_holder(holder: dict[Any, Any] | list[Any], rng: random.Random) -> None:
    """Changes one entry of a mapping or one item of a list, in place; it holds at least one."""
    if isinstance(holder, list):
        _mutate_list(holder, rng)
    else:
        _mutate_mapping(holder, rng)


def _mutate_list(holder: list[Any], rng: random.Random) -> None:
    place, kind = rng.randrange(len(holder)), rng.randrange(8)
    if kind < 2:
        holder[place] = near(holder[place], rng)
    elif kind == 2:
        holder[place] = odd_value(rng)
    elif kind == 3:
        del holder[place]
    elif kind == 4:
        holder[place:place] = [copy.deepcopy(holder[place])] * rng.choice((1, 2, 50))
    elif kind == 5:
        holder[place] = rng.choice(([holder[place]], {"a": holder[place]}))
    elif kind == 6:
        other = rng.randrange(len(holder))
        holder[place], holder[other] = holder[other], holder[place]
    else:
        holder.insert(place, odd_value(rng))


def _mutate_mapping(holder: dict[Any, Any], rng: random.Random) -> None:
    key, kind = rng.choice(list(holder)), rng.randrange(9)
    if kind < 3:
        holder[key] = near(holder[key], rng)
    elif kind == 3:
        holder[key] = odd_value(rng)
    elif kind == 4:
        del holder[key]
    elif kind == 5:
        holder[str(near(key, rng)) if isinstance(key, str) else odd_key(rng)] = holder.pop(key)
    elif kind == 6:
        holder[odd_key(rng)] = odd_value(rng)
    elif kind == 7:
        other = rng.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}


def odd_key(rng: random.Random) -> Any:
    """A key that a mapping may have, of any kind."""
    return rng.choice((*TEXTS, 0, 1, -1, 2.5, None, True, 1 << 70, datetime.date(2024, 1, 2)))
