"""A report as one file of HTML that needs nothing else: parts as plain values, and the page that they become.

Whatever a part holds is escaped by the template; only charts, which charts.py makes, are markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup

from utils.paths import replacing

TEMPLATES = Path(__file__).parent / "templates"
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, the number that it sorts by (None: by its text, after all numbers), a style."""

    text: str
    value: float | None = None
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table that sorts by a click on a column's head; a row's colour marks it as in the charts."""

    columns: Sequence[tuple[str, str]]
    """(name, what it means)."""
    rows: Sequence[Sequence[Cell]]
    colors: Sequence[int | None] = ()
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Chart:
    """A chart with its legend [(name, colour)] and a caption."""

    svg: Markup
    caption: str
    legend: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True)
class Charts:
    """Charts side by side where there is room."""

    charts: Sequence[Chart]
    kind: str = field(default="charts", init=False)


@dataclass(frozen=True)
class Picture:
    """A picture, as `data_uri` gives it, and what it shows."""

    source: str
    caption: str


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures that open on a click."""

    rows: Sequence[Sequence[Picture]]
    kind: str = field(default="pictures", init=False)


@dataclass(frozen=True)
class Listing:
    """Lines of code or of facts, each below its title."""

    lines: Sequence[tuple[str, str]]
    folded: str = ""
    """Title of the fold that they are in; empty for none."""
    kind: str = field(default="listing", init=False)


@dataclass(frozen=True)
class Section:
    """A part of the page: a title, a sentence or two, and what is shown."""

    title: str
    text: str
    parts: Sequence[Table | Charts | Pictures | Listing]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: of the page.
        subtitle: what was compared on what.
        answer: what was found, in a sentence.
        verdict: "gain", "loss", or "" for neither; colours the answer.
        figures: (number, what it is) of the most telling numbers.
        warnings: without which the answer would mislead.
        remarks: what else one should know.
        sections: the rest.
        footer: when and by what it was made.
    """

    title: str
    subtitle: str
    answer: str
    verdict: str = ""
    figures: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    remarks: Sequence[str] = ()
    sections: Sequence[Section] = ()
    footer: str = ""


def write_page(page: Page, path: Path) -> Path:
    """Writes a report as one file that loads nothing: a policy in it forbids browsers to."""
    with replacing(path) as stream:
        stream.write(render(page))
    return path


def render(page: Page) -> str:
    """A report as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html")
    sections = [section for section in page.sections if section.parts or section.text]
    return template.render(
        page=page,
        sections=sections,
        style=Markup(style),
        script=Markup(script),
        digest=digest,
    )


def data_uri(image: np.ndarray) -> str:
    """A picture, uint8 (H, W, 3) BGR, as text that a page can hold."""
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
