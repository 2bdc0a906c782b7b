"""The quantiles of Student's t, for whole degrees of freedom."""

import math
from functools import lru_cache


@lru_cache(maxsize=256)
def student_quantile(probability: float, degrees: int) -> float:
    """Return the t that a Student's t stays below with a probability from 0.5 to below 1."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < probability else (low, middle)
    return high


def student_cdf(t: float, degrees: int) -> float:
    """Return the probability that Student's t is at most `t`, which is 0 or more.

    Finite sums for whole degrees of freedom: M. Abramowitz and I. Stegun, Handbook of Mathematical
    Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, term, total = math.cos(angle), 1.0, 0.0
    if degrees % 2:
        term = cosine
        for index in range(1, degrees - 1, 2):
            total += term
            term *= cosine**2 * (index + 1) / (index + 2)
        return 0.5 + (angle + math.sin(angle) * total) / math.pi
    for index in range(0, degrees - 1, 2):
        total += term
        term *= cosine**2 * (index + 1) / (index + 2)
    return 0.5 + math.sin(angle) * total / 2
