"""Empties and closes a worker's listeners: all of them when it leaves, and those that were lent.

A listener that others hold is left at once.  One that nobody takes over is swept: its queue is
emptied when the handshakes are over that began before the gate or the steering (`handshakes`).
What is handed connections is told when there are no more, and that is waited for.
The loop calls `go_on` at the latest at the soonest of `deadlines`, and never while it is paused.
"""

import select
from collections.abc import Callable
from time import monotonic
from typing import Final

from greeterd.sockets.steering import is_gated_by_ttl
from greeterd.supervisor.ids import DrainMode
from greeterd.system.proctitle import title_worker
from greeterd.worker.acceptor import Acceptor, Source
from greeterd.worker.connections import ConnectionHandler
from greeterd.worker.context import WorkerContext
from greeterd.worker.dispatcher import Dispatcher
from greeterd.worker.handshakes import Settling, limit_of

PATIENCE: Final = 1.0
"""Seconds beyond the time that handshakes may take, after which the master's word comes no more."""

Take = Callable[[int, Source], int | None]
"""Accepts a burst from a listener; returns how many it took, None when the worker had to pause."""


class Drainer:
    """What is on its way out."""

    def __init__(
        self,
        seat: WorkerContext,
        intake: Acceptor,
        service: ConnectionHandler | Dispatcher,
        take: Take,
    ) -> None:
        self._seat = seat
        self._intake = intake
        self._service = service
        self._take = take
        self.how: DrainMode | None = None
        """None while the worker is to stay."""
        self._sweep_at: float | None = None
        self._settling: Settling | None = None
        """The wait that goes before a sweep, where the master does not wait for us."""
        self._to_the_end = False
        self._returns: dict[int, float] = {}
        """When the listeners that a slot has lent are emptied and closed."""

    def begin(
        self, how: DrainMode, *, to_the_end: bool = True, settled: bool | None = None
    ) -> None:
        """Leave, from now on, in this way; a later order overrides an earlier one.

        `to_the_end`: until nothing more is handed over; otherwise others take what comes.
        `settled`: as DrainMessage.
        """
        title_worker(self._seat.slot, self._seat.generation, "draining")
        self.how = how
        self._to_the_end = to_the_end
        self._sweep_at = self._settling = None
        match how:
            case DrainMode.HAND_OVER:
                self._intake.close(list(self._intake.sources))
            case DrainMode.SWEEP:
                now = monotonic()
                if any(map(_may_be_gated, self._intake.sources.values())):
                    self._service.open_gates()
                if settled is None:
                    self._settling = Settling(self._seat.addresses, self._seat.config, now)
                else:
                    self._sweep_at = now + limit_of(self._seat.config) + PATIENCE
            case DrainMode.QUICK:
                self._intake.close(list(self._intake.sources))
                self._service.abandon()

    def settle(self) -> None:
        """Sweep now, if that is what is waited for: no handshake is in flight any more."""
        if self._sweep_at is not None:
            self._sweep_at = monotonic()

    def give_back(self, slot: int) -> None:
        """Empty and close, after the grace, the listeners that this slot has lent."""
        self._returns[slot] = monotonic() + self._seat.config.drain_grace

    def deadlines(self) -> list[float]:
        """Return when there is something to do."""
        sweep = [] if self._sweep_at is None else [self._sweep_at]
        settling = [] if self._settling is None else [self._settling.due]
        return [*self._returns.values(), *sweep, *settling]

    def go_on(self, now: float) -> list[int]:
        """Sweep what is due; return the slots whose listeners are given back by that."""
        returned = []
        for slot in [slot for slot, due in self._returns.items() if now >= due]:
            if self._swept(self._intake.lent_from(slot)):
                del self._returns[slot]
                returned.append(slot)
        if self._settling is not None and self._settling.over(now):
            self._settling = None
            self._sweep_at = now
        if self._sweep_at is not None and now >= self._sweep_at:
            fds = [fd for fd, source in self._intake.sources.items() if self._ours(source)]
            if self._swept(fds):
                self._sweep_at = None
        return returned

    def _ours(self, source: Source) -> bool:
        """Tell a source that we end from one that ends by itself."""
        return not (source.ends and self._to_the_end)

    def _swept(self, fds: list[int]) -> bool:
        """Take all that is queued, then close; False when the worker had to pause before that."""
        for fd in fds:
            source = self._intake.sources[fd]
            # A queue holds one connection more than the backlog: what comes after so many came too
            # late to be waited for, and there may be no end of it where the listener lives on.
            left = self._seat.config.backlog + 1
            # Asked first, since a blocking accept on an empty queue would wait.
            while left > 0 and fd in self._intake.sources and _readable(fd):
                taken = self._take(fd, source)
                if taken is None:
                    return False
                left -= taken or 1
        self._intake.close([fd for fd in fds if fd in self._intake.sources])
        return True


def _may_be_gated(source: Source) -> bool:
    # What is handed over may have been accepted before the dispatcher knew of a gate.
    return source.ends or is_gated_by_ttl(source.sock)


def _readable(fd: int) -> bool:
    # Not select.select(): it cannot take descriptors above 1023.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
