"""What a report has figures of: each metric reads a value off a trial, or says that there is none.

There is none where the server did not decide it: arrivals of open loop and bursts come at the
client's pace, so that their rate and time are the client's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from greeterd.bench.latencies import percentile
from greeterd.bench.model import Case, Trial

PACED_BY_SERVER: Final = frozenset({"closed", "seed"})
"""The arrivals of which the next waits for an earlier one to end."""


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
    partial: bool = False
    """Whether trials that have no value are left out; else no trial tells then."""
    compared: bool = False
    """Whether comparisons look at it, beside CPU."""


def has_rate(case: Case) -> bool:
    """Tell whether the server decides how long a trial of this case takes."""
    return case.arrival in PACED_BY_SERVER


def jain(counts: Sequence[int]) -> float | None:
    """Return the Jain index of counts, from 1/N to 1; None of nothing."""
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else None


def rate(trial: Trial) -> float | None:
    """Return the greetings per second; None where the client was the limit."""
    return trial.rate or None if has_rate(trial.case) else None


def _scoreboard(name: str) -> Callable[[Trial], float | None]:
    """Return what reads a figure that only greeterd has."""
    return lambda trial: getattr(trial, name) if trial.case.server == "greeterd" else None


def _latency(at: float) -> Callable[[Trial], float | None]:
    def value(trial: Trial) -> float | None:
        return percentile(trial.load.latency, at) if trial.load else None

    return value


def _lost(trial: Trial) -> float | None:
    return 100 * trial.lost / trial.load.sent if trial.load and trial.load.sent else None


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric("rate", "rate", "greetings/s", "higher", rate, partial=True, compared=True),
        Metric("cpu_us", "CPU", "us/greeting", "lower", lambda t: t.cpu_us or None, 0.1),
        Metric("cpu_user_us", "user CPU", "us/greeting", "lower", lambda t: t.cpu_user_us, 0.1),
        Metric(
            "cpu_system_us", "system CPU", "us/greeting", "lower", lambda t: t.cpu_system_us, 0.1
        ),
        Metric("switches", "context switches", "per greeting", "lower", lambda t: t.switches, 0.05),
        Metric("p50_ms", "latency, median", "ms", "lower", _latency(50), 0.05, compared=True),
        Metric("p90_ms", "latency, p90", "ms", "lower", _latency(90), 0.05),
        Metric("p99_ms", "latency, p99", "ms", "lower", _latency(99), 0.05, compared=True),
        Metric("p999_ms", "latency, p99.9", "ms", "lower", _latency(99.9), 0.05),
        Metric("wakeups", "wake-ups", "per greeting", "lower", _scoreboard("wakeups"), 0.05),
        Metric(
            "wasted_wakeups",
            "wasted wake-ups",
            "per greeting",
            "lower",
            _scoreboard("wasted_wakeups"),
            0.05,
            compared=True,
        ),
        Metric("jain", "Jain index", "1/N to 1", "higher", lambda t: jain(t.per_worker)),
        Metric("lost_percent", "lost clients", "%", "lower", _lost, 0.1),
        Metric("queued_max", "longest queue", "clients", "lower", lambda t: t.listener.queued_max),
        Metric("drops", "drops", "clients", "lower", lambda t: t.listener.drops),
    )
}
PRIMARY: Final = METRICS["cpu_us"]
"""What an experiment is decided by."""
SECONDARY: Final = tuple(metric for metric in METRICS.values() if metric.compared)
