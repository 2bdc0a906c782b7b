"""The daemon log on real files, pipes, sockets and terminals, the unwilling ones included."""

import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.system import daemon_log, log_sink
from greeterd.system.daemon_log import DaemonLog, open_daemon_log
from tests.support import until

OpenLog = Callable[..., DaemonLog]
PIPE_BYTES = 4096
TOO_LONG = 2.0  # seconds; a log that waits for its reader would wait for ever


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "greeterd.log"


@pytest.fixture
def open_log(path: Path) -> Iterator[OpenLog]:
    opened: list[DaemonLog] = []

    def open_log(**settings: Any) -> DaemonLog:
        defaults: dict[str, Any] = {"path": path, "format": "auto", "level": "info"}
        opened.append(open_daemon_log(**defaults | settings))
        return opened[-1]

    yield open_log
    for log in opened:
        log.close()


@pytest.fixture
def open_on(open_log: OpenLog, monkeypatch: pytest.MonkeyPatch) -> OpenLog:
    """Open the log on a descriptor that plays standard error."""

    def open_on(fd: int, **settings: Any) -> DaemonLog:
        monkeypatch.setattr(daemon_log, "_STDERR", fd)
        return open_log(path=None, **settings)

    return open_on


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    """Make a reading and a writing end; a test takes out what it closes."""
    ends = list(os.pipe())
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield ends
    for end in ends:
        os.close(end)


def read_now(fd: int) -> bytes:
    data = b""
    while select.select([fd], [], [], 0)[0]:
        data += os.read(fd, 65536)
    return data


def records(data: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


# What a record is.


def test_a_record_starts_with_when_how_bad_and_what(open_log: OpenLog, path: Path) -> None:
    log = open_log()
    log.logger.bind(process="worker", worker=2, generation=1, pid=77).warning("slow", seconds=1.5)
    (record,) = records(path.read_text())
    assert list(record) == [
        *("timestamp", "level", "event"),
        *("process", "worker", "generation", "pid", "seconds"),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record.pop("timestamp"))
    assert list(record.values()) == ["warning", "slow", "worker", 2, 1, 77, 1.5]


def test_a_timestamp_is_utc(open_log: OpenLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        open_log().logger.info("x")
    time.tzset()
    told = datetime.fromisoformat(records(path.read_text())[0]["timestamp"])
    assert told.utcoffset() == timedelta(0)
    assert abs(path.stat().st_mtime - told.timestamp()) < 60


@pytest.mark.parametrize(
    ("level", "told"),
    [("debug", "dbug info warn errr"), ("warning", "warn errr"), ("error", "errr")],
)
def test_records_below_the_level_are_not_told(
    open_log: OpenLog, path: Path, level: str, told: str
) -> None:
    logger = open_log(level=level).logger
    logger.debug("dbug")
    logger.info("info")
    logger.warning("warn")
    logger.error("errr")
    assert [record["event"] for record in records(path.read_text())] == told.split()


def test_values_become_what_json_has(open_log: OpenLog, path: Path) -> None:
    open_log().logger.info(
        "x",
        signal=signal.SIGTERM,
        path=Path("/a"),
        data=b"\xff",
        error=OSError(errno.ENOSPC, "full", "/b"),
        slots=(1, {"a": Path("/c")}),
        ratio=float("nan"),
        big=2**70,
        yes=True,
        none=None,
    )
    record = records(path.read_text())[0]
    assert list(record.items())[3:] == [
        ("signal", "SIGTERM"),
        ("path", "/a"),
        ("data", "\\xff"),
        ("error", "OSError: [Errno 28] full: '/b'"),
        ("slots", [1, {"a": "/c"}]),
        ("ratio", "nan"),
        ("big", 2**70),
        ("yes", True),
        ("none", None),
    ]


def fail() -> None:
    raise ValueError("no \x1b[31m colours")


@pytest.mark.parametrize("style", ["json", "console"])
def test_an_exception_is_told_with_its_traceback(open_log: OpenLog, path: Path, style: str) -> None:
    try:
        fail()
    except ValueError:
        open_log(format=style).logger.exception("failed")
    text = path.read_text()
    assert "\x1b" not in text
    if style == "json":
        (record,) = records(text)
        assert record["level"] == "error"
        text = record["exception"].replace("\x1b", "\\x1b")
    assert "Traceback (most recent call last):\n" in text
    assert "\nValueError: no \\x1b[31m colours" in text


@given(event=st.text(), value=st.text(), inner=st.text(), data=st.binary())
def test_no_value_reaches_the_log_unescaped(
    tmp_path_factory: pytest.TempPathFactory, event: str, value: str, inner: str, data: bytes
) -> None:
    for style in ("json", "console"):
        path = tmp_path_factory.mktemp("any") / "log"
        log = open_daemon_log(path=path, format=style, level="info")
        log.logger.info(event, value=value, list=[inner], mapping={inner: value}, data=data)
        log.close()
        assert log.lost == 0
        line = path.read_bytes().decode()
        assert line.endswith("\n")
        assert line[:-1].isprintable()
        if style == "json":
            record = json.loads(line)
            assert record["event"] == event
            assert record["value"] == value
            assert record["mapping"] == {inner: value}


def test_a_lone_surrogate_can_be_told(open_log: OpenLog, path: Path) -> None:
    for style in ("json", "console"):
        open_log(format=style).logger.info("x", path=os.fsdecode(b"/\xff"))
    assert path.read_text().count("\\udcff") == 2


# Files.


def test_processes_append_to_one_file(open_log: OpenLog, path: Path) -> None:
    path.write_text("{}\n")
    open_log().logger.info("a")
    open_log().logger.info("b")
    assert [record.get("event") for record in records(path.read_text())] == [None, "a", "b"]


def test_a_record_is_one_write(open_log: OpenLog, path: Path, written: list[int]) -> None:
    log = open_log()
    written.clear()
    log.logger.info("x", text="y" * 100_000)
    assert written == [path.stat().st_size]


def test_reopening_goes_on_in_a_new_file_under_the_same_descriptor(
    open_log: OpenLog, path: Path, tmp_path: Path
) -> None:
    log = open_log()
    fd = log.fd
    log.logger.info("a")
    path.rename(tmp_path / "old")
    log.logger.info("b")
    log.reopen()
    log.logger.info("c")
    assert log.fd == fd
    assert not os.get_inheritable(fd)
    assert [record["event"] for record in records((tmp_path / "old").read_text())] == ["a", "b"]
    assert [record["event"] for record in records(path.read_text())] == ["c"]


def test_a_failed_reopening_keeps_the_old_file(
    open_log: OpenLog, path: Path, tmp_path: Path
) -> None:
    log = open_log()
    path.rename(tmp_path / "old")
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        log.reopen()
    log.logger.info("a")
    assert [record["event"] for record in records((tmp_path / "old").read_text())] == ["a"]


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Let no file that is written become larger, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_counted_and_told_later(open_log: OpenLog, path: Path) -> None:
    log = open_log()
    with room(0):
        log.logger.info("a")
        log.logger.info("b")
    assert log.lost == 2
    log.logger.info("c")
    log.logger.info("d")
    assert log.lost == 2
    assert [record.get("lost_records") for record in records(path.read_text())] == [2, None]


def told(path: Path) -> list[str]:
    """Return the events that a reader finds, who skips what is no record."""
    found = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line)["event"])
    return found


