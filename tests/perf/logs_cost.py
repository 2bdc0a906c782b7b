"""Prints what a greeting costs on its way to the file: µs of CPU a line, by pipeline and by burst.

Run by hand: python -m tests.perf.logs_cost [DIRECTORY]. The pipelines differ in what is one
structlog event; the last rows are greeterd's own log, with and without its lock. Repeats are
interleaved, so that a noisy moment hits all of them; the table holds their medians.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from fcntl import flock
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import msgspec
import structlog

from greeterd.worker import line_file
from greeterd.worker.greeting_log import open_greeting_log
from greeterd.worker.record import Record

BURSTS = (1, 16, 64)
LINES = 6400
REPEATS = 15
NAMES = [(f"client-{i:05d}", f"127.0.0.1:{40000 + i}") for i in range(64)]

Event = MutableMapping[str, Any]
_encode = msgspec.json.Encoder().encode


class Log(Protocol):
    """What the worker calls."""

    def greet(self, name: str, client: str) -> None:
        """Add a greeting."""

    def commit(self) -> bool:
        """Write the turn."""


class EventEach:
    """One structlog event a greeting, one plain write a turn."""

    def __init__(self, fd: int, *processors: structlog.typing.Processor) -> None:
        self._fd = fd
        self._lines: list[bytes] = []
        self._seq = 0
        self._logger = structlog.wrap_logger(
            self,
            processors=[structlog.processors.add_log_level, *processors],
            wrapper_class=structlog.make_filtering_bound_logger("info"),
            context_class=dict,
            worker=1,
            generation=1,
            pid=4242,
        ).bind()

    def info(self, line: bytes) -> None:
        """Take a line from structlog."""
        self._lines.append(line)

    def greet(self, name: str, client: str) -> None:
        """Log at once."""
        self._seq += 1
        self._logger.info(
            "greeting", greeting="Hello, " + name, name=name, seq=self._seq, client=client
        )

    def commit(self) -> bool:
        """Write the turn."""
        os.write(self._fd, b"".join(self._lines))
        self._lines.clear()
        return True


def _stamp(_logger: object, _method: str, event: Event) -> Event:
    event["timestamp"] = datetime.now(UTC)
    return event


def _render_dict(_logger: object, _method: str, event: Mapping[str, Any]) -> bytes:
    return _encode({field: event[field] for field in Record.__struct_fields__}) + b"\n"


def _render_struct(_logger: object, _method: str, e: Mapping[str, Any]) -> bytes:
    record = Record(
        e["timestamp"],
        e["level"],
        e["event"],
        e["greeting"],
        e["name"],
        e["worker"],
        e["generation"],
        e["pid"],
        e["seq"],
        e["client"],
    )
    return _encode(record) + b"\n"


def _no_lock(_fd: int, _operation: int) -> None:
    pass


def measure(log: Log, burst: int) -> float:
    """Return µs of CPU a line."""
    names = NAMES[:burst]
    turns = LINES // burst
    start = time.process_time()
    for _ in range(turns):
        for name, client in names:
            log.greet(name, client)
        log.commit()
    return (time.process_time() - start) / (turns * burst) * 1e6


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as directory:
        fd = os.open(Path(directory) / "each.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        stock = structlog.processors
        own, unlocked = (
            open_greeting_log(
                Path(directory),
                lock=os.memfd_create("lock"),
                worker=worker,
                generation=1,
                pid=4242,
                fsync=False,
            )
            for worker in (1, 2)
        )
        logs: dict[str, Log] = {
            "event each, TimeStamper, JSONRenderer": EventEach(
                fd,
                stock.TimeStamper(fmt="iso"),
                stock.JSONRenderer(serializer=lambda event, **_: _encode(event) + b"\n"),
            ),
            "event each, dict": EventEach(fd, _stamp, _render_dict),
            "event each, struct": EventEach(fd, _stamp, _render_struct),
            "event a turn, without flock": unlocked,
            "event a turn: greeterd's": own,
        }
        results: dict[tuple[str, int], list[float]] = {}
        for _ in range(REPEATS):
            for burst in BURSTS:
                for what, log in logs.items():
                    lock = _no_lock if log is unlocked else flock
                    with patch.object(line_file, "flock", lock):
                        results.setdefault((what, burst), []).append(measure(log, burst))
                    os.truncate(fd, 0)
        os.close(fd)
        own.close()
        unlocked.close()
    print(f"{'µs a line, by burst':40}" + "".join(f"{burst:8}" for burst in BURSTS))
    for what in logs:
        row = "".join(f"{statistics.median(results[what, burst]):8.2f}" for burst in BURSTS)
        print(f"{what:40}{row}")


if __name__ == "__main__":
    main()
