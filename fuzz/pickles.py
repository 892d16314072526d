"""Mutations of a pickle as a list of instructions, with arguments of the right form and the wrong value."""

from __future__ import annotations

import pickletools
import random
import struct
from collections.abc import Sequence
from typing import Any

from fuzz.scalars import NUMBERS, TEXTS

Instruction = tuple[str, Any, bytes]  # name, argument, the bytes of both

GLOBALS = (
    "torch FloatStorage", "torch HalfStorage", "torch BoolStorage", "torch LongStorage", "torch UntypedStorage",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
    "torch._tensor _rebuild_from_type_v2", "torch Size", "torch device", "torch float32", "torch float16",
    "torch.nn.modules.conv Conv2d", "models.yolo Model", "models.yolo Detect", "ultralytics.nn.tasks DetectionModel",
    "collections OrderedDict", "collections Counter", "collections defaultdict", "builtins dict", "builtins list",
    "builtins tuple", "builtins set", "builtins frozenset", "builtins complex", "builtins slice", "builtins range",
    "builtins getattr", "builtins object", "builtins eval", "os system", "copyreg _reconstructor",
    "datetime datetime", "datetime date", "_codecs encode", "pathlib PosixPath", "numpy dtype", "numpy ndarray",
    "numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar", "argparse Namespace",
    "types SimpleNamespace", "a b", "a ", " b", "models.x " + "y" * 300, "models.common Conv\x1b[0m",
)  # fmt: skip
ODD_INSTRUCTIONS = (
    b"K\x01", b"h\x00", b"h\x05", b"q\x05", b"C\x04abcd", b"B\xff\xff\xff\x7f", b"X\xff\xff\xff\xff",
    b"\x8e" + b"\xff" * 8, b"\x95" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"I" + b"9" * 5000 + b"\n", b"L1_0L\n",
    b"Fnan\n", b"S'a'\n", b"V\\ud800\n", b"ios\nsystem\n", b"\x82\x01", b"P0\n", b"p5\n", b"g5\n",
    b"\x96" + struct.pack("<Q", 4) + b"abcd", b"\x8d" + struct.pack("<Q", 1) + b"a",
)  # fmt: skip
PLAIN_CODES = b"()]}0a1beNdloqRstu.2\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94Q\x97\x98"
INTEGER_CODES = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG")
TEXT_CODES = ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINUNICODE8")
MEMO_CODES = {"BINGET": b"j", "LONG_BINGET": b"j", "BINPUT": b"r", "LONG_BINPUT": b"r"}
INTEGERS = tuple(value for value in NUMBERS if isinstance(value, int))
FLOATS = tuple(value for value in NUMBERS if isinstance(value, float))


def split_pickle(data: bytes) -> tuple[list[Instruction], bytes]:
    """The instructions of the first pickle in `data`, and what follows it."""
    instructions: list[Instruction] = []
    previous: tuple[str, Any, int] | None = None
    try:
        for opcode, argument, place in pickletools.genops(data):
            if previous is not None:
                instructions.append((previous[0], previous[1], data[previous[2] : place]))
            previous = opcode.name, argument, place or 0
    except (ValueError, IndexError, KeyError, OverflowError):
        return instructions, data[previous[2] if previous else 0 :]
    if previous is None:
        return [], data
    end = previous[2] + 1  # of STOP, which has no argument
    instructions.append((previous[0], previous[1], data[previous[2] : end]))
    return instructions, data[end:]


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """The pickle with an instruction changed, removed, repeated, moved or put in; what follows it stays."""
    instructions, rest = split_pickle(data)
    if not instructions:
        return rng.choice((b"\x80\x02", b"")) + data
    pieces = [raw for _, _, raw in instructions]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place, kind = rng.randrange(len(pieces)), rng.randrange(10)
        if kind < 5:
            _change_argument(instructions, pieces, rng)
        elif kind == 5:
            pieces[place] = _any_instruction(rng)
        elif kind == 6:
            pieces.insert(place, _any_instruction(rng))
        elif kind == 7 and len(pieces) > 1:
            del pieces[place]
        elif kind == 8:
            pieces.insert(place, pieces[place])
        elif kind == 9:
            start = rng.randrange(len(pieces))
            pieces[place : place + rng.choice((0, 1, 5))] = pieces[start : start + rng.choice((1, 3, 10, 30))]
    return b"".join(pieces) + rest


def _change_argument(instructions: Sequence[Instruction], pieces: list[bytes], rng: random.Random) -> None:
    """Gives one instruction another argument of its kind."""
    places = [i for i, (_, argument, _) in enumerate(instructions) if argument is not None and i < len(pieces)]
    if not places:
        return
    place = rng.choice(places)
    name, argument, raw = instructions[place]
    if name in INTEGER_CODES:
        others = [other for code, other, _ in instructions if code in INTEGER_CODES][:50]
        pieces[place] = integer(rng.choice((argument + 1, argument - 1, argument * 2, -argument, *others, *INTEGERS)))
    elif name in TEXT_CODES:
        texts = [other for code, other, _ in instructions if code in TEXT_CODES]
        pieces[place] = text(rng.choice((rng.choice(TEXTS), rng.choice(texts), rng.choice(texts), argument + "x")))
    elif name == "GLOBAL":
        others = [other for code, other, _ in instructions if code == "GLOBAL"]
        pieces[place] = global_name(rng.choice((rng.choice(GLOBALS), rng.choice(others))))
    elif name in MEMO_CODES:
        index = rng.choice((rng.randrange(len(instructions)), argument + 1, max(argument - 1, 0), 0xFFFFFFFF))
        pieces[place] = MEMO_CODES[name] + struct.pack("<L", min(index, 0xFFFFFFFF))
    elif name == "BINFLOAT":
        pieces[place] = b"G" + struct.pack(">d", rng.choice(FLOATS))
    else:
        pieces[place] = raw[:-1] + bytes([rng.randrange(256)])


def _any_instruction(rng: random.Random) -> bytes:
    kind = rng.randrange(9)
    if kind < 4:
        return bytes([rng.choice(PLAIN_CODES)])
    if kind == 4:
        return integer(rng.choice(INTEGERS))
    if kind == 5:
        return text(rng.choice(TEXTS))
    if kind == 6:
        return global_name(rng.choice(GLOBALS))
    if kind == 7:
        return b"G" + struct.pack(">d", rng.choice(FLOATS))
    return rng.choice(ODD_INSTRUCTIONS)


def integer(value: int) -> bytes:
    """The instruction that pushes a whole number."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<l", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<L", len(raw)) + raw


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<L", len(raw)) + raw


def global_name(value: str) -> bytes:
    """The instruction that refers to `module name`."""
    module, _, name = value.partition(" ")
    return b"c" + f"{module}\n{name}\n".encode("utf-8", "surrogatepass")
