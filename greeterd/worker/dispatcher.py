"""Hands accepted connections on: what the dispatcher of mode handoff does instead of greeting.

It stands in a worker's loop where `service` does in the others.  A connection that no slot has room
for is held, and nothing more is accepted until it has gone: what waits meanwhile waits at the
listener, and is not yet anybody's.

The policies: round-robin goes through the slots one after the other; least-busy takes the slot with
the fewest connections that wait in its pair or are unfinished in its newest worker, and of equals
the one whose turn it is.  Slots whose worker has paused come last in both.  How the slots fare is
looked up once a burst, and what is handed on is counted from there.  It is what the workers say:
one that lies gets more connections than its share, or fewer.
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
    """Where connections are handed on to."""

    pair: HandoffPair
    row: "Row | None"
    """Of the slot's newest worker, to read; None if it is of an older build, and not known here."""

    @property
    def paused(self) -> bool:
        """Its worker takes nothing at present."""
        return self.row is not None and self.row[counters.BLOCKED] > 0

    def load(self) -> int:
        """Return how many connections the slot has before it."""
        unfinished = 0 if self.row is None else self.row[counters.OPEN]
        return waiting(self.pair.exit) + unfinished


class Dispatcher:
    """The slots that take connections, and the connection that no slot has room for."""

    full: Final = BLOCKED_BY_WORKERS
    """Why nothing is accepted when there is no room."""

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
        """The slots, the one whose turn it is first."""
        self._loads: dict[int, int] = {}
        """Of least-busy: as looked up when the burst began, and what was handed on since."""
        self._paused: frozenset[int] = frozenset()
        """The slots whose worker took nothing when the burst began."""
        self._slots: dict[int, int] = {}
        """By the descriptor of the entry, which epoll watches: for its end, and for room."""
        self._held: tuple[int, str] | None = None
        self._waits = False
        """Epoll tells when a pair has room."""
        self._gated = False
        self.trouble = 0
        """The error number that the latest burst ended with, 0 for none."""

    def add_route(self, slot: int, pair: HandoffPair, row: "Row | None" = None) -> None:
        """Hand on to this slot, too; this process's copies of the pair are owned from now on.

        `row` is what its newest worker says of itself.
        """
        if slot in self._routes:
            self._drop(slot)
        self._slots[pair.entry.fileno()] = slot
        self._epoll.register(pair.entry, self._mask)
        self._routes[slot] = Route(pair, row)
        self._turns.append(slot)
        self._hand_on_held()

    @property
    def room(self) -> int:
        """How many connections may be accepted now."""
        return sys.maxsize if self._held is None else 0

    @property
    def open(self) -> int:
        """Connections that are held, one at most."""
        return int(self._held is not None)

    @property
    def idle(self) -> bool:
        """Nothing is left to hand on."""
        return self._held is None

    def open_gates(self) -> None:
        """Let in what comes for the connections (see steering.gate_syn), also for the one held."""
        self._gated = True
        if self._held is not None:
            open_gate(self._held[0])

    def leave_gates(self) -> None:
        """Do that no longer."""
        self._gated = False

    def burst(self, source: Source, limit: int) -> int:
        """Accept and hand on up to `limit` connections; return their number, 0 for none waiting."""
        accept, name_peer = source.accept, source.name_peer
        taken = 0
        self.trouble = 0
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
            self.trouble = error.errno or errno.EIO
        self._row[counters.CONNECTIONS] += taken
        self._row[counters.HANDED_OVER] += taken - self.open
        self._wait_for_room(self._held is not None)
        return taken

    def handle(self, fd: int) -> bool:
        """See to a pair that has ended or may have room; False when it is none of ours."""
        slot = self._slots.get(fd)
        if slot is None:
            return False
        if self._routes[slot].pair.closed:
            self._drop(slot)
        self._hand_on_held()
        return True

    def end_turn(self) -> bool:
        """Try again what is held; True, since no log has to be written."""
        self._hand_on_held()
        self._row[counters.OPEN] = self.open
        return True

    def next_deadline(self) -> float | None:
        """Return None: what is held waits for as long as it takes."""

    def expire(self, now: float) -> None:
        """Do nothing: the time of a client begins when a worker has it."""

    def abandon(self) -> None:
        """Reset what is held."""
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
        """Hand on what is held to the slot that is to have it, or another; False: none has room."""
        assert self._held is not None
        fd, client = self._held
        for slot in self._candidates():
            try:
                hand_over(self._routes[slot].pair.entry, fd, client)
            except BlockingIOError:
                continue
            except OSError:
                self._drop(slot)  # it retires
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
        turns = list(self._turns)
        # Sorting is stable: of equals the one whose turn it is comes first.
        if self._least_busy:
            turns.sort(key=lambda slot: self._loads.get(slot, 0))
        if self._paused:
            turns.sort(key=self._paused.__contains__)
        return turns

    @property
    def _mask(self) -> int:
        # The end (EPOLLHUP) is always reported.  Edge-triggered: a pair can have room while too
        # many descriptors are on their way.
        return select.EPOLLOUT | select.EPOLLET if self._waits else 0

    def _wait_for_room(self, on: bool) -> None:
        """Have epoll report the entries when they get room, or not."""
        if on == self._waits:
            return
        self._waits = on
        for fd in self._slots:
            self._epoll.modify(fd, self._mask)

    def _drop(self, slot: int) -> None:
        route = self._routes.pop(slot)
        self._turns.remove(slot)
        self._epoll.unregister(route.pair.entry)
        del self._slots[route.pair.entry.fileno()]
        route.pair.close()
