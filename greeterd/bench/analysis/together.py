"""Compares all cases of two runs at once: what is small in each, and the same in all, is seen here.

The ratio is the geometric mean of the cases' ratios.  Its noise is that of the mean of independent
cases, each with the variance of its own trials, and its degrees of freedom are those by
F. Satterthwaite (1946), so that a few noisy cases do not pass for many quiet ones.
"""

import math
import statistics
from collections.abc import Sequence

from greeterd.bench.analysis.stats import (
    Comparison,
    Noise,
    Summary,
    judge,
    of_ratio,
    pooled_noise,
    shift,
)
from greeterd.bench.metrics import Metric


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
    figures = math.exp(mine), math.exp(theirs)
    return judge(metric, figures, math.exp(theirs - mine), _noise_of_mean(shifted), level=level)


def _noise_of_mean(shifted: Sequence[tuple[list[float], list[float]]]) -> Noise:
    """Return the variance of the mean logarithm of the cases' ratios."""
    every = pooled_noise(values for pair in shifted for values in pair)
    if not every.degrees:
        return Noise()
    parts = []
    for a, b in shifted:
        own = pooled_noise((a, b))
        own = own if own.degrees else every  # a case of one trial a side
        parts.append(Noise(of_ratio(own, a, b).variance / len(shifted) ** 2, own.degrees))
    total = math.fsum(part.variance for part in parts)
    spread = math.fsum(part.variance**2 / part.degrees for part in parts)
    return Noise(total, max(1, int(total**2 / spread)) if spread else every.degrees)
