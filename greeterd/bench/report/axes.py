"""Finds the marks of an axis."""

import math


def ceiling(value: float) -> float:
    """Return the next round number (1, 2, 2.5 or 5 times a power of ten) that is not less."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10):
        if value <= step * power * (1 + 1e-9):
            return step * power
    return 10 * power


def marks(top: float, parts: int = 4) -> list[float]:
    """Return round numbers from 0 up to `top`, which is round itself."""
    step = ceiling(top / parts)
    found = [0.0]
    while found[-1] + step <= top * (1 + 1e-9):
        found.append(found[-1] + step)
    return found


def decades(low: float, high: float) -> list[float]:
    """Return the powers of ten that enclose the values, which are more than 0."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def short(value: float) -> str:
    """Return a number in few characters: `12k`, `1.5M`, `0.25`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
