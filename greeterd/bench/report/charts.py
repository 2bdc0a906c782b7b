"""Draws the three charts of a report by matplotlib, as SVG that takes its colours from the page.

A forest of comparisons, the balance of workers beside chance, and latency by percentile.  Each has
a text that says what it shows.  matplotlib draws with stand-ins for colours, which become CSS
variables, so that one drawing is for light, dark and paper.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from greeterd.bench.analysis.rows import Row, interval
from greeterd.bench.analysis.summary import Summary
from greeterd.bench.extras import require
from greeterd.bench.labels import approach, names, scenario_of, words
from greeterd.bench.model import Results
from greeterd.bench.report.sheets import blocks, milliseconds

TEXT: Final = "#010203"
SOFT: Final = "#020304"
GRID: Final = "#030405"
BAND: Final = "#040506"
LINES: Final = ("#110000", "#220000", "#330000", "#440000", "#550000", "#660000")
DASHES: Final = ("-", "--", ":", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (1, 3)))
COLOURS: Final = {
    TEXT: "var(--text)",
    SOFT: "var(--soft)",
    GRID: "var(--line)",
    BAND: "var(--band)",
    **{stand_in: f"var(--c{index})" for index, stand_in in enumerate(LINES)},
}
PIXEL: Final = 1 / 72
"""Inches: matplotlib's SVG has 72 units an inch."""
WIDTH: Final = 720
ROW: Final = 22
LABELS: Final = 0.38
"""The share of the width that names have."""
FAR: Final = 2.0
"""How far from the ratio single pairs are drawn, either way; what is beyond is drawn there."""
MOST: Final = 40
"""Rows of a chart; the tables have all."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing, and what it shows in words."""

    title: str
    text: str
    drawing: str


