"""The daemon log: every record but the greetings, by structlog, to standard error or to a file.

JSON lines, or console lines on a terminal; timestamp, level, event, then key=value. The master and
its workers write the same place, each record by one write(2). Each process binds who it is:
`log.logger.bind(process="worker", worker=2, generation=1, pid=4242)`, and reopens for itself.

A log must not stop what it tells of: no record raises into the caller or waits longer than 0.1 s.
One that cannot be written (disk full, reader gone or asleep) is counted in `lost`, and the next
one that can be written says how many. No value reaches the log with a control character in it.
SIGPIPE and SIGXFSZ must be ignored, as CPython leaves them.

A record that was written in part is not a line. In a file it may be another process's, so each
looks where the file ends before it writes, unless that is where it has written last itself, and
begins with a line feed after half a record. What comes between that look and the write is found
out afterwards, and the record is written once more. So no record shares its line with half of
another; empty lines and halves are between them, and a reader skips what is no record.
"""

import enum
import errno
import json
import math
import os
import select
import stat
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from greeterd.system.escape import escape, escape_lines, to_ascii_json
from greeterd.system.files import Identity, acting_as, open_regular

_STDERR = 2
_FILE_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_STREAM_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MODE = 0o640
_PATIENCE = 0.1  # seconds; a reader that is alive empties a pipe in less
_MULTILINE = ("exception", "said", "stack")
_UNKNOWN = -1  # no file ends here
_MOST_BETWEEN = 2**20  # bytes that others may append between two calls of ours, to be looked at

Send = Callable[[int, memoryview], int]


def open_daemon_log(
    *,
    path: Path | None,
    format: str,  # noqa: A002  the setting's name
    level: str,
    owner: Identity | None = None,
    fd: int | None = None,
) -> "DaemonLog":
    """Open the daemon log at `path`, as `owner` if we are root, or on standard error.

    With `fd` nothing is opened: that is a file that was once opened at `path`.

    `format` is auto (console lines on a terminal, else JSON), json or console; `level` is the
    lowest that is told. Colours only on a terminal, and not if NO_COLOR is set. As PID 1 a terminal
    is nobody's: a container's standard error is collected, whatever it looks like.

    Raises:
        OSError: `path` cannot be opened, or is no regular file with this one name.

    """
    sink = _open_sink(path, owner) if fd is None else _Sink(fd)
    terminal = os.isatty(sink.fd)
    console = format == "console" or (format == "auto" and terminal and os.getpid() != 1)
    colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    render = _console_processors(colours=colours) if console else [_render_json]
    logger: FilteringBoundLogger = structlog.wrap_logger(
        sink,
        processors=[
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _order,
            sink.tell_lost,
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    ).bind()
    return DaemonLog(logger, sink, path, owner)


class DaemonLog:
    """A logger, and where it writes."""

    __slots__ = ("_owner", "_path", "_sink", "logger")

    def __init__(
        self,
        logger: FilteringBoundLogger,
        sink: "_Sink",
        path: Path | None,
        owner: Identity | None,
    ) -> None:
        self.logger = logger
        self._sink = sink
        self._path = path
        self._owner = owner

    @property
    def fd(self) -> int:
        """The descriptor; the same number for the log's whole life. May be non-blocking."""
        return self._sink.fd

    @property
    def lost(self) -> int:
        """How many records this process could not write."""
        return self._sink.lost

    def reopen(self) -> None:
        """Open the path anew under the same descriptor; nothing happens on standard error.

        Raises:
            OSError: as open_daemon_log; the old file stays in use.

        """
        if self._path is None:
            return
        new = _open_file(self._path, self._owner)
        try:
            self._sink.go_over_to(new)
        finally:
            os.close(new)

    def reopen_if_moved(self) -> bool:
        """Reopen if the path no longer leads to the open file; tell whether it was so.

        Raises:
            OSError: as reopen.

        """
        if self._path is None:
            return False
        with suppress(OSError), acting_as(self._owner):
            if os.path.samestat(os.lstat(self._path), os.fstat(self._sink.fd)):
                return False
        self.reopen()
        return True

    def close(self) -> None:
        """Close the descriptor; later records are lost. Standard error itself stays open."""
        self._sink.close()


def _open_sink(path: Path | None, owner: Identity | None) -> "_Sink":
    return _open_stream(_STDERR) if path is None else _Sink(_open_file(path, owner))


def _open_file(path: Path, owner: Identity | None) -> int:
    # Never chowned: what is there may have been put there to be given away.
    with acting_as(owner):
        return open_regular(path, _FILE_FLAGS, _MODE)


def _open_path(path: Path) -> int:
    return os.open(path, _STREAM_FLAGS)


def _open_stream(stream: int) -> "_Sink":
    """Return a sink that never blocks, though O_NONBLOCK on `stream` itself is not ours to set.

    The flag would be set for every process that shares the open file, the user's shell included.
    """
    try:
        mode = os.fstat(stream).st_mode
    except OSError:  # closed by whoever started us
        return _Sink(_open_path(Path(os.devnull)))
    if stat.S_ISREG(mode):
        return _Sink(os.dup(stream))  # it never blocks, and its offset must be shared
    with suppress(OSError):  # a socket (systemd's journal); another user's terminal, after su
        return _Sink(_open_path(Path(f"/proc/self/fd/{stream}")))
    return _Sink(os.dup(stream), _write_if_ready)


def _write_now(fd: int, data: memoryview) -> int:
    return os.write(fd, data)


def _write_if_ready(fd: int, data: memoryview) -> int:
    if not _wait_writable(fd, 0):
        raise BlockingIOError
    return os.write(fd, data[: select.PIPE_BUF])  # that much a ready pipe takes, a socket more


def _wait_writable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(max(0, math.ceil(seconds * 1000))))


