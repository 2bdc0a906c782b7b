"""A worker's greeting log on a real file system: disks that fill, files that move, two writers."""

import errno
import fcntl
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.errors import reason_of
from greeterd.worker import greeting_log, line_file
from greeterd.worker.greeting_log import GreetingLog, open_greeting_log
from greeterd.worker.line_file import LOOK_AFTER
from tests.integration.worker.loops import largest_file
from tests.support import until

OpenLog = Callable[..., GreetingLog]


@pytest.fixture
def open_log(tmp_path: Path, lock: int) -> Iterator[OpenLog]:
    logs: list[GreetingLog] = []

    def opened(log_dir: Path = tmp_path, **more: Any) -> GreetingLog:
        facts = {"lock": lock, "worker": 3, "generation": 2, "pid": 4242, "fsync": False}
        logs.append(open_greeting_log(log_dir, **(facts | more)))
        return logs[-1]

    yield opened
    for log in logs:
        log.close()


def records(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def names(path: Path) -> list[str]:
    return [record["name"] for record in records(path)]


def turn(log: GreetingLog, *turn_names: str) -> bool:
    for name in turn_names:
        log.greet(name, "127.0.0.1:1")
    return log.commit()


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def reason(log: GreetingLog) -> int | None:
    return log.blocked.errno if log.blocked else None


def test_a_file_has_as_many_lines_as_there_were_greetings(open_log: OpenLog) -> None:
    log = open_log()
    for size in (1, 0, 64, 7):
        assert turn(log, *(f"n{i}" for i in range(size)))
    assert log.path.name == "worker-3.log"
    assert log.path.read_bytes().count(b"\n") == 72
    assert [record["seq"] for record in records(log.path)] == list(range(1, 73))


def test_a_record_names_its_writer(open_log: OpenLog) -> None:
    log = open_log(pid=77)
    turn(log, "Alice")
    record = records(log.path)[0]
    assert list(record) == [
        *("timestamp", "level", "event", "greeting", "name"),
        *("worker", "generation", "pid", "seq", "client"),
    ]
    assert (record["worker"], record["generation"], record["pid"]) == (3, 2, 77)
    assert record["level"] == "info"


def test_a_turn_is_one_write(open_log: OpenLog, written: list[int]) -> None:
    log = open_log()
    written.clear()
    turn(log, *"abcdefgh")
    assert written == [log.path.stat().st_size]
    assert turn(log)
    assert len(written) == 1


def test_nothing_is_written_before_commit(open_log: OpenLog) -> None:
    log = open_log()
    log.greet("Alice", "c")
    assert log.path.read_bytes() == b""


def test_greetings_go_through_a_structlog_pipeline(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    add_timestamp = greeting_log._add_timestamp

    def spy(logger: object, method: str, event: dict[str, Any]) -> Any:
        seen.append({"method": method, **event})
        return add_timestamp(logger, method, {**event, "generation": 9})

    monkeypatch.setattr(greeting_log, "_add_timestamp", spy)
    log = open_log()
    turn(log, "a", "b")
    assert len(seen) == 1
    assert seen[0]["method"] == seen[0]["level"] == "info"
    assert seen[0]["event"] == "greeting"
    assert seen[0]["batch"] == [("a", "127.0.0.1:1"), ("b", "127.0.0.1:1")]
    assert [record["generation"] for record in records(log.path)] == [9, 9]


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8))
def test_any_bytes_are_one_printable_line_each(
    tmp_path_factory: pytest.TempPathFactory, sent: list[bytes]
) -> None:
    texts = [data.decode("utf-8", "backslashreplace") for data in sent]
    directory = tmp_path_factory.mktemp("any")
    lock = os.memfd_create("lock")
    log = open_greeting_log(directory, lock=lock, worker=1, generation=1, pid=1, fsync=False)
    os.close(lock)
    assert turn(log, *texts)
    log.close()
    assert names(log.path) == texts
    assert all(line.isprintable() for line in log.path.read_text().split("\n"))


