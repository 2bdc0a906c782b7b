"""Condenses latencies into an HdrHistogram: percentiles, the curve, and its interchange form.

In: nanoseconds.  In the histogram: whole microseconds at three significant digits, 1 us to an hour
(longer ones count as an hour).  Out: milliseconds.  Minimum, mean and maximum are exact.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Final

from greeterd.bench.model import Latency

LONGEST_US: Final = 3_600_000_000
DIGITS: Final = 3
TICKS: Final = 5
"""Points of the curve for each halving of the distance to 100 %."""


def summarise(parts: Sequence["array[int]"], missing: int = 0) -> Latency:
    """Return the latencies of all processes as one; `missing` greetings have none."""
    from hdrh.histogram import HdrHistogram  # noqa: PLC0415 - an extra, and slow to import

    total = sum(map(len, parts))
    if total == 0:
        return Latency(missing=missing)
    histogram = HdrHistogram(1, LONGEST_US, DIGITS)
    # Recording takes microseconds: once for each different value, not for each greeting.
    counted: Counter[int] = Counter()
    for part in parts:
        counted.update(value // 1000 for value in part)
    for value, count in counted.items():
        histogram.record_value(min(max(1, value), LONGEST_US), count)
    longest = max(max(part) for part in parts if part) / 1e6
    at = histogram.get_percentile_to_value_dict([50.0, 90.0, 99.0, 99.9])
    p50, p90, p99, p999 = (min(at[share] / 1e3, longest) for share in (50.0, 90.0, 99.0, 99.9))
    return Latency(
        count=total,
        missing=missing,
        mean=sum(map(sum, parts)) / total / 1e6,
        min=min(min(part) for part in parts if part) / 1e6,
        p50=p50,
        p90=p90,
        p99=p99,
        p999=p999,
        max=longest,
        curve=[
            (point.percentile_level_iterated_to, min(point.value_iterated_to / 1e3, longest))
            for point in histogram.get_percentile_iterator(TICKS)
        ],
        histogram=_text(histogram.encode()),
    )


def _text(encoded: bytes | str) -> str:
    return encoded.decode() if isinstance(encoded, bytes) else encoded
