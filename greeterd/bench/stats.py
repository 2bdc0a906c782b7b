"""Sums up the trials of each case, and says whether two sets of trials differ.

Pure but for the decoding of histograms; random numbers have a fixed seed, so that equal results
have equal reports.  Only valid trials count; the others are numbered and told of elsewhere.

Intervals of a median.  With 6 trials or more: the percentile bootstrap (B. Efron, 1979).  With
fewer it is too narrow: three values can only be drawn again in so many ways, and no correction of
bias (BCa) mends that.  There the interval is the range of the values, whatever their distribution:
it holds the median with the probability 1 - 2 ** (1 - n), which is 75 % of 3 trials, 87.5 % of 4
and 93.8 % of 5 (H. David and H. Nagaraja, Order Statistics, 7.1).  `Figure.coverage` says which.

Differences of two medians.  At 3 trials a side no test without a model reaches 95 %: of 20 ways to
deal out six values, two are as extreme as the most extreme one.  So the noise is taken to be
relative and equal on both sides: values in logarithms, Student's t with the pooled variance.  Where
many cases are compared at once, each borrows a little of the others' variance, for two degrees of
freedom tell little about one; a case that is plainly noisier than the others stands on its own.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Final, Literal

from greeterd.bench.latencies import merge_latency
from greeterd.bench.model import Case, Latency, Results, Trial
from greeterd.bench.student import student_quantile
from greeterd.core import balance

LEVEL: Final = 0.95
RESAMPLES: Final = 2000
FEW: Final = 6
"""The trials from which on the range would hold the median in more than 95 % of cases."""
TIE: Final = 1.10
"""The smallest ratio that is called a difference, however narrow its interval.  Trials of one run
share what differs between runs (the layout of memory, the clock of the CPU, neighbours), and no
interval of theirs shows that; repeated runs on an idle machine were seen to differ by some 5 %."""
MEDIAN_ERROR: Final = math.sqrt(math.pi / 2)
"""The standard error of a median over that of a mean, at most, if the noise is normal."""
BORROWED: Final = 8
"""Degrees of freedom that a case takes at most from the noise of the others."""
NOISIER: Final = 4.0
"""The ratio of variances from which on a case does not borrow: F(0.95; 4, 8) is 3.8."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Something that every trial has a value of, or has not."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    of: Callable[[Trial], float | None]
    floor: float = 0.0
    """Added to both sides of a ratio: differences far below it are nothing, and 0 has a ratio."""
    compared: bool = False
    """Whether two runs are compared by it."""


def jain(counts: Sequence[int]) -> float | None:
    """Return the Jain index of counts, from 1/N to 1; None of nothing."""
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else None


def _latency(name: str) -> Callable[[Trial], float | None]:
    def value(trial: Trial) -> float | None:
        if trial.load is None or not trial.load.latency.count:
            return None
        return float(getattr(trial.load.latency, name))

    return value


def _lost(trial: Trial) -> float | None:
    return 100 * trial.lost / trial.load.sent if trial.load and trial.load.sent else None


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric("rate", "rate", "greetings/s", "higher", lambda t: t.rate or None, compared=True),
        Metric("seconds", "time", "s", "lower", lambda t: t.load.seconds if t.load else None),
        Metric("cpu_us", "CPU", "us/greeting", "lower", lambda t: t.cpu_us or None, 0.1, True),
        Metric("cpu_user_us", "user CPU", "us/greeting", "lower", lambda t: t.cpu_user_us, 0.1),
        Metric(
            "cpu_system_us", "system CPU", "us/greeting", "lower", lambda t: t.cpu_system_us, 0.1
        ),
        Metric(
            "switches",
            "context switches",
            "per greeting",
            "lower",
            lambda t: t.switches_voluntary + t.switches_involuntary,
            0.05,
        ),
        Metric("p50_ms", "latency, median", "ms", "lower", _latency("p50"), 0.05, True),
        Metric("p90_ms", "latency, p90", "ms", "lower", _latency("p90"), 0.05),
        Metric("p99_ms", "latency, p99", "ms", "lower", _latency("p99"), 0.05, True),
        Metric("p999_ms", "latency, p99.9", "ms", "lower", _latency("p999"), 0.05),
        Metric("wakeups", "wake-ups", "per greeting", "lower", lambda t: t.wakeups, 0.05),
        Metric(
            "wasted_wakeups",
            "wasted wake-ups",
            "per greeting",
            "lower",
            lambda t: t.wasted_wakeups,
            0.05,
            True,
        ),
        Metric("jain", "Jain index", "1/N to 1", "higher", lambda t: jain(t.per_worker), 0, True),
        Metric("lost_percent", "lost clients", "%", "lower", _lost, 0.1, True),
        Metric("queued_max", "longest queue", "clients", "lower", lambda t: t.listener.queued_max),
        Metric("drops", "drops", "clients", "lower", lambda t: t.listener.drops),
    )
}
COMPARED: Final = tuple(metric for metric in METRICS.values() if metric.compared)


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
    per_worker: tuple[int, ...]
    """Greetings by slot, of all trials together."""
    balance: balance.Balance | None
    """Of `per_worker`; None when no trial tells."""
    latency: Latency
    """Of all trials together when each has a histogram; else the median of each percentile."""

    @property
    def valid(self) -> int:
        """How many trials there are."""
        return len(self.trials)

    def values(self, metric: Metric) -> list[float]:
        """Return a metric's values, in the order of trials."""
        found = (metric.of(trial) for trial in self.trials)
        return [value for value in found if value is not None]

    def median(self, name: str) -> float | None:
        """Return the median of the metric of this name, if there is one."""
        return self.figures[name].median if name in self.figures else None