def test_the_file_is_private_and_not_inherited(open_log: OpenLog) -> None:
    before = os.umask(0)
    try:
        log = open_log()
    finally:
        os.umask(before)
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o640
    assert not os.get_inheritable(log._file.fd)
    log.reopen()
    assert not os.get_inheritable(log._file.fd)


# Torn tails.

WHOLE = b'{"name":"a"}\n'


@pytest.mark.parametrize(
    ("found", "left"),
    [
        (b"", b""),
        (WHOLE, WHOLE),
        (WHOLE + b'{"timest', WHOLE),
        (WHOLE + WHOLE + b'{"name":"b"}', WHOLE + WHOLE),
        (b"x", b""),
        (b"\n", b"\n"),
        (WHOLE + b"\0" * 100_000, WHOLE),
        (b"x" * 200_000, b""),
        (b"x" * 65535 + b"\n" + b"y" * 65536, b"x" * 65535 + b"\n"),
        (b"x" * 65536 + b"\n" + b"y" * 65535, b"x" * 65536 + b"\n"),
    ],
    ids=lambda data: f"{data[:9]!r}..{len(data)}",
)
def test_a_torn_tail_is_cut_off_at_the_opening(
    open_log: OpenLog, tmp_path: Path, found: bytes, left: bytes
) -> None:
    (tmp_path / "worker-3.log").write_bytes(found)
    log = open_log()
    assert log.path.read_bytes() == left
    assert log.repaired_bytes == len(found) - len(left)
    turn(log, "Alice")
    assert log.path.read_bytes().startswith(left + b'{"timestamp"')


def test_a_tail_torn_by_a_killed_sibling_is_cut_off_before_the_next_line(
    open_log: OpenLog,
) -> None:
    log = open_log()
    turn(log, "a")
    with log.path.open("ab") as sibling:
        sibling.write(WHOLE + b'{"name":"torn')
    assert turn(log, "b")
    assert names(log.path) == ["a", "a", "b"]
    assert log.repaired_bytes == len(b'{"name":"torn')


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fifo", "not a regular file"),
        ("symbolic link", "is a symbolic link"),
        ("hard link", "has other names"),
    ],
)
def test_what_is_no_regular_file_of_one_name_is_refused_by_name(
    open_log: OpenLog, tmp_path: Path, kind: str, reason: str
) -> None:
    path, other = tmp_path / "worker-3.log", tmp_path / "other"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "symbolic link":
            path.symlink_to(other)
        case _:
            other.touch()
            path.hardlink_to(other)
    before = open_descriptors()
    with pytest.raises(OSError, match=reason) as caught:
        open_log()
    assert caught.value.filename == str(path)
    assert open_descriptors() == before


