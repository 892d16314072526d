"""What `kd_teachers` of a recipe may say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from utils.errors import UserError
from utils.text import shown
from utils.yaml_io import check_keys

KEYS = ("share", "classes", "layers")


def check_teachers(entries: Any, where: str) -> list[dict[str, Any]]:
    """`kd_teachers` itself, or a UserError when it is no list of {share, classes, layers}."""
    example = "kd_teachers must be a list such as `- {share: 0.5, classes: [person]}`"
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise UserError(f"{where}: {example}, one entry for each teacher, found {shown(entries)}")
    for entry in entries:
        check_keys(entry, KEYS, f"{where}: kd_teachers")
        share, classes = entry.get("share", 1.0), entry.get("classes")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise UserError(f"{where}: kd_teachers: share is {shown(share)}; expected a number of at least 0")
        if classes is not None and (not classes or not isinstance(classes, list) or None in classes):
            expected = "expected a list of names, or leave it out"
            raise UserError(f"{where}: kd_teachers: classes is {shown(classes)}; {expected}")
    return [dict(entry) for entry in entries]
