"""The first directory of a TIFF file, which is the form of EXIF data too."""

from __future__ import annotations

import struct

UPRIGHT, IN_DOUBT = 1, 0
WIDTH, HEIGHT, ORIENTATION = 0x0100, 0x0101, 0x0112
TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


def exif_orientation(exif: bytes) -> int:
    """1 to 8 as EXIF has it, 1 where it says nothing, or 0 where the data are damaged."""
    try:
        orientation = read_tiff_tags(exif).get(ORIENTATION, UPRIGHT)
    except (struct.error, KeyError):
        return IN_DOUBT
    return orientation if 1 <= orientation <= 8 else UPRIGHT


def read_tiff_tags(content: bytes) -> dict[int, int]:
    """Size and orientation, as far as they are given.

    Raises:
        KeyError: it is none.
        struct.error: it is damaged.
    """
    order = TIFF_ORDERS[bytes(content[:4])]
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    tags = {}
    for position in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, _ = struct.unpack_from(f"{order}HHI", content, position)
        if tag in (WIDTH, HEIGHT, ORIENTATION):
            (tags[tag],) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", content, position + 8)
    return tags
