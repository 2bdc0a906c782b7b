"""The log files of one worker: reopens them, and reports what is wrong with them.

The daemon log is shared with the master, which alone reports that it moved or cannot be opened.
The greeting log is this worker's; a dispatcher has none.
"""

import contextlib
import errno
from time import monotonic

from structlog.typing import FilteringBoundLogger

from greeterd.errors import reason_of
from greeterd.system.daemon_log import DaemonLog
from greeterd.system.ratelimit import RateLimit
from greeterd.worker import counters
from greeterd.worker.counters import Row
from greeterd.worker.greeting_log import GreetingLog


class Warnings:
    """Logs warnings, each event at most once a second, and counts what it suppresses."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._limit = RateLimit(1.0)

    def __call__(self, event: str, **fields: object) -> None:
        """Log the event, unless it was logged within the last second."""
        suppressed = self._limit.admit(event, monotonic())
        if suppressed is not None:
            if suppressed:
                fields["suppressed"] = suppressed
            self._log.warning(event, **fields)


class WorkerLogs:
    """The greeting log, and this worker's descriptor of the daemon log."""

    def __init__(
        self,
        daemon_log: DaemonLog,
        greetings: GreetingLog | None,
        *,
        log: FilteringBoundLogger,
        warn: Warnings,
        row: Row,
    ) -> None:
        self._daemon_log = daemon_log
        self._greetings = greetings
        self._log = log
        self._warn = warn
        self._row = row

    @property
    def blocked(self) -> bool:
        """Greetings cannot be written."""
        return self._greetings is not None and self._greetings.blocked is not None

    def check(self, *, paused: bool) -> None:
        """Reopen what was moved or removed; to be called about once a second.

        `paused`: the cell `log_errno` says why the worker pauses, and stays.
        """
        with contextlib.suppress(OSError):  # the master reports it
            self._daemon_log.reopen_if_moved()
        log = self._greetings
        if log is None:
            return
        before = log.repaired_bytes
        if log.look():
            self._log.info("log reopened", reason="its file was moved or removed")
        if log.repaired_bytes > before:
            self._log.warning("torn record removed", bytes=log.repaired_bytes - before)
        if log.astray:
            self._warn("cannot reopen a log", reason=reason_of(log.astray))
        if not paused:
            self._row[counters.LOG_ERRNO] = _errno(log.astray)

    def reopen(self) -> str:
        """Reopen both, wherever they are; return why that failed, or nothing."""
        reasons = []
        for log in (self._daemon_log, self._greetings):
            try:
                if log is not None:
                    log.reopen()
            except OSError as error:
                reasons.append(reason_of(error))
                self._log.warning("cannot reopen a log", reason=reasons[-1])
        return "; ".join(reasons)

    def retry(self) -> bool:
        """Try again to write what could not be written; False if it still cannot be."""
        log = self._greetings
        return log is None or log.blocked is None or log.commit()

    def report_blocked(self) -> None:
        """Say why greetings cannot be written: in the row, and by a warning."""
        log = self._greetings
        if log is None:
            return
        self._row[counters.LOG_ERRNO] = _errno(log.blocked)
        why = log.blocked and log.blocked.strerror
        self._warn("cannot write greetings", path=str(log.path), reason=why)

    def report_written(self) -> None:
        """Say that greetings are written again."""
        self._log.info("greetings are written again")
        self._row[counters.LOG_ERRNO] = 0

    def close(self) -> None:
        """Close the greeting log."""
        if self._greetings is not None:
            self._greetings.close()


def _errno(error: OSError | None) -> int:
    return 0 if error is None else error.errno or errno.EIO
