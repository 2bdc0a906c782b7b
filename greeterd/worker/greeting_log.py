"""Logs a worker's greetings: a structlog pipeline from each loop turn to the worker's own file.

log_dir/worker-<slot>.log holds greetings and nothing else, one JSON object a line. Only the
workers of that slot write it: one, or during a reload two (see line_file). Opened after the fork.
Order within a turn: greet() for each, then commit(), and only then the answers.
`seq` is gap-free per (worker, pid), from 1, in the file's order.
"""

from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from greeterd.worker.line_file import LineFile
from greeterd.worker.record import render_turn


def open_greeting_log(  # noqa: PLR0913 - what a record says of its writer, by keywords
    log_dir: Path,
    *,
    lock: int,
    worker: int,
    generation: int,
    pid: int,
    fsync: bool,
    repair: bool = True,
) -> "GreetingLog":
    """Open log_dir/worker-<worker>.log for appending, or create it; with `repair` cut a torn tail.

    `lock` is a descriptor of the file that the slot's workers lock while they write.

    Raises:
        OSError: the file cannot be opened or repaired, or is not a regular file.

    """
    path = log_dir / f"worker-{worker}.log"
    file = LineFile(path, durable=fsync, lock=lock, repair=repair)
    logger: FilteringBoundLogger = structlog.wrap_logger(
        file,
        processors=[structlog.processors.add_log_level, _add_timestamp, _render],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        context_class=dict,
        worker=worker,
        generation=generation,
        pid=pid,
    ).bind()  # without bind() it is a proxy that builds a logger at every call
    return GreetingLog(file, logger)


class GreetingLog:
    """The greetings of one worker: gathered during a turn, written at its end.

    One structlog event a turn, whose renderer emits a line for each greeting: 0.8 µs a greeting in
    turns of 64 and 1.4 in turns of 16, against 4 to 5 with an event for each. Turns of one cost
    2 µs more that way, but they are the turns of an idle worker (tests/perf/logs_cost.py).
    """

    __slots__ = ("_batch", "_file", "_logger", "_seq")

    def __init__(self, file: LineFile, logger: FilteringBoundLogger) -> None:
        self._file = file
        self._logger = logger
        self._batch: list[tuple[str, str]] = []
        self._seq = 1  # of the next greeting to be rendered

    @property
    def path(self) -> Path:
        """Where the file is, or is to be after a rotation."""
        return self._file.path

    @property
    def blocked(self) -> OSError | None:
        """Why the last commit() failed, or the next one will: the file has no name left."""
        return self._file.blocked

    @property
    def astray(self) -> OSError | None:
        """Why the file is not at its path any more, and could not be reopened there."""
        return self._file.astray

    @property
    def repaired_bytes(self) -> int:
        """Bytes of torn records that were cut off so far, at the opening or later."""
        return self._file.repaired_bytes

    def greet(self, name: str, client: str) -> None:
        """Add one greeting to this turn's batch."""
        self._batch.append((name, client))

    def commit(self) -> bool:
        """Write all that is pending, by one write(2); return whether it is written (and synced).

        After False it stays pending, and `blocked` says why. Blocks for the disk, and at most 50 ms
        for the slot's other worker.
        """
        batch = self._batch
        if batch:
            self._logger.info("greeting", batch=batch, seq=self._seq)
            self._seq += len(batch)
            self._batch = []
        return self._file.flush()

    def reopen(self) -> None:
        """Open the path again under the same descriptor; what is pending goes to the new file.

        Raises:
            OSError: the path cannot be opened, or the old file not completed; it stays in use.

        """
        self._file.reopen()

    def look(self) -> bool:
        """Reopen if the path no longer leads to the open file; return whether that was done.

        If reopening fails, `astray` says why, and greetings go on to the old file; if that has no
        name left, `blocked` says why. Also writes what is pending.
        """
        return self._file.look()

    def close(self) -> None:
        """Close the file; what is still pending is lost, so commit() first."""
        self._file.close()


def _add_timestamp(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    # One instant for a turn. structlog's TimeStamper costs 1.7 µs, this 0.2 µs.
    event["timestamp"] = datetime.now(UTC)
    return event


def _render(_logger: object, _method: str, event: Mapping[str, Any]) -> bytes:
    return render_turn(event)
