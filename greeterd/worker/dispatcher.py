"""Hands accepted connections on to the slots: the handler of mode handoff's dispatcher.

A connection that no slot has room for is held, and nothing more is accepted until it has gone: what
comes meanwhile waits in the listener's queue, from where it can still go to any slot.

The policies: round-robin goes through the slots one after the other; least-busy takes the slot with
the fewest connections that wait in its pair or are unfinished in its newest worker, and of equals
the one whose turn it is.  Slots whose worker has paused come last in both.  Loads and pauses are
read once a burst, and what is handed on is added to them.  They are the workers' own claims: one
that lies gets more connections than its share, or fewer.
"""

import errno
import os
import select
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from greeterd.sockets.fd_passing import HandoffPair, hand_over, waiting
from greeterd.sockets.listener import close_with_reset
from greeterd.sockets.steering import open_gate
from greeterd.worker import counters
from greeterd.worker.acceptor import Source
from greeterd.worker.counters import BLOCKED_BY_WORKERS, Row


@dataclass(frozen=True, slots=True)
class Route:
    """A slot that connections are handed on to."""

    pair: HandoffPair
    row: "Row | None"
    """Read-only row of the slot's newest worker; None if an older build's memory holds it."""

    @property
    def paused(self) -> bool:
        """Its worker does not accept at present."""
        return self.row is not None and self.row[counters.BLOCKED] > 0

    def load(self) -> int:
        """Return how many connections wait for the slot's worker or are unfinished in it."""
        unfinished = 0 if self.row is None else self.row[counters.OPEN]
        return waiting(self.pair.exit) + unfinished


class Dispatcher:
    """The slots that take connections, and one that none of them has room for; a `Handler`."""

    full_reason: Final = BLOCKED_BY_WORKERS

    def __init__(
        self,
        *,
        policy: str,
        epoll: select.epoll,
        row: Row,
        on_room: Callable[[], None],
    ) -> None:
        """`on_room` is called when the connection that was held has gone."""
        self._least_busy = policy == "least-busy"
        self._epoll = epoll
        self._row = row
        self._on_room = on_room
        self._routes: dict[int, Route] = {}
        self._turns: deque[int] = deque()
        """The slots; the first is the one whose turn it is."""
        self._loads: dict[int, int] = {}
        """For least-busy: `Route.load` when the burst began, plus what was handed on since."""
        self._paused: frozenset[int] = frozenset()
        """The slots whose worker did not accept when the burst began."""
        self._slots: dict[int, int] = {}
        """By the descriptor of the pair's entry, which epoll watches: for its end, and for room."""
        self._held: tuple[int, str] | None = None
        """Descriptor and client of the connection that no slot had room for."""
        self._waits_for_room = False
        """Epoll reports when a pair has room."""
        self._gated = False
        self.accept_error = 0

    def add_route(self, slot: int, pair: HandoffPair, row: "Row | None" = None) -> None:
        """Hand on to this slot, too, or by a new pair; the dispatcher closes the pair in the end.

        `row` is the slot's newest worker's.

        Raises:
            OSError: epoll refuses the pair; it is closed, and the slot has no route.

        """
        if slot in self._routes:
            self._drop(slot)
        try:
            self._epoll.register(pair.entry, self._mask)
        except OSError:
            pair.close()
            raise
        self._slots[pair.entry.fileno()] = slot
        self._routes[slot] = Route(pair, row)
        self._turns.append(slot)
        self._hand_on_held()

    @property
    def room(self) -> int:
        """How many connections may be accepted now."""
        return sys.maxsize if self._held is None else 0

    @property
    def idle(self) -> bool:
        """No connection is left to hand on."""
        return self._held is None

    def open_gates(self) -> None:
        """From now on open the gate of each connection; also of the one that is held."""
        self._gated = True
        if self._held is not None:
            open_gate(self._held[0])

    def stop_opening_gates(self) -> None:
        """Take connections as they are: no listener has a gate any more."""
        self._gated = False

    def burst(self, source: Source, limit: int) -> int:
        """Accept and hand on up to `limit` connections; return their number, 0 if none waited."""
        accept, name_peer = source.accept, source.name_peer
        taken = 0
        self.accept_error = 0
        if self._held is not None:
            return 0
        if self._least_busy:
            self._loads = {slot: route.load() for slot, route in self._routes.items()}
        self._paused = frozenset(slot for slot, route in self._routes.items() if route.paused)
        try:
            while taken < limit and self._held is None:
                fd, peer = accept()
                taken += 1
                if self._gated:
                    open_gate(fd)
                self._held = fd, name_peer(peer)
                self._offer()
        except BlockingIOError:
            pass
        except OSError as error:
            self._row[counters.ACCEPT_ERRORS] += 1
            self.accept_error = error.errno or errno.EIO
        self._row[counters.CONNECTIONS] += taken
        held = self._held is not None
        self._row[counters.HANDED_OVER] += taken - held
        self._wait_for_room(held)
        return taken

    def on_event(self, fd: int) -> bool:
        """Drop a pair that has ended, use one that has room; False if it is not one of ours."""
        slot = self._slots.get(fd)
        if slot is None:
            return False
        if self._routes[slot].pair.closed:
            self._drop(slot)
        self._hand_on_held()
        return True

    def end_turn(self) -> bool:
        """Try again to hand on what is held; True, since no log has to be written."""
        self._hand_on_held()
        self._row[counters.OPEN] = self._held is not None
        return True

    def abandon(self) -> None:
        """Reset the connection that is held."""
        if self._held is not None:
            close_with_reset(self._held[0])
            self._row[counters.RESET] += 1
            self._held = None

    # ----------------------------------------------------------------------------------------

    def _hand_on_held(self) -> None:
        if self._held is None:
            return
        if not self._offer():
            self._wait_for_room(True)
            return
        self._row[counters.HANDED_OVER] += 1
        self._wait_for_room(False)
        self._on_room()

    def _offer(self) -> bool:
        """Hand on what is held to the first slot that takes it; False if none has room."""
        assert self._held is not None
        fd, client = self._held
        for slot in self._candidates():
            try:
                hand_over(self._routes[slot].pair.entry, fd, client)
            except BlockingIOError:
                continue
            except OSError:
                self._drop(slot)  # the master has closed the entry: the slot retires
                continue
            os.close(fd)
            self._held = None
            if self._least_busy:
                self._loads[slot] = self._loads.get(slot, 0) + 1
            self._turns.remove(slot)
            self._turns.append(slot)
            return True
        return False

    def _candidates(self) -> list[int]:
        """Return all slots in the order in which the policy tries them."""
        turns = list(self._turns)
        # Sorting is stable: of equals the one whose turn it is comes first.
        if self._least_busy:
            turns.sort(key=lambda slot: self._loads.get(slot, 0))
        if self._paused:
            turns.sort(key=self._paused.__contains__)
        return turns

    @property
    def _mask(self) -> int:
        # The end (EPOLLHUP) is always reported.  Edge-triggered: a pair with room may still refuse,
        # while too many descriptors are in flight, and would be reported without end.
        return select.EPOLLOUT | select.EPOLLET if self._waits_for_room else 0

    def _wait_for_room(self, on: bool) -> None:
        """Have epoll report the entries when they get room, or not."""
        if on == self._waits_for_room:
            return
        self._waits_for_room = on
        for fd in self._slots:
            self._epoll.modify(fd, self._mask)

    def _drop(self, slot: int) -> None:
        route = self._routes.pop(slot)
        self._turns.remove(slot)
        self._epoll.unregister(route.pair.entry)
        del self._slots[route.pair.entry.fileno()]
        route.pair.close()
