"""Waits for handshakes that began before a gate was shut or new connections were steered away.

Closing a listener loses them, and those that begin later go elsewhere.  So: a grace, in which most
end by themselves; one dump of the kernel's table, which finds those that are left; then a lookup of
each until it is over.  All of it is cut into steps of some milliseconds, for a loop that has more
to do, and ends at a limit whatever the kernel answers.
The master does this once for all workers that are to sweep.  A worker does it for itself only when
the master has gone, or when the worker was sent TERM directly.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from greeterd.config.schema import Config
from greeterd.sockets.address import Address
from greeterd.sockets.sockdiag import Handshake, handshakes, is_under_way
from greeterd.supervisor.ids import WorkerId

LIMIT: Final = 5.0
"""Seconds that are waited at most, after the grace.  A client's lost ACK is repeated after a
second, then after two more: two losses in a row are covered."""
SHARE: Final = 0.25
"""Of `graceful_timeout`, if that is less than LIMIT: the queue has to be served in the rest, and a
dispatcher's in half of the rest."""
POLL: Final = 0.1
"""Seconds between two lookups of a handshake that lasts."""
LOOKUPS: Final = 100
"""Handshakes that one step looks up at most."""


def limit_of(config: Config) -> float:
    """Return for how many seconds handshakes are waited for at most, with the grace."""
    grace = config.drain_grace
    return grace + min(LIMIT, SHARE * (config.graceful_timeout - grace))


class Settling:
    """One wait, cut into steps."""

    def __init__(self, addresses: Iterable[Address], config: Config, now: float) -> None:
        """Begin; the gate is shut, or the steering in force.  Unix sockets have no handshakes."""
        self.due = now + config.drain_grace
        """When to call `over` next."""
        self._limit = now + limit_of(config)
        self._look = handshakes(each for each in addresses if not each.is_unix)
        self._looking = True
        self._left: list[Handshake] = []

    def over(self, now: float) -> bool:
        """Take a step if it is due; return whether the wait is over."""
        if now < self.due:
            return False
        try:
            if now < self._limit and self._lasts(now):
                return False
        except OSError:
            pass  # the kernel does not answer: the grace has to do
        self._look.close()
        return True

    def _lasts(self, now: float) -> bool:
        self.due = now
        if self._looking:
            portion = next(self._look, None)
            self._looking = portion is not None
            self._left += portion or []
            return True
        for _ in range(LOOKUPS):
            if not self._left:
                return False
            if is_under_way(self._left[-1]):
                self.due = min(now + POLL, self._limit)
                return True
            self._left.pop()
        return True


class Sweeps:
    """The workers that the master tells when to sweep: one wait for all that were added together.

    Each batch has its own gate or steering from another time, so a worker never joins a wait that
    has begun.
    """

    def __init__(self, addresses: Sequence[Address], tell: Callable[[WorkerId], object]) -> None:
        """`tell` is called once for each worker, when its wait is over."""
        self._addresses = addresses
        self._tell = tell
        self._new: list[WorkerId] = []
        self._waits: list[tuple[Settling, list[WorkerId]]] = []

    def add(self, ident: WorkerId) -> None:
        """Include this worker in the next wait; it sweeps when that is over."""
        self._new.append(ident)

    def next_deadline(self) -> float | None:
        """Return when to call `attend` next, or None if there is no wait."""
        return min((settling.due for settling, _ in self._waits), default=None)

    def attend(self, config: Config, now: float) -> None:
        """Begin a wait for the workers that were added, and take a step in each wait."""
        if self._new:
            self._waits.append((Settling(self._addresses, config, now), self._new))
            self._new = []
        for each in [each for each in self._waits if each[0].over(now)]:
            self._waits.remove(each)
            for ident in each[1]:
                self._tell(ident)
