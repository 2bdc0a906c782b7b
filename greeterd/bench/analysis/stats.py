"""Sums up the trials of each case, and says whether two sets of trials differ.

Pure but for the decoding of histograms; random numbers have a fixed seed, so that equal results
have equal reports.  Only valid trials count; the others are numbered and told of elsewhere.

Intervals of a median.  With fewer than FEW trials: the range of the values.  Whatever their
distribution, it holds the median with the probability 1 - 2 ** (1 - n), which is 75 % of 3 trials,
87.5 % of 4, 93.8 % of 5 and 96.9 % of 6 (H. David and H. Nagaraja, Order Statistics, 7.1).  With
more: the percentile bootstrap (B. Efron, 1979).  Taken at 95 %, it holds the median of 8 to 30
values in 91 to 96 % of cases (simulated); so it is taken at NOMINAL, where it holds it in 95 % or
more (tests/unit/bench/test_stats.py).  `Figure.coverage` says which.

Differences of two medians.  At 3 trials a side no test without a model reaches 95 %: of 20 ways to
deal out six values, two are as extreme as the most extreme one.  So the noise is taken to be
relative and equal on both sides: values in logarithms, Student's t with the pooled variance.  Where
many cases are compared at once, each borrows a little of the others' variance, for two degrees of
freedom tell little about one; a case that is plainly noisier than the others stands on its own.
Many comparisons at once share one error: each is made at a level by which all of them together hold
with LEVEL (C. Bonferroni, 1936).
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Final, Literal

from greeterd.bench.analysis.spread import Spread, judge_together, spread_of
from greeterd.bench.analysis.student import student_quantile
from greeterd.bench.latencies import merge_latency, percentile
from greeterd.bench.metrics import METRICS, Metric
from greeterd.bench.model import Case, Latency, Results, Trial

LEVEL: Final = 0.95
RESAMPLES: Final = 2000
NOMINAL: Final = 0.99
"""The level of the bootstrap; its coverage is less."""
FEW: Final = 8
"""The trials from which on the interval is the bootstrap's, not the range."""
TIE: Final = 1.10
"""The smallest ratio that is called a difference, however narrow its interval.  Trials of one run
share what differs between runs (the layout of memory, the clock of the CPU, neighbours), and no
interval of theirs shows that; repeated runs on an idle machine were seen to differ by some 5 %."""
UNKNOWN: Final = 1000.0
"""A ratio from which on an interval tells nothing."""
MEDIAN_ERROR: Final = math.sqrt(math.pi / 2)
"""The standard error of a median over that of a mean, at most, if the noise is normal."""
BORROWED: Final = 8
"""Degrees of freedom that a case takes at most from the noise of the others."""
NOISIER: Final = 4.0
"""The ratio of variances from which on a case does not borrow: F(0.95; 4, 8) is 3.8."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A median, and between which values it lies with a probability of `coverage`."""

    median: float
    low: float
    high: float
    trials: int
    coverage: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What the valid trials of one case come to."""

    case: Case
    trials: tuple[Trial, ...]
    invalid: int
    figures: dict[str, Figure]
    """By the names in METRICS; only those that some trial has a value of."""
    spread: Spread | None
    """How even the trials are, judged together with all cases; None when no trial tells."""
    latency: Latency
    """Of all trials together when each has a histogram; else the median of each percentile.  It
    knows those only that were served: see `percentile`."""
    lost: float
    """The share of clients that were lost, of all trials together."""

    @property
    def valid(self) -> int:
        """How many trials there are."""
        return len(self.trials)

    def values(self, metric: Metric) -> list[float]:
        """Return a metric's values, in the order of trials."""
        return values_of(metric, self.trials)

    def percentile(self, at: float) -> float | None:
        """Return a percentile of the latency of all clients; None when it is among the lost."""
        return percentile(self.latency, at)

    @property
    def per_worker(self) -> tuple[int, ...]:
        """The greetings by slot of the typical trial."""
        return tuple(self.spread.typical.counts.values()) if self.spread else ()

    def median(self, name: str) -> float | None:
        """Return the median of the metric of this name, if there is one."""
        return self.figures[name].median if name in self.figures else None


