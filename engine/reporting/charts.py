"""Charts as inline SVG: sharp at every size, coloured by the page's style sheet, light and dark.

Colours are classes c0, c1, ... of the page; every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 24, 12, 42
ROW = 26
"""Height of a row of horizontal bars or intervals."""
MAX_LABEL = 20
"""Characters of a label beside a row."""
LABELS = 172
"""Width that they have."""
NUM_COLORS = 8


@dataclass(frozen=True)
class Series:
    """A line of a chart, with a band around it, or the points of a scatter chart.

    Attributes:
        name: in the legend.
        color: index of its colour.
        x, y: its points; a NaN breaks the line.
        low, high: the band's bounds, or those of the points' whiskers; empty for none.
        dashed: drawn so.
    """

    name: str
    color: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Interval:
    """A row of a chart: a mark at `value`, a thick line over the first range, a thin one over the second."""

    name: str
    color: int
    value: float
    first: tuple[float, float] | None = None
    second: tuple[float, float] | None = None


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to pixels, with round ticks.

    Attributes:
        low, high: of the values.
        start, end: of the pixels.
        ticks: values.
        step: between the ticks.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    step: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def label(self, value: float) -> str:
        """A tick's text, with as many digits as its step has."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        digits += abs(round(self.step, digits) - self.step) > 1e-9 * self.step  # a step of 2.5 has one more
        return f"{value + 0.0:.{digits}f}"


def axis(values: Sequence[float], start: float, end: float, with_zero: bool = False, number: int = 5) -> Axis:
    """An axis over all finite values, from round tick to round tick."""
    known = [float(v) for v in values if math.isfinite(v)] + ([0.0] if with_zero else [])
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low < 1e-12:
        low, high = low - abs(low) / 2, high + (abs(high) / 2 or 1.0)
    raw = (high - low) / number
    power = 10 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks, step)


