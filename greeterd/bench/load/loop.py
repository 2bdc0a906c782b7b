"""Sends greetings from one process, many connections at once: one loop, edge by edge, no threads.

`pace` decides when a greeting begins.  A late start is never dropped or moved: its latency
counts from the instant that was due, so neither a slow server nor a slow client can hide a wait.

On loopback the handshake is done when connect(2) returns, so the name is sent at once and a
connection is registered only to wait for its end; where it is not done, the loop waits for it.
"""

import errno
import os
import select
import socket
from collections import deque
from time import monotonic_ns
from typing import Final

from greeterd.bench.load.messages import Phase
from greeterd.bench.load.pace import Pace
from greeterd.bench.load.schedule import NANO
from greeterd.bench.load.sender import (
    CLOSED_EARLY,
    INTERRUPTED,
    IP_BIND_ADDRESS_NO_PORT,
    MAX_REPLY_BYTES,
    STDIN,
    UNEXPECTED,
    Sending,
)
from greeterd.client import Failure

CONNECTING: Final = 0
HOLDING: Final = 1
WRITING: Final = 2
READING: Final = 3
ENDED: Final = 4

_MAX_EVENTS: Final = 256
_MAX_STARTS: Final = 64
"""In one turn, so that a backlog of starts does not keep the ends from being seen."""
_READ_BYTES: Final = 16384
_PATIENCE_NS: Final = 50_000_000
"""How often timeouts are looked for."""
_RETRY_NS: Final = 2_000_000
"""A full unix queue refuses a non-blocking connect, and no event tells of room."""
_KIND: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_SHORTEST_POLL_NS: Final = 5_000_000
"""epoll_wait(2) counts in milliseconds; less than this is waited for by select(2)."""


class _Flight:
    """One greeting on its way."""

    __slots__ = (
        "answer",
        "deadline",
        "number",
        "registered",
        "sock",
        "start",
        "state",
        "unsent",
    )

    def __init__(self, sock: socket.SocketType, start: int, deadline: int, number: int) -> None:
        self.sock = sock
        self.start = start
        self.deadline = deadline
        self.number = number
        self.state = CONNECTING
        self.registered = False
        self.unsent: bytes | memoryview = b""
        self.answer = bytearray()


