from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from engine.reporting.charts import Interval, Series, axis, bar_charts, interval_chart, line_chart, scatter_chart
from engine.reporting.page import (
    Cell,
    Chart,
    Charts,
    Listing,
    Page,
    Picture,
    Pictures,
    Section,
    Table,
    data_uri,
    render,
    write_page,
)
from tests.browser import Browser, browser

EVIL = "<script>alert('x')</script>"


def page() -> Page:
    """Every kind of part, with foreign text wherever there can be some."""
    rows = [[Cell(EVIL), Cell("9.0", 9.0)], [Cell("b"), Cell("10.0", 10.0)], [Cell("a"), Cell("-")]]
    series = [
        Series(EVIL, 1, [1, 2, 3], [1.0, float("nan"), 3.0], [0.5, float("nan"), 2.0], [2.0, float("nan"), 4.0]),
        Series("other", 2, [1, 2, 3], [2.0, 2.5, 2.0]),
    ]
    bars = [Interval(EVIL, 2, 1.5, (0.5, 2.5), (1.0, 2.0)), Interval("down", 7, -1.0)]
    charts = [
        Chart(line_chart(series, EVIL, EVIL, EVIL), EVIL, [(EVIL, 1), ("other", 2)]),
        Chart(scatter_chart(series[1:], EVIL, EVIL, EVIL), EVIL),
        Chart(interval_chart(bars, EVIL, EVIL), EVIL),
        *(Chart(svg, EVIL) for svg in bar_charts(bars, EVIL, EVIL)),
    ]
    picture = Picture(data_uri(np.full((40, 60, 3), 90, np.uint8)), EVIL)
    sections = [
        Section("Table", EVIL, [Table([("model", EVIL), ("AP", "points")], rows, [0, 1, None])]),
        Section(EVIL, "", [Charts(charts), Pictures([[picture, picture]])]),
        Section("Repeat", "", [Listing([(EVIL, EVIL)], folded=EVIL), Listing([("plain", "line")])]),
        Section("Empty", "", []),
    ]
    return Page(EVIL, EVIL, EVIL, "gain", [("+9.8", EVIL)], [EVIL], [EVIL], sections, EVIL)


class Reader(HTMLParser):
    """Tags, their balance, and what they would load."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_whole_and_loads_nothing() -> None:
    html = render(page())
    reader = Reader()
    reader.feed(html)
    assert not reader.open and reader.tags.count("script") == 1, "foreign text opens no element"
    assert reader.tags.count("svg") == 4 and reader.tags.count("table") == 1
    assert reader.sources and all(source.startswith("data:") for source in reader.sources)
    assert "@import" not in html and "url(" not in html
    assert "default-src 'none'" in html and "Empty" not in html


def test_foreign_text_is_shown_as_it_is() -> None:
    html = render(page())
    assert "<script>alert" not in html
    assert len(re.findall(r"&lt;script&gt;alert\(&#39;x&#39;\)&lt;/script&gt;", html)) > 15


def test_an_axis_has_round_ticks_that_hold_its_values() -> None:
    found = axis([0.13, 0.87], 0, 100)
    assert found.ticks == pytest.approx((0.0, 0.2, 0.4, 0.6, 0.8, 1.0)) and found.label(0.2) == "0.2"
    assert (found(0.0), found(1.0)) == (0, 100)
    assert axis([5.0], 0, 1).low < 5 < axis([5.0], 0, 1).high
    assert axis([], 0, 1).ticks[0] == 0 and axis([float("nan")], 0, 1).ticks[0] == 0
    assert axis([3.0, 4.0], 0, 1, with_zero=True).low == 0
    assert [axis([0, 12], 0, 1).label(v) for v in (2.5, 5.0)] == ["2.5", "5.0"]
    assert axis([0.001, 0.002], 0, 1).label(0.0012) == "0.0012"


def test_many_bars_stand_in_two_charts_of_one_scale() -> None:
    rows = [Interval(f"class {number}", 1, 30.0 - 2 * number) for number in range(10)]
    first, second = bar_charts(rows, "change", "points")
    ticks = [re.findall(r"class='tick mid'[^>]*>([^<]+)", svg) for svg in (first, second)]
    assert ticks[0] == ticks[1] and len(ticks[0]) > 2
    widths = [float(width) for svg in (first, second) for width in re.findall(r"<rect[^>]* width='([\d.]+)'", svg)]
    assert np.allclose(np.array(widths) / widths[0], np.array([row.value for row in rows]) / 30, atol=2e-3)
    assert len(bar_charts(rows[:8], "change", "points")) == 1


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, Path]]:
    folder = tmp_path_factory.mktemp("page")
    with browser(folder / "profile") as opened:
        yield opened, write_page(page(), folder / "report.html")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_in_the_browser(shown: tuple[Browser, Path], width: int, dark: bool) -> None:
    opened, path = shown
    opened.open(path, width, dark=dark)
    assert opened.run("document.documentElement.scrollWidth") <= width, "nothing sticks out to the side"
    background = opened.run("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background)[:3])) < 60) == dark
    assert not opened.complaints()
    assert opened.requests() == [path.resolve().as_uri()], "no request leaves the page"


def test_a_table_sorts_by_a_click(shown: tuple[Browser, Path]) -> None:
    opened, path = shown
    opened.open(path)
    column = "[...document.querySelectorAll('tbody td:nth-child(2)')].map((cell) => cell.textContent)"
    head = "document.querySelectorAll('th button')[{}].click()"
    assert opened.run(column) == ["9.0", "10.0", "-"]
    opened.run(head.format(1))
    assert opened.run(column) == ["10.0", "9.0", "-"], "by numbers, and what has none comes last"
    opened.run(head.format(1))
    assert opened.run(column) == ["9.0", "10.0", "-"]
    assert opened.run("document.querySelectorAll('th')[1].getAttribute('aria-sort')") == "ascending"
    opened.run(head.format(0))
    assert opened.run(column) == ["10.0", "-", "9.0"], "names by their letters"


def test_a_picture_opens_and_closes(shown: tuple[Browser, Path]) -> None:
    opened, path = shown
    opened.open(path)
    assert opened.run("document.querySelector('dialog').open") is False
    opened.run("document.querySelector('.opens').click()")
    assert opened.run("document.querySelector('dialog').open") is True
    assert opened.run("document.querySelector('dialog p').textContent") == EVIL
    assert opened.run("document.querySelector('dialog img').src.startsWith('data:image/jpeg')")
    opened.run("document.querySelector('dialog .close').click()")
    assert opened.run("document.querySelector('dialog').open") is False
    assert not opened.complaints()


def test_a_script_from_elsewhere_does_not_run(shown: tuple[Browser, Path]) -> None:
    opened, path = shown
    other = path.with_name("other.html")
    other.write_text(path.read_text().replace("</main>", "<script>window.ran = true</script></main>"))
    opened.open(other)
    assert opened.run("window.ran") is None
