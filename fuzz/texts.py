"""Mutations of text formats: yaml, label rows, XML and JSON annotations."""

from __future__ import annotations

import copy
import json
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import yaml

from fuzz.scalars import TEXTS, flipped_bytes, mutate_value, odd_value

YAML_PIECES = (
    "!!python/object/apply:os.system [true]", "!!set {a, b}", "!!omap [a: 1]", "!!binary aGk=",
    "!!timestamp 2024-99-99", "!!float x", "!!int 0b2", "!!null x", "&a [*a]", "*missing", "<<: 1", "<<: [1]",
    "? [a, b]\n: 1", "? {a: 1}\n: 1", "1:30:00", "0o17", "0x1F", "1_000", ".inf", "-.INF", ".nan", "~", "yes", "off",
    "2024-01-02", "2024-01-02 03:04:05", "---", "...", "--- {}", "%YAML 9.9", "|\n  a\n  b", ">-\n  a", "\t", "'",
    '"', "\"\\x00\"", "\"\\ud800\"", "{", "[", "[" * 2000, "{a: " * 500, "- " * 1500, "a: b: c", "=", "@a", "`a", "#",
    "\x85", "\u2028", "\ufeff", "1e3", "1.e+3",
)  # fmt: skip
NUMBER_PIECES = (
    "nan", "inf", "-inf", "1e400", "-1e400", "1e-400", "-0", "-0.0", "+.5", "1.", ".5", "0x10", "1_0", "1e5",
    "1.0005", "1.001", "1.00101", "-0.001", "-0.00101", "0.9999999999", "1e-9", "1e-45", "2", "640", "16777217",
    "1e30", "3e38", "9" * 400, "9" * 5000, "0.1.2", "0,5", "\u0661", "\u00bd", "None", "", "#", "\ud800", "1e308",
    "\x00", "0.5\x00", "99999", "2147483648", "9223372036854775808",
)  # fmt: skip
SEPARATORS = (" ", "  ", "\t", ",", ";", "\u00a0", "\u3000", "\x0b", "\x1f")
LINE_ENDS = ("\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\x1c", "")
XML_PIECES = (
    "<!DOCTYPE a [<!ENTITY e 'ee'>]>", "<!DOCTYPE a SYSTEM 'file:///etc/hostname'>", "&e;", "&#0;", "&#x110000;",
    "<![CDATA[ 1 ]]>", "<!-- -->", "<?xml version='1.0' encoding='utf-7'?>", "<?xml version='1.0' encoding='none'?>",
    "<a xmlns='b'>", "</object>", "<object>", "<bndbox/>", "<a:b/>", "]]>", "<a " + "b='c' " * 50 + "/>",
    "<a>" * 2000,
)  # fmt: skip
# The compiled forms, where there are such: a mutation shall not take longer than the reader.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
ENCODINGS = ("utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-7")


def _encoded(text: str, rng: random.Random | None = None) -> bytes:
    encoding = "utf-8" if rng is None or rng.random() < 0.97 else rng.choice(ENCODINGS)
    return text.encode(encoding, "surrogatepass" if encoding == "utf-8" else "replace")


# -- yaml --------------------------------------------------------------------------------------------------------------


def mutate_yaml(data: bytes, rng: random.Random) -> bytes:
    """A yaml whose values, or whose text, were changed; its first line, which says what kind it is, stays."""
    kind, _, body = data.partition(b"\n")
    try:
        content = yaml.load(body.decode("utf-8"), LOADER)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError):
        content = None
    if content is None or rng.random() < 0.3:
        return kind + b"\n" + _mutated_text(body, YAML_PIECES, rng)
    try:
        for _ in range(rng.choice((1, 1, 2))):
            content = mutate_value(content, rng)
        text = yaml.safe_dump(
            content, allow_unicode=True, sort_keys=False, default_flow_style=rng.choice((None, False))
        )
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):  # a value that has no yaml form
        return kind + b"\n" + flipped_bytes(body, rng)
    return kind + b"\n" + _encoded(text)


