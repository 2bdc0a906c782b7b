"""Decides when the greetings of a phase begin: by a schedule, or by the ends of others; pure.

What is due is a queue of instants, rising.  A closed loop adds one for each end, a burst none; a
schedule feeds it without asking how the server fares, and what was due is never dropped or moved.
Instants are nanoseconds of one clock, which the caller reads.
"""

from collections import deque
from collections.abc import Iterator

from greeterd.bench.load.messages import Order, Phase
from greeterd.bench.load.schedule import NANO, arrivals, share


class Pace:
    """The starts of one process in one phase."""

    def __init__(self, order: Order, phase: Phase) -> None:
        self._phase = phase
        self._think_ns = round(order.think * NANO)
        self._left = 0
        """Starts that are still to be given for an end."""
        self._due: deque[int] = deque()
        self._schedule: Iterator[int] = iter(())
        if phase.is_open and order.arrival in ("constant", "poisson"):
            until = None if phase.until_ns is None else phase.until_ns - phase.start_ns
            stream = arrivals(order.arrival, phase.rate, phase.seed)
            self._schedule = share(
                stream, order.process, order.processes, greetings=phase.greetings, until_ns=until
            )
            self._feed()
            return
        at_once = phase.connections
        if phase.greetings is not None:
            at_once = min(at_once, phase.greetings)
            self._left = phase.greetings - at_once
        self._due.extend([phase.start_ns] * at_once)

    @property
    def next_ns(self) -> int | None:
        """When the next is due; None when no more come by themselves."""
        return self._due[0] if self._due else None

    def take(self, now: int) -> int | None:
        """Take the next start if it is due; return the instant from which its latency counts."""
        if not self._due or self._due[0] > now:
            return None
        phase = self._phase
        due = self._due.popleft()
        if phase.is_open:
            self._feed()
            return due
        if phase.until_ns is not None and now >= phase.until_ns:
            self._due.clear()
            return None
        return due if phase.common_start else now

    def note_end(self, now: int) -> None:
        """Let the next begin for one that has ended, where that is how it goes."""
        phase = self._phase
        if phase.is_open or phase.common_start:
            return
        if phase.greetings is not None:
            if self._left == 0:
                return
            self._left -= 1
        self._due.append(now + self._think_ns)

    def stop(self) -> None:
        """Let nothing more begin."""
        self._left = 0
        self._schedule = iter(())
        self._due.clear()

    def _feed(self) -> None:
        offset = next(self._schedule, None)
        if offset is not None:
            self._due.append(self._phase.start_ns + offset)
