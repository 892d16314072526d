"""Reading yaml files with errors a user can act on."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError, unknown_name
from utils.paths import existing_file, read_bounded
from utils.text import shown_path
from utils.yaml_values import YamlTextError, read_yaml

MAX_BYTES = 8 << 20
"""Of a yaml file; the longest lists of class names have some hundred kB."""
# What the files of this software are called, the flag that takes them, and keys that only such a file has.
KINDS = {
    "architecture": ("--cfg", {"backbone", "head"}),
    "data file": ("--data", {"train", "val"}),
    "hyper-parameter file": ("--hyp", {"lr0", "kd_losses"}),
    "experiment file": ("--experiment", {"arms"}),
}
# Those of UTF-32 begin with those of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def load_yaml(
    path: str | Path, what: str = "file", texts: Collection[str] = (), filled: Collection[str] = ()
) -> dict[str, Any]:
    """Reads a yaml mapping.

    Args:
        path: the file, in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        what: how the file is called in an error, such as "hyper-parameter file".
        texts: keys below which everything is text as it is written, such as `names`.
        filled: keys below which a key without a value is refused, so that `null` is written where it is meant.

    Raises:
        UserError: the file does not exist, is in another encoding, does not parse, has a key twice, does not hold a
            mapping, or is another of KINDS than `what`.
    """
    path = existing_file(path, what)
    where = f"{what} {shown_path(path)}"
    try:
        content = read_yaml(decode_text(read_bounded(path, MAX_BYTES, where), where), texts, filled)
    except YamlTextError as error:
        column = f", column {error.column}" if error.column else ""
        line = f" line {error.line}{column}" if error.line else ""
        raise UserError(f"{where}{line}: {error.reason}; correct the yaml there") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise UserError(f"{where} must hold `key: value` lines, found {found}")
    for kind, (flag, keys) in KINDS.items():
        if what in KINDS and kind != what and keys & content.keys() and not KINDS[what][1] & content.keys():
            wanted = f"name one for {KINDS[what][0]} ({what})"
            raise UserError(f"{shown_path(path)} is a file for {flag} ({kind}); {wanted}")
    return content


def decode_text(content: bytes, where: str) -> str:
    """The text of a file's bytes: UTF-8, or what a byte order mark says.

    Raises:
        UserError: another encoding; names the first line that cannot be read.
    """
    mark, encoding = next(((m, e) for m, e in BYTE_ORDER_MARKS if content.startswith(m)), (b"", "utf-8"))
    remedy = "save it as UTF-8 (in an editor: Save with encoding, UTF-8)"
    if not mark and b"\0" in content:
        raise UserError(f"{where} is not UTF-8 text, so not valid yaml (it has zero bytes, as UTF-16 has); {remedy}")
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise UserError(f"{where} begins as {encoding[:-3].upper()} and is not; {remedy}") from error
        place = error.start + len(mark)
        line = content.count(b"\n", 0, place) + 1
        raise UserError(f"{where} is not UTF-8 (line {line}: byte 0x{content[place]:02x}); {remedy}") from error


def check_keys(mapping: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises a UserError that names the nearest known key for the first key that is not known."""
    known = list(known)
    for key in mapping:
        if key not in known:
            raise unknown_name("key", key, known, where)