def summarise(results: Results) -> list[Summary]:
    """Return a summary for each case, in the order in which their first trials were run."""
    cases: dict[Case, list[Trial]] = {}
    for trial in results.trials:
        cases.setdefault(trial.case, []).append(trial)
    found = [_summary(case, trials) for case, trials in cases.items()]
    spreads = judge_together([one.spread for one in found])
    return [replace(one, spread=spread) for one, spread in zip(found, spreads, strict=True)]


def values_of(metric: Metric, trials: Sequence[Trial]) -> list[float]:
    """Return a metric's values, in order; none unless every trial has one.

    The trials that have none are no random ones: of a latency, those where the most were lost.
    """
    values = [metric.of(trial) for trial in trials]
    told = [value for value in values if value is not None]
    return told if len(told) == len(values) else []


def _summary(case: Case, trials: list[Trial]) -> Summary:
    valid = tuple(sorted((t for t in trials if not t.invalid), key=lambda t: t.repeat))
    figures = {}
    for metric in METRICS.values():
        values = values_of(metric, valid)
        if values:
            figures[metric.name] = median_interval(values)
    sent = sum(trial.load.sent for trial in valid if trial.load)
    return Summary(
        case=case,
        trials=valid,
        invalid=len(trials) - len(valid),
        figures=figures,
        spread=spread_of([trial.per_worker for trial in valid]),
        latency=merge_latency([trial.load.latency for trial in valid if trial.load]),
        lost=sum(trial.lost for trial in valid) / sent if sent else 0.0,
    )


def median_interval(values: Sequence[float]) -> Figure:
    """Return the median of one value or more, with the interval that the module tells of."""
    ordered = sorted(values)
    n, middle = len(ordered), statistics.median(ordered)
    if n < FEW:
        return Figure(middle, ordered[0], ordered[-1], n, 1 - 2.0 ** (1 - n))
    medians = sorted((ordered[i] + ordered[j]) / 2 for i, j in _middles(n))
    tail = round(RESAMPLES * (1 - NOMINAL) / 2)
    return Figure(middle, medians[tail], medians[-1 - tail], n, LEVEL)