def tear(log: DaemonLog, path: Path) -> None:
    """Have a record written by half."""
    lost = log.lost
    with room(path.stat().st_size + 20):
        log.logger.info("torn")
    assert log.lost == lost + 1
    assert not path.read_bytes().endswith(b"\n")


def test_after_half_a_record_of_another_process_the_next_one_has_its_own_line(
    open_log: OpenLog, path: Path
) -> None:
    one, other = open_log(), open_log()
    other.logger.info("a")
    tear(one, path)
    other.logger.info("b")
    other.logger.info("c")
    one.logger.info("d")
    assert told(path) == ["a", "b", "c", "d"]
    assert len(path.read_text().splitlines()) == 5, "no line is wasted"


def test_half_a_record_is_found_where_the_log_is_standard_error_in_a_file(
    open_log: OpenLog, open_on: OpenLog, path: Path
) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    log = open_on(fd)
    log.logger.info("a")
    tear(open_log(), path)
    log.logger.info("b", text="y" * 2 * select.PIPE_BUF)
    os.close(fd)
    assert told(path) == ["a", "b"]


@pytest.mark.parametrize("between", [b'{"event": "hal', b"half\n"])
def test_half_a_record_that_comes_between_look_and_write_costs_no_other_record(
    open_log: OpenLog, path: Path, monkeypatch: pytest.MonkeyPatch, between: bytes
) -> None:
    log = open_log()
    log.logger.info("a")
    write = os.write

    def late(fd: int, data: bytes) -> int:
        monkeypatch.undo()
        with path.open("ab") as other:
            other.write(between)
        return write(fd, data)

    monkeypatch.setattr(os, "write", late)
    log.logger.info("b")
    log.logger.info("c")
    assert told(path) == ["a", "b", "c"]
    assert path.read_text().splitlines().count("") <= 1


