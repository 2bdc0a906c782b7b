"""Drains a worker: empties and closes its listeners, all in the end, and those that were lent.

HAND_OVER closes a listener at once: others accept from it.  SWEEP closes it when it is empty, after
the handshakes are over that began before the gate or the steering (see `handshakes`).  A pair by
which connections are handed over ends by itself, and is accepted from until then.
QUICK closes all and resets what is unfinished.
"""

import select
from collections.abc import Callable
from time import monotonic
from typing import Final

from greeterd.sockets.steering import is_gated_by_ttl
from greeterd.supervisor.ids import DrainMode
from greeterd.system.proctitle import title_worker
from greeterd.worker.acceptor import Acceptor, Source
from greeterd.worker.context import WorkerContext
from greeterd.worker.handler import Handler
from greeterd.worker.handshakes import Settling, limit_of

PATIENCE: Final = 1.0
"""Seconds beyond the time that handshakes may take.  The master's second DrainMessage should have
come by then; without it the worker sweeps on its own."""

Take = Callable[[int, Source], int | None]
"""Accepts a burst from a listener; returns how many it took, None if the loop had to pause."""


class Drainer:
    """What is to be closed, and when.

    The loop calls `do_due` at the earliest of `deadlines` or later, and not while it is paused.
    """

    def __init__(
        self, context: WorkerContext, acceptor: Acceptor, handler: Handler, take: Take
    ) -> None:
        self._context = context
        self._acceptor = acceptor
        self._handler = handler
        self._take = take
        self.mode: DrainMode | None = None
        """None while the worker serves."""
        self._sweep_at: float | None = None
        """When to empty and close the listeners; None: not now, or it is done."""
        self._settling: Settling | None = None
        """This worker's own wait for handshakes, where the master does not wait for it."""
        self._to_the_end = False
        self._returns: dict[int, float] = {}
        """When to empty and close the listeners that a slot has lent."""

    def begin(
        self, mode: DrainMode, *, to_the_end: bool = True, settled: bool | None = None
    ) -> None:
        """Drain in this mode from now on, whatever the mode was before.

        `to_the_end`: accept from a pair until its entry is closed; otherwise sweep it, too, and
        others take what comes later.
        `settled`: None to wait for handshakes here; otherwise the master does, and calls `settle`.
        """
        title_worker(self._context.slot, self._context.generation, "draining")
        self.mode = mode
        self._to_the_end = to_the_end
        self._sweep_at = self._settling = None
        match mode:
            case DrainMode.HAND_OVER:
                self._acceptor.close(list(self._acceptor.sources))
            case DrainMode.SWEEP:
                now = monotonic()
                if any(map(_may_be_gated, self._acceptor.sources.values())):
                    self._handler.open_gates()
                if settled is None:
                    self._settling = Settling(self._context.addresses, self._context.config, now)
                else:
                    self._sweep_at = now + limit_of(self._context.config) + PATIENCE
            case DrainMode.QUICK:
                self._acceptor.close(list(self._acceptor.sources))
                self._handler.abandon()

    def settle(self) -> None:
        """Sweep now: the master knows that no handshake is in flight any more."""
        if self._sweep_at is not None:
            self._sweep_at = monotonic()

    def give_back(self, slot: int) -> None:
        """Empty and close, after `drain_grace`, the listeners that this slot has lent."""
        self._returns[slot] = monotonic() + self._context.config.drain_grace

    def deadlines(self) -> list[float]:
        """Return when `do_due` has something to do."""
        sweep = [] if self._sweep_at is None else [self._sweep_at]
        settling = [] if self._settling is None else [self._settling.due]
        return [*self._returns.values(), *sweep, *settling]

    def do_due(self, now: float) -> list[int]:
        """Sweep what is due; return the slots whose lent listeners are closed by that."""
        returned = []
        for slot in [slot for slot, due in self._returns.items() if now >= due]:
            if self._sweep(self._acceptor.lent_from(slot)):
                del self._returns[slot]
                returned.append(slot)
        if self._settling is not None and self._settling.over(now):
            self._settling = None
            self._sweep_at = now
        if self._sweep_at is not None and now >= self._sweep_at:
            fds = [fd for fd, source in self._acceptor.sources.items() if self._is_swept(source)]
            if self._sweep(fds):
                self._sweep_at = None
        return returned

    def _is_swept(self, source: Source) -> bool:
        """Return whether we close this one; a pair may be left to end by itself."""
        return not (source.ends and self._to_the_end)

    def _sweep(self, fds: list[int]) -> bool:
        """Accept all that is queued, then close; False if the loop had to pause before that."""
        for fd in fds:
            source = self._acceptor.sources[fd]
            # A queue holds one connection more than the backlog.  Whatever follows so many has come
            # after the sweep began, and may never end where others keep the listener open.
            left = self._context.config.backlog + 1
            # Polled before each, since a blocking accept on an empty queue would wait.
            while left > 0 and fd in self._acceptor.sources and _readable(fd):
                taken = self._take(fd, source)
                if taken is None:
                    return False
                left -= taken or 1
        self._acceptor.close([fd for fd in fds if fd in self._acceptor.sources])
        return True


def _may_be_gated(source: Source) -> bool:
    # A connection that is handed over may have been accepted before the dispatcher knew of a gate.
    return source.ends or is_gated_by_ttl(source.sock)


def _readable(fd: int) -> bool:
    # Not select.select(): it cannot take descriptors above 1023.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