def _tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element; attribute names have `_` for `-`, and numbers are short."""
    words = [f" {key.rstrip('_').replace('_', '-')}='{escape(_short(value))}'" for key, value in attributes.items()]
    return Markup(f"<{name}{''.join(words)}>") + Markup("").join(escape(c) for c in content) + Markup(f"</{name}>")


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def _svg(height: float, title: str, *content: Markup) -> Markup:
    box = f"0 0 {WIDTH} {height:.0f}"
    return _tag("svg", _tag("title", title), *content, class_="chart", viewBox=box, role="img", aria_label=title)


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> list[Markup]:
    """Grid, ticks and names of the axes."""
    parts = []
    for value in y.ticks:
        parts.append(_tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value)))
        parts.append(_tag("text", y.label(value), class_="tick end", x=LEFT - 6, y=y(value) + 4))
    for value in x.ticks:
        parts.append(_tag("text", x.label(value), class_="tick mid", x=x(value), y=HEIGHT - BOTTOM + 17))
    parts.append(_tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=y.start, y2=y.start))
    parts.append(_tag("text", x_label, class_="name mid", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(_tag("text", y_label, class_="name mid", transform=f"translate(12 {middle:.0f}) rotate(-90)"))
    return parts


def _axes(series: Sequence[Series], with_zero: tuple[bool, bool]) -> tuple[Axis, Axis]:
    x = axis([v for s in series for v in s.x], LEFT, WIDTH - RIGHT, with_zero[0])
    values = [v for s in series for v in (*s.y, *s.low, *s.high)]
    return x, axis(values, HEIGHT - BOTTOM, TOP, with_zero[1])


def line_chart(series: Sequence[Series], title: str, x_label: str, y_label: str) -> Markup:
    """Lines with bands."""
    x, y = _axes(series, (False, True))
    parts = _frame(x, y, x_label, y_label)
    for each in series:
        if len(each.low):
            there = [i for i, v in enumerate(each.low) if math.isfinite(v)]
            around = [(each.x[i], each.low[i]) for i in there] + [(each.x[i], each.high[i]) for i in reversed(there)]
            points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in around)
            parts.append(_tag("polygon", class_=f"band c{each.color % NUM_COLORS}", points=points))
    for each in series:
        known = [(a, b) for a, b in zip(each.x, each.y) if math.isfinite(b)]
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in known)
        dashed = " dashed" if each.dashed else ""
        parts.append(_tag("polyline", class_=f"line c{each.color % NUM_COLORS}{dashed}", points=points))
        if len(known) < 30:
            parts += [_tag("circle", class_=f"dot c{each.color % NUM_COLORS}", cx=x(a), cy=y(b), r=2) for a, b in known]
    return _svg(HEIGHT, title, *parts)


def scatter_chart(series: Sequence[Series], title: str, x_label: str, y_label: str) -> Markup:
    """Points with whiskers, joined where a series has several."""
    x, y = _axes(series, (True, False))
    parts = _frame(x, y, x_label, y_label)
    for each in series:
        name = f"c{each.color % NUM_COLORS}"
        if len(each.x) > 1:
            points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(each.x, each.y))
            parts.append(_tag("polyline", class_=f"line thin {name}", points=points))
        for a, low, high in zip(each.x, each.low, each.high):
            parts.append(_tag("line", class_=f"line {name}", x1=x(a), x2=x(a), y1=y(low), y2=y(high)))
        for a, b in zip(each.x, each.y):
            about = _tag("title", f"{each.name}: {b:.1f}, {a:.3g}")
            parts.append(_tag("circle", about, class_=f"dot big {name}", cx=x(a), cy=y(b), r=6))
    return _svg(HEIGHT, title, *parts)


def interval_chart(rows: Sequence[Interval], title: str, x_label: str) -> Markup:
    """Values with their intervals around a line at 0, one below the other."""
    left, height = LABELS, len(rows) * ROW + 52
    values = [v for row in rows for v in (row.value, *(row.first or ()), *(row.second or ()))]
    x = axis(values, left, WIDTH - 46, with_zero=True, number=4)
    parts = _row_frame(x, height, x_label)
    for number, row in enumerate(rows):
        middle = TOP + ROW * (number + 0.5)
        name = f"c{row.color % NUM_COLORS}"
        parts.append(_row_label(row.name, left, middle))
        for bounds, kind in ((row.second, "whisker"), (row.first, "range")):
            if bounds:
                parts.append(
                    _tag("line", class_=f"{kind} {name}", x1=x(bounds[0]), x2=x(bounds[1]), y1=middle, y2=middle)
                )
        parts.append(_tag("circle", class_=f"dot big {name}", cx=x(row.value), cy=middle, r=5))
        parts.append(_tag("text", f"{row.value:+.1f}", class_="tick end", x=WIDTH - 4, y=middle + 4))
    return _svg(height, title, *parts)


def bar_charts(rows: Sequence[Interval], title: str, x_label: str, most: int = 8) -> list[Markup]:
    """Bars to both sides of 0, with whiskers where there is a range; many in two charts of one scale."""
    x = axis([v for row in rows for v in (row.value, *(row.first or ()))], LABELS, WIDTH - 46, True, number=4)
    half = -(-len(rows) // 2) if len(rows) > most else len(rows)
    return [_bar_chart(part, x, title, x_label) for part in (rows[:half], rows[half:]) if part]


def _bar_chart(rows: Sequence[Interval], x: Axis, title: str, x_label: str) -> Markup:
    left, height = LABELS, len(rows) * ROW + 52
    parts = _row_frame(x, height, x_label)
    for number, row in enumerate(rows):
        middle = TOP + ROW * (number + 0.5)
        start, end = sorted((x(0), x(row.value)))
        parts.append(_row_label(row.name, left, middle))
        kind = f"bar c{row.color % NUM_COLORS}"
        parts.append(_tag("rect", class_=kind, x=start, width=max(end - start, 0.5), y=middle - 8, height=16, rx=2))
        if row.first:
            parts.append(_tag("line", class_="whisker", x1=x(row.first[0]), x2=x(row.first[1]), y1=middle, y2=middle))
        parts.append(_tag("text", f"{row.value:+.1f}", class_="tick end", x=WIDTH - 4, y=middle + 4))
    return _svg(height, title, *parts)


def _row_frame(x: Axis, height: float, x_label: str) -> list[Markup]:
    bottom = height - 40
    parts = []
    for value in x.ticks:
        kind = "axis" if abs(value) < x.step / 2 else "grid"
        parts.append(_tag("line", class_=kind, x1=x(value), x2=x(value), y1=TOP, y2=bottom))
        parts.append(_tag("text", x.label(value), class_="tick mid", x=x(value), y=bottom + 16))
    parts.append(_tag("text", x_label, class_="name mid", x=(x.start + x.end) / 2, y=height - 6))
    return parts


def _row_label(name: str, left: float, middle: float) -> Markup:
    short = name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"
    return _tag("text", short, _tag("title", name), class_="row end", x=left - 10, y=middle + 4)
