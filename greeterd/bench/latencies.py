"""Puts the latencies of several trials together, and reads percentiles off them."""

import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from greeterd.bench.model import Latency

FIELDS: Final = {50: "p50", 90: "p90", 99: "p99", 99.9: "p999", 100: "max"}
"""The percentiles that a latency has, by the names of its fields."""


def percentile(of: Latency, at: float) -> float | None:
    """Return one of FIELDS in milliseconds, of all clients; None where it is not known.

    The figures of a latency are of those that were served.  The others, who waited in vain, count
    as slower than any of these, so that no percentile among them is known.
    """
    if not of.count or at > of.known:
        return None
    if not of.missing:
        return float(getattr(of, FIELDS[at]))
    return next((ms for above, ms in of.curve if above * of.known >= 100 * at), of.max)


def merge_latency(parts: Sequence[Latency]) -> Latency:
    """Return the latency of several trials together.

    Histograms are added up where each part has one and the package hdrhistogram is there.  Else
    each percentile is the median of the parts', which is no percentile of the whole.
    """
    missing = sum(part.missing for part in parts)
    parts = [part for part in parts if part.count]
    if not parts:
        return Latency(missing=missing)
    if all(part.histogram for part in parts):
        with suppress(Exception):  # an alien histogram; the library has no base class of its own
            return _merge_histograms(parts, missing)
    middle = sorted(parts, key=lambda part: part.p50)[(len(parts) - 1) // 2]
    return Latency(
        count=sum(part.count for part in parts),
        missing=missing,
        mean=statistics.fmean(part.mean for part in parts),
        min=min(part.min for part in parts),
        p50=statistics.median(part.p50 for part in parts),
        p90=statistics.median(part.p90 for part in parts),
        p99=statistics.median(part.p99 for part in parts),
        p999=statistics.median(part.p999 for part in parts),
        max=max(part.max for part in parts),
        curve=middle.curve,
    )


def _merge_histograms(parts: Sequence[Latency], missing: int) -> Latency:
    from hdrh.histogram import HdrHistogram  # noqa: PLC0415 - of the extra `bench`

    whole: Any = HdrHistogram.decode(parts[0].histogram)
    for part in parts[1:]:
        whole.decode_and_add(part.histogram)
    count = whole.get_total_count()
    if count != sum(part.count for part in parts):
        raise ValueError("the histograms hold another number of greetings")

    def at(percentile: float) -> float:
        return float(whole.get_value_at_percentile(percentile)) / 1000

    # Equal steps on the axis of such curves: four for each halving of what is above.
    steps = range(4 * max(1, math.ceil(math.log2(count))) + 1)
    return Latency(
        count=count,
        missing=missing,
        mean=whole.get_mean_value() / 1000,
        min=whole.get_min_value() / 1000,
        p50=at(50),
        p90=at(90),
        p99=at(99),
        p999=at(99.9),
        max=whole.get_max_value() / 1000,
        curve=[(p, at(p)) for p in (100 * (1 - 2 ** (-step / 4)) for step in steps)],
    )
