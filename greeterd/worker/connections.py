"""Serves accepted connections: reads, decides, logs, replies, closes.

The order within one turn of the worker's loop is the promise: every greeting of the turn goes out
in one write, only then its replies, only then the connections are closed.  So an end-of-stream or
an answer that a client sees means that its line exists.  While the log cannot be written
(`blocked`) the turn stays open: nothing is dropped, nothing is answered, and the worker is to
stop accepting.

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
from itertools import islice
from time import monotonic
from typing import Any, Final, Protocol

from greeterd.protocol import NameReader, Outcome, Refusal, classify, encode_reply
from greeterd.sockets.listener import close_with_reset
from greeterd.sockets.steering import open_gate
from greeterd.worker import counters
from greeterd.worker.acceptor import UNNAMED, Source
from greeterd.worker.counters import Row
from greeterd.worker.greeting_log import GreetingLog

FIRST_READ: Final = 256
"""Bytes asked for by the first read: nearly every name is shorter, and CPython takes so small
a buffer from its own allocator, which is 1 us a connection cheaper than malloc(3)."""
LOOK: Final = select.POLLIN | select.POLLRDHUP | select.POLLPRI
WHOLE: Final = select.POLLIN | select.POLLRDHUP
"""Every byte of a TCP connection has come, and so has its end: no read blocks, and one that returns
less than it asked for has returned all. Not where there was urgent data (POLLPRI), which a read
stops at, nor on a unix socket, where it stops at descriptors that came along. A forged urgent
pointer can hide from poll(2): who sends that cuts their own name short."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept(2) that last until something is given back."""
SHUT: Final = frozenset({errno.EINVAL, errno.EBADF})
"""Errors of accept(2) that last: it is no listener any more.  All others are the connection's own
(ECONNABORTED, and on Linux the network's, too): the next call goes on."""


class Warn(Protocol):
    """Tells of what a client can provoke at will: the events are of the code, and rate-limited."""

    def __call__(self, event: str, **fields: object) -> None:
        """Tell the event, unless it was told a moment ago."""


@dataclass(slots=True)
class Unfinished:
    """A connection whose end-of-stream has not come."""

    reader: NameReader
    client: str
    deadline: float


@dataclass(slots=True)
class Unsent:
    """The rest of a reply that did not fit into the socket's buffer."""

    data: bytes
    deadline: float


