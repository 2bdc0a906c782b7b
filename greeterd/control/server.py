"""The daemon's end of the control socket, served in the master's loop.

It never blocks: its sockets are non-blocking and registered in the master's selector with
data = callable(mask). The master calls expire(now) when deadline() has come. A connection reads
a request, waits for the answer, writes it, and may then send the next. While it waits for the
answer it is not registered at all: nothing that it sends is read until the master has answered.
However many requests it sends together, each turn of the loop handles one.

Only root and the allowed uids are served; the kernel names the peer's uid (SO_PEERCRED). The file
has mode 0600 from its first instant. A socket that exists already is replaced if no process listens
at it; close() unlinks the path only if it is still ours.
Instants are those of `clock`, time.monotonic().
"""

import contextlib
import errno
import select
import selectors
import socket
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from greeterd.control.protocol import (
    FAILED,
    MAX_REQUEST_BYTES,
    NOT_NOW,
    NOT_PERMITTED,
    Inbox,
    Refused,
    parse_request,
    render_answer,
    render_refusal,
)
from greeterd.control.unix_socket import listen_at
from greeterd.system.socket_file import FileId, Peer, file_at, peer_of, place_of

if TYPE_CHECKING:  # a client imports this module too, and structlog would take it 70 ms
    from structlog.typing import FilteringBoundLogger