def _mutated_text(body: bytes, pieces: tuple[str, ...], rng: random.Random) -> bytes:
    """Text with a line or a value changed, repeated, moved, or replaced by one of `pieces`."""
    lines = body.decode("utf-8", "replace").split("\n")
    place, piece = rng.randrange(len(lines)), rng.choice(pieces)
    line = lines[place]
    kind = rng.randrange(8)
    if kind == 0:
        lines.insert(place, piece)
    elif kind == 1:
        key, separator, _ = line.partition(": ")
        lines[place] = f"{key}{separator}{piece}" if separator else piece
    elif kind == 2:
        at = rng.randrange(len(line) + 1)
        lines[place] = line[:at] + piece + line[at:]
    elif kind == 3:
        lines[place:place] = [line] * rng.choice((1, 2, 100))
    elif kind == 4:
        del lines[place]
    elif kind == 5:
        lines[place] = rng.choice(("  ", " ", "\t", "- ", "#")) + line
    elif kind == 6:
        other = rng.randrange(len(lines))
        lines[place], lines[other] = lines[other], line
    else:
        at = rng.randrange(len(line) + 1)
        lines[place] = line[:at] + rng.choice(TEXTS) + line[at + rng.randrange(4) :]
    return _encoded("\n".join(lines), rng)


# -- rows of label files -----------------------------------------------------------------------------------------------


def mutate_rows(data: bytes, rng: random.Random) -> bytes:
    """A label file of which a row, a number, a separator or a line end was changed."""
    lines = data.decode("utf-8", "replace").splitlines() or [""]
    place = rng.randrange(len(lines))
    tokens = lines[place].split() or ["0"]
    at, kind = rng.randrange(len(tokens)), rng.randrange(10)
    if kind < 3:
        tokens[at] = rng.choice(NUMBER_PIECES)
    elif kind == 3:
        tokens[at : at + rng.choice((1, 1, 2))] = []
    elif kind == 4:
        tokens[at:at] = tokens[at : at + 2] * rng.choice((1, 2, 100))
    elif kind == 5:
        tokens[at] = repr(rng.uniform(-0.002, 1.002))
    elif kind == 6:
        digits = rng.randrange(len(tokens[at]) + 1)
        tokens[at] = tokens[at][:digits] + rng.choice("0123456789.-+eE_ \x00x") + tokens[at][digits:]
    elif kind == 7:
        lines[place:place] = [lines[place]] * rng.choice((1, 3))
    elif kind == 8:
        lines.insert(place, " ".join(repr(rng.random()) for _ in range(rng.choice((4, 5, 6, 7, 8, 9)))))
    lines[place] = (rng.choice(SEPARATORS) if rng.random() < 0.1 else " ").join(tokens)
    end = rng.choice(LINE_ENDS) if rng.random() < 0.15 else "\n"
    return _encoded(end.join(lines) + end, rng)


# -- annotations -------------------------------------------------------------------------------------------------------


def mutate_annotations(data: bytes, rng: random.Random) -> bytes:
    """A COCO or VOC annotation file with a part changed."""
    return _mutate_xml(data, rng) if data.lstrip()[:1] == b"<" else _mutate_json(data, rng)


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return _mutated_text(data, (*NUMBER_PIECES, "NaN", "Infinity", "[" * 3000, '{"a":' * 2000, "null"), rng)
    for _ in range(rng.choice((1, 1, 2))):
        content = mutate_value(content, rng)
    try:
        text = json.dumps(content, ensure_ascii=rng.random() < 0.5, default=str)
    except (ValueError, TypeError, RecursionError):
        return flipped_bytes(data, rng)
    return _encoded(text, rng)


def _mutate_xml(data: bytes, rng: random.Random) -> bytes:
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError):
        root = None
    if root is None or rng.random() < 0.3:
        return _mutated_text(data, XML_PIECES, rng)
    elements = list(root.iter())
    element, other = rng.choice(elements), rng.choice(elements)
    changes: list[Callable[[], Any]] = [
        lambda: setattr(element, "text", rng.choice(NUMBER_PIECES)),
        lambda: setattr(element, "text", rng.choice(TEXTS)),
        lambda: setattr(element, "text", str(odd_value(rng, 0))),
        lambda: setattr(element, "tag", other.tag),
        lambda: setattr(element, "tag", rng.choice(("a", "object", "name", "bndbox", "xmin"))),
        lambda: element.append(copy.deepcopy(other)),
        lambda: element.extend([copy.deepcopy(other)] * 3),
        lambda: element.remove(element[0]) if len(element) else None,
        lambda: setattr(element, "tail", "9"),
        lambda: element.set("a", "b"),
    ]
    rng.choice(changes)()
    try:
        text = ElementTree.tostring(root, encoding="unicode")
    except (ValueError, TypeError, RecursionError):
        return flipped_bytes(data, rng)
    return _encoded(text, rng)