class ConnectionHandler:
    """The connections of one worker."""

    full: Final = counters.BLOCKED_BY_LIMIT
    """Why nothing is accepted when there is no room."""

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
        # Longer than the longest name with its CRLF, so that one read tells oversize.
        self._read_size = max_name_bytes + 3
        self._unfinished: dict[int, Unfinished] = {}
        self._unsent: dict[int, Unsent] = {}
        self._finished: list[int] = []
        self._replies: list[tuple[int, str]] = []
        self._greeted = 0
        self._gated = False
        """Each connection's gate has to be opened before it is heard; takes the slower way."""
        self.trouble = 0
        """The error number that the latest burst ended with, 0 for none."""

    @property
    def open(self) -> int:
        """Connections that cost a descriptor beyond this turn."""
        return len(self._unfinished) + len(self._unsent)

    @property
    def room(self) -> int:
        """How many connections may be accepted now; each may be one that stays."""
        return self._max_connections - self.open - len(self._finished)

    @property
    def blocked(self) -> bool:
        """Greetings wait for a log that cannot be written."""
        return self._greeted > 0

    @property
    def idle(self) -> bool:
        """Nothing is left to serve."""
        return not (self._unfinished or self._unsent or self._finished or self._greeted)

    def open_gates(self) -> None:
        """Let in what comes for the connections (see steering.gate_syn).

        Also for those that are open: they may have been accepted after the gate was shut, and
        before that was told here.
        """
        self._gated = True
        for fd in self._unfinished:
            open_gate(fd)

    def leave_gates(self) -> None:
        """Do that no longer."""
        self._gated = False

    def burst(self, source: Source, limit: int) -> int:
        """Accept and serve up to `limit` connections; return their number, 0 for none waiting.

        All are accepted before the first is read, so that they have had time to be complete, and
        one poll(2) tells of all together which are.
        """
        fresh: dict[int, Any] = {}
        poller = select.poll()
        accept, register = source.accept, poller.register
        self.trouble = 0
        try:
            while len(fresh) < limit:
                fd, peer = accept()
                fresh[fd] = peer
                register(fd, LOOK)
        except BlockingIOError:
            pass
        except OSError as error:
            self.trouble = error.errno or errno.EIO
            if not (source.ends and self.trouble in SHUT):  # that is the end that was awaited
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
        """Serve what was accepted: descriptors with their peers, and what poll says of them.

        Takes `fresh` to pieces. What follows a read is `_conclude`, written out for its speed.
        """
        read, size, gated = os.read, FIRST_READ, self._gated
        limit_bytes, allow_exit = self._max_name_bytes, self._allow_exit
        greet, finish = self._greetings.greet, self._finished.append
        replies = self._replies if self._reply else None
        greeted = 0
        for fd, event in events:
            client = name_peer(fresh.pop(fd))
            # By the name: what is handed over comes from sockets of every family.
            if event != WHOLE or gated or client == UNNAMED:
                self._read_or_await(fd, client)
                continue
            try:
                data = read(fd, size)
            except OSError:  # not known to happen: Linux tells of the end before an error
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
                    os.set_blocking(fd, False)  # the read before needed no such thing
                    replies.append((fd, outcome))
                finish(fd)
            else:
                self._refuse(fd, outcome, client)
        self._greeted += greeted
        for fd, peer in fresh.items():  # of which there is nothing to tell yet
            self._read_or_await(fd, name_peer(peer))

    def handle(self, fd: int) -> bool:
        """Go on with a connection that epoll reported; False when it is none of ours."""
        if unfinished := self._unfinished.get(fd):
            self._read_on(fd, unfinished)
        elif unsent := self._unsent.get(fd):
            self._send_on(fd, unsent)
        else:
            return False
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
        # First: who has a reply, or sees the end of a connection, finds it counted as ended.
        row[counters.OPEN] = len(self._unfinished)
        if self._replies:
            self._send_replies()
        if finished := self._finished:
            _close_all(finished)
            finished.clear()
        return True

    def next_deadline(self) -> float | None:
        """Return when the oldest connection times out; None when there is none."""
        oldest: list[Unfinished | Unsent] = []
        oldest += islice(self._unfinished.values(), 1)
        oldest += islice(self._unsent.values(), 1)
        return min((each.deadline for each in oldest), default=None)

    def expire(self, now: float) -> None:
        """Close the connections that have had their time; both tables are in order of age."""
        for fd, unfinished in list(self._unfinished.items()):
            if unfinished.deadline > now:
                break
            self._row[counters.TIMEOUT] += 1
            self._dismiss(fd)
        for fd, unsent in list(self._unsent.items()):
            if unsent.deadline > now:
                break
            self._dismiss(fd)

    def abandon(self) -> None:
        """Reset every connection that is not finished."""
        for fd in [*self._unfinished, *self._unsent]:
            if fd in self._unfinished:
                self._row[counters.RESET] += 1
            self._forget(fd)
            close_with_reset(fd)

    # ----------------------------------------------------------------------------------------

    def _read_or_await(self, fd: int, client: str, data: bytes = b"") -> None:
        """Serve a connection that is not known to be complete; `data` was read already."""
        if self._gated:
            open_gate(fd)
        os.set_blocking(fd, False)
        reader = NameReader(self._max_name_bytes, allow_exit=self._allow_exit)
        reader.feed(data)  # if that is too long already, the next feed or the end tells so
        try:
            outcome = self._read(fd, reader)
        except BlockingIOError:
            if self._watch(fd, select.EPOLLIN):
                deadline = monotonic() + self._client_timeout
                self._unfinished[fd] = Unfinished(reader, client, deadline)
            else:
                self._row[counters.RESET] += 1
        except OSError:
            self._row[counters.RESET] += 1
            self._finished.append(fd)
        else:
            self._conclude(fd, outcome, client)

    def _watch(self, fd: int, events: int) -> bool:
        """Have epoll report a connection; reset it and return False where the kernel refuses."""
        try:
            self._epoll.register(fd, events)
        except OSError as error:  # such as fs.epoll.max_user_watches
            self._warn("cannot wait for a client", reason=error.strerror)
            close_with_reset(fd)
            return False
        return True

    def _read_on(self, fd: int, connection: Unfinished) -> None:
        try:
            outcome = self._read(fd, connection.reader)
        except BlockingIOError:
            return
        except OSError:
            self._row[counters.RESET] += 1
            self._dismiss(fd)
        else:
            self._forget(fd)
            self._conclude(fd, outcome, connection.client)

    def _read(self, fd: int, reader: NameReader) -> Outcome:
        """Read until it is known what the connection is; BlockingIOError when it is not yet."""
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
            self._replies.append((fd, outcome))
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

    def _send_replies(self) -> None:
        """Answer; what does not fit into a socket's buffer waits for its client."""
        for fd, name in self._replies:
            data = encode_reply(name)
            try:
                sent = os.write(fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                continue
            if sent == len(data):
                self._row[counters.REPLIES] += 1
                continue
            self._finished.remove(fd)
            if self._watch(fd, select.EPOLLOUT):
                self._unsent[fd] = Unsent(data[sent:], monotonic() + self._client_timeout)
        self._replies.clear()

    def _send_on(self, fd: int, unsent: Unsent) -> None:
        try:
            sent = os.write(fd, unsent.data)
        except BlockingIOError:
            return
        except OSError:
            self._dismiss(fd)
            return
        unsent.data = unsent.data[sent:]
        if not unsent.data:
            self._row[counters.REPLIES] += 1
            self._dismiss(fd)

    def _dismiss(self, fd: int) -> None:
        self._forget(fd)
        self._finished.append(fd)

    def _forget(self, fd: int) -> None:
        self._unfinished.pop(fd, None)
        self._unsent.pop(fd, None)
        self._epoll.unregister(fd)


def _close_all(fds: list[int]) -> None:
    """Close by one close_range(2) for each run of numbers: 2 us a connection less than one by one.

    Few runs are the rule: the kernel gives the lowest numbers that are free. Sorts the list.
    """
    fds.sort()
    first = after = fds[0]
    for fd in fds:
        if fd != after:
            os.closerange(first, after)
            first = fd
        after = fd + 1
    os.closerange(first, after)
