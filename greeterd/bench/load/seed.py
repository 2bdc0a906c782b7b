"""Sends each greeting from a process of its own, as the loop of a shell does.

How it is made: this process, a small Python interpreter with nothing but what sending takes, forks
for every greeting.  The child opens its socket, connects, sends one name, waits for the end, writes
one record into a shared pipe and exits; at most `connections` of them live at once, and each is
waited for.  It is a fork without an exec: an interpreter's start would cost a hundred times what
the greeting does.  Latencies are the connection's; what a fork costs is in the client's CPU time.
"""

import os
import select
import socket
import struct
from signal import SIGKILL
from time import monotonic_ns
from typing import Final, NamedTuple

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

_RECORD: Final = struct.Struct("=qqqiBB")
_PATIENCE: Final = 0.2
"""How often it is looked for processes that died without a word."""
_DIED: Final = "died"
_WORDS: Final = (
    "",
    Failure.TIMEOUT.value,
    Failure.NO_REPLY.value,
    Failure.ERROR.value,
    CLOSED_EARLY,
    UNEXPECTED,
)
"""How a greeting ended where no errno tells; the first is in order."""


class _Record(NamedTuple):
    """What a greeting's process has seen; at most PIPE_BUF bytes, so written in one piece."""

    pid: int
    start_ns: int
    end_ns: int
    errno: int
    word: int
    sent: int
    """0 not connected, 1 connected, 2 at least a part of the name is sent."""


class Sower:
    """The greetings' parent: one of the load's processes, over all phases."""

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._living: set[int] = set()

    def run(self, phase: Phase) -> None:
        """Send a phase's greetings until all have ended, or the parent wants the end (blocking)."""
        pace = Pace(self._sending.order, phase)
        first = last = 0
        while self._living or pace.next_ns is not None:
            now = monotonic_ns()
            while pace.take(now) is not None:
                first = first or now
                if not self._sow():
                    pace.note_end(now)
            due = pace.next_ns
            pause = _PATIENCE if due is None else min(_PATIENCE, max(0, due - now) / NANO)
            ready, _, _ = select.select([STDIN, self._read_fd], [], [], pause)
            ended = self._reap(phase, quiet=not ready)
            if STDIN in ready or self._sending.stopped:
                self._sending.stopped = True
                self._cut()
                pace.stop()
            now = monotonic_ns()
            for _ in range(ended):
                last = now
                pace.note_end(now)
            self._sending.tell_progress(now)
        self._sending.note_span(phase, first, last)

    def _sow(self) -> bool:
        """Begin a greeting; False when there can be no process for it."""
        number = self._sending.begin()
        try:
            pid = os.fork()
        except OSError as error:
            self._sending.note_failure(error, connecting=False)
            return False
        if pid == 0:
            try:
                os.write(self._write_fd, _RECORD.pack(*_greet(self._sending, number)))
            finally:
                os._exit(0)
        self._living.add(pid)
        return True

    def _reap(self, phase: Phase, *, quiet: bool) -> int:
        """Book what has ended; return how many."""
        records = self._records()
        for record in records:
            os.waitpid(record.pid, 0)
            self._living.discard(record.pid)
            self._book(phase, record)
        dead = self._dead() if quiet and not records else set()
        return len(records) + len(dead)

    def _records(self) -> list[_Record]:
        try:
            # Records are written in one piece each, and a pipe holds less than this.
            data = os.read(self._read_fd, _RECORD.size << 12)
        except BlockingIOError:
            return []
        return [_Record(*values) for values in _RECORD.iter_unpack(data)]

    def _dead(self) -> set[int]:
        """Book those that were killed: they left no record."""
        dead = {pid for pid in self._living if os.waitpid(pid, os.WNOHANG)[0] == pid}
        self._living -= dead
        for _ in dead:
            self._sending.tally.fail(_DIED, uncertain=True)
        return dead

    def _book(self, phase: Phase, record: _Record) -> None:
        sending = self._sending
        if record.sent:
            sending.note_reached()
        uncertain = record.sent > 1
        if record.errno:
            error = OSError(record.errno, os.strerror(record.errno))
            sending.note_failure(error, connecting=record.sent == 0, uncertain=uncertain)
        elif record.word:
            sending.tally.fail(_WORDS[record.word], uncertain=uncertain)
        else:
            sending.tally.uncertain += sending.order.end == "fire"
            sending.note_end(phase, record.start_ns, record.end_ns)

    def _cut(self) -> None:
        """Kill what lives."""
        for pid in self._living:
            os.kill(pid, SIGKILL)
            os.waitpid(pid, 0)
            self._sending.tally.fail(INTERRUPTED, uncertain=True)
        self._living.clear()
        self._records()  # of those that were quicker: they count as interrupted


def _greet(sending: Sending, number: int) -> _Record:
    """Be one greeting's process: send the name, and return what came of it (blocking)."""
    stage = [0]
    start = monotonic_ns()
    failed = 0
    try:
        word = _converse(sending, number, stage)
    except BlockingIOError:
        word = 1  # SO_SNDTIMEO and SO_RCVTIMEO end so, connect() too (socket(7))
    except OSError as error:
        word, failed = 0, error.errno or 1
    return _Record(os.getpid(), start, monotonic_ns(), failed, word, stage[0])


def _converse(sending: Sending, number: int, stage: list[int]) -> int:
    """Return the word for the end; `stage` tells how far it came."""
    order = sending.order
    deadline = monotonic_ns() + round((order.life + order.timeout) * NANO)
    limit = struct.pack("ll", int(order.timeout), int(order.timeout % 1 * 1e6) or 1)
    sock = socket.SocketType(socket.AddressFamily(order.family), socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    source = sending.source(number)
    if source is not None:
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
    sock.connect(sending.target(number))
    stage[0] = 1
    if order.life and select.select([sock], [], [], order.life)[0]:
        sock.recv(1)  # raises what a reset is
        return 4
    stage[0] = 2
    sock.sendall(sending.name(number))
    if order.end == "fire":
        sock.close()
        return 0
    if order.half_close:
        sock.shutdown(socket.SHUT_WR)
    answer = bytearray()
    while piece := sock.recv(16384):
        answer += piece
        if len(answer) > MAX_REPLY_BYTES:
            return 3
        if monotonic_ns() > deadline:
            return 1
    if order.end == "reply" and answer[-1:] != b"\n":
        return 2
    return 0 if sending.is_expected(answer) else 5