@lru_cache(maxsize=64)
def _middles(n: int) -> tuple[tuple[int, int], ...]:
    """Return for each resample of n ordered values which two are in its middle."""
    random = Random(1)  # noqa: S311 - a simulation
    draws = (sorted(random.choices(range(n), k=n)) for _ in range(RESAMPLES))
    return tuple((drawn[(n - 1) // 2], drawn[n // 2]) for drawn in draws)


@dataclass(frozen=True, slots=True)
class Noise:
    """A variance of logarithms, and of how many degrees of freedom it was estimated."""

    variance: float = 0.0
    degrees: int = 0


def pooled_noise(samples: Iterable[Sequence[float]]) -> Noise:
    """Return the variance within samples, each of positive values about a mean of its own."""
    logs = [[math.log(value) for value in sample] for sample in samples]
    return combined_noise(
        Noise(statistics.variance(sample), len(sample) - 1) for sample in logs if len(sample) > 1
    )


def combined_noise(noises: Iterable[Noise]) -> Noise:
    """Return the mean variance, weighted by degrees of freedom, and how many there are in all."""
    total, degrees = 0.0, 0
    for noise in noises:
        total += noise.variance * noise.degrees
        degrees += noise.degrees
    return Noise(total / degrees if degrees else 0.0, degrees)


Difference = Literal["tie", "a better", "b better", "cannot be told"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The medians of two sets of trials, beside each other."""

    metric: Metric
    a: float
    b: float
    ratio: float
    """b over a, each with the metric's floor added."""
    low: float
    high: float
    """The interval of the ratio; from 0 to infinity when there are too few trials for one."""
    verdict: Difference


def shift(values: Iterable[float], metric: Metric) -> list[float]:
    """Return values with the metric's floor added: what has a ratio and a logarithm."""
    return [max(value + metric.floor, 1e-9) for value in values]


def compare_cases(
    a: Summary, b: Summary, metric: Metric, *, level: float = LEVEL, others: Noise | None = None
) -> Comparison | None:
    """Compare two cases by a metric; None when one of them has no value of it.

    `others` is the noise of the same metric in the cases that are compared at the same time.
    """
    return compare_values(a.values(metric), b.values(metric), metric, level=level, others=others)


def compare_values(
    a: Sequence[float],
    b: Sequence[float],
    metric: Metric,
    *,
    level: float = LEVEL,
    others: Noise | None = None,
) -> Comparison | None:
    """Compare two sets of values, each of which may be empty."""
    if not a or not b:
        return None
    shifted = [shift(values, metric) for values in (a, b)]
    ratio = statistics.median(shifted[1]) / statistics.median(shifted[0])
    noise = of_ratio(_with_borrowed(pooled_noise(shifted), others or Noise()), a, b)
    return judge(metric, (statistics.median(a), statistics.median(b)), ratio, noise, level=level)


def of_ratio(within: Noise, a: Sequence[float], b: Sequence[float]) -> Noise:
    """Return the noise of the logarithm of the ratio of two medians, by that within the samples."""
    variance = MEDIAN_ERROR**2 * within.variance * (1 / len(a) + 1 / len(b))
    return Noise(variance, within.degrees)


def judge(
    metric: Metric, figures: tuple[float, float], ratio: float, noise: Noise, *, level: float
) -> Comparison:
    """Compare two figures whose ratio has this noise, in its logarithm."""
    low, high = 0.0, math.inf
    if noise.degrees:
        reach = math.sqrt(noise.variance) * student_quantile((1 + level) / 2, noise.degrees)
        reach = min(700.0, reach)  # exp() of more overflows: so wide an interval is no interval
        low, high = ratio * math.exp(-reach), ratio * math.exp(reach)
    a, b = figures
    return Comparison(
        metric=metric,
        a=a,
        b=b,
        ratio=ratio,
        low=low,
        high=high,
        verdict=verdict_of(ratio, low, high, metric),
    )


def verdict_of(ratio: float, low: float, high: float, metric: Metric) -> Difference:
    """Tell which is better by the ratio of b over a and its interval.

    They differ when the ratio is `TIE` or more, either way, and its interval leaves out 1; they tie
    when all of the interval is less than `TIE`.  Else either may be the case.
    """
    if low > 1 / TIE and high < TIE:
        return "tie"
    if low <= 1 <= high or 1 / TIE < ratio < TIE:
        return "cannot be told"
    return "b better" if (ratio > 1) == (metric.better == "higher") else "a better"


def ratio_of(found: Comparison) -> str:
    """Return the ratio with its interval, if there is one, in words."""
    if found.high > UNKNOWN * found.ratio:
        return f"{found.ratio:.2f} [too few trials]"
    return f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"


Asked = tuple[Summary, Summary, Metric]


def level_of(number: int) -> float:
    """Return the level of each of so many comparisons by which all together hold with LEVEL."""
    return 1 - (1 - LEVEL) / max(1, number)


def compare_all(asked: Sequence[Asked], level: float) -> list[Comparison | None]:
    """Compare pairs at a level; each borrows from the noise of the others by the same metric."""
    noises = [
        pooled_noise(shift(one.values(metric), metric) for one in (a, b)) for a, b, metric in asked
    ]
    found = []
    for index, (a, b, metric) in enumerate(asked):
        others = combined_noise(
            noise
            for other, noise in enumerate(noises)
            if other != index and asked[other][2] is metric
        )
        found.append(compare_cases(a, b, metric, level=level, others=others))
    return found


def _with_borrowed(own: Noise, others: Noise) -> Noise:
    if not others.degrees or (own.degrees and own.variance > NOISIER * others.variance):
        return own
    borrowed = min(BORROWED, others.degrees)
    degrees = own.degrees + borrowed
    return Noise((own.variance * own.degrees + others.variance * borrowed) / degrees, degrees)
