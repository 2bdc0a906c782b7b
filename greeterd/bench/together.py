"""Compares all cases of two runs at once: what is small in each, and the same in all, is seen here.

The ratio is the geometric mean of the cases' ratios.  Its noise is that of the mean of independent
cases, each with the variance of its own trials, and its degrees of freedom are those by
F. Satterthwaite (1946), so that a few noisy cases do not pass for many quiet ones.
"""

import math
import statistics
from collections.abc import Sequence

from greeterd.bench.metrics import Metric
from greeterd.bench.stats import (
    MEDIAN_ERROR,
    Comparison,
    Noise,
    Summary,
    pooled_noise,
    shift,
    verdict_of,
)
from greeterd.bench.student import student_quantile


def compare_together(
    pairs: Sequence[tuple[Summary, Summary]], metric: Metric, *, level: float
) -> Comparison | None:
    """Compare all pairs by a metric; None when fewer than two have values of it.

    Where both sides have 0 only, nothing is compared: such cases are left out of others' mean.
    """
    values = [(a.values(metric), b.values(metric)) for a, b in pairs]
    values = [(a, b) for a, b in values if a and b]
    values = [(a, b) for a, b in values if any((*a, *b))] or values
    shifted = [(shift(a, metric), shift(b, metric)) for a, b in values]
    if len(shifted) < 2:  # noqa: PLR2004
        return None
    mine, theirs = (
        statistics.fmean(math.log(statistics.median(pair[side])) for pair in shifted)
        for side in (0, 1)
    )
    ratio = math.exp(theirs - mine)
    low, high = 0.0, math.inf
    noise = _noise_of_mean(shifted)
    if noise.degrees:
        reach = math.sqrt(noise.variance) * student_quantile((1 + level) / 2, noise.degrees)
        reach = min(700.0, reach)  # exp() of more overflows
        low, high = ratio * math.exp(-reach), ratio * math.exp(reach)
    return Comparison(
        metric=metric,
        a=math.exp(mine),
        b=math.exp(theirs),
        ratio=ratio,
        low=low,
        high=high,
        verdict=verdict_of(ratio, low, high, metric),
    )


def _noise_of_mean(shifted: Sequence[tuple[list[float], list[float]]]) -> Noise:
    """Return the variance of the mean logarithm of the cases' ratios."""
    every = pooled_noise(values for pair in shifted for values in pair)
    if not every.degrees:
        return Noise()
    parts = []
    for a, b in shifted:
        own = pooled_noise((a, b))
        own = own if own.degrees else every  # a case of one trial a side
        error = MEDIAN_ERROR**2 * own.variance * (1 / len(a) + 1 / len(b))
        parts.append(Noise(error / len(shifted) ** 2, own.degrees))
    total = math.fsum(part.variance for part in parts)
    spread = math.fsum(part.variance**2 / part.degrees for part in parts)
    return Noise(total, max(1, int(total**2 / spread)) if spread else every.degrees)