def summarise(results: Results) -> list[Summary]:
    """Return a summary for each case, in the order in which their first trials were run."""
    cases: dict[Case, list[Trial]] = {}
    for trial in results.trials:
        cases.setdefault(trial.case, []).append(trial)
    return [_summary(case, trials) for case, trials in cases.items()]


def _summary(case: Case, trials: list[Trial]) -> Summary:
    valid = tuple(sorted((t for t in trials if not t.invalid), key=lambda t: t.repeat))
    figures = {}
    for metric in METRICS.values():
        values = [value for value in map(metric.of, valid) if value is not None]
        if values:
            figures[metric.name] = median_interval(values)
    told = [trial.per_worker for trial in valid if trial.per_worker]
    slots = max(map(len, told), default=0)
    pooled = tuple(sum(one[s] for one in told if s < len(one)) for s in range(slots))
    return Summary(
        case=case,
        trials=valid,
        invalid=len(trials) - len(valid),
        figures=figures,
        per_worker=pooled,
        balance=balance.measure(pooled) if pooled else None,
        latency=merge_latency([trial.load.latency for trial in valid if trial.load]),
    )


def median_interval(values: Sequence[float]) -> Figure:
    """Return the median of one value or more, with the interval that the module tells of."""
    ordered = sorted(values)
    n, middle = len(ordered), statistics.median(ordered)
    if n < FEW:
        return Figure(middle, ordered[0], ordered[-1], n, 1 - 2.0 ** (1 - n))
    medians = sorted((ordered[i] + ordered[j]) / 2 for i, j in _middles(n))
    tail = round(RESAMPLES * (1 - LEVEL) / 2)
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
    verdict: Literal["tie", "a better", "b better"]


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
    """Compare two sets of values.

    It is a tie unless the ratio is `TIE` or more, either way, and its interval leaves out 1.
    """
    if not a or not b:
        return None
    shifted = [shift(values, metric) for values in (a, b)]
    ratio = statistics.median(shifted[1]) / statistics.median(shifted[0])
    noise = _with_borrowed(pooled_noise(shifted), others or Noise())
    low, high = 0.0, math.inf
    if noise.degrees:
        error = MEDIAN_ERROR * math.sqrt(noise.variance * (1 / len(a) + 1 / len(b)))
        # exp() of more than 700 overflows: so wide an interval is no interval.
        reach = min(700.0, error * student_quantile((1 + level) / 2, noise.degrees))
        low, high = ratio * math.exp(-reach), ratio * math.exp(reach)
    return Comparison(
        metric=metric,
        a=statistics.median(a),
        b=statistics.median(b),
        ratio=ratio,
        low=low,
        high=high,
        verdict=verdict_of(ratio, low, high, metric),
    )


def verdict_of(
    ratio: float, low: float, high: float, metric: Metric
) -> Literal["tie", "a better", "b better"]:
    """Tell which is better by the ratio of b over a and its interval."""
    if low <= 1 <= high or 1 / TIE < ratio < TIE:
        return "tie"
    return "b better" if (ratio > 1) == (metric.better == "higher") else "a better"


def _with_borrowed(own: Noise, others: Noise) -> Noise:
    if not others.degrees or (own.degrees and own.variance > NOISIER * others.variance):
        return own
    borrowed = min(BORROWED, others.degrees)
    degrees = own.degrees + borrowed
    return Noise((own.variance * own.degrees + others.variance * borrowed) / degrees, degrees)
