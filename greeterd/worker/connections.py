"""Handles a worker's connections: accepts, reads, decides, logs, replies, closes.

The order within one turn of the worker's loop is the promise: every greeting of the turn goes out
in one write, only then its replies, only then the connections are closed.  So an end-of-stream or
an answer that a client sees means that its line exists.  While the log cannot be written the turn
stays open: nothing is dropped, nothing is answered, and the loop stops accepting.

This is the hot path, hence raw descriptors (a socket object costs 5 us a connection), one look at
a burst's connections when all are accepted, one read of each that is complete by then, and epoll
only for the others (registering each costs 13 us).

Counters go to the scoreboard row once a turn; at the end of a turn
connections == greetings + empty + oversize + timeout + reset + exit + open.
"""

import errno
import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from greeterd.protocol import NameReader, Outcome, Refusal, classify
from greeterd.sockets.listener import close_with_reset
from greeterd.sockets.steering import open_gate
from greeterd.worker import counters
from greeterd.worker.acceptor import UNNAMED, Source
from greeterd.worker.counters import Row
from greeterd.worker.greeting_log import GreetingLog
from greeterd.worker.handler import Warn
from greeterd.worker.replies import Replies, watch_or_reset

FIRST_READ: Final = 256
"""Bytes asked for by the first read: nearly every name is shorter, and CPython takes so small
a buffer from its own allocator, which is 1 us a connection cheaper than malloc(3)."""
LOOK: Final = select.POLLIN | select.POLLRDHUP | select.POLLPRI
WHOLE: Final = select.POLLIN | select.POLLRDHUP
"""Every byte of a TCP connection has come, and so has its end: no read blocks, and one that returns
less than it asked for has returned all. Not where there was urgent data (POLLPRI), which a read
stops at, nor on a unix socket, where it stops at descriptors that came along. A forged urgent
pointer can hide from poll(2): a client that sends one cuts its own name short."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept(2) that last until something is given back."""
SHUT: Final = frozenset({errno.EINVAL, errno.EBADF})
"""Errors of accept(2) that last: it is no listener any more.  All others are the connection's own
(ECONNABORTED, and on Linux the network's, too): the next call goes on."""


@dataclass(slots=True)
class Unfinished:
    """A connection whose end-of-stream has not come."""

    reader: NameReader
    client: str
    deadline: float