MAX_CONNECTIONS: Final = 64
REQUEST_TIMEOUT: Final = 5.0
"""Seconds for a request to arrive, and for a client to read its answer."""
ACCEPT_PAUSE: Final = 0.5
"""Seconds without accept() after it failed for lack of descriptors or memory: the listener stays
readable, and the loop would spin."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_QUESTIONS: Final = frozenset({"ping", "status"})
"""Commands that change nothing, and may come every second: logged at level debug."""


class _State(Enum):
    """What a connection waits for."""

    READING = "a request"
    WAITING = "the master's answer"
    WRITING = "room for the answer"
    QUEUING = "its turn, with requests that came together with the last one"
    CLOSED = "nothing"


_WATCHED: Final = {
    _State.READING: selectors.EVENT_READ,
    _State.WRITING: selectors.EVENT_WRITE,
    # The turn comes as soon as there is room to write, which is nearly always.
    _State.QUEUING: selectors.EVENT_WRITE,
}
"""The events that a connection is registered for, by state; in other states it is for none."""


class _Connection:
    """One accepted client; the server owns it, its request refers to it."""

    def __init__(self, server: "ControlServer", sock: socket.socket, peer: Peer) -> None:
        self.server = server
        self.sock = sock
        self.peer = peer
        self.inbox = Inbox()
        self.outbox = memoryview(b"")
        self.request: Request | None = None
        self.last = False  # close once the answer is out
        self.state = _State.CLOSED
        self.deadline: float | None = None
        self.become(_State.READING)

    def become(self, state: _State) -> None:
        """Change the state, with its deadline and its registration in the selector."""
        before, after = _WATCHED.get(self.state), _WATCHED.get(state)
        self.deadline = None if after is None else self.server.clock() + REQUEST_TIMEOUT
        self.state = state
        if before is not None:
            self.server.selector.unregister(self.sock)
        if after is not None:
            self.server.selector.register(self.sock, after, self.on_event)

    def on_event(self, _mask: int) -> None:
        """Go on in the present state; an event of the same batch may be stale, harmlessly."""
        if self.state is _State.READING:
            self._read()
        elif self.state is _State.WRITING:
            self._write()
        elif self.state is _State.QUEUING:
            self.become(_State.READING)
            self._work()

    def _read(self) -> None:
        try:
            self.inbox.feed(self.sock.recv(MAX_REQUEST_BYTES + 1))
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._work()

    def _work(self) -> None:
        """Handle the next complete request."""
        line = self.inbox.take()
        if isinstance(line, Refused):
            self.refuse(line, last=True)
        elif line is not None:
            self._handle(line)
        elif self.inbox.ended:
            self.close()

    def _handle(self, line: bytes) -> None:
        command = parse_request(line)
        if isinstance(command, Refused):
            self.refuse(command)
            return
        log = self.server.log.debug if command.name in _QUESTIONS else self.server.log.info
        log("control request", command=command.name, **command.arguments, **self.who)
        self.become(_State.WAITING)
        self.request = Request(self, command.name, command.arguments)
        self.server.on_request(self.request)

    @property
    def who(self) -> dict[str, int]:
        """The peer as log fields."""
        return {"peer_uid": self.peer.uid, "peer_pid": self.peer.pid}

    def refuse(self, refused: Refused, *, last: bool = False) -> None:
        """Answer with an error; with `last`, then close."""
        self.last = last
        self.server.log.warning("control request refused", reason=refused.reason, **self.who)
        self.send(render_refusal(refused))

    def send(self, answer: bytes) -> None:
        """Send an answer: what the kernel takes now, the rest when there is room."""
        self.request = None
        self.outbox = memoryview(answer)
        self.become(_State.WRITING)
        self._write()

    def _write(self) -> None:
        try:
            while self.outbox:
                self.outbox = self.outbox[self.sock.send(self.outbox, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self.last:
            self.close()
        else:
            more = self.inbox or self.inbox.ended
            self.become(_State.QUEUING if more else _State.READING)

    def expire(self, now: float) -> None:
        """Close if the deadline has passed; answer half a request with the reason first."""
        if self.deadline is None or now < self.deadline:
            return
        if self.state is _State.READING and self.inbox:
            reason = f"the request did not arrive within {REQUEST_TIMEOUT:g} s"
            self.refuse(Refused(reason, NOT_NOW), last=True)
        else:
            self.close()

    def close(self) -> None:
        """Close; idempotent. The answer of a request that still waits is dropped."""
        self.request = None
        self.become(_State.CLOSED)
        self.sock.close()
        self.server.connections.discard(self)


class Request:
    """One command of one client; answer it once, now or later."""

    def __init__(self, connection: _Connection, command: str, arguments: dict[str, Any]) -> None:
        self.command = command
        self.arguments = arguments
        self.uid = connection.peer.uid
        self.pid = connection.peer.pid
        self._connection = connection
        self._answered = False

    @property
    def fd(self) -> int:
        """The connection's descriptor."""
        return self._connection.sock.fileno()

    @property
    def gone(self) -> bool:
        """Whether the client has closed; one that shut down its sending still gets an answer."""
        if self._connection.request is not self:
            return True
        poll = select.poll()
        poll.register(self._connection.sock, 0)  # POLLHUP is reported always, poll(2)
        return bool(poll.poll(0))

    def answer(self, ok: bool, **fields: object) -> None:
        """Send the answer, without blocking; harmless if the client has closed.

        A failure has its reason in `error=`, and in `code=` the exit status of greeterctl (1).
        Fields may hold anything that msgspec encodes, such as a Status.
        """
        assert not self._answered, "a request is answered once"
        self._answered = True
        if self._connection.request is not self:
            return
        try:
            line = render_answer(ok, fields)
        except (TypeError, ValueError) as error:
            # Such as a path with undecodable bytes: a query must not end the daemon.
            log = self._connection.server.log
            log.error("control answer has no JSON", error=repr(error))  # noqa: TRY400 - one line
            line = render_answer(False, {"error": f"the answer has no JSON: {error!r}"})
        self._connection.send(line)


