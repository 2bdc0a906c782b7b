"""Decides when connections begin, and which process begins them; pure.

A schedule is a stream of nanoseconds since the start of the load, rising, without an end.  Of one
schedule process p of P takes the arrivals p, p + P, p + 2P, ...: together they are the schedule
again, so it does not depend on the number of processes.
"""

import random
from collections.abc import Iterator
from itertools import count, islice, takewhile
from typing import Final, Literal

NANO: Final = 1_000_000_000


def constant(rate: float) -> Iterator[int]:
    """Yield arrivals that are 1/rate seconds apart, the first at 0."""
    # Each from its number, so that no error of rounding adds up.
    return (round(number * NANO / rate) for number in count())


def poisson(rate: float, seed: int) -> Iterator[int]:
    """Yield arrivals with exponential times between them, 1/rate seconds on average."""
    draw = random.Random(seed).expovariate  # noqa: S311 - no secret: a schedule to be repeated
    at = 0.0
    while True:
        at += draw(rate)
        yield round(at * NANO)


def arrivals(kind: Literal["constant", "poisson"], rate: float, seed: int) -> Iterator[int]:
    """Return the schedule of an open loop."""
    return constant(rate) if kind == "constant" else poisson(rate, seed)


def share(
    schedule: Iterator[int],
    process: int,
    processes: int,
    *,
    greetings: int | None = None,
    until_ns: int | None = None,
) -> Iterator[int]:
    """Return what one process takes of the first `greetings`, or of those before `until_ns`."""
    own = islice(schedule, process, greetings, processes)
    return own if until_ns is None else takewhile(lambda at: at < until_ns, own)


def split(total: int, processes: int) -> list[int]:
    """Return the parts of a whole, as equal as can be, the larger ones first."""
    part, rest = divmod(total, processes)
    return [part + (number < rest) for number in range(processes)]


def bursts(greetings: int, size: int) -> Iterator[int]:
    """Yield the sizes of the bursts that make up a number of greetings."""
    while greetings > 0:
        yield min(size, greetings)
        greetings -= size
