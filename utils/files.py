"""The one writer of JSON, and of pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.paths import replacing
from utils.text import shown_path

if TYPE_CHECKING:
    import numpy as np


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Writes a value as JSON, complete or not at all.

    Args:
        path: the file.
        value: of mappings, lists, tuples, texts and numbers; a number that JSON does not know (NaN, infinity) becomes
            null, a path its text.
        indent: spaces a level; None puts everything into one line.
    """
    with replacing(path) as stream:
        stream.write(json.dumps(_plain(value), indent=indent, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_image(path: Path, image: np.ndarray, settings: Sequence[int] = ()) -> None:
    """Writes a picture, complete or not at all.

    By way of memory, because OpenCV cannot open every path and does not say why.

    Args:
        path: the file; its suffix is the format.
        image: uint8 (H, W, 3) BGR.
        settings: OpenCV's, of the format.

    Raises:
        UserError: the format cannot hold such a picture.
    """
    import cv2

    try:
        encoded, data = cv2.imencode(path.suffix, image, list(settings))
    except cv2.error:
        encoded = False
    if not encoded:
        raise UserError(f"cannot write the picture {shown_path(path)}; it may be too large for its format")
    with replacing(path, "wb") as stream:
        stream.write(data.tobytes())
