"""Draws the parts of a chart as SVG text.

Hand-made, and not by matplotlib: text stays text in the reader's own font, colours are classes that
the page's style sheet gives a value for light, dark and print, and a chart is a few kilobytes.  The
unit is a CSS pixel at the width of a phone; wider pages show the drawing larger.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Final

WIDTH: Final = 360
LINE: Final = 14
"""The height of a line of text."""
COLUMNS: Final = 50
"""Characters that fit into the width, in a wide font."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with what it says in words, and its figures."""

    name: str
    """Unique in a page; for references."""
    title: str
    unit: str
    text: str
    """What one sees, for those who do not."""
    drawing: str
    """SVG."""
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def text(x: float, y: float, content: str, classes: str = "", anchor: str = "start") -> str:
    """Return a line of text whose baseline begins, has its middle, or ends at a point."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{_class(classes)}>'
        f"{escape(content)}</text>"
    )


def box(x: float, y: float, width: float, height: float, classes: str) -> str:
    """Return a rectangle."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" '
        f'height="{max(0.0, height):.1f}"{_class(classes)}/>'
    )


def stroke(points: Sequence[tuple[float, float]], classes: str) -> str:
    """Return a line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}"{_class(classes)}/>'


def dot(x: float, y: float, classes: str) -> str:
    """Return a point."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"{_class(classes)}/>'


def whisker(x1: float, x2: float, y: float) -> str:
    """Return an interval that lies, with an end at either side."""
    lying = stroke([(x1, y), (x2, y)], "whisker")
    return lying + "".join(stroke([(x, y - 3), (x, y + 3)], "whisker") for x in (x1, x2))


def standing(x: float, y1: float, y2: float, classes: str) -> str:
    """Return an interval that stands."""
    return stroke([(x, y1), (x, y2)], classes)


def label(y: float, content: str, classes: str = "") -> tuple[str, float]:
    """Return text in as many lines as it needs below y, and where it ends."""
    lines = wrap(content, COLUMNS) or [""]
    drawn = [text(0, y + LINE * (index + 1) - 3, line, classes) for index, line in enumerate(lines)]
    return "".join(drawn), y + LINE * len(lines)


def legend(y: float, entries: Sequence[tuple[str, str]]) -> tuple[str, float]:
    """Return samples of lines (their classes) with names, one below the other."""
    drawn = []
    for classes, name in entries:
        words, end = _indented(y, name)
        drawn += [stroke([(0, y + LINE / 2 + 1), (26, y + LINE / 2 + 1)], classes), words]
        y = end
    return "".join(drawn), y


def keys(y: float, entries: Sequence[tuple[str, str]]) -> tuple[str, float]:
    """Return samples of areas (their classes) with names, side by side."""
    drawn, x = [], 0.0
    for classes, name in entries:
        if x and x + 20 + 7 * len(name) > WIDTH:
            x, y = 0.0, y + LINE
        drawn += [box(x, y + 3, 10, 10, classes), text(x + 14, y + LINE - 2, name)]
        x += 14 + 7 * len(name) + 14
    return "".join(drawn), y + LINE + 4


def picture(name: str, title: str, description: str, height: float, body: Sequence[str]) -> str:
    """Return a whole drawing, with a title and a description for those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-labelledby="{name}-t {name}-d" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>{"".join(body)}</svg>'
    )


def _indented(y: float, content: str) -> tuple[str, float]:
    lines = wrap(content, COLUMNS - 5)
    drawn = [text(32, y + LINE * (index + 1) - 3, line) for index, line in enumerate(lines)]
    return "".join(drawn), y + LINE * len(lines)


def _class(classes: str) -> str:
    return f' class="{classes}"' if classes else ""
