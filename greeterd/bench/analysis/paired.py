"""Decides by pairs of trials whether two cases differ, and when there are pairs enough.

The trials of a pair are adjacent in time and their order is random, so that whatever drifts meets
both: only the ratio within each pair is looked at.  Its logarithms are taken to be independent and
about normal, and have Student's interval for their mean.

Who looks again and again, and stops when an interval leaves out 1, finds differences that are none:
with an interval of 95 % at each of LOOKS in 19 % of cases.  So each look has an interval of
LEVEL_AT_A_LOOK, and all of them hold together with 95 % (S. Pocock 1977, Group sequential methods;
as intervals that hold at every look: C. Jennison and B. Turnbull 1989, Interim analyses: the
repeated confidence interval approach).  A run that is cut short has one look at its end in the
place of those that it has not come to.  The tests simulate both.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from greeterd.bench.extras import require

LOOKS: Final = (20, 30, 45, 68, 102, 153, 230)
"""How many pairs there are when it is looked whether they are enough: each half as many more."""
LEVEL: Final = 0.95
LEVEL_AT_A_LOOK: Final = 0.99
LEAST: Final = 2
"""Pairs without which nothing is known of the noise."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """By what one thing is more than another: b over a."""

    ratio: float
    low: float
    high: float
    """From 0 to infinity where there is one pair."""
    pairs: int
    spread: float
    """The standard deviation of the logarithms."""
    level: float
    p_value: float
    """Of no difference, at this one look."""

    @property
    def differs(self) -> bool:
        """Whether no difference is ruled out."""
        return self.low > 1 or self.high < 1

    def is_within(self, precision: float) -> bool:
        """Tell whether more than this precision is ruled out, either way."""
        return 1 / (1 + precision) < self.low and self.high < 1 + precision

    def decides(self, precision: float) -> bool:
        """Tell whether it is known that they differ, or that they do not matter."""
        return self.differs or self.is_within(precision)

    @property
    def unseen(self) -> float:
        """The largest difference, as a ratio less 1, that is not ruled out."""
        return max(self.high, 1 / self.low) - 1 if self.low > 0 else math.inf

    def wanted(self, precision: float) -> int:
        """Return how many pairs will likely decide, if the rest is like these."""
        if self.pairs < LEAST:
            return LOOKS[0]
        centre = abs(math.log(self.ratio))
        reach = max(centre, math.log(1 + precision) - centre)
        quantile = student_quantile((1 + self.level) / 2, self.pairs - 1)
        return max(LOOKS[0], math.ceil((quantile * self.spread / reach) ** 2))


def compare(a: Sequence[float], b: Sequence[float], level: float, floor: float = 0.0) -> Ratio:
    """Return the ratio of b over a, given by pairs, one at least.

    `floor` is added to all values first: differences far below it are nothing, and 0 has a ratio.
    """
    logs = [math.log((y + floor) / (x + floor)) for x, y in zip(a, b, strict=True)]
    n, mean = len(logs), statistics.fmean(logs)
    if n < LEAST:
        return Ratio(math.exp(mean), 0.0, math.inf, n, math.inf, level, 1.0)
    spread = statistics.stdev(logs)
    error = spread / math.sqrt(n)
    reach = min(700.0, error * student_quantile((1 + level) / 2, n - 1))  # more overflows exp()
    p_value = 2 * student_cdf(-abs(mean) / error, n - 1) if error else float(mean == 0)
    low, high = math.exp(mean - reach), math.exp(mean + reach)
    return Ratio(math.exp(mean), low, high, n, spread, level, p_value)


def student_quantile(probability: float, degrees: int) -> float:
    """Return the t that Student's t stays below with a probability.

    Raises:
        MissingPackageError: scipy is not installed.
    """
    require("scipy")
    from scipy.special import stdtrit  # noqa: PLC0415 - of the extra `bench`

    return float(stdtrit(degrees, probability))


def student_cdf(value: float, degrees: int) -> float:
    """Return the probability that Student's t is at most `value`.  Raises: as its quantile."""
    require("scipy")
    from scipy.special import stdtr  # noqa: PLC0415 - of the extra `bench`

    return float(stdtr(degrees, value))


def level_of(pairs: int | None) -> float:
    """Return the level of an interval: one look after a fixed number, or one of several."""
    return LEVEL_AT_A_LOOK if pairs is None else LEVEL


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values as they are when all are looked at (S. Holm, 1979)."""
    found, least = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = least
    return found