def test_after_a_reopening_no_tail_is_known(open_log: OpenLog, path: Path, tmp_path: Path) -> None:
    log = open_log()
    tear(log, path)
    path.rename(tmp_path / "old")
    log.reopen()
    log.logger.info("a")
    assert len(path.read_text().splitlines()) == 1
    log.logger.info("b")
    size = path.stat().st_size
    path.rename(tmp_path / "old")
    path.write_text("x" * size)  # as long as what we had written to the other
    log.reopen()
    log.logger.info("c")
    assert told(path) == ["c"]


def test_a_file_that_may_not_be_read_is_written_all_the_same(
    open_log: OpenLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log()
    opened = os.open

    def unreadable(name: Any, flags: int, *rest: Any, **more: Any) -> int:
        if str(name).startswith("/proc/self/fd/"):
            raise PermissionError
        return opened(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", unreadable)
    path.write_text("{}\n")
    log.logger.info("a")
    assert records(path.read_text())[-1]["event"] == "a"


TEARING_WRITER = """
import os, random, sys
from pathlib import Path
from greeterd.system import daemon_log, log_sink
random.seed(sys.argv[2])
log = daemon_log.open_daemon_log(path=Path(sys.argv[1]), format="json", level="info")
write = os.write
def tearing(fd, data):
    if random.random() < 0.2:
        write(fd, data[:random.randrange(1, len(data))])
        raise OSError(28, "No space left on device")
    return write(fd, data)
os.write = tearing
kept = []
for number in range(2000):
    lost = log.lost
    log.logger.info(f"{sys.argv[2]}-{number}")
    if log.lost == lost:
        kept.append(number)
print(*kept)
"""


def test_processes_that_tear_records_lose_none_of_each_other(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", TEARING_WRITER, path, str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    said = [one.communicate(timeout=60)[0] for one in writers]
    kept = {f"{seed}-{number}" for seed, text in enumerate(said) for number in text.split()}
    assert 3000 < len(kept) < 6000
    assert kept <= set(told(path))


# Standard error.


def test_standard_error_is_not_closed_and_not_reopened(open_on: OpenLog, pipe: list[int]) -> None:
    log = open_on(pipe[1])
    log.reopen()
    log.logger.info("a")
    log.close()
    os.write(pipe[1], b"{}\n")
    assert len(records(read_now(pipe[0]))) == 2


def test_a_redirected_file_keeps_one_offset_for_all_its_writers(
    open_on: OpenLog, path: Path
) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)  # as `2> file` does, without O_APPEND
    log = open_on(fd)
    log.logger.info("a")
    os.write(fd, b"{}\n")
    log.logger.info("b")
    os.close(fd)
    assert [record.get("event") for record in records(path.read_text())] == ["a", None, "b"]


@pytest.fixture(params=["reopened", "not to be reopened"])
def open_on_pipe(
    open_on: OpenLog, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> OpenLog:
    def denied(*_: object) -> None:
        raise PermissionError

    if request.param == "not to be reopened":
        monkeypatch.setattr(log_sink, "_open", denied)
    return open_on


def test_a_sleeping_reader_does_not_block(open_on_pipe: OpenLog, pipe: list[int]) -> None:
    log = open_on_pipe(pipe[1])
    start = time.monotonic()
    for i in range(100):
        log.logger.info("x", i=i, text="y" * 1000)
    assert time.monotonic() - start < TOO_LONG
    assert 90 < log.lost < 100
    assert not fcntl.fcntl(pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK
    told = records(read_now(pipe[0]))
    assert [record["i"] for record in told] == list(range(100 - log.lost))
    log.logger.info("awake")
    assert records(read_now(pipe[0]))[0]["lost_records"] == log.lost


def test_after_half_a_record_the_next_one_has_its_own_line(
    open_on_pipe: OpenLog, pipe: list[int]
) -> None:
    log = open_on_pipe(pipe[1])
    log.logger.info("long", text="y" * 3 * PIPE_BYTES)
    assert log.lost == 1
    half = read_now(pipe[0])
    assert b"\n" not in half
    log.logger.info("next")
    empty, line = read_now(pipe[0]).splitlines()
    assert empty == b""
    assert json.loads(line)["event"] == "next"
    log.logger.info("and so on")
    assert records(read_now(pipe[0]))[0]["event"] == "and so on"


SLOW_READER = """
import json, os
data = b""
while more := os.read(0, 100):
    data += more
print([json.loads(line)["i"] for line in data.splitlines()])
"""


def test_a_slow_reader_loses_nothing_once_it_is_awake(
    open_on: OpenLog, pipe: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_on(pipe[1])
    while not log.lost:
        log.logger.info("x", i=-1)
    asleep = log.lost
    monkeypatch.setattr(
        log_sink, "PATIENCE", 10.0
    )  # a busy machine lets a reader wait for its turn
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_READER], stdin=pipe[0], stdout=subprocess.PIPE, text=True
    ) as reader:
        until(lambda: not select.select([pipe[0]], [], [], 0)[0], what="the reader to wake up")
        for i in range(200):
            log.logger.info("x", i=i, text="y" * 500)
        assert log.lost == asleep
        log.close()
        os.close(pipe.pop())
        assert reader.stdout
        told = json.loads(reader.stdout.read())
    assert told[told.index(0) :] == list(range(200))


def test_a_closed_log_writes_to_nobody(open_log: OpenLog, path: Path) -> None:
    log = open_log()
    fd = log.fd
    log.close()
    log.close()
    other = os.open(path, os.O_WRONLY)
    assert other == fd
    log.logger.info("a")
    os.close(other)
    assert log.lost == 1
    assert path.read_bytes() == b""


def test_a_reader_that_has_gone_is_survived(open_on: OpenLog, pipe: list[int]) -> None:
    log = open_on(pipe[1])
    os.close(pipe.pop(0))
    log.logger.info("a")
    log.logger.info("b")
    assert log.lost == 2


def test_a_journal_socket_is_written_and_does_not_block(open_on: OpenLog) -> None:
    ours, journal = socket.socketpair()
    with ours, journal:
        log = open_on(ours.fileno())
        start = time.monotonic()
        while not log.lost:
            log.logger.info("x", text="y" * 10_000)
        log.logger.info("x", text="y" * 10_000)
        assert time.monotonic() - start < TOO_LONG
        assert ours.getblocking()
        assert not fcntl.fcntl(ours, fcntl.F_GETFL) & os.O_NONBLOCK
        lost = log.lost
        assert read_now(journal.fileno())
        log.logger.info("awake")
        assert records(read_now(journal.fileno()).strip())[0]["lost_records"] == lost
        journal.close()
        log.logger.info("y")
        assert log.lost == lost + 1


def test_a_closed_standard_error_is_survived(open_on: OpenLog) -> None:
    fd = os.dup(0)
    os.close(fd)
    log = open_on(fd)
    log.logger.info("a")
    assert log.lost == 0


# Terminals.


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def shown(terminal: tuple[int, int]) -> str:
    data = b""
    while not data.endswith(b"\n"):  # the kernel hands a line and its end on one after the other
        data += os.read(terminal[0], 65536)
    return data.decode()


def test_a_terminal_shows_coloured_console_lines(
    open_on: OpenLog, terminal: tuple[int, int]
) -> None:
    open_on(terminal[1]).logger.bind(process="master").warning("worker exited", worker=2)
    text = shown(terminal)
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert re.fullmatch(
        r"\d{4}-[^ ]+Z \[warning +\] worker exited +process=master worker=2\r\n", plain
    )


@pytest.mark.parametrize("variable", ["NO_COLOR=1", "TERM=dumb"])
def test_colours_can_be_declined(
    open_on: OpenLog, terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(*variable.split("="))
    open_on(terminal[1]).logger.info("a")
    text = shown(terminal)
    assert "\x1b" not in text
    assert "[info" in text


def test_a_value_cannot_colour_the_terminal(open_on: OpenLog, terminal: tuple[int, int]) -> None:
    open_on(terminal[1]).logger.info("a\x1b[2J", name="b\x1b[2J", spaced="c \x1b[2J")
    assert "\x1b[2J" not in shown(terminal)


def test_json_can_be_had_on_a_terminal_and_console_lines_in_a_file(
    open_log: OpenLog, open_on: OpenLog, terminal: tuple[int, int], path: Path
) -> None:
    open_on(terminal[1], format="json").logger.info("a")
    assert records(shown(terminal))[0]["event"] == "a"
    open_log(format="console").logger.info("b")
    assert "[info" in path.read_text()
    assert "\x1b" not in path.read_text()


def test_a_stopped_terminal_does_not_block(open_on: OpenLog, terminal: tuple[int, int]) -> None:
    log = open_on(terminal[1])
    start = time.monotonic()
    while not log.lost:
        log.logger.info("x", text="y" * 1000)
    log.logger.info("x")
    assert time.monotonic() - start < TOO_LONG
    assert not fcntl.fcntl(terminal[1], fcntl.F_GETFL) & os.O_NONBLOCK
    until(lambda: not read_now(terminal[0]), what="the terminal to be read empty")
