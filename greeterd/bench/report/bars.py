"""Charts of bars: the balance of workers, CPU time, rate and losses."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from greeterd.bench.analysis.stats import Figure, Summary
from greeterd.bench.report import svg
from greeterd.bench.report.axes import ceiling, marks, short
from greeterd.bench.report.sheets import Block

MOST: Final = 12
"""Cases in one drawing; more are continued in the next."""
VALUE_ROOM: Final = 52
"""Pixels kept free right of the bars, for their figures."""
BAR: Final = 12
SURE: Final = 1.96
"""Standard deviations about the mean that hold 95 % of a normal distribution."""
LABEL_ROOM: Final = 16
AXIS_ROOM: Final = 24
LABELLED: Final = 12
"""Workers up to which each bar has its figure and number."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One bar of stacked parts."""

    group: str
    name: str
    parts: tuple[float, ...]
    whole: Figure
    mark: float | None = None
    """A value to compare with, drawn as a line across the bar."""


def entries(
    shown: Sequence[Block], make: Callable[[str, str, Summary], Entry | None]
) -> list[Entry]:
    """Return the bars of the cases that have one."""
    made = (make(block.title, name, one) for block in shown for name, one in block.members)
    return [entry for entry in made if entry is not None]


@dataclass(frozen=True, slots=True)
class Design:
    """What the drawings of one chart have in common."""

    name: str
    title: str
    unit: str
    legend: tuple[tuple[str, str], ...] = ()
    form: str = ".1f"


def charts(design: Design, bars: Sequence[Entry]) -> Iterator[svg.Chart]:
    """Yield charts of lying bars; all have one scale, so that they can be compared."""
    if not bars:
        return
    top = ceiling(max(max(bar.whole.high, bar.mark or 0) for bar in bars))
    pages = math.ceil(len(bars) / MOST)
    for page in range(pages):
        some = bars[page * MOST : (page + 1) * MOST]
        title = f"{design.title} ({page + 1} of {pages})" if pages > 1 else design.title
        yield _lying(replace(design, name=f"{design.name}{page}", title=title), some, top)


def _lying(design: Design, bars: Sequence[Entry], top: float) -> svg.Chart:
    unit, form = design.unit, design.form
    scale = (svg.WIDTH - VALUE_ROOM) / top
    drawn, y = svg.keys(0, design.legend) if design.legend else ("", 0.0)
    body, group, begin = [drawn], "", y
    for bar in bars:
        if bar.group and bar.group != group:
            words, y = svg.label(y + 4, bar.group, "group")
            body.append(words)
        group = bar.group
        words, y = svg.label(y + 2, bar.name)
        body.append(words)
        x = 0.0
        for index, part in enumerate(bar.parts):
            body.append(svg.box(x, y, part * scale, BAR, f"fill{index}"))
            x += part * scale
        if bar.whole.trials > 1:
            body.append(svg.whisker(bar.whole.low * scale, bar.whole.high * scale, y + BAR / 2))
        if bar.mark is not None:
            body.append(svg.standing(bar.mark * scale, y - 2, y + BAR + 2, "mark"))
        right = max(x, bar.whole.high * scale, (bar.mark or 0) * scale)
        body.append(svg.text(right + 5, y + BAR - 2, _number(bar.whole.median, form)))
        y += BAR + 4
    axis, end = _axis(y + 2, top, scale, unit, begin)
    least = min(bars, key=lambda bar: bar.whole.median)
    most = max(bars, key=lambda bar: bar.whole.median)
    said = (
        f"Bars of {len(bars)} cases in {unit}, from {_number(least.whole.median, form)} "
        f"({_called(least)}) to {_number(most.whole.median, form)} ({_called(most)})."
    )
    names = [what for _, what in design.legend if what in {"user", "system"}]
    return svg.Chart(
        name=design.name,
        title=design.title,
        unit=unit,
        text=said,
        drawing=svg.picture(design.name, f"{design.title}, {unit}", said, end, [axis, *body]),
        head=("case", "median", "low", "high", *names),
        rows=[
            (
                _called(bar),
                *(_number(v, form) for v in (bar.whole.median, bar.whole.low, bar.whole.high)),
                *(_number(part, form) for part in bar.parts[: len(names)]),
            )
            for bar in bars
        ],
    )


