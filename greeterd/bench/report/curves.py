"""Charts of lines: latency by percentile, and the rate by the number of workers."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from greeterd.bench.analysis.stats import Figure, Summary
from greeterd.bench.labels import Scenario, approach, describe, scenario_of
from greeterd.bench.report import svg
from greeterd.bench.report.axes import ceiling, decades, marks, short
from greeterd.bench.report.sheets import Block, percentiles

LEFT: Final = 38.0
"""Where the plot begins, right of the marks of its axis."""
RIGHT: Final = svg.WIDTH - 14.0
TOP: Final = 8.0
BOTTOM: Final = 200.0
LINES: Final = 6
"""Lines in one drawing that can be told apart; more are continued in the next."""
PERCENTILES: Final = ((0, "0"), (90, "90"), (99, "99"), (99.9, "99.9"), (99.99, "99.99"))


def latency_charts(shown: Sequence[Block]) -> Iterator[svg.Chart]:
    """Yield curves for the cases that are asked the same, on one axis of percentiles."""
    number = 0
    for block in shown:
        told = [(name, one) for name, one in block.members if one.latency.curve]
        for start in range(0, len(told), LINES):
            where = f": {block.title}" if block.title else ""
            yield _latency(f"latency{number}", f"Latency{where}", told[start : start + LINES])
            number += 1


def _nines(percentile: float) -> float:
    """Return where a percentile stands: 0 at 0 %, 1 at 90 %, 2 at 99 % ..."""
    return -math.log10(1 - percentile / 100)


def _latency(name: str, title: str, told: Sequence[tuple[str, Summary]]) -> svg.Chart:
    curves = [
        [(p * one.latency.known / 100, max(ms, 0.001)) for p, ms in one.latency.curve if p < 100]  # noqa: PLR2004
        for _, one in told
    ]
    values = [ms for curve in curves for _, ms in curve]
    across = max(1.0, *(_nines(p) for curve in curves for p, _ in curve))
    levels = decades(min(values), max(values))
    low, high = math.log10(levels[0]), math.log10(levels[-1])

    def x_of(percentile: float) -> float:
        return LEFT + (RIGHT - LEFT) * _nines(percentile) / across

    def y_of(ms: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (math.log10(ms) - low) / (high - low)

    body = []
    for level in levels:
        body.append(svg.stroke([(LEFT, y_of(level)), (RIGHT, y_of(level))], "grid"))
        body.append(svg.text(LEFT - 4, y_of(level) + 4, short(level), "small", "end"))
    for percentile, mark in PERCENTILES:
        if _nines(percentile) <= across:
            x = x_of(percentile)
            body.append(svg.stroke([(x, TOP), (x, BOTTOM)], "grid"))
            body.append(svg.text(x, BOTTOM + 13, mark, "small", "middle"))
    for index, curve in enumerate(curves):
        body.append(svg.stroke([(x_of(p), y_of(ms)) for p, ms in curve], f"line line{index}"))
    body.append(svg.text(LEFT, BOTTOM + 27, "percentile of clients; up: milliseconds", "small"))
    keys, end = svg.legend(
        BOTTOM + 34, [(f"line line{index}", called) for index, (called, _) in enumerate(told)]
    )
    said = f"Latency in ms by percentile of {len(told)} cases. " + "; ".join(
        f"{called}: median {shown[0]}, p99 {shown[2]}"
        for called, one in told
        for shown in [percentiles(one)]
    )
    return svg.Chart(
        name=name,
        title=title,
        unit="ms, by percentile",
        text=f"{said}.",
        drawing=svg.picture(name, f"{title}, ms", f"{said}.", end + 2, [*body, keys]),
        head=("case", "p50, ms", "p90, ms", "p99, ms", "p99.9, ms", "largest, ms"),
        rows=[(called, *percentiles(one)) for called, one in told],
    )


def scaling_charts(shown: Sequence[Block]) -> Iterator[svg.Chart]:
    """Yield the rate over the number of workers, of approaches that were run with several."""
    plots: dict[Scenario, dict[str, dict[int, Figure]]] = {}
    for block in shown:
        for _, one in block.members:
            if "rate" in one.figures:
                plot = plots.setdefault(scenario_of(one.case)._replace(workers=0), {})
                line = plot.setdefault(approach(one.case), {})
                line.setdefault(one.case.workers, one.figures["rate"])
    grown = {
        scenario: {name: line for name, line in plot.items() if len(line) > 1}
        for scenario, plot in plots.items()
    }
    number = 0
    for scenario, plot in grown.items():
        names = list(plot)
        for start in range(0, len(names), LINES):
            some = {name: plot[name] for name in names[start : start + LINES]}
            what = ", ".join(p for p in describe(scenario)[1:3] if p != "no fault")
            title = f"Rate by number of workers: {what}"
            yield _scaling(f"scaling{number}", title, some)
            number += 1


def _scaling(name: str, title: str, plot: dict[str, dict[int, Figure]]) -> svg.Chart:
    counts = sorted({workers for line in plot.values() for workers in line})
    top = ceiling(max(figure.high for line in plot.values() for figure in line.values()))
    span = math.log2(counts[-1] / counts[0])

    def x_of(workers: int) -> float:
        return LEFT + 8 + (RIGHT - LEFT - 16) * math.log2(workers / counts[0]) / span

    def y_of(rate: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * rate / top

    body = []
    for mark in marks(top):
        body.append(svg.stroke([(LEFT, y_of(mark)), (RIGHT, y_of(mark))], "grid"))
        body.append(svg.text(LEFT - 4, y_of(mark) + 4, short(mark), "small", "end"))
    body += [
        svg.text(x_of(workers), BOTTOM + 13, str(workers), "small", "middle") for workers in counts
    ]
    for index, line in enumerate(plot.values()):
        points = sorted(line.items())
        where = [(x_of(workers), y_of(found.median)) for workers, found in points]
        body.append(svg.stroke(where, f"line line{index}"))
        for (x, y), (_, found) in zip(where, points, strict=True):
            body.append(svg.standing(x, y_of(found.low), y_of(found.high), f"line solid{index}"))
            body.append(svg.dot(x, y, f"dot{index}"))
    body.append(svg.text(LEFT, BOTTOM + 27, "workers; up: greetings per second", "small"))
    keys, end = svg.legend(
        BOTTOM + 34, [(f"line line{index}", called) for index, called in enumerate(plot)]
    )
    said = "Greetings per second by number of workers. " + "; ".join(
        f"{called}: "
        + ", ".join(f"{short(line[workers].median)} with {workers}" for workers in sorted(line))
        for called, line in plot.items()
    )
    return svg.Chart(
        name=name,
        title=title,
        unit="greetings/s",
        text=f"{said}.",
        drawing=svg.picture(name, f"{title}, greetings/s", f"{said}.", end + 2, [*body, keys]),
        head=("case", "workers", "median, 1/s", "low, 1/s", "high, 1/s"),
        rows=[
            (called, str(workers), *(f"{v:.0f}" for v in (found.median, found.low, found.high)))
            for called, line in plot.items()
            for workers, found in sorted(line.items())
        ],
    )