def make_charts(results: Results, summaries: Sequence[Summary], rows: Sequence[Row]) -> list[Chart]:
    """Return the charts of which there are figures.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    require("matplotlib")
    return [*_forest(rows, results.precision), *_balance(summaries), *_latency(summaries)]


def _forest(rows: Sequence[Row], precision: float) -> Iterator[Chart]:
    told = [row for row in rows if row.primary is not None][:MOST]
    if not told:
        return
    called = [_of_row(row, told) for row in told]

    def draw(axes: Any) -> None:
        axes.set_xscale("log")
        axes.axvspan(1 / (1 + precision), 1 + precision, color=BAND, lw=0, alpha=0.25)
        axes.axvline(1, color=SOFT, lw=1)
        low, high = 1 / (1 + 2 * precision), 1 + 2 * precision
        for y, row in enumerate(told):
            one = row.primary
            assert one is not None
            dots = [min(FAR * one.ratio, max(one.ratio / FAR, ratio)) for ratio in row.ratios]
            ends = [end for end in (one.low, one.high) if 0 < end < 100]  # noqa: PLR2004
            low, high = min([low, *dots, *ends]), max([high, *dots, *ends])
            jitter = [y + 0.25 * ((7 * at % 11) / 10 - 0.5) for at in range(len(dots))]
            axes.plot(dots, jitter, "o", ms=3.5, color=LINES[0], alpha=0.4, mew=0)
            if one.low > 0:
                axes.plot([one.low, one.high], [y, y], color=TEXT, lw=2)
            axes.plot([one.ratio], [y], "D", ms=5, color=TEXT)
        axes.set_xlim(low * 0.98, high * 1.02)
        _ratio_ticks(axes, low, high)
        _rows(axes, called)
        axes.set_xlabel("CPU per greeting, as a ratio (less is to the left)", color=SOFT)

    said = "; ".join(
        f"{name}: {interval(row.primary)}"
        for name, row in zip(called, told, strict=True)
        if row.primary
    )
    text = (
        f"Ratios of CPU time per greeting, a dot for each pair, with interval; the band is "
        f"{100 * precision:g} % either way. {said}."
    )
    yield _chart("forest", "CPU per greeting: each beside the first", text, ROW * len(told), draw)


def _of_row(row: Row, all_: Sequence[Row]) -> str:
    a, b = row.comparison.cases
    told = f"{approach(b)} / {approach(a)}"
    several = len({scenario_of(one.comparison.a) for one in all_}) > 1
    return f"{told}, {words(scenario_of(a))}" if several else told


def _balance(summaries: Sequence[Summary]) -> Iterator[Chart]:
    calm = [one for one in summaries if one.case.workers > 1 and one.case.fault == "none"]
    called = names([one.case for one in calm])
    told = [
        (called[one.case], list(one.per_worker), one.spread.sentence)
        for one in calm
        if one.spread and sum(one.per_worker)
    ]
    for one in calm:
        told += [
            (f"{called[one.case]}, {found.kind}", list(found.per_process.values()), "by census")
            for found in one.held
            if sum(found.per_process.values())
        ]
    told = told[:MOST]
    if not told:
        return

    def draw(axes: Any) -> None:
        from matplotlib.patches import Rectangle  # noqa: PLC0415 - of the extra `bench`

        top = 1.2
        for y, (_, counts, _) in enumerate(told):
            mean = sum(counts) / len(counts)
            # 95 of 100 workers are within, if chance alone decides (normal, binomial variance).
            reach = 1.96 * ((1 - 1 / len(counts)) / mean) ** 0.5
            band = (1 - reach, y - 0.35), 2 * reach, 0.7
            axes.add_patch(Rectangle(*band, color=BAND, lw=0, alpha=0.3))
            shares = [count / mean for count in counts]
            top = max(top, *shares)
            axes.plot(shares, [y] * len(shares), "o", ms=5, color=LINES[0], alpha=0.6, mew=0)
        axes.axvline(1, color=SOFT, lw=1)
        axes.set_xlim(0, top * 1.05)
        _rows(axes, [name for name, _, _ in told])
        axes.set_xlabel("a dot for each worker: its greetings, in fair shares", color=SOFT)

    said = "; ".join(f"{name}: {' '.join(map(str, c))}, {how}" for name, c, how in told)
    text = f"Greetings of each worker, in fair shares; the band is chance. {said}."
    yield _chart("balance", "Balance: each worker beside chance", text, ROW * len(told), draw)


def _latency(summaries: Sequence[Summary]) -> Iterator[Chart]:
    """Draw the curves of the first cases that are asked the same."""
    for block in blocks(summaries):
        told = [(name, one) for name, one in block.members if one.latency.curve][: len(LINES)]
        if not told:
            continue

        def draw(axes: Any, told: Sequence[tuple[str, Summary]] = tuple(told)) -> None:
            axes.set_xscale("log")
            axes.set_yscale("log")
            for (name, one), colour, dash in zip(told, LINES, DASHES, strict=False):
                known = [(p * one.latency.known / 100, ms) for p, ms in one.latency.curve]
                points = [(1 / (1 - p / 100), max(ms, 0.001)) for p, ms in known if p < 99.999]  # noqa: PLR2004
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, color=colour, ls=dash, lw=1.8, label=name)
            axes.set_xticks([1, 2, 10, 100, 1000, 10000])
            axes.set_xticklabels(["0", "50", "90", "99", "99.9", "99.99"])
            axes.minorticks_off()
            axes.set_xlabel("percentile of clients", color=SOFT)
            axes.set_ylabel("ms", color=SOFT)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.grid(visible=True, color=GRID, lw=0.8)
            axes.legend(frameon=False, labelcolor=TEXT, loc="upper left", fontsize=9)

        where = f" ({block.title})" if block.title else ""
        said = "; ".join(
            f"{name}: median {milliseconds(one.latency.p50)}, p99 {milliseconds(one.latency.p99)}"
            for name, one in told
        )
        text = f"Milliseconds by percentile of clients. {said}."
        yield _chart("latency", f"Latency{where}", text, 210, draw, labels=0.07)
        return


def _rows(axes: Any, called: Sequence[str]) -> None:
    """Give each row its name, the first on top."""
    axes.set_ylim(len(called) - 0.4, -0.6)
    axes.set_yticks(range(len(called)))
    axes.set_yticklabels([_short(name) for name in called])
    axes.grid(visible=True, axis="x", color=GRID, lw=0.8)


def _short(name: str, most: int = 46) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _ratio_ticks(axes: Any, low: float, high: float) -> None:
    steps = (0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50)
    span = high / low
    least = 1.3 if span > 4 else 1.04 if span > 1.2 else 1.01  # noqa: PLR2004
    kept = [1.0]
    for step in (step for step in steps if step > 1):
        if step <= high * 1.02 and step / kept[-1] >= least:
            kept.append(step)
    for step in (step for step in reversed(steps) if step < 1):
        if step >= low * 0.98 and kept[0] / step >= least:
            kept.insert(0, step)
    axes.set_xticks(kept)
    axes.set_xticklabels([f"{step:g}" for step in kept])
    axes.minorticks_off()


def _chart(  # noqa: PLR0913
    name: str,
    title: str,
    text: str,
    height: float,
    draw: Callable[[Any], None],
    *,
    labels: float = LABELS,
) -> Chart:
    """Draw in a plot of this height, in pixels."""
    import matplotlib as mpl  # noqa: PLC0415 - of the extra `bench`, and slow to import
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    above, below = 8, 44
    whole = height + above + below
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "text.color": TEXT,
        "axes.edgecolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT,
        "xtick.labelcolor": SOFT, "ytick.labelcolor": TEXT,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(WIDTH * PIXEL, whole * PIXEL), frameon=False)
        FigureCanvasSVG(figure)
        place = (labels, below / whole, 0.98 - labels, height / whole)
        axes = figure.add_axes(place, frameon=True, facecolor="none")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        draw(axes)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    return Chart(title, text, _for_page(out.getvalue(), name, title, text))


def _for_page(svg: str, name: str, title: str, text: str) -> str:
    """Return the drawing as a page has it: named, described, with the page's colours and fonts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for stand_in, colour in COLOURS.items():
        svg = svg.replace(stand_in, colour)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    label = f'role="img" aria-labelledby="{name}-title {name}-text"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box[0]} {label}><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-text">{escape(text)}</desc>{body}'
    )
