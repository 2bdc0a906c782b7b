"""Writes the lines of the daemon log: whole or not at all, and never for long.

The master and its workers write the same place, each record by one write(2). Writing a record never
raises and never takes longer than PATIENCE: one that cannot be written (disk full, reader gone or
asleep) is counted in `lost`, and the next record that can be written says how many.

A record that was written in part is not a line. In a file the part may be another process's, so
each process looks where the file ends before it writes, unless that is where its own last record
ended, and begins with a line feed after half a record. What another process appended between that
look and the write is found out afterwards, and the record is written once more. So no record shares
its line with half of another; a reader skips empty lines and halves.

SIGPIPE and SIGXFSZ must be ignored, as CPython leaves them.
"""

import errno
import math
import os
import select
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from structlog.typing import EventDict

PATIENCE: Final = 0.1
"""Seconds; a reader that is alive empties a pipe in less."""

_STREAM_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_UNKNOWN: Final = -1  # no file ends here
_MAX_BETWEEN: Final = 2**20  # bytes of other processes, between two calls of ours, to search

Send = Callable[[int, memoryview], int]


def _write_now(fd: int, data: memoryview) -> int:
    return os.write(fd, data)


class LogSink:
    """The logger that structlog wraps: its methods take a rendered record."""

    __slots__ = ("_end", "_is_file", "_patience", "_reported", "_send", "_torn", "fd", "lost")

    def __init__(self, fd: int, send: Send = _write_now) -> None:
        self.fd = fd
        self.lost = 0
        self._send = send
        self._reported = 0  # of `lost`, how many a record has told of
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._end = _UNKNOWN  # of a file: where our last whole record has ended it
        self._torn = False  # the log ends in half a record of ours
        self._patience = PATIENCE  # 0 while the reader is asleep: only the first record waits

    def switch_to(self, fd: int) -> None:
        """Write to the file of `fd` from now on, under the same descriptor as before."""
        os.dup2(fd, self.fd, inheritable=False)
        self._end, self._torn = _UNKNOWN, False

    def close(self) -> None:
        """Close the descriptor; later records are lost."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._send = _refuse  # the number may soon be a client's

    def add_lost(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        """Processor: add to a record how many were lost since the last one that was written."""
        if self.lost != self._reported:
            event["lost_records"] = self.lost - self._reported
        return event

    def _write(self, record: str) -> None:
        data = f"{record}\n".encode("utf-8", "backslashreplace")
        try:
            if not self._is_file:
                self._write_whole(b"\n" + data if self._torn else data)
            elif not self._write_line(data):
                self._write_whole(b"\n" + data)
        except OSError:
            self.lost += 1
            self._patience = 0.0
        else:
            self._reported = self.lost
            self._patience = PATIENCE

    debug = info = warning = error = critical = _write

    def _write_line(self, data: bytes) -> bool:
        """Append a record to a file; False if half a record of another process came before it."""
        start = os.fstat(self.fd).st_size
        last = b"\n" if start == self._end else _last_byte(self.fd, start)
        if last != b"\n" and (last or self._torn):
            self._write_whole(b"\n" + data)
            return True
        self._write_whole(data)
        end = os.fstat(self.fd).st_size
        self._end = start + len(data)
        return end == self._end or _has_line(self.fd, data, start, end)

    def _write_whole(self, data: bytes) -> None:
        """Write all of it.  Raises: OSError: at most a part of it is written."""
        rest = memoryview(data)
        deadline = time.monotonic() + self._patience
        self._torn, torn = False, self._torn
        try:
            while rest:
                try:
                    rest = rest[self._send(self.fd, rest) :]
                except BlockingIOError:
                    left = deadline - time.monotonic()
                    if left <= 0 or not _wait_writable(self.fd, left):
                        raise
        except OSError:
            self._torn = torn or len(rest) < len(data)
            raise


def open_stream(stream: int) -> LogSink:
    """Return a sink on a standard stream, as a descriptor of its own; writing never blocks.

    O_NONBLOCK is not set on `stream` itself: it would hold for every process that shares the open
    file, the user's shell included.
    """
    try:
        mode = os.fstat(stream).st_mode
    except OSError:  # the parent has closed it
        return LogSink(_open(Path(os.devnull)))
    if stat.S_ISREG(mode):
        return LogSink(os.dup(stream))  # it never blocks, and its offset must be shared
    with suppress(OSError):  # a socket (systemd's journal); another user's terminal, after su
        return LogSink(_open(Path(f"/proc/self/fd/{stream}")))
    return LogSink(os.dup(stream), _write_if_ready)


def _open(path: Path) -> int:
    return os.open(path, _STREAM_FLAGS)


def _write_if_ready(fd: int, data: memoryview) -> int:
    if not _wait_writable(fd, 0):
        raise BlockingIOError
    return os.write(fd, data[: select.PIPE_BUF])  # that much a ready pipe takes, a socket more


def _refuse(_fd: int, _data: memoryview) -> int:
    raise OSError(errno.EBADF, "the log is closed")


def _wait_writable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(max(0, math.ceil(seconds * 1000))))


def _last_byte(fd: int, end: int) -> bytes:
    """Return the last byte of a file of `end` bytes; nothing if it has none or cannot be read."""
    return _read_back(fd, end - 1, end) if end else b""


def _has_line(fd: int, data: bytes, start: int, end: int) -> bool:
    """Tell whether `data` begins a line in this part of a file; True if it cannot be read."""
    before = max(0, start - 1)
    found = _read_back(fd, before, min(end, start + len(data) + _MAX_BETWEEN))
    at = found.find(data)
    return at <= 0 or found[at - 1 : at + 1].startswith(b"\n")


def _read_back(fd: int, start: int, end: int) -> bytes:
    """Read a part of a file that is open for writing; nothing where that is not allowed."""
    with suppress(OSError):
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(reader, max(0, end - start), start)
        finally:
            os.close(reader)
    return b""
