"""Compares the two cases of each comparison, pair by pair, and says in one sentence what was found.

CPU time per greeting is what an experiment is for: its interval stands as it is.  Everything else
is tested beside it, and all of these tests of a report together find something where nothing is
with 5 % (Holm).  Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from greeterd.bench.analysis.paired import LEAST, LEVEL, Ratio, compare, holm, level_of
from greeterd.bench.labels import approach, scenario_of, words
from greeterd.bench.metrics import METRICS, PRIMARY, SECONDARY, Metric
from greeterd.bench.model import Comparison, Results, Trial

TWICE = 2.0
"""The ratio from which on it is told as a multiple, not in percent."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison."""

    index: int
    comparison: Comparison
    pairs: tuple[tuple[Trial, Trial], ...]
    """Of a and b; both valid."""
    primary: Ratio | None
    """CPU; None without a pair, or where a server used none that could be seen."""
    others: dict[str, Ratio]
    """By metric; p-values are those of all looked at."""
    seconds: float
    """That a pair takes."""

    @property
    def ratios(self) -> list[float]:
        """CPU of b over a, by pairs."""
        return [b.cpu_us / a.cpu_us for a, b in self.pairs if a.cpu_us and b.cpu_us]

    @property
    def differing(self) -> dict[str, Ratio]:
        """The metrics beside CPU that differ."""
        return {name: one for name, one in self.others.items() if one.p_value < 1 - LEVEL}


def primary(results: Results, index: int) -> Ratio | None:
    """Return the ratio of CPU times of one comparison, as it is now."""
    pairs = _pairs(results, index)
    return _ratio(PRIMARY, pairs, level_of(results.pairs))


def rows(results: Results) -> list[Row]:
    """Return the comparisons that have two cases and a valid pair, in order."""
    level = level_of(results.pairs)
    found = []
    for index, comparison in enumerate(results.comparisons):
        pairs = _pairs(results, index)
        if comparison.b is None or not pairs:
            continue
        others = {
            metric.name: ratio
            for metric in SECONDARY
            if (ratio := _ratio(metric, pairs, level)) is not None and ratio.pairs >= LEAST
        }
        seconds = sum(one.load.seconds for pair in pairs for one in pair if one.load) / len(pairs)
        cpu = _ratio(PRIMARY, pairs, level)
        found.append(Row(index, comparison, tuple(pairs), cpu, others, seconds))
    return _corrected(found, level)


def _pairs(results: Results, index: int) -> list[tuple[Trial, Trial]]:
    comparison = results.comparisons[index]
    bad = {one.case for one in results.objections}
    if comparison.b is None or bad & {*comparison.cases}:
        return []
    sides: tuple[dict[int, Trial], dict[int, Trial]] = ({}, {})
    for trial in results.trials:
        if trial.comparison == index and not trial.invalid:
            sides[trial.case != comparison.a][trial.pair] = trial
    return [(trial, sides[1][pair]) for pair, trial in sorted(sides[0].items()) if pair in sides[1]]


def _ratio(metric: Metric, pairs: Sequence[tuple[Trial, Trial]], level: float) -> Ratio | None:
    """Return the ratio of a metric; None where pairs have none that should."""
    values = [(metric.of(a), metric.of(b)) for a, b in pairs]
    told = [(x, y) for x, y in values if x is not None and y is not None]
    missing = len(told) < len(values) and not metric.partial
    if not told or missing or any(min(both) + metric.floor <= 0 for both in told):
        return None
    return compare([x for x, _ in told], [y for _, y in told], level, metric.floor)


def _corrected(found: Sequence[Row], level: float) -> list[Row]:
    """Return the rows with p-values that hold for all that is tested beside CPU."""
    flat = [(row.index, name, one) for row in found for name, one in row.others.items()]
    # Those who look several times ask for more each time: by as much as the level is stricter.
    stricter = (1 - LEVEL) / (1 - level)
    p_values = holm([min(1.0, one.p_value * stricter) for _, _, one in flat])
    told: dict[int, dict[str, Ratio]] = {row.index: {} for row in found}
    for (index, name, one), p_value in zip(flat, p_values, strict=True):
        told[index][name] = replace(one, p_value=p_value)
    return [replace(row, others=told[row.index]) for row in found]


