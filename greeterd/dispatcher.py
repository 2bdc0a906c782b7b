"""Hands accepted connections on: what the dispatcher of mode handoff does instead of greeting.

It stands in a worker's loop where `service` does in the others.  A connection that no slot has room
for is held, and nothing more is accepted until it has gone: what waits meanwhile waits at the
listener, and is not yet anybody's.

The policies: round-robin goes through the slots one after the other; least-busy takes the slot with
the fewest connections that wait in its pair or are unfinished in its workers, which it looks up
once a burst and counts on from there, and of equals the one whose turn it is.
"""

import errno
import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from greeterd import scoreboard
from greeterd.handoff import Pair, hand_over, waiting
from greeterd.intake import Source
from greeterd.listener import close_with_reset
from greeterd.scoreboard import BLOCKED_BY_WORKERS, PLACES, Row, Scoreboard
from greeterd.steering import open_gate


@dataclass(frozen=True, slots=True)
class Route:
    """Where connections are handed on to."""

    pair: Pair
    rows: tuple[Row, ...]
    """Of the slot's workers."""

    def load(self) -> int:
        """Return how many connections the slot has before it."""
        return waiting(self.pair.exit) + sum(row[scoreboard.OPEN] for row in self.rows)


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
        board: Scoreboard,
        on_room: Callable[[], None],
    ) -> None:
        """`on_room` is called when the connection that was held has gone."""
        self._least_busy = policy == "least-busy"
        self._epoll = epoll
        self._row = row
        self._board = board
        self._on_room = on_room
        self._routes: dict[int, Route] = {}
        self._turns: deque[int] = deque()
        """The slots, the one whose turn it is first."""
        self._loads: dict[int, int] = {}
        """Of least-busy: as looked up when the burst began, and what was handed on since."""
        self._held: tuple[int, str] | None = None
        self._waiting: set[int] = set()
        """The entries that epoll watches while a connection is held."""
        self._gated = False
        self.trouble = 0
        """The error number that the latest burst ended with, 0 for none."""

    def add_route(self, slot: int, pair: Pair) -> None:
        """Hand on to this slot, too; this process's copies of the pair are owned from now on."""
        if slot in self._routes:
            self._drop(slot)
        rows = tuple(self._board.row(slot, place) for place in range(PLACES))
        self._routes[slot] = Route(pair, rows)
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
        """Let in what comes for the connections accepted from now on (see steering.gate_syn)."""
        self._gated = True

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
            self._row[scoreboard.ACCEPT_ERRORS] += 1
            self.trouble = error.errno or errno.EIO
        self._row[scoreboard.CONNECTIONS] += taken
        self._row[scoreboard.HANDED_OVER] += taken - self.open
        if self._held is not None:
            self._watch(self._routes.values())
        return taken

    def handle(self, fd: int) -> bool:
        """Go on with what is held when a pair may have room; False when it is none of ours."""
        if fd not in self._waiting:
            return False
        self._hand_on_held()
        return True

    def end_turn(self) -> bool:
        """Try again what is held; True, since no log has to be written."""
        self._hand_on_held()
        self._row[scoreboard.OPEN] = self.open
        return True

    def next_deadline(self) -> float | None:
        """Return None: what is held waits for as long as it takes."""

    def expire(self, now: float) -> None:
        """Do nothing: the time of a client begins when a worker has it."""

    def abandon(self) -> None:
        """Reset what is held."""
        if self._held is not None:
            close_with_reset(self._held[0])
            self._row[scoreboard.RESET] += 1
            self._held = None
        self._watch(())

    # ----------------------------------------------------------------------------------------

    def _hand_on_held(self) -> None:
        if self._held is None:
            return
        if not self._offer():
            self._watch(self._routes.values())
            return
        self._row[scoreboard.HANDED_OVER] += 1
        self._watch(())
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
        if self._least_busy:
            turns.sort(key=lambda slot: self._loads.get(slot, 0))  # stable: equals by turns
        return turns

    def _watch(self, routes: Iterable[Route]) -> None:
        """Have epoll report the entries of these, and of no others, when they get room."""
        wanted = {route.pair.entry.fileno() for route in routes}
        for fd in self._waiting - wanted:
            self._epoll.unregister(fd)
        for fd in wanted - self._waiting:
            # Edge-triggered: a pair can have room while too many descriptors are on their way.
            self._epoll.register(fd, select.EPOLLOUT | select.EPOLLET)
        self._waiting = wanted

    def _drop(self, slot: int) -> None:
        route = self._routes.pop(slot)
        self._turns.remove(slot)
        if route.pair.entry.fileno() in self._waiting:
            self._waiting.remove(route.pair.entry.fileno())
            self._epoll.unregister(route.pair.entry.fileno())
        route.pair.close()
