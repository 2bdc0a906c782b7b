"""The daemon log: every record but the greetings, by structlog, to standard error or to a file.

JSON lines, or console lines on a terminal; timestamp, level, event, then key=value. The master and
its workers write the same place. Each process binds who it is:
`log.logger.bind(process="worker", worker=2, generation=1, pid=4242)`, and reopens for itself.

A log must not stop what it reports on: `log_sink` writes the lines, and drops what cannot be
written. No value reaches the log with a control character in it.
"""

import enum
import json
import math
import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from greeterd.system.escape import escape, escape_lines, to_ascii_json
from greeterd.system.files import Identity, acting_as, open_regular
from greeterd.system.log_sink import LogSink, open_stream

_STDERR: Final = 2
_FILE_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_MODE: Final = 0o640
_MULTILINE: Final = frozenset({"exception", "said", "stack"})
"""Keys whose values keep their line feeds on a console."""


def open_daemon_log(
    *,
    path: Path | None,
    format: str,  # noqa: A002  the setting's name
    level: str,
    owner: Identity | None = None,
    fd: int | None = None,
) -> "DaemonLog":
    """Open the daemon log at `path`, as `owner` if we are root, or on standard error.

    With `fd` nothing is opened: it is a file that an earlier call has opened at `path`.

    `format` is auto (console lines on a terminal, else JSON), json or console; `level` is the
    lowest that is written. Colours only on a terminal, and not if NO_COLOR is set. As PID 1 auto is
    JSON also on a terminal: a container's standard error is collected, whatever it looks like.

    Raises:
        OSError: `path` cannot be opened, or is no regular file with this one name.

    """
    sink = _open_sink(path, owner) if fd is None else LogSink(fd)
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
            sink.add_lost,
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
        sink: LogSink,
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
        """Open the path again under the same descriptor; on standard error, do nothing.

        Raises:
            OSError: as open_daemon_log; the old file stays in use.

        """
        if self._path is None:
            return
        new = _open_file(self._path, self._owner)
        try:
            self._sink.switch_to(new)
        finally:
            os.close(new)

    def reopen_if_moved(self) -> bool:
        """Reopen if the path no longer leads to the open file; return whether it did.

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


def _open_sink(path: Path | None, owner: Identity | None) -> LogSink:
    return open_stream(_STDERR) if path is None else LogSink(_open_file(path, owner))


def _open_file(path: Path, owner: Identity | None) -> int:
    # Never chowned: another user may have put a file there for us to give away.
    with acting_as(owner):
        return open_regular(path, _FILE_FLAGS, _MODE)


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