class ControlServer:
    """The listening socket, its connections, and the users who are served."""

    def __init__(  # noqa: PLR0913 - what the master has, one by one
        self,
        path: Path,
        selector: selectors.BaseSelector,
        on_request: Callable[[Request], None],
        *,
        allowed_uids: frozenset[int],
        log: "FilteringBoundLogger",
        clock: Callable[[], float] = time.monotonic,
        listener: socket.socket | None = None,
        file: FileId | None = None,
    ) -> None:
        """Listen at `path`, or adopt the `listener` that a predecessor has opened there.

        `file` is the file of that listener; None, from a predecessor that did not pass it: the file
        that is at `path` now.
        """
        self.path = path
        self.selector = selector
        self.on_request = on_request
        self.allowed_uids = allowed_uids | {0}
        self.log = log
        self.clock = clock
        self.connections: set[_Connection] = set()
        self._paused_until: float | None = None
        self._listener = listen_at(path) if listener is None else listener
        self.file = file or file_at(path) or (0, 0)
        """The file of our socket, whichever is at `path` now; (0, 0) is none."""
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def renew(self) -> None:
        """Listen at `path` again, in place of a listener whose file has lost its name.

        Raises:
            AlreadyRunningError, ListenError: as listen_at; nothing has changed then.

        """
        fresh = listen_at(self.path)
        self._accept(0)  # serve clients that have connected before
        if self._paused_until is None:
            self.selector.unregister(self._listener)
            self.selector.register(fresh, selectors.EVENT_READ, self._accept)
        self._listener.close()
        self._listener = fresh
        self.file = file_at(self.path) or (0, 0)

    @property
    def listener_fd(self) -> int:
        """The listening socket's descriptor."""
        return self._listener.fileno()

    def idle_fds(self) -> list[int]:
        """Return the connections of which no byte of a request has been read."""
        return [
            each.sock.fileno()
            for each in self.connections
            if each.state is _State.READING and not each.inbox
        ]

    def adopt(self, fd: int) -> "_Connection":
        """Adopt a connection that a predecessor has accepted."""
        sock = socket.socket(fileno=fd)
        connection = _Connection(self, sock, peer_of(sock))
        self.connections.add(connection)
        return connection

    def adopt_request(self, fd: int, command: str) -> "Request":
        """Adopt a connection that waits for the answer to this command."""
        connection = self.adopt(fd)
        connection.become(_State.WAITING)
        connection.request = Request(connection, command, {})
        return connection.request

    def deadline(self) -> float | None:
        """Return when expire() is due."""
        instants = [each.deadline for each in self.connections] + [self._paused_until]
        return min((instant for instant in instants if instant is not None), default=None)

    def expire(self, now: float) -> None:
        """Close connections whose deadline has passed; end a pause of accepting."""
        for each in tuple(self.connections):
            each.expire(now)
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
            self.selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, _mask: int) -> None:
        for _ in range(MAX_CONNECTIONS):  # bounded, so that clients cannot keep the loop busy
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self.log.warning("control socket pauses", reason=error.strerror)
                    self.selector.unregister(self._listener)
                    self._paused_until = self.clock() + ACCEPT_PAUSE
                    return
                continue  # ECONNABORTED: that client has closed
            sock.setblocking(False)
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        peer = peer_of(sock)
        refused = None
        if peer.uid not in self.allowed_uids:
            refused = Refused(f"user {peer.uid} may not control this daemon", NOT_PERMITTED)
        elif not self._has_room():
            refused = Refused("too many control connections", NOT_NOW)
        connection = _Connection(self, sock, peer)
        self.connections.add(connection)
        if refused is not None:
            connection.refuse(refused, last=True)

    def _has_room(self) -> bool:
        """Make room by closing dead connections, then the longest idle; False if there is none."""
        if len(self.connections) < MAX_CONNECTIONS:
            return True
        for each in tuple(self.connections):
            if each.request is not None and each.request.gone:
                each.close()
        idle = [each for each in self.connections if each.state is _State.READING]
        if len(self.connections) >= MAX_CONNECTIONS and idle:
            min(idle, key=lambda each: each.deadline or 0.0).close()
        return len(self.connections) < MAX_CONNECTIONS

    def close(self) -> None:
        """Refuse the requests that still wait, close all, and unlink the path if it is ours.

        Answer the requests that were carried out before this; what was sent still arrives.
        """
        if self._listener.fileno() < 0:
            return
        for each in tuple(self.connections):
            if each.request is not None:
                each.request.answer(False, error="the daemon ended first", code=FAILED)
            each.close()
        if self._paused_until is None:
            self.selector.unregister(self._listener)
        self._listener.close()
        with contextlib.suppress(OSError), place_of(self.path) as place:
            place.remove(self.file)
