"""Compares the results of two runs, case by case, as far as runs of different times can be.

No trial of one run is a pair of one of the other, so that whatever changed between them is in every
ratio: other work on the machine, its clock, its memory.  Welch's t of the logarithms (B. Welch,
1947) gives the intervals, and Holm's correction the p-values of all together.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from greeterd.bench.analysis.paired import (
    LEAST,
    LEVEL,
    Ratio,
    holm,
    student_cdf,
    student_quantile,
)
from greeterd.bench.analysis.rows import interval, percent, shown
from greeterd.bench.analysis.summary import summarise, values_of
from greeterd.bench.labels import names, place
from greeterd.bench.metrics import METRICS, PRIMARY, SECONDARY, Metric
from greeterd.bench.model import Case, Results

CAUTION: Final = (
    "These are two runs: what changed on the machine between them is in every ratio, and no "
    "interval shows it. Two builds are compared in one run: greeter bench --greeterd A --greeterd B"
)
ENVIRONMENT: Final = ("kernel", "machine", "cpu", "cpus", "pin", "python", "greeterd", "commit")
"""What may explain a difference, and is told when it is not the same."""
TIE: Final = 0.1
"""The smallest difference that is told of: runs of one build were seen to differ by 5 %."""


@dataclass(frozen=True, slots=True)
class Versus:
    """One metric of one case in both runs; the ratio is b over a."""

    case: Case
    metric: Metric
    found: Ratio

    @property
    def verdict(self) -> str:
        """What b is: `better`, `worse`, or nothing where no difference was seen."""
        one = self.found
        if one.p_value >= 1 - LEVEL or abs(one.ratio - 1) < TIE:
            return ""
        return "better" if (one.ratio > 1) == (self.metric.better == "higher") else "worse"


@dataclass(frozen=True, slots=True)
class Compared:
    """Two runs beside each other."""

    names: dict[Case, str]
    pairs: list[Versus]
    only: tuple[list[Case], list[Case]]
    """Cases of which only a, and only b, has valid trials."""

    @property
    def differences(self) -> list[Versus]:
        """Where b is better or worse."""
        return [one for one in self.pairs if one.verdict]


def compare(a: Results, b: Results) -> Compared:
    """Compare the valid trials of the cases that both have; `pairs` is empty when there is none."""
    mine, theirs = ({one.case: one for one in summarise(run) if one.trials} for run in (a, b))
    every = sorted({**mine, **theirs}, key=place)
    found = []
    for case in every:
        for metric in (PRIMARY, *SECONDARY):
            if case in mine and case in theirs:
                values = [values_of(metric, side[case].trials) for side in (mine, theirs)]
                if all(len(some) >= LEAST for some in values):
                    found.append(Versus(case, metric, welch(values[0], values[1], metric.floor)))
    p_values = holm([one.found.p_value for one in found])
    return Compared(
        names(every),
        [
            replace(one, found=replace(one.found, p_value=p_value))
            for one, p_value in zip(found, p_values, strict=True)
        ],
        ([c for c in every if c not in theirs], [c for c in every if c not in mine]),
    )


def welch(a: Sequence[float], b: Sequence[float], floor: float = 0.0) -> Ratio:
    """Return the ratio of the geometric means of two samples, b over a."""
    logs = [[math.log(max(1e-9, value + floor)) for value in some] for some in (a, b)]
    mean = statistics.fmean(logs[1]) - statistics.fmean(logs[0])
    parts = [statistics.variance(some) / len(some) for some in logs]
    error = math.sqrt(sum(parts))
    pairs = min(map(len, logs))
    if not error:
        ratio = math.exp(mean)
        return Ratio(ratio, ratio, ratio, pairs, 0.0, LEVEL, float(mean == 0))
    weights = [part**2 / (len(some) - 1) for part, some in zip(parts, logs, strict=True)]
    degrees = max(1, int(sum(parts) ** 2 / sum(weights)))
    reach = min(700.0, error * student_quantile((1 + LEVEL) / 2, degrees))
    p_value = 2 * student_cdf(-abs(mean) / error, degrees)
    low, high = math.exp(mean - reach), math.exp(mean + reach)
    return Ratio(math.exp(mean), low, high, pairs, error, LEVEL, p_value)


def unlike(a: Results, b: Results) -> list[str]:
    """Return in sentences what of the machines and programs is not the same."""
    told = []
    for field in ENVIRONMENT:
        here, there = (getattr(run.environment, field) for run in (a, b))
        if here != there:
            told.append(f"Not the same: {field} {here or 'none'} and {there or 'none'}.")
    return told


def cells(one: Versus) -> tuple[str, ...]:
    """Return a row of the table."""
    return one.metric.title, interval(one.found), shown(one.found.p_value), one.verdict or "-"


HEAD: Final = ("metric", "B/A", "p", "B is")


def conclude(found: Compared) -> str:
    """Return the sentence at the end."""
    of = f"{len(found.pairs)} comparisons in {len({one.case for one in found.pairs})} cases"
    if not found.differences:
        return f"No difference of {100 * TIE:.0f} % or more seen in {of}."
    told = []
    for name, metric in METRICS.items():
        mine = [one for one in found.differences if one.metric.name == name]
        for verdict in ("worse", "better"):
            some = [one for one in mine if one.verdict == verdict]
            if some:
                middle = statistics.median(one.found.ratio for one in some)
                told.append(f"{metric.title} is {verdict} in {len(some)} ({percent(middle)})")
    return f"B differs from A in {len(found.differences)} of {of}: {'; '.join(told)}."
