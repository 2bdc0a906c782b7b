"""What a worker says of its log files, and when."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from greeterd.worker import counters
from greeterd.worker.counters import spare_row
from greeterd.worker.greeting_log import GreetingLog, open_greeting_log
from greeterd.worker.logs import Warnings, WorkerLogs
from tests.integration.worker.loops import Clock, DaemonLogStub, largest_file


class LogsInTest:
    """The logs of a worker, and what was said of them."""

    def __init__(self, greetings: GreetingLog | None) -> None:
        self.row = spare_row()
        self.records = structlog.testing.LogCapture()
        log = structlog.wrap_logger(None, processors=[self.records])
        self.daemon_log = DaemonLogStub()
        self.greetings = greetings
        self.logs = WorkerLogs(
            self.daemon_log,  # type: ignore[arg-type]
            greetings,
            log=log,
            warn=Warnings(log),
            row=self.row,
        )


@pytest.fixture
def open_logs(tmp_path: Path, clock: Clock) -> Iterator[Callable[[], LogsInTest]]:
    made: list[GreetingLog] = []
    lock = os.memfd_create("lock")
    assert clock.now

    def opened() -> LogsInTest:
        made.append(
            open_greeting_log(tmp_path, lock=lock, worker=1, generation=1, pid=1, fsync=False)
        )
        return LogsInTest(made[-1])

    yield opened
    for log in made:
        log.close()
    os.close(lock)


OpenLogs = Callable[[], LogsInTest]


def test_a_warning_comes_once_a_second_with_the_number_of_those_left_out(clock: Clock) -> None:
    records = structlog.testing.LogCapture()
    warn = Warnings(structlog.wrap_logger(None, processors=[records]))
    for passed in (0.0, 0.5, 0.4, 0.1, 1.0):
        clock.now += passed
        warn("name too long", client="c")
    warn("cannot accept")
    assert records.entries == [
        {"event": "name too long", "client": "c", "log_level": "warning"},
        {"event": "name too long", "client": "c", "log_level": "warning", "suppressed": 2},
        {"event": "name too long", "client": "c", "log_level": "warning"},
        {"event": "cannot accept", "log_level": "warning"},
    ]


def test_a_log_in_its_place_is_not_worth_a_word(open_logs: OpenLogs) -> None:
    one = open_logs()
    one.row[counters.LOG_ERRNO] = 5
    one.logs.check(paused=False)
    assert one.records.entries == []
    assert one.row[counters.LOG_ERRNO] == 0
    assert not one.logs.blocked


def test_a_file_that_was_moved_is_opened_anew(open_logs: OpenLogs, tmp_path: Path) -> None:
    one = open_logs()
    (tmp_path / "worker-1.log").rename(tmp_path / "moved")
    one.logs.check(paused=False)
    [record] = one.records.entries
    assert (record["event"], record["log_level"]) == ("log reopened", "info")
    assert record["reason"] == "its file was moved or removed"
    assert (tmp_path / "worker-1.log").exists()


def test_a_torn_record_is_reported_when_a_look_cuts_it(open_logs: OpenLogs, tmp_path: Path) -> None:
    one = open_logs()
    assert one.greetings is not None
    with largest_file(0):
        one.greetings.greet("Alice", "c")
        assert not one.greetings.commit()  # it is pending, so that the next look writes
        (tmp_path / "worker-1.log").rename(tmp_path / "moved")
        (tmp_path / "worker-1.log").write_bytes(b"")
    (tmp_path / "worker-1.log").write_bytes(b"whole\ntorn")
    one.logs.check(paused=False)
    assert [(entry["event"], entry.get("bytes")) for entry in one.records.entries] == [
        ("log reopened", None),
        ("torn record removed", 4),
    ]
    assert one.records.entries[1]["log_level"] == "warning"
    with largest_file(0):
        one.greetings.greet("Bob", "c")
        assert not one.greetings.commit()
        (tmp_path / "worker-1.log").rename(tmp_path / "moved again")
        (tmp_path / "worker-1.log").write_bytes(b"")
    (tmp_path / "worker-1.log").write_bytes(b"torn again")
    one.logs.check(paused=False)
    assert one.records.entries[-1]["bytes"] == 10, "of this one only"


@pytest.mark.parametrize("paused", [False, True])
def test_a_file_that_cannot_be_opened_anew_is_told_with_the_reason(
    open_logs: OpenLogs, tmp_path: Path, *, paused: bool
) -> None:
    one = open_logs()
    one.row[counters.LOG_ERRNO] = 99
    path = tmp_path / "worker-1.log"
    path.rename(tmp_path / "moved")
    path.mkdir()
    one.logs.check(paused=paused)
    [record] = one.records.entries
    assert (record["event"], record["log_level"]) == ("cannot reopen a log", "warning")
    assert str(path) in record["reason"]
    assert one.row[counters.LOG_ERRNO] == (99 if paused else errno.EISDIR)
    assert not one.logs.blocked, "the file that was moved away is written"


def test_a_daemon_log_that_cannot_be_opened_is_the_masters_to_tell(open_logs: OpenLogs) -> None:
    one = open_logs()
    one.daemon_log.error = OSError(errno.EACCES, "no")
    one.logs.check(paused=False)
    assert one.daemon_log.looked_at == 1
    assert one.records.entries == []


def test_what_could_not_be_written_is_tried_again(open_logs: OpenLogs) -> None:
    one = open_logs()
    assert one.greetings is not None
    assert one.logs.retry()
    with largest_file(0):
        one.greetings.greet("Alice", "c")
        assert not one.greetings.commit()
        assert is_blocked(one)
        assert not one.logs.retry()
        one.logs.report_blocked()
    [record] = one.records.entries
    assert record["path"] == str(one.greetings.path)
    assert record["reason"] == os.strerror(errno.EFBIG)
    assert one.row[counters.LOG_ERRNO] == errno.EFBIG
    assert one.logs.retry()
    assert not is_blocked(one)
    assert one.greetings.path.read_bytes().count(b"\n") == 1
    one.logs.report_written()
    assert one.row[counters.LOG_ERRNO] == 0
    assert one.records.entries[1] == {"event": "greetings are written again", "log_level": "info"}


def is_blocked(one: LogsInTest) -> bool:
    """Tell whether greetings cannot be written."""
    return one.logs.blocked


def test_a_retry_writes_nothing_that_the_turn_has_not_ended(open_logs: OpenLogs) -> None:
    one = open_logs()
    assert one.greetings is not None
    one.greetings.greet("Alice", "c")
    assert one.logs.retry()
    assert one.greetings.path.read_bytes() == b""


def test_an_error_without_a_number_counts_as_one(
    open_logs: OpenLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = open_logs()
    monkeypatch.setattr(GreetingLog, "blocked", OSError("no number"))
    one.logs.report_blocked()
    assert one.row[counters.LOG_ERRNO] == errno.EIO
    monkeypatch.setattr(GreetingLog, "blocked", None)
    one.logs.report_blocked()
    assert one.row[counters.LOG_ERRNO] == 0


def test_a_dispatcher_has_the_daemon_log_only() -> None:
    one = LogsInTest(None)
    one.logs.check(paused=False)
    assert one.logs.reopen() == ""
    assert (one.daemon_log.looked_at, one.daemon_log.reopened) == (1, 1)
    assert one.logs.retry()
    assert not one.logs.blocked
    one.logs.report_blocked()
    one.logs.close()
    assert one.records.entries == []


def test_closing_closes_the_greeting_log(open_logs: OpenLogs) -> None:
    one = open_logs()
    one.logs.close()
    assert one.greetings is not None
    assert one.greetings._file.fd == -1