class ConnectionHandler:
    """The connections of one worker; a `Handler`."""

    full_reason: Final = counters.BLOCKED_BY_LIMIT

    def __init__(  # noqa: PLR0913 - the worker's parts, each needed
        self,
        *,
        max_connections: int,
        max_name_bytes: int,
        client_timeout: float,
        allow_exit: bool,
        reply: bool,
        epoll: select.epoll,
        greetings: GreetingLog,
        row: Row,
        warn: Warn,
        on_exit: Callable[[], None],
    ) -> None:
        self._max_connections = max_connections
        self._max_name_bytes = max_name_bytes
        self._client_timeout = client_timeout
        self._allow_exit = allow_exit
        self._reply = reply
        self._epoll = epoll
        self._greetings = greetings
        self._row = row
        self._warn = warn
        self._on_exit = on_exit
        # Longer than the longest name with its CRLF, so that one read shows an oversize name.
        self._read_size = max_name_bytes + 3
        self._unfinished: dict[int, Unfinished] = {}
        """By descriptor, the oldest first."""
        self._finished: list[int] = []
        """Descriptors to be closed at the end of the turn."""
        self._replies = Replies(
            self._finished, client_timeout=client_timeout, epoll=epoll, row=row, warn=warn
        )
        self._greeted = 0
        """Greetings of this turn that are not written yet."""
        self._gated = False
        """Each connection's gate has to be opened before it is read; takes the slower way."""
        self.accept_error = 0

    @property
    def room(self) -> int:
        """How many connections may be accepted now; each may be one that stays."""
        waiting = len(self._unfinished) + len(self._replies.unsent)
        return self._max_connections - waiting - len(self._finished)

    @property
    def idle(self) -> bool:
        """Every connection that was accepted is closed."""
        return not (self._unfinished or self._replies.unsent or self._finished or self._greeted)

    def open_gates(self) -> None:
        """From now on open the gate of each connection; also of those that are unfinished."""
        self._gated = True
        for fd in self._unfinished:
            open_gate(fd)

    def stop_opening_gates(self) -> None:
        """Take connections as they are: no listener has a gate any more."""
        self._gated = False

    def burst(self, source: Source, limit: int) -> int:
        """Accept and serve up to `limit` connections; return their number, 0 if none waited.

        All are accepted before the first is read: meanwhile they may become complete, and one
        poll(2) reports which of them are.
        """
        fresh: dict[int, Any] = {}
        poller = select.poll()
        accept, register = source.accept, poller.register
        self.accept_error = 0
        try:
            while len(fresh) < limit:
                fd, peer = accept()
                fresh[fd] = peer
                register(fd, LOOK)
        except BlockingIOError:
            pass
        except OSError as error:
            self.accept_error = error.errno or errno.EIO
            # Of a pair SHUT is no error: its entry is closed, and all that it had is taken.
            if not (source.ends and self.accept_error in SHUT):
                self._row[counters.ACCEPT_ERRORS] += 1
        taken = len(fresh)
        if taken:
            self._row[counters.CONNECTIONS] += taken
            self._serve(fresh, poller.poll(0), source.name_peer)
        return taken

    def _serve(
        self,
        fresh: dict[int, Any],
        events: list[tuple[int, int]],
        name_peer: Callable[[Any], str],
    ) -> None:
        """Serve what was accepted: descriptors with their peers, and what poll(2) reports of them.

        Empties `fresh`.  What follows a read is `_conclude`, repeated here for its speed.
        """
        read, size, gated = os.read, FIRST_READ, self._gated
        limit_bytes, allow_exit = self._max_name_bytes, self._allow_exit
        greet, finish = self._greetings.greet, self._finished.append
        replies = self._replies.due if self._reply else None
        greeted = 0
        for fd, event in events:
            client = name_peer(fresh.pop(fd))
            # By the name, since one pair hands over connections of every family.
            if event != WHOLE or gated or client == UNNAMED:
                self._read_or_await(fd, client)
                continue
            try:
                data = read(fd, size)
            except OSError:  # not known to happen: Linux reports the end before an error
                self._row[counters.RESET] += 1
                finish(fd)
                continue
            if len(data) == size:
                self._read_or_await(fd, client, data)
                continue
            outcome = classify(data, limit_bytes, allow_exit)
            if isinstance(outcome, str):
                greet(outcome, client)
                greeted += 1
                if replies is not None:
                    os.set_blocking(fd, False)  # for the reply; the read could not block
                    replies.append((fd, outcome))
                finish(fd)
            else:
                self._refuse(fd, outcome, client)
        self._greeted += greeted
        for fd, peer in fresh.items():  # of which poll reports nothing yet
            self._read_or_await(fd, name_peer(peer))

    def on_event(self, fd: int) -> bool:
        """Read or send more; False if the descriptor is not one of our connections."""
        unfinished = self._unfinished.get(fd)
        if unfinished is None:
            return self._replies.on_event(fd)
        self._read_on(fd, unfinished)
        return True

    def end_turn(self) -> bool:
        """Write the turn's greetings, reply, close; False while the log cannot be written."""
        row = self._row
        if self._greeted:
            if not self._greetings.commit():
                row[counters.LOG_ERRORS] += 1
                row[counters.OPEN] = len(self._unfinished) + self._greeted
                return False
            row[counters.GREETINGS] += self._greeted
            self._greeted = 0
        # Before the replies: a client that has one, or sees the end of its connection, and then
        # looks at the counters, finds it counted as ended.
        row[counters.OPEN] = len(self._unfinished)
        if self._replies.due:
            self._replies.send()
        if finished := self._finished:
            _close_all(finished)
            finished.clear()
        return True

    def deadlines(self) -> list[float]:
        """Return when the oldest connections time out, that is, when to call `expire`."""
        unfinished = next(iter(self._unfinished.values()), None)
        reading = [] if unfinished is None else [unfinished.deadline]
        sending = self._replies.next_deadline()
        return reading if sending is None else [*reading, sending]

    def expire(self, now: float) -> None:
        """Close the connections whose time is up."""
        for fd, unfinished in list(self._unfinished.items()):
            if unfinished.deadline > now:
                break
            self._row[counters.TIMEOUT] += 1
            self._finish(fd)
        self._replies.expire(now)

    def abandon(self) -> None:
        """Reset every connection that is not finished."""
        for fd in list(self._unfinished):
            self._row[counters.RESET] += 1
            self._forget(fd)
            close_with_reset(fd)
        self._replies.abandon()

    # ----------------------------------------------------------------------------------------

    def _read_or_await(self, fd: int, client: str, data: bytes = b"") -> None:
        """Serve a connection that may be incomplete; `data` was read already."""
        if self._gated:
            open_gate(fd)
        os.set_blocking(fd, False)
        reader = NameReader(self._max_name_bytes, allow_exit=self._allow_exit)
        reader.feed(data)  # if that is too long already, the next feed or the end returns so
        try:
            outcome = self._read(fd, reader)
        except BlockingIOError:
            if watch_or_reset(self._epoll, fd, select.EPOLLIN, self._warn):
                deadline = monotonic() + self._client_timeout
                self._unfinished[fd] = Unfinished(reader, client, deadline)
            else:
                self._row[counters.RESET] += 1
        except OSError:
            self._row[counters.RESET] += 1
            self._finished.append(fd)
        else:
            self._conclude(fd, outcome, client)

    def _read_on(self, fd: int, connection: Unfinished) -> None:
        try:
            outcome = self._read(fd, connection.reader)
        except BlockingIOError:
            return
        except OSError:
            self._row[counters.RESET] += 1
            self._finish(fd)
        else:
            self._forget(fd)
            self._conclude(fd, outcome, connection.client)

    def _read(self, fd: int, reader: NameReader) -> Outcome:
        """Read until the outcome is known; BlockingIOError while it is not."""
        while data := os.read(fd, self._read_size):
            if reader.feed(data):
                return Refusal.OVERSIZE
        return reader.finish()

    def _conclude(self, fd: int, outcome: Outcome, client: str) -> None:
        if isinstance(outcome, Refusal):
            self._refuse(fd, outcome, client)
            return
        self._greetings.greet(outcome, client)
        self._greeted += 1
        if self._reply:
            self._replies.due.append((fd, outcome))
        self._finished.append(fd)

    def _refuse(self, fd: int, refusal: Refusal, client: str) -> None:
        match refusal:
            case Refusal.EMPTY:
                self._row[counters.EMPTY] += 1
            case Refusal.EXIT:
                self._row[counters.EXIT] += 1
                self._on_exit()
            case Refusal.OVERSIZE:
                self._row[counters.OVERSIZE] += 1
                self._warn("name too long", limit_bytes=self._max_name_bytes, client=client)
                close_with_reset(fd)
                return
        self._finished.append(fd)

    def _finish(self, fd: int) -> None:
        self._forget(fd)
        self._finished.append(fd)

    def _forget(self, fd: int) -> None:
        del self._unfinished[fd]
        self._epoll.unregister(fd)


def _close_all(fds: list[int]) -> None:
    """Close by one close_range(2) for each run of numbers: 2 us a connection less than one by one.

    There are few runs, since the kernel gives the lowest free numbers.  Sorts the list.
    """
    fds.sort()
    first = after = fds[0]
    for fd in fds:
        if fd != after:
            os.closerange(first, after)
            first = fd
        after = fd + 1
    os.closerange(first, after)
