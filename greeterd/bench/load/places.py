"""Decides between which addresses of 127.0.0.0/8 a load runs; pure.

A client's port stays in TIME_WAIT for a minute, and one source has about 28,000 of them for one
destination.  All of 127.0.0.0/8 is this machine's, so more sources are free of charge: the ports
are never what is measured.  Successive runs begin at different sources.
"""

from ipaddress import IPv4Address
from math import ceil
from typing import Final, NamedTuple

PER_SOURCE: Final = 5_000
"""Greetings of a minute from one source.  Below half of the ports (connect() takes the even ones
first), because the kernel's search for a free one grows long when most are taken."""
MINUTE: Final = 60.0
"""TIME_WAIT, TCP_TIMEWAIT_LEN of the kernel."""
FASTEST: Final = 50_000.0
"""Greetings per second that are reckoned with where no rate is known."""

FIRST: Final = int(IPv4Address("127.1.0.1"))
LAST: Final = int(IPv4Address("127.255.255.254"))
SPAN: Final = LAST - FIRST + 1


class Places(NamedTuple):
    """The addresses of a load: `sources` from `first` on (0 sources: the kernel's choice)."""

    first: int = 0
    sources: int = 0
    destinations: int = 1


def sources_needed(greetings: int | None, seconds: float | None, rate: float) -> int:
    """Return how many sources the busiest minute of a load needs."""
    in_a_minute = (rate or FASTEST) * min(MINUTE, seconds or MINUTE)
    most = in_a_minute if greetings is None else min(greetings, in_a_minute)
    return max(1, ceil(most / PER_SOURCE))


def source(first: int, number: int) -> str:
    """Return a source: the next after the last of 127.0.0.0/8 is the first again."""
    return str(IPv4Address(FIRST + (first + number) % SPAN))


def sources(places: Places) -> list[str]:
    """Return all sources."""
    return [source(places.first, number) for number in range(places.sources)]


def destinations(host: str, number: int) -> list[str]:
    """Return the destinations, the given one last.

    A server that does not listen on 0.0.0.0 so refuses the first connection, not one of many.
    """
    given = int(IPv4Address(host))
    return [str(IPv4Address(given + offset)) for offset in [*range(1, number), 0]]