class Loop:
    """The connections of one process, over all phases."""

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        order = sending.order
        self._end = order.end
        self._half_close = order.half_close
        self._life_ns = round(order.life * NANO)
        self._timeout_ns = round(order.timeout * NANO) + self._life_ns
        self._family = socket.AddressFamily(order.family)
        self._epoll = select.epoll()
        self._epoll.register(STDIN, select.EPOLLIN)
        self._flights: dict[int, _Flight] = {}
        self._holding: deque[tuple[int, _Flight]] = deque()
        self._queueing: deque[tuple[int, _Flight]] = deque()
        self._phase = Phase(start_ns=0, measured=False)
        self._pace = Pace(order, self._phase)
        self._first = self._last = self._next_look = 0

    def run(self, phase: Phase) -> None:
        """Send a phase's greetings until all have ended, or the parent wants the end (blocking)."""
        self._phase = phase
        self._first = self._last = 0
        self._pace = Pace(self._sending.order, phase)
        while self._flights or self._pace.next_ns is not None:
            now = self._begin_due(monotonic_ns())
            events = self._wait(now)
            for fd, _ in events:
                flight = self._flights.get(fd)
                if flight is not None:
                    self._advance(flight)
                elif fd == STDIN:
                    self._sending.stopped = True
            if self._sending.stopped:
                self._abandon()
            now = monotonic_ns()
            self._serve_timers(now)
            self._sending.tell_progress(now)
        self._sending.note_span(phase, self._first, self._last)

    def _begin_due(self, now: int) -> int:
        """Begin what is due, a turn's share at most; return the time."""
        for _ in range(_MAX_STARTS):
            start = self._pace.take(now)
            if start is None:
                break
            if self._phase.is_open:
                self._sending.note_start(start, now)
            self._start(start, now)
            if self._sending.stopped:
                break
            now = monotonic_ns()
        return now

    def _wait(self, now: int) -> list[tuple[int, int]]:
        """Return what has happened; wait for it until the next instant that matters."""
        until = now + _PATIENCE_NS
        due = self._pace.next_ns
        if due is not None:
            until = min(until, due)
        for queue in (self._holding, self._queueing):
            if queue:
                until = min(until, queue[0][0])
        pause = until - now
        if pause >= _SHORTEST_POLL_NS:
            return self._epoll.poll((pause - _SHORTEST_POLL_NS / 2) / NANO, _MAX_EVENTS)
        events = self._epoll.poll(0, _MAX_EVENTS)
        if not events and pause > 0:
            select.select([self._epoll], [], [], pause / NANO)
            events = self._epoll.poll(0, _MAX_EVENTS)
        return events

    def _start(self, start: int, now: int) -> None:
        sending = self._sending
        number = sending.begin()
        self._first = self._first or start
        try:
            sock = socket.SocketType(self._family, _KIND)
            source = sending.source(number)
            if source is not None:
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((source, 0))
        except OSError as error:
            sending.note_failure(error, connecting=True)
            self._go_on(now)
            return
        flight = _Flight(sock, start, now + self._timeout_ns, number)
        self._flights[sock.fileno()] = flight
        self._connect(flight, now)

    def _connect(self, flight: _Flight, now: int) -> None:
        error = flight.sock.connect_ex(self._sending.target(flight.number))
        if error == errno.EAGAIN:
            self._queueing.append((now + _RETRY_NS, flight))
        elif error not in (0, errno.EINPROGRESS):
            self._fail(flight, OSError(error, os.strerror(error)))
        elif self._life_ns:
            self._await(flight, select.EPOLLOUT)
        else:
            self._send(flight)

    def _send(self, flight: _Flight) -> None:
        """Send the name, as far as the kernel takes it, and half-close."""
        if flight.state != WRITING:
            flight.unsent = self._sending.name(flight.number)
        try:
            while flight.unsent:
                sent = flight.sock.send(flight.unsent)
                flight.state = WRITING
                if sent == len(flight.unsent):
                    break
                flight.unsent = (
                    memoryview(flight.unsent)[sent:] if sent < len(flight.unsent) else b""
                )
            self._sending.note_reached()
            if self._end != "fire":
                if self._half_close:
                    flight.sock.shutdown(socket.SHUT_WR)
                flight.state = READING
        except BlockingIOError:
            self._await(flight, select.EPOLLOUT)
        except OSError as error:
            self._fail(flight, error)
        else:
            if self._end == "fire":
                self._sending.tally.uncertain += 1
                self._finish(flight)
            else:
                self._await(flight, select.EPOLLIN)

    def _await(self, flight: _Flight, events: int) -> None:
        if flight.registered:
            self._epoll.modify(flight.sock, events)
        else:
            self._epoll.register(flight.sock, events)
            flight.registered = True

    def _advance(self, flight: _Flight) -> None:
        """Take a connection on that something has happened to."""
        if flight.state == READING:
            self._read(flight)
        elif flight.state == CONNECTING and self._life_ns:
            self._hold(flight)
        elif flight.state == HOLDING:
            self._lose(flight)
        else:
            self._send(flight)

    def _hold(self, flight: _Flight) -> None:
        """Keep a connection that stands for its life."""
        if error := flight.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(flight, OSError(error, os.strerror(error)))
            return
        self._sending.note_reached()
        flight.state = HOLDING
        self._epoll.modify(flight.sock, select.EPOLLIN)
        self._holding.append((monotonic_ns() + self._life_ns, flight))

    def _lose(self, flight: _Flight) -> None:
        """End a connection that the server has closed or answered before the name was sent."""
        try:
            flight.sock.recv(_READ_BYTES)
        except OSError as error:
            self._fail(flight, error)
        else:
            self._end_badly(flight, CLOSED_EARLY)

    def _read(self, flight: _Flight) -> None:
        try:
            piece = flight.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(flight, error)
            return
        if piece:
            flight.answer += piece
            if len(flight.answer) > MAX_REPLY_BYTES:
                self._end_badly(flight, Failure.ERROR.value)
        elif self._end == "reply" and flight.answer[-1:] != b"\n":
            self._end_badly(flight, Failure.NO_REPLY.value)
        elif not self._sending.is_expected(flight.answer):
            self._end_badly(flight, UNEXPECTED)
        else:
            self._finish(flight)

    def _finish(self, flight: _Flight) -> None:
        now = monotonic_ns()
        self._sending.note_end(self._phase, flight.start, now)
        self._close(flight, now)

    def _fail(self, flight: _Flight, error: OSError) -> None:
        self._sending.note_failure(
            error, connecting=flight.state == CONNECTING, uncertain=flight.state >= WRITING
        )
        self._close(flight, monotonic_ns())

    def _end_badly(self, flight: _Flight, kind: str) -> None:
        self._sending.tally.fail(kind, uncertain=flight.state >= WRITING)
        self._close(flight, monotonic_ns())

    def _close(self, flight: _Flight, now: int) -> None:
        del self._flights[flight.sock.fileno()]
        flight.sock.close()  # epoll forgets a closed descriptor by itself
        flight.state = ENDED
        self._go_on(now)

    def _go_on(self, now: int) -> None:
        """Let a closed loop begin its next after an end."""
        self._last = now
        self._pace.note_end(now)

    def _serve_timers(self, now: int) -> None:
        while self._holding and self._holding[0][0] <= now:
            _, flight = self._holding.popleft()
            if flight.state == HOLDING:
                self._send(flight)
        while self._queueing and self._queueing[0][0] <= now:
            _, flight = self._queueing.popleft()
            if flight.state == CONNECTING:
                self._connect(flight, now)
        if now >= self._next_look:
            self._next_look = now + _PATIENCE_NS
            # All have the same time, so the order of starting is that of the deadlines.
            for flight in list(self._flights.values()):
                if flight.deadline > now:
                    break
                self._end_badly(flight, Failure.TIMEOUT.value)

    def _abandon(self) -> None:
        """End what is in flight, and begin nothing more."""
        for flight in list(self._flights.values()):
            self._end_badly(flight, INTERRUPTED)
        self._pace.stop()
