"""Sends greetings from one process: a connection each, many in flight, one loop, no threads.

Each name yields exactly one `Result`, when its connection ends; at most `concurrency` connections
are open. The next name is taken only when there is room for it: at concurrency 1 nothing is in
flight while the source of the names blocks.

The timeout of a greeting begins with its connect. It is the same for all, so the order of starting
is the order of the deadlines, and only the oldest in flight need be watched.

A connection is registered once, edge-triggered, and then driven until the kernel says EAGAIN: no
second epoll_ctl(2) between sending and reading.
"""

import errno
import os
import select
import socket
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import ClassVar, Final, NamedTuple

from greeterd.errors import GreeterdError
from greeterd.sockets.address import Address

MAX_REPLY_BYTES: Final = 1 << 20
"""A greeting is a few kilobytes at most; a server that sends more is not greeterd."""

_EVENTS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
_MAX_EVENTS: Final = 256
_READ_BYTES: Final = 16384
_QUEUE_RETRY: Final = 0.005
"""Seconds. A full unix queue refuses a non-blocking connect, and no event reports room in it."""


class Until(Enum):
    """What must happen for a greeting to count as sent."""

    REPLY = "reply"  # its whole reply: greeterd writes the log line first, so it is recorded
    END = "end"  # end-of-stream: the server has taken the name and closed in order
    HANDED_OVER = "handed over"  # the kernel has the bytes; whether they arrive is not known


class Failure(Enum):
    """Why a greeting was not sent; the value is its name in a summary."""

    REFUSED = "refused"
    RESET = "reset"
    TIMEOUT = "timeout"
    NO_REPLY = "no reply"
    NO_PORT = "no local port"
    ERROR = "error"


