"""What every mode has: places of listeners, how they accept, and how full queues are."""

import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from greeterd.sockets import listener
from greeterd.sockets.address import Address
from greeterd.sockets.fd_passing import QUEUE_LIMIT, is_exit, waiting
from greeterd.sockets.sockdiag import Queue, queue_length
from greeterd.supervisor.ids import SlotIndex

BLOCKING_TIMEOUT: Final = 0.1
"""Seconds that a blocking accept lasts at most: how late such a worker notices anything else."""

Owner = SlotIndex | None
"""The slot that a listener belongs to; None: every slot serves it."""


class Place(NamedTuple):
    """Where a listener is."""

    slot: Owner
    address: int
    """The index of its address."""
    sock: socket.socket


class Listeners(Protocol):
    """The listeners of one mode, one an address for each owner."""

    addresses: list[Address]
    """As bound: port 0 is resolved."""

    def open(self, addresses: Sequence[Address]) -> None:
        """Open what was not taken over.  Raises: ListenError."""

    def places(self) -> list[Place]:
        """Return every listener."""

    def accepting(self) -> list[Place]:
        """Return the listeners that new connections are to reach."""

    def renew(self, place: Place, backlog: int, *, anew: bool) -> None:
        """Have a listener listen again: see Escrow.renew."""

    def holdings(self, labels: Sequence[str]) -> Mapping[str, int]:
        """Return descriptors by their names in the descriptor store; `labels` stand for `bind`."""

    def close(self) -> None:
        """Close every descriptor."""


def set_accept(sock: socket.socket, *, blocking: bool) -> None:
    """Let accept(2) block, for BLOCKING_TIMEOUT at most, or not at all."""
    if blocking:
        listener.set_blocking_accept(sock, BLOCKING_TIMEOUT)
    else:
        sock.setblocking(False)


class Queues:
    """How full the queues of listeners and pairs are, and the longest that each has been.

    A look costs about 1 us a listener.
    """

    def __init__(self, sockets: Callable[[], Sequence[tuple[Owner, socket.socket]]]) -> None:
        self._sockets = sockets
        self._longest: WeakKeyDictionary[socket.socket, int] = WeakKeyDictionary()

    def look(self) -> list[tuple[Owner, socket.socket, Queue]]:
        """Return the length of each queue; those that this kernel does not tell are left out."""
        found = []
        for owner, sock in self._sockets():
            with contextlib.suppress(OSError):
                found.append((owner, sock, _queue_of(sock)))
        for _, sock, queue in found:
            self._longest[sock] = max(queue.now, self.longest(sock))
        return found

    def by_owner(self) -> Counter[Owner]:
        """Look; return how many connections wait for each slot, or with None for all of them."""
        waits: Counter[Owner] = Counter()
        for owner, _, queue in self.look():
            waits[owner] += queue.now
        return waits

    def longest(self, sock: socket.socket) -> int:
        """Return the longest queue that `look` has seen at this socket, in this process."""
        return self._longest.get(sock, 0)


def _queue_of(sock: socket.socket) -> Queue:
    return Queue(waiting(sock), QUEUE_LIMIT) if is_exit(sock) else queue_length(sock)
