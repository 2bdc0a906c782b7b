"""Waits for connections on a worker's listeners, in the way that the wait strategy names.

rotate      EPOLLEXCLUSIVE, and after ROTATE_AFTER accepts the listener leaves the epoll set and
            enters it again.  The kernel wakes one waiter, the first of the listener's wait queue
            that is idle; re-adding puts this worker at the tail, so that all take turns.
exclusive   EPOLLEXCLUSIVE alone: one waiter is woken, nearly always the same one.
epoll       plain level-triggered epoll: every idle waiter is woken for every connection.
blocking    accept(2) on a blocking socket: the kernel's own first-in, first-out wait queue.

The listeners of a shared description share O_NONBLOCK and SO_RCVTIMEO, too, so these are set by
the master once and are never touched here.
"""

import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from greeterd.sockets.fd_passing import is_exit, taker

ROTATE_AFTER: Final = 16
UNNAMED: Final = "unix"
"""The client's name in a record where the peer is a unix socket, which has no address."""
NAMES: Final[dict[int, Callable[[Any], str]]] = {
    socket.AF_INET: "%s:%d".__mod__,
    socket.AF_INET6: lambda peer: f"[{peer[0]}]:{peer[1]}",
    socket.AF_UNIX: lambda _peer: UNNAMED,
}


@dataclass(slots=True)
class Source:
    """A listener, or the exit of a handoff pair, that this worker accepts from."""

    sock: socket.socket
    accept: Callable[[], tuple[int, Any]]
    """Returns a raw descriptor, which costs 5 us less than a socket object, and the peer."""
    name_peer: Callable[[Any], str]
    """Renders a peer's address: host:port, [v6]:port, or UNNAMED."""
    lender: int | None
    """The slot that has lent it; None for the worker's own."""
    ends: bool = False
    """It is the exit of a pair, and ends when the pair's entry is closed: see fd_passing."""
    taken: int = 0
    """Connections accepted since it entered the epoll set."""


class Acceptor:
    """The listeners of one worker, and whether it waits for them."""

    def __init__(self, epoll: select.epoll, wait: str) -> None:
        self._epoll = epoll
        self._exclusive = wait in {"rotate", "exclusive"}
        self._rotate = wait == "rotate"
        self._blocking = wait == "blocking"
        self._registered = False
        self.sources: dict[int, Source] = {}
        """By descriptor."""

    def add(self, sock: socket.socket, lender: int | None = None) -> None:
        """Accept from this listener, or exit of a pair, too; the acceptor closes it in the end.

        Raises:
            OSError: epoll refuses it; it is closed.

        """
        if is_exit(sock):
            source = Source(sock, taker(sock), str, lender, ends=True)
        else:
            accept = sock._accept  # type: ignore[attr-defined]  # noqa: SLF001 - see Source.accept
            source = Source(sock, accept, NAMES[sock.family], lender)
        self.sources[sock.fileno()] = source
        if self._registered:
            try:
                self._register(sock.fileno())
            except OSError:
                self.sources.pop(sock.fileno()).sock.close()
                raise

    def close(self, fds: list[int]) -> None:
        """Stop accepting from these; a listener stays open where other processes hold it."""
        for fd in fds:
            if self._registered:
                self._epoll.unregister(fd)
            self.sources.pop(fd).sock.close()

    def lent_from(self, slot: int) -> list[int]:
        """Return the descriptors of the listeners that this slot has lent."""
        return [fd for fd, source in self.sources.items() if source.lender == slot]

    def overlooked(self) -> list[int]:
        """Return the listeners in whose queues connections wait, if the wait is exclusive.

        The kernel wakes one waiter for a connection. If that one is killed, or runs out of
        descriptors, before it accepts, the others sleep on until the next connection comes.
        """
        if not self._exclusive or not self._registered:
            return []
        poll = select.poll()
        for fd in self.sources:
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(0)]

    @property
    def blocking_source(self) -> Source | None:
        """The one listener that a blocking accept may wait on; None when epoll has to."""
        if not self._blocking or len(self.sources) != 1:
            return None
        return next(iter(self.sources.values()))

    def watch(self, *, on: bool) -> None:
        """Have epoll report the listeners; off while paused, or in a blocking accept."""
        if on == self._registered:
            return
        self._registered = on
        for fd in self.sources:
            if on:
                self._register(fd)
            else:
                self._epoll.unregister(fd)

    def note(self, fd: int, source: Source, taken: int) -> None:
        """Count accepted connections; `rotate` goes to the tail of the wait queue after some."""
        source.taken += taken
        if self._rotate and source.taken >= ROTATE_AFTER and self._registered:
            self._epoll.unregister(fd)
            self._register(fd)

    def _register(self, fd: int) -> None:
        self.sources[fd].taken = 0
        mask = select.EPOLLIN | (select.EPOLLEXCLUSIVE if self._exclusive else 0)
        self._epoll.register(fd, mask)