def test_a_missing_directory_is_told_by_name(open_log: OpenLog, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/worker-3\.log"):
        open_log(log_dir=tmp_path / "nowhere")


# Writes that stop short.


@pytest.mark.parametrize(("lines", "more"), [(0, 0), (0, 1), (1, -1), (1, 0), (1, 1), (3, -1)])
@pytest.mark.parametrize("fsync", [False, True])
def test_a_short_write_is_finished_and_never_taken_back(
    open_log: OpenLog, lines: int, more: int, *, fsync: bool
) -> None:
    log = open_log(fsync=fsync)
    turn(log, "z")
    first = log.path.read_bytes()
    room = len(first) * (1 + lines) + more
    with largest_file(room):
        assert not turn(log, "a", "b", "c")
        stopped = log.path.read_bytes()
        assert len(stopped) == room
        assert reason(log) == errno.EFBIG
        assert not turn(log, "d")
        assert log.path.read_bytes() == stopped
    with largest_file(room + 7):
        assert not log.commit()
        assert log.path.read_bytes()[:-7] == stopped
    assert log.commit()
    assert reason(log) is None
    assert log.path.read_bytes().startswith(stopped)
    assert names(log.path) == ["z", "a", "b", "c", "d"]
    assert [record["seq"] for record in records(log.path)] == [1, 2, 3, 4, 5]
    assert log.repaired_bytes == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_whatever_stops_a_write_short_is_told_with_the_path(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    log, write = open_log(), os.write
    went = 0

    def stopped(fd: int, data: bytes) -> int:
        nonlocal went
        if went:
            raise OSError(number, os.strerror(number))
        went = write(fd, data[:100])
        return went

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", stopped)
        assert not turn(log, "a")
    assert str(log.blocked) == f"[Errno {number}] {os.strerror(number)}: {str(log.path)!r}"
    assert log.path.stat().st_size == 100
    assert log.commit()
    assert names(log.path) == ["a"]


def test_nobody_writes_behind_a_torn_line(open_log: OpenLog) -> None:
    log, sibling = open_log(pid=1), open_log(pid=2)
    turn(log, "first")
    with largest_file(log.path.stat().st_size + 200):
        assert not turn(log, "a", "b")
    assert log.path.read_bytes()[-1:] != b"\n"
    assert not turn(sibling, "theirs")
    assert "locked by the slot's other worker" in str(sibling.blocked)
    assert log.commit()
    assert sibling.commit()
    assert names(log.path) == ["first", "a", "b", "theirs"]


def test_another_worker_can_write_when_nothing_went_out(open_log: OpenLog) -> None:
    log, sibling = open_log(pid=1), open_log(pid=2)
    turn(log, "first")
    with largest_file(log.path.stat().st_size):
        assert not turn(log, "mine")
    assert turn(sibling, "theirs")
    assert log.commit()
    assert names(log.path) == ["first", "theirs", "mine"]


def test_the_lines_of_a_dead_writer_are_kept_and_its_torn_one_is_cut(open_log: OpenLog) -> None:
    log, sibling = open_log(pid=1), open_log(pid=2)
    with largest_file(300):
        assert not turn(log, "a", "b")
    log.close()
    assert turn(sibling, "theirs")
    assert names(log.path) == ["a", "theirs"]
    assert sibling.repaired_bytes == 300 - log.path.read_bytes().index(b"\n") - 1


def open_heir(open_log: OpenLog) -> GreetingLog:
    """Return a writer that shares no lock with the others."""
    lock = os.memfd_create("lock of another daemon")
    heir = open_log(pid=2, lock=lock)
    os.close(lock)
    return heir


def test_the_torn_line_of_a_stranger_who_lives_is_not_cut(open_log: OpenLog) -> None:
    """The worker of a daemon whose master is dead, and one of the next daemon."""
    orphan = open_log(pid=1)
    with largest_file(300):
        assert not turn(orphan, "a", "b")
    heir = open_heir(open_log)
    assert not turn(heir, "theirs")
    assert "another process is writing its last line" in str(heir.blocked)
    assert orphan.commit()
    assert heir.commit()
    assert names(heir.path) == ["a", "b", "theirs"]
    assert heir.repaired_bytes == 0


def test_the_torn_line_of_a_stranger_is_cut_when_it_is_not_completed_for_long(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = open_log(pid=1)
    with largest_file(300):
        assert not turn(stranger, "a", "b")
    heir = open_heir(open_log)
    assert not turn(heir, "theirs")
    monkeypatch.setattr(line_file, "MARK_PATIENCE", 0.0)
    assert heir.commit()
    assert names(heir.path) == ["a", "theirs"]
    # It was in good faith.
    assert stranger.commit()
    assert names(heir.path) == ["a", "theirs", "b"]


def test_the_time_for_a_torn_line_begins_anew_with_each(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger, heir = open_log(pid=1), open_heir(open_log)
    now = 1000.0
    monkeypatch.setattr(line_file, "monotonic", lambda: now)
    for name in ("a", "b"):
        with largest_file(heir.path.stat().st_size + 60):
            assert not turn(stranger, name)
        assert not turn(heir, f"theirs {name}")
        assert stranger.commit()
        now += 3600.0
    assert heir.commit()
    assert names(heir.path) == ["a", "b", "theirs a", "theirs b"]
    assert heir.repaired_bytes == 0


def test_a_rehearsal_touches_no_torn_line(open_log: OpenLog, tmp_path: Path) -> None:
    path = tmp_path / "worker-3.log"
    path.write_bytes(WHOLE + b"torn")
    open_log(repair=False)
    assert path.read_bytes() == WHOLE + b"torn"


@pytest.mark.parametrize("left", [0, 10, -10, 250])
def test_a_file_that_is_truncated_beside_a_torn_line_gets_what_is_not_told(
    open_log: OpenLog, left: int
) -> None:
    """`left`: bytes that a stranger leaves, from the end if negative."""
    log = open_log()
    with largest_file(300):
        assert not turn(log, "a", "b")
    os.truncate(log.path, left % 300)
    assert log.commit()
    assert names(log.path) == ["a", "b"]


def test_a_torn_line_that_a_stranger_writes_behind_is_written_again(open_log: OpenLog) -> None:
    log = open_log()
    with largest_file(300):
        assert not turn(log, "a", "b")
    with log.path.open("ab") as stranger:
        stranger.write(b"glued\n")
    assert log.commit()
    lines = log.path.read_bytes().split(b"\n")
    assert [json.loads(line)["name"] for line in lines if line.endswith(b"}")] == ["a", "b"]


FULL_DISK = """
import errno, os, sys
from pathlib import Path
from greeterd.errors import reason_of
from greeterd.worker.greeting_log import open_greeting_log

disk = Path(sys.argv[1])
lock = os.memfd_create("lock")
fsync = sys.argv[2] == "fsync"
log = open_greeting_log(disk, lock=lock, worker=1, generation=1, pid=1, fsync=fsync)
(disk / "ballast").write_bytes(bytes(20000))
done = 0
while True:
    for i in range(7):
        log.greet(f"name-{done + i}" * 10, "c")
    if not log.commit():
        break
    done += 7
assert log.blocked.errno == errno.ENOSPC, log.blocked
data = log.path.read_bytes()
assert done <= data.count(b"\\n") <= done + 7, (done, data[-300:])
assert not log.commit()
assert log.path.read_bytes() == data
(disk / "ballast").unlink()
assert log.commit()
before, data = data, log.path.read_bytes()
assert data.startswith(before)
assert data.count(b"\\n") == done + 7 and data.endswith(b"\\n"), (done, data[-300:])
print("stopped at", done)
"""


@pytest.mark.parametrize("fsync", ["fsync", "never"])
def test_a_full_disk_tears_no_line_and_loses_none(tmp_path: Path, fsync: str) -> None:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("mounts a file system: needs root and unshare")
    script = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1" "$4"'
    run = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", script, "sh", tmp_path, sys.executable, FULL_DISK, fsync),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert run.stdout.startswith("stopped at"), run.stderr
    assert int(run.stdout.split()[-1]) > 20


# Short writes are provoked by a limit just above the file's size, raised again for the repetition.
TWO_WRITERS = """
import os, random, resource, sys
from pathlib import Path
from greeterd.errors import reason_of
from greeterd.worker.greeting_log import open_greeting_log

log = open_greeting_log(
    Path(sys.argv[1]),
    lock=int(sys.argv[3]),
    worker=3,
    generation=1,
    pid=os.getpid(),
    fsync=False,
)
random.seed(sys.argv[2])
inf = resource.RLIM_INFINITY
sent = short = 0
print("ready", flush=True)
sys.stdin.readline()
while sent < 10000:
    for _ in range(random.randrange(1, 20)):
        sent += 1
        log.greet("n" * random.randrange(200), "c")
    room = random.choice([None, 0, 1, 200, 1000])
    if room is not None:
        size = os.fstat(log._file.fd).st_size + room
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, inf))
        short += not log.commit()
        resource.setrlimit(resource.RLIMIT_FSIZE, (inf, inf))
    while not log.commit():
        pass
    os.sched_yield()  # on one processor too, the two are to alternate
assert short > 50, short
print(os.getpid(), sent, log.repaired_bytes)
"""


def test_two_writers_with_short_writes_keep_every_line_whole(tmp_path: Path, lock: int) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_WRITERS, tmp_path, str(seed), str(lock)],
            pass_fds=[lock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    outputs = [writer.communicate(timeout=60)[0].split() for writer in writers]
    written = records(tmp_path / "worker-3.log")
    for pid, sent, repaired in outputs:
        seqs = [record["seq"] for record in written if record["pid"] == int(pid)]
        assert seqs == list(range(1, int(sent) + 1))
        assert repaired == "0"
    pids = [record["pid"] for record in written]
    assert sum(a != b for a, b in pairwise(pids)) > 20  # they did mix


# Locks of others.


def read_lock(file: Any) -> None:
    fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def read_lock_of_the_open_file(file: Any) -> None:
    flock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, flock)


def exclusive_flock(file: Any) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("hold", [read_lock, read_lock_of_the_open_file, exclusive_flock])
@pytest.mark.parametrize("torn", [b"", b"torn"])
def test_no_lock_that_a_reader_can_hold_stops_a_worker(
    open_log: OpenLog, tmp_path: Path, hold: Callable[[Any], None], torn: bytes
) -> None:
    path = tmp_path / "worker-3.log"
    path.write_bytes(WHOLE + torn)
    with path.open("rb") as reader:
        hold(reader)
        log = open_log()
        assert turn(log, "b")
        with largest_file(path.stat().st_size + 100):
            assert not turn(log, "c")
        assert log.commit()
    assert names(path) == ["a", "b", "c"]
    assert log.repaired_bytes == len(torn)


def test_the_lock_of_the_other_worker_is_waited_for_but_not_for_ever(
    open_log: OpenLog, tmp_path: Path, lock: int
) -> None:
    path = tmp_path / "worker-3.log"
    path.write_bytes(WHOLE + b"torn")
    fcntl.flock(lock, fcntl.LOCK_EX)
    log = open_log()
    assert path.read_bytes() == WHOLE + b"torn"
    assert not turn(log, "b")
    assert isinstance(log.blocked, BlockingIOError)
    assert log.blocked.filename == str(path)
    fcntl.flock(lock, fcntl.LOCK_UN)
    assert log.commit()
    assert names(path) == ["a", "b"]
    assert log.repaired_bytes == 4


def test_the_lock_is_free_between_turns(open_log: OpenLog, lock: int) -> None:
    log = open_log()
    turn(log, "a")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# What the system refuses.


def test_a_refusal_at_the_opening_names_the_file(
    open_log: OpenLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "worker-3.log"
    path.write_bytes(b"torn")
    before = open_descriptors()

    def refused(_fd: int, _size: int) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "ftruncate", refused)
    with pytest.raises(PermissionError) as caught:
        open_log()
    reason = "a torn record cannot be cut off: Operation not permitted"
    assert reason_of(caught.value) == f"{path}: {reason}"
    assert open_descriptors() == before


def test_an_append_only_log_is_written(open_log: OpenLog, tmp_path: Path) -> None:
    """As with chattr +a: a short write needs no truncation."""
    path = tmp_path / "worker-3.log"
    path.touch()
    if os.geteuid() != 0 or not shutil.which("chattr"):
        pytest.skip("needs root and chattr")
    if subprocess.run(["chattr", "+a", path], check=False, capture_output=True).returncode:
        pytest.skip("this file system has no append-only files")
    try:
        log = open_log()
        assert turn(log, "a")
        with largest_file(path.stat().st_size + 100):
            assert not turn(log, "b")
        assert log.commit()
        assert names(path) == ["a", "b"]
    finally:
        subprocess.run(["chattr", "-a", path], check=True)


# Syncing.


class Disk:
    """Counts the syncs, and refuses them while `broken`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncs = 0
        self.broken = False
        self._fdatasync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def fdatasync(self, fd: int) -> None:
        """Stand in for os.fdatasync."""
        if self.broken:
            raise OSError(errno.EIO, "broken")
        self._fdatasync(fd)
        self.syncs += 1


@pytest.mark.parametrize(("fsync", "syncs"), [(True, 2), (False, 0)])
def test_a_turn_is_synced_once_if_asked_for(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch, *, fsync: bool, syncs: int
) -> None:
    disk = Disk(monkeypatch)
    log = open_log(fsync=fsync)
    turn(log, "a", "b")
    turn(log)
    turn(log, "c")
    assert disk.syncs == syncs


def test_the_name_of_a_synced_file_is_synced_too(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))

    monkeypatch.setattr(os, "fsync", fsync)
    log = open_log(fsync=True)
    assert synced == [str(log.path.parent)]
    open_log(fsync=False)
    assert len(synced) == 1


def test_a_failed_sync_is_repeated_and_the_lines_are_not(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    log = open_log(fsync=True)
    disk.broken = True
    assert not turn(log, "a", "b")
    assert not turn(log, "c")
    assert reason(log) == errno.EIO
    disk.broken = False
    assert log.commit()
    assert reason(log) is None
    assert names(log.path) == ["a", "b", "c"]
    assert disk.syncs == 2


def test_lines_that_the_disk_dropped_are_written_again_in_their_place(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    log, sibling = open_log(fsync=True), open_log(fsync=False)
    disk.broken = True
    assert not turn(log, "a", "b")
    size = log.path.stat().st_size
    assert turn(sibling, "c")
    with log.path.open("r+b") as file:
        file.write(bytes(size))
    disk.broken = False
    assert log.commit()
    assert names(log.path) == ["a", "b", "c"]


def test_a_file_whose_lines_are_not_synced_is_not_left(
    open_log: OpenLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    log = open_log(fsync=True)
    disk.broken = True
    turn(log, "a")
    log.path.rename(tmp_path / "old")
    with pytest.raises(OSError, match="broken"):
        log.reopen()
    disk.broken = False
    log.reopen()
    assert turn(log, "b")
    assert (names(tmp_path / "old"), names(log.path)) == (["a"], ["b"])


# Files that move.


def test_reopening_after_a_rename_goes_on_in_a_new_file(open_log: OpenLog, tmp_path: Path) -> None:
    log = open_log()
    turn(log, "a")
    fd = log._file.fd
    log.path.rename(tmp_path / "old")
    turn(log, "b")
    log.reopen()
    turn(log, "c")
    assert log._file.fd == fd
    assert names(tmp_path / "old") == ["a", "b"]
    assert [(r["name"], r["seq"]) for r in records(log.path)] == [("c", 3)]


@pytest.mark.parametrize("move", ["rename", "delete", "replace", "none"])
def test_a_moved_file_is_noticed(open_log: OpenLog, tmp_path: Path, move: str) -> None:
    log = open_log()
    turn(log, "a")
    let_clock_tick(log)
    match move:
        case "rename":
            log.path.rename(tmp_path / "old")
        case "delete":
            log.path.unlink()
        case "replace":
            (tmp_path / "new").write_bytes(WHOLE + b"torn")
            (tmp_path / "new").rename(log.path)
        case _:
            pass
    assert log.look() == (move != "none")
    assert not log.look()
    assert (log.astray, log.blocked) == (None, None)
    turn(log, "b")
    expected = ["a", "b"] if move in {"none", "replace"} else ["b"]
    assert names(log.path) == expected


def test_what_was_not_begun_goes_to_the_new_file(open_log: OpenLog, tmp_path: Path) -> None:
    log = open_log()
    turn(log, "a")
    with largest_file(log.path.stat().st_size):
        assert not turn(log, "b")
    log.path.rename(tmp_path / "old")
    log.reopen()
    assert log.commit()
    assert (names(tmp_path / "old"), names(log.path)) == (["a"], ["b"])


@pytest.mark.parametrize("fsync", [False, True])
def test_a_torn_line_is_finished_in_its_file_where_there_is_room(
    open_log: OpenLog, tmp_path: Path, *, fsync: bool
) -> None:
    log = open_log(fsync=fsync)
    with largest_file(300):
        assert not turn(log, "a", "b")
    log.path.rename(tmp_path / "old")
    log.reopen()
    assert turn(log, "c")
    assert (names(tmp_path / "old"), names(log.path)) == (["a", "b"], ["c"])


@pytest.mark.parametrize("fsync", [False, True])
def test_a_torn_line_moves_to_the_new_file_where_there_is_none(
    open_log: OpenLog, tmp_path: Path, *, fsync: bool
) -> None:
    log, sibling = open_log(fsync=fsync), open_log(pid=2)
    with largest_file(300):
        assert not turn(log, "a", "b")
        log.path.rename(tmp_path / "old")
        log.reopen()
        assert log.commit()
    assert (names(tmp_path / "old"), names(log.path)) == (["a"], ["b"])
    sibling.reopen()
    assert turn(sibling, "theirs"), "the lock is free again"


def test_a_torn_line_stays_where_the_path_still_leads(open_log: OpenLog) -> None:
    log = open_log()
    with largest_file(300):
        assert not turn(log, "a", "b")
        log.reopen()
        assert not log.look()
        assert log.path.stat().st_size == 300
    assert log.commit()
    assert names(log.path) == ["a", "b"]


def test_a_new_file_of_the_old_size_is_looked_at_too(open_log: OpenLog, tmp_path: Path) -> None:
    log = open_log()
    turn(log, "a")
    (tmp_path / "new").write_bytes(WHOLE + b"x" * (log.path.stat().st_size - len(WHOLE)))
    (tmp_path / "new").rename(log.path)
    log.reopen()
    turn(log, "b")
    assert names(log.path) == ["a", "b"]


def test_a_failed_reopening_keeps_the_old_file(open_log: OpenLog, tmp_path: Path) -> None:
    log = open_log()
    turn(log, "a")
    log.path.rename(tmp_path / "old")
    log.path.mkdir()
    before = open_descriptors()
    with pytest.raises(IsADirectoryError):
        log.reopen()
    assert not log.look()
    assert isinstance(log.astray, IsADirectoryError)
    assert log.blocked is None
    assert open_descriptors() == before
    assert turn(log, "b")
    assert names(tmp_path / "old") == ["a", "b"]
    log.path.rmdir()
    assert log.look()
    assert log.astray is None


# Files that are removed.


def test_nothing_is_written_to_a_file_without_a_name(open_log: OpenLog) -> None:
    log = open_log()
    turn(log, "a")
    let_clock_tick(log)
    log.path.unlink()
    assert turn(log, "b")
    assert names(log.path) == ["b"]
    assert log.look(), "it is told, late"
    assert not log.look()


@pytest.mark.parametrize("fsync", [False, True])
def test_without_a_directory_nothing_is_logged_until_it_is_back(
    open_log: OpenLog, tmp_path: Path, *, fsync: bool
) -> None:
    log_dir = tmp_path / "logs"
    log_dir.mkdir()
    log = open_log(log_dir, fsync=fsync)
    turn(log, "a")
    let_clock_tick(log)
    shutil.rmtree(log_dir)
    assert not turn(log, "b")
    assert isinstance(log.blocked, FileNotFoundError)
    assert log.blocked.filename == str(log.path)
    assert not turn(log, "c")
    log_dir.mkdir()
    assert log.commit()
    assert names(log.path) == ["b", "c"]


def test_an_idle_log_without_a_name_is_noticed_too(open_log: OpenLog, tmp_path: Path) -> None:
    log_dir = tmp_path / "logs"
    log_dir.mkdir()
    log = open_log(log_dir)
    shutil.rmtree(log_dir)
    assert not log.look()
    assert isinstance(log.blocked, FileNotFoundError)
    assert log.astray is None
    assert not log.commit()
    log_dir.mkdir()
    assert log.commit()
    assert log.path.exists()


def let_clock_tick(log: GreetingLog) -> None:
    """Wait until a removal can be told from the latest write, and the next write looks for one."""
    clock = log.path.with_name("clock")
    deadline = time.monotonic() + LOOK_AFTER

    def later() -> bool:
        clock.write_bytes(b"x")
        ticked = clock.stat().st_mtime_ns > log.path.stat().st_mtime_ns
        return ticked and time.monotonic() > deadline

    until(later, what="a tick of the clock")
    clock.unlink()


def remove_after_write(monkeypatch: pytest.MonkeyPatch, log: GreetingLog) -> None:
    """Remove the log after a look at its links, before the next write."""
    write = os.write

    def removed(fd: int, data: bytes) -> int:
        log.path.unlink(missing_ok=True)
        return write(fd, data)

    monkeypatch.setattr(os, "write", removed)


def test_what_came_after_a_removal_that_nobody_saw_is_carried_over(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log()
    turn(log, "a")
    let_clock_tick(log)
    with monkeypatch.context() as patched:
        remove_after_write(patched, log)
        assert turn(log, "b", "c")
    assert not log.path.exists()
    assert log.look()
    assert names(log.path) == ["b", "c"], "and nothing of what was there before"
    assert not log.look()
    assert turn(log, "d")
    assert names(log.path) == ["b", "c", "d"]


def test_what_came_after_a_removal_before_the_next_look_is_carried_over(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_file, "LOOK_AFTER", 60.0)
    log = open_log()
    turn(log, "a")
    let_clock_tick(log)
    log.path.unlink()
    assert turn(log, "b")
    assert not log.path.exists()
    assert log.look()
    assert names(log.path) == ["a", "b"], "of the first nobody knows when it came"


def test_what_is_synced_after_a_removal_is_carried_over(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told after the removal."""
    log, sync = open_log(fsync=True), os.fdatasync
    turn(log, "a")
    let_clock_tick(log)

    def removed(fd: int) -> None:
        log.path.unlink(missing_ok=True)
        sync(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", removed)
        assert turn(log, "b")
    assert log.look()
    assert names(log.path) == ["b"]


def test_what_was_there_before_a_removal_is_gone_with_the_file(open_log: OpenLog) -> None:
    log = open_log()
    turn(log, "a")
    let_clock_tick(log)
    log.path.unlink()
    assert log.look()
    assert names(log.path) == []


def test_a_torn_line_of_a_removed_file_is_carried_over_with_all_that_is_not_told(
    open_log: OpenLog, tmp_path: Path
) -> None:
    log_dir = tmp_path / "logs"
    log_dir.mkdir()
    log, sibling = open_log(log_dir), open_log(log_dir, pid=2)
    turn(log, "told")
    with largest_file(500):
        assert not turn(log, "a", "b", "c")
        shutil.rmtree(log_dir)
        assert not turn(log, "d")
    assert not turn(sibling, "theirs")
    log_dir.mkdir()
    assert sibling.commit(), "the lock is free"
    assert log.commit()
    assert names(log.path) == ["theirs", "a", "b", "c", "d"]


def test_lines_that_are_not_synced_when_their_file_is_removed_are_carried_over(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    log = open_log(fsync=True)
    turn(log, "told")
    let_clock_tick(log)
    disk.broken = True
    assert not turn(log, "a", "b")
    log.path.unlink()
    disk.broken = False
    assert log.commit()
    assert names(log.path) == ["a", "b"]
    assert not log.blocked


def test_a_truncated_file_goes_on_from_its_new_end(open_log: OpenLog) -> None:
    log = open_log()
    turn(log, "a", "b", "c")
    os.truncate(log.path, 0)
    turn(log, "d")
    assert names(log.path) == ["d"]


def test_closing_twice_is_harmless(open_log: OpenLog) -> None:
    log = open_log()
    log.close()
    log.close()
