"""Chooses the charts of a report."""

from collections.abc import Sequence

from greeterd.bench.analysis.stats import Summary
from greeterd.bench.report.bars import Design, Entry, balance_charts, charts, entries
from greeterd.bench.report.curves import latency_charts, scaling_charts
from greeterd.bench.report.sheets import blocks
from greeterd.bench.report.svg import Chart


def make_charts(summaries: Sequence[Summary]) -> list[tuple[str, list[Chart]]]:
    """Return sections, each with a title and its charts; what was not measured has none."""
    shown = blocks(summaries)
    sections = [
        ("Balance", list(balance_charts(shown))),
        ("CPU time", list(_cpu(summaries))),
        ("Rate", [*scaling_charts(shown), *_rate(summaries)]),
        ("Latency", list(latency_charts(shown))),
        ("Losses under faults", list(_losses(summaries))),
    ]
    return [(title, some) for title, some in sections if some]


def _cpu(summaries: Sequence[Summary]) -> list[Chart]:
    split = all("cpu_user_us" in o.figures for o in summaries if "cpu_us" in o.figures)

    def make(group: str, name: str, one: Summary) -> Entry | None:
        whole = one.figures.get("cpu_us")
        if whole is None:
            return None
        user = one.median("cpu_user_us")
        if user is None or not split:
            return Entry(group, name, (whole.median,), whole)
        # The medians of the parts need not add up to that of the whole, at which the bar ends.
        return Entry(group, name, (user, max(0.0, whole.median - user)), whole)

    parts = (("fill0", "user"), ("fill1", "system")) if split else ()
    legend = (*parts, ("key-whisker", "interval"))
    bars = entries(blocks(summaries), make)
    design = Design("cpu", "CPU time of a greeting", "us per greeting", legend)
    return list(charts(design, bars))


def _rate(summaries: Sequence[Summary]) -> list[Chart]:
    def make(group: str, name: str, one: Summary) -> Entry | None:
        whole = one.figures.get("rate")
        return Entry(group, name, (whole.median,), whole) if whole else None

    bars = entries(blocks(summaries), make)
    return list(charts(Design("rate", "Rate", "greetings/s", form="short"), bars))


def _losses(summaries: Sequence[Summary]) -> list[Chart]:
    def make(group: str, name: str, one: Summary) -> Entry | None:
        whole = one.figures.get("lost_percent")
        if whole is None or one.case.fault == "none":
            return None
        mark = 100 / one.case.workers if one.case.fault == "stopped" else None
        return Entry(group, name, (whole.median,), whole, mark)

    legend = (("fill0", "lost"), ("key-mark", "1/N: the share of the stopped worker"))
    bars = entries(blocks(summaries), make)
    design = Design("losses", "Clients lost", "% of all clients", legend, ".2f")
    return list(charts(design, bars))