def _refuse(_fd: int, _data: memoryview) -> int:
    raise OSError(errno.EBADF, "the log is closed")


def _last_byte(fd: int, end: int) -> bytes:
    """Return what a file of `end` bytes ends in; empty if there is nothing or nobody knows."""
    return _read_back(fd, end - 1, end) if end else b""


def _has_line(fd: int, data: bytes, start: int, end: int) -> bool:
    """Tell whether `data` begins a line in a part of a file; True if nobody knows."""
    before = max(0, start - 1)
    found = _read_back(fd, before, min(end, start + len(data) + _MOST_BETWEEN))
    at = found.find(data)
    return at <= 0 or found[at - 1 : at + 1].startswith(b"\n")


def _read_back(fd: int, start: int, end: int) -> bytes:
    """Read a part of a file that is open for writing; empty where that is not allowed."""
    with suppress(OSError):
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(reader, max(0, end - start), start)
        finally:
            os.close(reader)
    return b""


class _Sink:
    """What structlog calls with a rendered record; counts what it cannot write."""

    __slots__ = ("_end", "_is_file", "_patience", "_send", "_told", "_torn", "fd", "lost")

    def __init__(self, fd: int, send: Send = _write_now) -> None:
        self.fd = fd
        self.lost = 0
        self._send = send
        self._told = 0  # of `lost`, how many the log knows of
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._end = _UNKNOWN  # of a file: where a whole record of ours has ended it
        self._torn = False  # the log ends in half a record of ours
        self._patience = _PATIENCE  # 0 while the reader is asleep: only the first record waits

    def go_over_to(self, fd: int) -> None:
        """Write to this file from now on, by the same descriptor."""
        os.dup2(fd, self.fd, inheritable=False)
        self._end, self._torn = _UNKNOWN, False

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
            self._told = self.lost
            self._patience = _PATIENCE

    def _write_line(self, data: bytes) -> bool:
        """Write a record to a file that others append to; False if half a record came before it."""
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

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._send = _refuse  # the number may soon be a client's

    debug = info = warning = error = critical = _write

    def tell_lost(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        """Processor: say in the next record how many did not reach the log before it."""
        if self.lost != self._told:
            event["lost_records"] = self.lost - self._told
        return event


def _order(_logger: object, method: str, event: EventDict) -> EventDict:
    """Put timestamp, level and event first, and make every value one that JSON has."""
    at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    head = {"timestamp": at, "level": method, "event": _plain(event.pop("event"))}
    return head | {key: _plain(value) for key, value in event.items()}


def _plain(value: object) -> Any:  # noqa: PLR0911  one for each kind of value
    match value:
        case str():
            return str(value)
        case enum.Enum():
            return value.name  # a signal, say
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes() | bytearray():
            return value.decode("utf-8", "backslashreplace")
        case BaseException():
            return f"{type(value).__name__}: {value}"
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case _:
            return str(value)  # an address, a path


def _render_json(_logger: object, _method: str, event: Mapping[str, Any]) -> str:
    line = json.dumps(event, ensure_ascii=False)
    return line if line.isprintable() else to_ascii_json(event)


def _console_processors(*, colours: bool) -> list[Processor]:
    console = structlog.dev.ConsoleRenderer(
        colors=colours,
        sort_keys=False,
        # The exception is text by now; before structlog 26 the default formatter warns of that.
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [_escape_values, console]


def _escape_values(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape strings; within lists and mappings the console renderer's repr() does it."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = escape_lines(value) if key in _MULTILINE else escape(value)
    return event
