"""Letters for any language: a font that has them, or a way to write a text without them."""

from __future__ import annotations

import functools
import string
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from utils.text import printable

MAX_CAPTION = 80
"""Characters of a caption."""
LAST_LETTER = 0x30000
"""No font has letters beyond."""
STYLES = ("bold", "italic", "oblique", "black", "heavy", "thin", "light", "mono")
WIDE = ("noto", "cjk", "wqy", "unicode", "droid")
"""In the names of fonts for many languages."""
MAX_SPELLED = 6
"""Characters of a name that are spelled by their numbers."""


def default_font() -> Path:
    """A font with the letters of most European languages, which is always there."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def legible(text: str, number: int | None = None, limit: int = MAX_CAPTION) -> tuple[str, Path]:
    """A text that can be drawn, and the font that has all of its letters.

    Letters that no font of this system has are spelled by their numbers, so that two texts never look the same.

    Args:
        text: what is no letter becomes `?`.
        number: the index of a class, written before a name that is spelled or cut.
        limit: characters that are kept.
    """
    visible = "".join(letter for letter in text[: 2 * limit] if unicodedata.category(letter) != "Cf")
    words = printable(visible, limit)
    foreign = frozenset(letter for letter in words if not letter.isascii())
    font = _font_with(foreign) if foreign else default_font()
    if font is None:
        words = _spelled(words, {letter for letter in foreign if not _has(default_font(), letter)})
    changed = font is None or len(visible) > limit
    return words if number is None or not changed else f"{number}: {words}", font or default_font()


def _spelled(text: str, missing: set[str]) -> str:
    """The text with each run of missing letters as their numbers in Unicode: u7ea2+8272."""
    parts: list[str] = []
    run: list[str] = []
    for letter in (*text, ""):
        if letter in missing and letter:
            run.append(f"{ord(letter):x}")
            continue
        if run:
            more = "..." if len(run) > MAX_SPELLED else ""
            parts.append(f"u{'+'.join(run[:MAX_SPELLED])}{more}")
            run = []
        parts.append(letter)
    return "".join(parts)


@functools.lru_cache(maxsize=256)
def _font_with(foreign: frozenset[str]) -> Path | None:
    """The first font that has all of these letters, and those of ASCII: the default one, or one of the system's."""
    letters = "".join(foreign) + string.ascii_letters + string.digits + string.punctuation
    return next((font for font in (default_font(), *system_fonts()) if _has(font, letters)), None)


@functools.lru_cache(maxsize=1)
def system_fonts() -> tuple[Path, ...]:
    """The upright, plain fonts of this system, then the others; those for many languages first."""
    from matplotlib.font_manager import findSystemFonts

    def rank(font: Path) -> tuple[bool, bool, str]:
        name = font.name.lower()
        return any(style in name for style in STYLES), not any(word in name for word in WIDE), name

    fonts = (Path(font) for font in findSystemFonts())
    empty = ("blank", "lastresort")  # fonts that say they have every letter
    return tuple(sorted((font for font in fonts if not any(word in font.name.lower() for word in empty)), key=rank))


def _has(font: Path, letters: str) -> bool:
    """Whether a font has all of these letters."""
    known = _charset(font)
    places = [ord(letter) for letter in letters]
    return all(place < LAST_LETTER and known[place >> 3] >> (place & 7) & 1 for place in places)


@functools.cache
def _charset(font: Path) -> bytes:
    """A bit for each character, set where a font has it; none where the file is no font that can be drawn with."""
    from matplotlib.ft2font import FT2Font

    bits = np.zeros(LAST_LETTER, dtype=bool)
    try:
        face = FT2Font(str(font))
        if face.scalable:
            places = np.fromiter(face.get_charmap(), dtype=np.int64)
            bits[places[places < LAST_LETTER]] = True
    except (RuntimeError, OSError, ValueError, UnicodeError):
        pass
    return np.packbits(bits, bitorder="little").tobytes()


@functools.lru_cache(maxsize=64)
def drawing_font(font: Path, size: int) -> Any:
    """A font of a size in pixels, to draw with Pillow."""
    from PIL import ImageFont

    return ImageFont.truetype(str(font), size)