def _axis(y: float, top: float, scale: float, unit: str, begin: float) -> tuple[str, float]:
    drawn = []
    for mark in marks(top):
        drawn.append(svg.stroke([(mark * scale, begin), (mark * scale, y)], "grid"))
        anchor = "start" if mark == 0 else "middle"
        drawn.append(svg.text(mark * scale, y + 12, short(mark), "small", anchor))
    drawn.append(svg.text(0, y + 26, unit, "small"))
    return "".join(drawn), y + 32


def _called(bar: Entry) -> str:
    return f"{bar.name}, {bar.group}" if bar.group else bar.name


def _number(value: float, form: str) -> str:
    return short(value) if form == "short" else f"{value:{form}}"


def balance_charts(shown: Sequence[Block]) -> Iterator[svg.Chart]:
    """Yield charts of what each worker took in a typical trial, beside the band of chance."""
    told = [
        (block.title, name, one)
        for block in shown
        for name, one in block.members
        if one.spread is not None and one.case.workers > 1 and one.case.fault == "none"
    ]
    half = MOST // 2
    pages = math.ceil(len(told) / half)
    for page in range(pages):
        some = told[page * half : (page + 1) * half]
        title = "Greetings per worker" + (f" ({page + 1} of {pages})" if pages > 1 else "")
        yield _balance(f"balance{page}", title, some)


def chance_band(workers: int, total: int) -> float:
    """Return how far from 1 chance takes 95 of 100 workers, in multiples of the fair share."""
    return SURE * math.sqrt((workers - 1) / total) if total else 0.0


def _balance(name: str, title: str, told: Sequence[tuple[str, str, Summary]]) -> svg.Chart:
    unit = "times the fair share"
    ratios = [list(one.spread.typical.ratios.values()) for _, _, one in told if one.spread]
    top = ceiling(max(1.2, *(max(some) for some in ratios)))
    drawn, y = svg.keys(0, (("fill0", "worker"), ("band", "chance, 95 of 100 workers")))
    body, height, group = [drawn], 58.0, ""
    rows: list[tuple[str, ...]] = []
    for (called, label, one), some in zip(told, ratios, strict=True):
        if called and called != group:
            words, y = svg.label(y + 4, called, "group")
            body.append(words)
        group = called
        words, y = svg.label(y + 2, label)
        body += [words, _panel(y + 12, height, some, top, sum(one.per_worker))]
        y += height + 12 + LABEL_ROOM
        where = f"{label}, {called}" if called else label
        band = chance_band(len(some), sum(one.per_worker))
        rows.append((
            where,
            " ".join(f"{ratio:.3f}" for ratio in some),
            f"{max(0.0, 1 - band):.3f} to {1 + band:.3f}",
        ))  # fmt: skip
    said = (
        f"Bars for the workers of {len(told)} cases, in the middle trial, in {unit}: "
        + "; ".join(
            f"{row[0]}: {one.spread.sentence}"
            for row, (_, _, one) in zip(rows, told, strict=True)
            if one.spread
        )
    )
    return svg.Chart(
        name=name,
        title=title,
        unit=unit,
        text=f"{said}.",
        drawing=svg.picture(name, f"{title}, {unit}", f"{said}.", y, body),
        head=("case", f"{unit}, by worker", "chance"),
        rows=rows,
    )


def _panel(y: float, height: float, ratios: Sequence[float], top: float, total: int) -> str:
    """Return the bars of one case, below y, with the band of chance over them."""
    scale, bottom = height / top, y + height
    step = (svg.WIDTH - AXIS_ROOM) / len(ratios)
    width = min(44.0, step * 0.75)
    band = chance_band(len(ratios), total)
    thick = max(1.5, 2 * band * scale)
    drawn = [
        svg.stroke([(AXIS_ROOM, bottom), (svg.WIDTH, bottom)], "axis"),
        svg.text(AXIS_ROOM - 4, bottom, "0", "small", "end"),
        svg.text(AXIS_ROOM - 4, bottom - scale + 4, "1", "small", "end"),
    ]
    for index, ratio in enumerate(ratios):
        left = AXIS_ROOM + step * index + (step - width) / 2
        drawn.append(svg.box(left, bottom - ratio * scale, width, ratio * scale, "fill0"))
        if len(ratios) <= LABELLED:
            middle = left + width / 2
            above = bottom - max(ratio, 1 + band) * scale - 3
            drawn.append(svg.text(middle, above, f"{ratio:.2f}", "small", "middle"))
            drawn.append(svg.text(middle, bottom + 11, str(index + 1), "small", "middle"))
    across = svg.WIDTH - AXIS_ROOM
    drawn.append(svg.box(AXIS_ROOM, bottom - scale - thick / 2, across, thick, "band"))
    return "".join(drawn)