class Result(NamedTuple):
    """The end of one greeting; without `failure` it was sent, else `reason` says why not."""

    name: bytes
    failure: Failure | None = None
    reason: str = ""
    reply: bytes = b""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How to send: where to, what counts as sent, seconds for each, how many at once."""

    address: Address
    until: Until = Until.END
    timeout: float = 10.0
    concurrency: int = 1


class UnreachableError(GreeterdError):
    """The server cannot be connected to, and never was (EX_UNAVAILABLE)."""

    exit_code: ClassVar[int] = 69


class _Phase(Enum):
    """What a connection waits for; the value says what a timeout means."""

    CONNECTING = "no connection"
    SENDING = "the name was not taken"
    READING = "no end-of-stream"


@dataclass(slots=True, eq=False)
class _Flight:
    """One greeting in flight."""

    name: bytes
    sock: socket.socket
    deadline: float
    unsent: memoryview
    phase: _Phase = _Phase.CONNECTING
    reply: bytes = b""


def send_all(names: Iterable[bytes], delivery: Delivery) -> Generator[Result, None, None]:
    """Send every name on a connection of its own; yield a Result for each as it ends.

    Blocks while it waits. Closing the generator closes what is still in flight.

    Raises:
        UnreachableError: the address cannot be connected to and no connection succeeded before;
            once one did, a refusal is one greeting's result.
    """
    sender = _Sender(delivery)
    try:
        yield from sender.run(names)
    finally:
        sender.close()


def resolve(address: Address) -> tuple[socket.AddressFamily, str | tuple[object, ...]]:
    """Return the family and the address as connect() takes it; the resolver may block."""
    if address.is_unix:
        return socket.AF_UNIX, address.path
    family = socket.AF_INET6 if address.is_v6 else socket.AF_INET
    try:
        found = socket.getaddrinfo(address.host, address.port, family, socket.SOCK_STREAM)
    except OSError as error:
        raise UnreachableError(f"cannot connect to {address}: {error.strerror}") from error
    return family, found[0][4]


def explain(error: OSError) -> tuple[Failure, str]:
    """Return the kind of an error of a connection, and its words."""
    match error.errno:
        case errno.ECONNREFUSED | errno.ENOENT:
            return Failure.REFUSED, "refused: nobody listens"
        case errno.ECONNRESET | errno.EPIPE | errno.ENOTCONN | errno.ECONNABORTED:
            # ENOTCONN: the reset came between send() and shutdown().
            return Failure.RESET, "reset by the server"
        case errno.ETIMEDOUT:
            return Failure.TIMEOUT, "the kernel gave up connecting"
        case errno.EADDRNOTAVAIL:
            # Nearly always all ports are in TIME_WAIT; or the family has no local address at all.
            hint = "EADDRNOTAVAIL, see net.ipv4.ip_local_port_range"
            return Failure.NO_PORT, f"no local address or port is free ({hint})"
        case _:
            return Failure.ERROR, str(error.strerror)


class _Sender:
    """The loop: the connections in flight by descriptor, in the order of their deadlines."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._family, self._target = resolve(delivery.address)
        self._epoll = select.epoll()
        self._flights: dict[int, _Flight] = {}
        self._queueing: dict[int, _Flight] = {}  # those of the flights that a full queue refused
        self._reached = False  # one connection has succeeded

    def close(self) -> None:
        for flight in self._flights.values():
            flight.sock.close()
        self._epoll.close()

    def run(self, names: Iterable[bytes]) -> Iterator[Result]:
        source = iter(names)
        more = True
        while more or self._flights:
            while more and len(self._flights) < self._delivery.concurrency:
                name = next(source, None)
                if name is None:
                    more = False
                elif (result := self._start(name)) is not None:
                    yield result
            if self._flights:
                yield from self._turn()

    def _turn(self) -> Iterator[Result]:
        """Wait for an event or the next deadline; yield the results of what ended."""
        pause = next(iter(self._flights.values())).deadline - monotonic()
        if self._queueing:
            pause = min(pause, _QUEUE_RETRY)
        events = self._epoll.poll(max(0.0, pause), _MAX_EVENTS)
        for fd, _ in events:
            if (result := self._advance(self._flights[fd])) is not None:
                yield result
        for flight in list(self._queueing.values()):
            if (result := self._connect(flight)) is not None:
                yield result
        if len(events) < _MAX_EVENTS:
            # Only after the events: if this process itself was stopped, answers that have arrived
            # count although their deadline has passed.
            yield from self._expire()

    def _expire(self) -> Iterator[Result]:
        now = monotonic()
        overdue = []
        for flight in self._flights.values():
            if flight.deadline > now:
                break
            overdue.append(flight)
        for flight in overdue:
            reason = f"{flight.phase.value} within {self._delivery.timeout:g} s"
            yield self._end(flight, Failure.TIMEOUT, reason)

    def _start(self, name: bytes) -> Result | None:
        try:
            sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            failure, reason = self._judge(error)
            return Result(name, failure, reason)
        flight = _Flight(name, sock, monotonic() + self._delivery.timeout, memoryview(name))
        self._flights[sock.fileno()] = flight
        return self._connect(flight)

    def _connect(self, flight: _Flight) -> Result | None:
        fd = flight.sock.fileno()
        error = flight.sock.connect_ex(self._target)
        if error == errno.EAGAIN:
            self._queueing[fd] = flight
            return None
        self._queueing.pop(fd, None)
        if error not in (0, errno.EINPROGRESS):
            return self._fail(flight, OSError(error, os.strerror(error)))
        self._epoll.register(fd, _EVENTS)
        return None

    def _advance(self, flight: _Flight) -> Result | None:
        """Drive a connection as far as it goes without blocking; None if it must wait."""
        sock = flight.sock
        try:
            if flight.phase is _Phase.CONNECTING:
                if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return self._fail(flight, OSError(error, os.strerror(error)))
                self._reached = True
                flight.phase = _Phase.SENDING
            if flight.phase is _Phase.SENDING:
                while flight.unsent:
                    flight.unsent = flight.unsent[sock.send(flight.unsent) :]
                if self._delivery.until is Until.HANDED_OVER:
                    return self._end(flight)
                sock.shutdown(socket.SHUT_WR)
                flight.phase = _Phase.READING
            return self._read(flight)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._fail(flight, error)

    def _read(self, flight: _Flight) -> Result:
        """Read to end-of-stream, or raise BlockingIOError until the next part is there."""
        while piece := flight.sock.recv(_READ_BYTES):
            flight.reply += piece
            if len(flight.reply) > MAX_REPLY_BYTES:
                # Also where no reply is waited for: an endless stream would keep the loop here.
                return self._end(flight, Failure.ERROR, "the reply does not end")
        if self._delivery.until is Until.REPLY and not flight.reply.endswith(b"\n"):
            reason = "the reply was cut short" if flight.reply else "closed without a reply"
            return self._end(flight, Failure.NO_REPLY, reason)
        return self._end(flight)

    def _fail(self, flight: _Flight, error: OSError) -> Result:
        if flight.phase is _Phase.CONNECTING:
            failure, reason = self._judge(error)
        else:
            failure, reason = explain(error)
        return self._end(flight, failure, reason)

    def _judge(self, error: OSError) -> tuple[Failure, str]:
        """Explain an error of connecting.

        Raises: UnreachableError: no connection has succeeded yet, and none can be made.
        """
        failure, reason = explain(error)
        if self._reached or failure in (Failure.RESET, Failure.TIMEOUT):
            return failure, reason  # a server that resets or is slow is there
        address = self._delivery.address
        if failure is Failure.REFUSED:
            raise UnreachableError(f"nobody listens on {address}") from error
        raise UnreachableError(f"cannot connect to {address}: {reason}") from error

    def _end(self, flight: _Flight, failure: Failure | None = None, reason: str = "") -> Result:
        fd = flight.sock.fileno()
        del self._flights[fd]
        self._queueing.pop(fd, None)
        flight.sock.close()  # epoll forgets a closed descriptor by itself
        return Result(flight.name, failure, reason, flight.reply)
