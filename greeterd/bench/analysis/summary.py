"""Sums up the trials of each case: medians with intervals, balance, latency, losses; pure.

Only valid trials count.  The interval of a median is that of order statistics, which holds whatever
the distribution is (H. David, H. Nagaraja, Order Statistics, 7.1): with 6 trials or more it holds
the median in 95 % of cases, with fewer it is the range of the values.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from greeterd.bench.analysis.spread import Spread, judge_together, spread_of
from greeterd.bench.latencies import merge_latency, percentile
from greeterd.bench.metrics import METRICS, Metric
from greeterd.bench.model import Case, Held, Latency, Results, Trial


@dataclass(frozen=True, slots=True)
class Figure:
    """A median and its interval."""

    median: float
    low: float
    high: float
    trials: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What the valid trials of one case come to."""

    case: Case
    trials: tuple[Trial, ...]
    invalid: int
    figures: dict[str, Figure]
    """By the names in METRICS; only those that every trial has a value of."""
    spread: Spread | None
    """How even the trials are, judged together with all cases; None when no trial tells."""
    held: tuple[Held, ...]
    latency: Latency
    """Of all trials together.  It knows those only that were served: see `percentile`."""

    @property
    def sent(self) -> int:
        """Clients in all."""
        return sum(trial.load.sent for trial in self.trials if trial.load)

    @property
    def lost(self) -> int:
        """Clients that were not served in order."""
        return sum(trial.lost for trial in self.trials)

    @property
    def faults(self) -> int:
        """How many there were."""
        return sum(trial.faults for trial in self.trials)

    @property
    def per_worker(self) -> tuple[int, ...]:
        """The greetings by slot, of all trials."""
        told = [trial.per_worker for trial in self.trials if trial.per_worker]
        return tuple(map(sum, zip(*told, strict=True))) if told else ()

    def percentile(self, at: float) -> float | None:
        """Return a percentile of the latency of all clients; None when it is among the lost."""
        return percentile(self.latency, at)

    def median(self, name: str) -> float | None:
        """Return the median of the metric of this name, if there is one."""
        return self.figures[name].median if name in self.figures else None


def summarise(results: Results) -> list[Summary]:
    """Return a summary for each case, in the order of the comparisons."""
    cases: dict[Case, list[Trial]] = {}
    for comparison in results.comparisons:
        for case in comparison.cases:
            cases.setdefault(case, [])
    for trial in results.trials:
        cases.setdefault(trial.case, []).append(trial)
    bad = {one.case for one in results.objections}
    found = [_summary(case, some, results, bad=case in bad) for case, some in cases.items() if some]
    spreads = judge_together([one.spread for one in found])
    return [replace(one, spread=spread) for one, spread in zip(found, spreads, strict=True)]


def values_of(metric: Metric, trials: Sequence[Trial]) -> list[float]:
    """Return a metric's values, in order; none where trials have none that should.

    The trials that have none are no random ones: of a latency, those where the most were lost.
    """
    values = [metric.of(trial) for trial in trials]
    told = [value for value in values if value is not None]
    return told if metric.partial or len(told) == len(values) else []


def _summary(case: Case, trials: list[Trial], results: Results, *, bad: bool) -> Summary:
    valid = () if bad else tuple(one for one in trials if not one.invalid)
    figures = {}
    for metric in METRICS.values():
        if values := values_of(metric, valid):
            figures[metric.name] = median_interval(values)
    return Summary(
        case=case,
        trials=valid,
        invalid=len(trials) - len(valid),
        figures=figures,
        spread=spread_of([trial.per_worker for trial in valid]),
        held=tuple(one for one in results.held if one.case == case),
        latency=merge_latency([trial.load.latency for trial in valid if trial.load]),
    )


def median_interval(values: Sequence[float]) -> Figure:
    """Return the median of one value or more, with the interval that the module tells of."""
    ordered, n = sorted(values), len(values)
    # The r-th value from either end: the median is outside with twice the binomial's tail.
    tail, rank = 2.0**-n, 0
    while 2 * (tail + math.comb(n, rank + 1) * 2.0**-n) <= 0.05 and rank + 1 < n // 2:  # noqa: PLR2004
        rank += 1
        tail += math.comb(n, rank) * 2.0**-n
    return Figure(statistics.median(ordered), ordered[rank], ordered[-1 - rank], n)