# Sentences ------------------------------------------------------------------------------------


def than(ratio: float) -> str:
    """Return a ratio of two things in words: `12 % more X than`, `2.5 times the X of`."""
    if 1 / TWICE < ratio < TWICE:
        return f"{percent(ratio)} {{}} than"
    return f"{ratio:.2g} times the {{}} of"


def percent(ratio: float) -> str:
    """Return a ratio in words: `12 % more`, `2.5 times`."""
    if not 1 / TWICE < ratio < TWICE:
        return f"{ratio:.2g} times"
    share = 100 * abs(ratio - 1)
    return f"{share:.{1 if share < 10 else 0}f} % {'more' if ratio >= 1 else 'less'}"  # noqa: PLR2004


def bound(one: Ratio) -> str:
    """Return what a ratio that differs is at least, never more than its interval says."""
    end = one.low if one.low > 1 else one.high
    if not 1 / TWICE < end < TWICE:
        return f"at {'least' if end > 1 else 'most'} {percent(end)}"
    share = math.floor(1000 * abs(end - 1)) / 10
    return f"at least {share:g} % {'more' if end > 1 else 'less'}"


def interval(one: Ratio) -> str:
    """Return a ratio with its interval: `1.071 [1.036, 1.107]`."""
    if one.pairs < LEAST:
        return f"{one.ratio:.3f}, of one pair"
    return f"{one.ratio:.3f} [{one.low:.3f}, {one.high:.3f}]"


def sentence(row: Row, precision: float) -> str:
    """Return what a comparison says of CPU time, with the ratio and its interval."""
    a, b = row.comparison.cases
    one = row.primary
    subject = f"{approach(b)} against {approach(a)}"
    if one is None:
        return f"{subject}: no CPU time was seen."
    told = f"{interval(one)}, {one.pairs} pairs" if one.pairs >= LEAST else interval(one)
    if one.pairs < LEAST:
        return f"{subject}: one pair finds nothing ({told})."
    if one.differs:
        takes = than(one.ratio).format("CPU per greeting")
        within = f" and within {100 * precision:g} %" if one.is_within(precision) else ""
        return f"{approach(b)} takes {takes} {approach(a)}, {bound(one)}{within} ({told})."
    if one.is_within(precision):
        return (
            f"{approach(b)} takes the same CPU per greeting as {approach(a)} within "
            f"{100 * precision:g} % ({told})."
        )
    return (
        f"{subject}: no difference of CPU per greeting above {_unseen(one)} seen ({told}); "
        f"{_more(row, precision)} would tell."
    )


def _unseen(one: Ratio) -> str:
    return (
        f"{math.ceil(100 * one.unseen)} %" if one.unseen < TWICE else f"{one.unseen + 1:.1f} times"
    )


def _more(row: Row, precision: float) -> str:
    assert row.primary is not None
    seconds = max(1, row.primary.wanted(precision) - row.primary.pairs) * row.seconds
    minutes = seconds / 60
    return f"about {minutes:.0f} more minutes" if minutes >= 1.5 else f"about {seconds:.0f} more s"  # noqa: PLR2004


def others(row: Row) -> str:
    """Return in words which other metrics differ; empty when none does."""
    told = [
        f"{METRICS[name].title} {percent(one.ratio)} ({interval(one)}, p {shown(one.p_value)})"
        for name, one in row.differing.items()
    ]
    return f"{approach(row.comparison.cases[1])}: {'; '.join(told)}." if told else ""


def shown(p_value: float) -> str:
    """Return a p-value as it is written."""
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}"  # noqa: PLR2004


def question(results: Results) -> str:
    """Return what is asked first."""
    first = next((one for one in results.comparisons if one.b is not None), None)
    if first is None or first.b is None:
        return "What does a greeting cost?"
    return (
        f"Does {approach(first.b)} take more CPU than {approach(first.a)}? "
        f"({words(scenario_of(first.a))})"
    )
