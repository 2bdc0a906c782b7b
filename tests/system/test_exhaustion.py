"""What runs out: room for the log, descriptors, connections; and logs that are taken away.

The daemon stops accepting, says so, and goes on when it can; what was accepted is not dropped.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Protocol

import psutil
import pytest

from greeterd.worker.loop import SPARE_FILES
from tests.support import until
from tests.system.books import (
    assert_gap_free,
    names,
    outcomes,
    quiet_totals,
    worker_of,
)
from tests.system.clients import Load, connect, fire, greet, run_load, silent_clients
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, Record, records
from tests.system.obstacles import LITTLE, SmallDisk

LOG, DESCRIPTORS, LIMIT = 1, 2, 3  # why a worker is blocked, as in the status
CLIENTS = 2_000  # more than there is room for

both_modes = pytest.mark.parametrize("mode", ["inherit", "reuseport"])


def blocked(daemon: Daemon) -> list[int]:
    """Return why each slot takes no connections, 0 where it does."""
    counters = daemon.status()["counters"]
    return [counters[slot]["blocked"] for slot in sorted(counters)]


def queued(daemon: Daemon) -> int:
    """Return how many connections wait to be accepted."""
    return sum(int(each["queued"]) for each in daemon.status()["listeners"])


def has_greeted(daemon: Daemon, count: int) -> bool:
    """Tell whether there have been so many greetings."""
    return bool(daemon.status()["totals"]["greetings"] >= count)


# Room for the log


class Room(Protocol):
    """Room for the logs in a directory, little at first, for some workers."""

    workers: int
    reason: str
    """What the kernel says when there is none left."""
    prefix: list[str]
    """Is put before the daemon's command."""

    def __init__(self, log_dir: Path) -> None: ...

    def seen(self, daemon: Daemon) -> Path:
        """Return where we see the daemon's log directory."""
        ...

    def give(self, daemon: Daemon) -> None:
        """Give more than enough room."""


class SmallFiles:
    """A limit of the size of each file that the daemon writes."""

    workers = 1
    reason = "File too large"

    def __init__(self, log_dir: Path) -> None:
        self.log_dir = log_dir
        if shutil.which("prlimit") is None:
            pytest.skip("a limit of file sizes needs the command prlimit")
        self.prefix = ["prlimit", f"--fsize={LITTLE}:"]

    def seen(self, _daemon: Daemon) -> Path:
        """Return the directory itself."""
        return self.log_dir

    def give(self, daemon: Daemon) -> None:
        """Raise the limit of each process."""
        for pid in [daemon.pid, *daemon.worker_pids()]:
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.shows("when the disk is full")
@pytest.mark.parametrize(
    ("kind", "mode", "reply"),
    [
        (SmallDisk, "inherit", "--reply"),
        (SmallDisk, "reuseport", "--no-reply"),
        (SmallFiles, "inherit", "--no-reply"),
        (SmallFiles, "reuseport", "--reply"),
    ],
)
def test_without_room_for_the_log_nothing_is_accepted_and_nothing_is_lost(
    daemon: StartDaemon, tmp_path: Path, kind: type[Room], mode: str, reply: str
) -> None:
    room = kind(tmp_path)
    options = [f"--mode={mode}", f"--workers={room.workers}", f"--log-dir={tmp_path}", reply]
    one = daemon(*options, prefix=room.prefix)
    everybody = [LOG] * room.workers
    one.log_dir = room.seen(one)
    guests: list[str] = []

    def all_blocked() -> bool:
        """Let one more come each time: those of the load may all wait in one worker's queue."""
        if blocked(one) == everybody:
            return True
        if LOG in blocked(one):
            guests.append(f"guest {len(guests)}")
            fire(one.address, guests[-1])
        return False

    with Load(
        one.address, count=CLIENTS, concurrency=100, reply=reply == "--reply", timeout=60.0
    ) as load:
        until(all_blocked, timeout=30.0, what="all workers are out of room")
        totals = one.status()["totals"]
        with connect(one.address, timeout=60.0) as late:
            late.sendall(b"late")
            late.shutdown(socket.SHUT_WR)
            until(lambda: queued(one) > 0, what="the late client waits to be accepted")
            again = one.status()["totals"]
            assert [again[each] for each in ("connections", "greetings", "open")] == [
                totals[each] for each in ("connections", "greetings", "open")
            ]
            assert totals["greetings"] + totals["open"] == totals["connections"] < CLIENTS
            logs = {log: log.read_bytes() for log in one.log_dir.glob("worker-*.log")}
            lines = sum(data.count(b"\n") for data in logs.values())
            # What fitted of the latest turn stays, and is not answered yet.
            assert totals["greetings"] <= lines <= totals["greetings"] + totals["open"]
            table = one.ctl("status").stdout
            assert table.count(f"not accepting: log cannot be written, log: {room.reason}") == len(
                logs
            )
            refused = one.events("cannot write greetings")
            assert {each["worker"] for each in refused} == set(range(1, room.workers + 1))
            assert all(each["reason"].endswith(room.reason) for each in refused)
            room.give(one)
            assert late.recv(100) == (b"Hello, late\n" if reply == "--reply" else b"")
        result = load.finish()
    assert result.counts == {"ok": CLIENTS}
    assert all(log.read_bytes().startswith(data) for log, data in logs.items())
    everyone = [*result.names["ok"], "late", *guests]
    assert outcomes(quiet_totals(one, connections=len(everyone))) == {"greetings": len(everyone)}
    assert blocked(one) == [0] * room.workers
    assert len(one.events("greetings are written again")) >= room.workers
    greetings = one.greetings()
    assert names(greetings) == dict.fromkeys(everyone, 1)
    assert_gap_free(greetings)
    print(f"{mode}: out of room at {totals['greetings']}, {len(guests)} guests")


@pytest.mark.shows("when the disk is full")
def test_a_daemon_without_room_stops_in_time_and_has_answered_nobody_in_vain(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    small = SmallFiles(tmp_path)
    one = daemon(
        "--workers=1", "--reply", f"--log-dir={tmp_path}", "--graceful-timeout=1",
        prefix=small.prefix,
    )  # fmt: skip
    one.log_dir = tmp_path
    with Load(one.address, count=CLIENTS, concurrency=16, reply=True, timeout=20.0) as load:
        until(lambda: blocked(one) == [LOG], what="the worker is out of room")
        began = monotonic()
        assert one.stop() == 0
        assert monotonic() - began < 5.0
        result = load.stop()
    # A worker that was killed in the midst of a try leaves some lines of it, and a torn tail, which
    # the next start cuts.
    texts = [file.read_text() for file in tmp_path.glob("worker-*.log")]
    texts = [text[: text.rfind("\n") + 1] for text in texts]
    greetings = [json.loads(line) for text in texts for line in text.splitlines()]
    assert max(names(greetings).values()) == 1
    assert set(result.names["ok"]) <= set(names(greetings))
    lost = sum(each.get("connections_lost", 0) for each in one.events("worker exited"))
    assert lost > 0, "what could not be written was told"
    assert len(greetings) <= len(result.names["ok"]) + lost


# Torn, moved, removed


@pytest.mark.shows("when a crash leaves half a record in a log")
def test_a_torn_tail_is_cut_off_when_the_log_is_opened_again(daemon: StartDaemon) -> None:
    one = daemon("--workers=1", "--reply", "--max-restarts=100")
    greet(one.address, "before")
    log = one.log_dir / "worker-1.log"
    old = worker_of(one, 1)
    os.kill(old, signal.SIGSTOP)
    torn = b'{"timestamp":"2026-01-01T12:00:00.123456Z","level":"in'
    with log.open("ab") as file:
        file.write(torn)
    os.kill(old, signal.SIGKILL)
    until(lambda: worker_of(one, 1) not in {0, old}, what="another worker")
    assert one.wait_event("torn record removed")["bytes"] == len(torn)
    greet(one.address, "after")
    assert [json.loads(line)["name"] for line in one.log_lines(1)] == ["before", "after"]
    assert one.stop() == 0
    with log.open("ab") as file:
        file.write(torn)
    two = daemon("--workers=1", "--reply", f"--log-dir={one.log_dir}")
    two.log_dir = one.log_dir
    assert two.wait_event("torn record removed")["bytes"] == len(torn)
    greet(two.address, "at last")
    assert names(two.greetings()) == {"before": 1, "after": 1, "at last": 1}


def rename(log: Path) -> None:
    """Rotate a log as a person does."""
    log.rename(log.with_suffix(".old"))


@pytest.mark.shows("when a log is rotated")
@pytest.mark.parametrize("take_away", [rename, Path.unlink])
def test_a_log_that_was_taken_away_is_noticed_without_being_told(
    daemon: StartDaemon, take_away: Callable[[Path], None]
) -> None:
    one = daemon("--workers=2", "--reply")
    log = one.log_dir / "worker-2.log"
    take_away(log)
    began = monotonic()
    until(log.exists, timeout=3.0, what="the log is there again")
    print(f"noticed after {monotonic() - began:.1f} s")
    assert one.wait_event("log reopened")["worker"] == 2
    for number in range(20):
        greet(one.address, f"after {number}")
    assert len(one.greetings()) == 20


@pytest.mark.shows("signal USR1", "when a log is rotated")
@pytest.mark.parametrize(
    ("mode", "how", "turns"),
    [
        ("inherit", "USR1", 4),
        ("reuseport", "USR1", 4),
        ("inherit", "greeterctl", 2),
        ("reuseport", "nobody", 2),
    ],
)
def test_rotation_under_load_loses_no_line(
    daemon: StartDaemon, mode: str, how: str, turns: int
) -> None:
    one = daemon(f"--mode={mode}", "--workers=2", "--reply")
    logs = [one.log_dir / f"worker-{slot}.log" for slot in (1, 2)]
    with Load(one.address, reply=True) as load:
        load.wait_going()
        for turn in range(turns):
            for log in logs:
                log.rename(log.with_name(f"{log.stem}.{turn}"))
            if how == "USR1":
                one.signal(signal.SIGUSR1)
            elif how == "greeterctl":
                assert one.ctl("reopen").returncode == 0
            for log in logs:
                until(log.exists, timeout=3.0, what=f"{log.name} is there again")
            wanted = one.status()["totals"]["greetings"] + 50
            until(partial(has_greeted, one, wanted), what="it goes on")
        result = load.stop()
    assert set(result.counts) == {"ok"}
    files = sorted(one.log_dir.glob("worker-*"))
    assert len(files) == 2 * (turns + 1)
    greetings = [each for file in files for each in records(file.read_text())]
    assert names(greetings) == dict.fromkeys(result.names["ok"], 1)
    numbers: dict[int, list[int]] = {}
    for each in greetings:
        numbers.setdefault(each["worker"], []).append(each["seq"])
    assert all(sorted(each) == list(range(1, len(each) + 1)) for each in numbers.values())


@contextlib.contextmanager
def traced(pid: int, output: Path) -> Iterator[None]:
    """Write a process's writes and syncs to a file meanwhile, with strace."""
    if shutil.which("strace") is None:
        pytest.skip("to see a sync needs the command strace")
    command = ["strace", "-y", "-e", "trace=write,fdatasync", "-o", str(output), "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert tracer.stderr is not None
        if "attached" not in (said := tracer.stderr.readline()):
            pytest.skip(f"strace may not trace: {said}")
        yield
    finally:
        tracer.terminate()
        tracer.communicate(timeout=10.0)


def test_with_fsync_a_greeting_is_on_the_disk_before_its_answer(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    one = daemon("--workers=1", "--reply", "--fsync=always")
    trace = tmp_path / "trace"
    with traced(worker_of(one, 1), trace):
        assert greet(one.address, "Alice") == "Hello, Alice\n"
        result = run_load(one.address, 400, concurrency=50, reply=True)
        until(lambda: trace.read_text().count("Hello, c") == 400, what="all is traced")
    assert result.counts == {"ok": 400}
    assert len(one.log_lines(1)) == 401
    calls = re.findall(r"^(write|fdatasync)\(\d+<(\S+)>", trace.read_text(), re.MULTILINE)
    steps = [name if "worker-1.log" in file else "answer" for name, file in calls]
    answers, syncs = steps.count("answer"), steps.count("fdatasync")
    print(f"{answers} answers, {syncs} syncs")
    assert steps[:3] == ["write", "fdatasync", "answer"]
    assert answers == 401
    assert "write answer" not in " ".join(steps), "what was written is synced first"
    assert syncs < answers / 2, "one sync for all greetings of a turn"


# Descriptors and connections


@pytest.mark.shows("when a worker is out of descriptors")
@pytest.mark.parametrize("mode", ["inherit", "reuseport"])
def test_without_descriptors_a_worker_waits_and_goes_on(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=1", "--reply", prefix=["prlimit", "--nofile=64"])
    with silent_clients(one.address, 100) as silent:
        until(lambda: blocked(one) == [DESCRIPTORS], what="the worker is out of descriptors")
        one.wait_event("cannot accept", count=2)
        totals = one.status()["totals"]
        assert totals["open"] + queued(one) == len(silent)
        assert 30 < totals["open"] < 64
        assert 0 < totals["accepts_paused"] <= totals["accept_errors"] < 100, "it backs off"
        # Ten times a second it tries, and is not blocked meanwhile.
        until(lambda: "not accepting: out of descriptors" in one.ctl("status").stdout)
        assert {each["reason"] for each in one.events("cannot accept")} == {"Too many open files"}
        with connect(one.address, timeout=10.0) as fast:
            fast.sendall(b"fast")
            fast.shutdown(socket.SHUT_WR)
            for each in silent[:70]:
                each.close()
            assert fast.recv(100) == b"Hello, fast\n"
        until(lambda: blocked(one) == [0], what="it accepts again")
    assert outcomes(quiet_totals(one, connections=101)) == {"greetings": 1, "empty": 100}


def test_who_is_handed_connections_takes_no_more_than_there_are_descriptors_for(
    daemon: StartDaemon,
) -> None:
    one = daemon("--mode=handoff", "--workers=1", "--reply", prefix=["prlimit", "--nofile=64"])
    with silent_clients(one.address, 100) as silent:
        until(lambda: blocked(one) == [LIMIT], what="the worker has all that it can have")
        totals = one.status()["totals"]
        # One may be on its way from the listener to the worker.
        until(lambda: totals["open"] + queued(one) == len(silent), what="all others wait")
        # All but the spare ones are in use: a connection that came without one would be lost.
        held = psutil.Process(worker_of(one, 1)).num_fds()
        assert held + 1 + SPARE_FILES == 64  # 1: what listed them when they were counted
    assert outcomes(quiet_totals(one, connections=100)) == {"empty": 100}
    assert one.status()["totals"]["accept_errors"] == 0


@pytest.mark.shows("when a worker is out of descriptors")
@both_modes
def test_no_more_connections_are_open_than_allowed(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=1", "--reply", "--max-connections=20")
    with silent_clients(one.address, 100) as silent:
        until(lambda: blocked(one) == [LIMIT], what="the worker has all that it may have")
        totals = one.status()["totals"]
        assert (totals["open"], queued(one)) == (20, 80)
        assert "not accepting: at max_connections" in one.ctl("status").stdout
        with connect(one.address, timeout=10.0) as fast:
            fast.sendall(b"fast")
            fast.shutdown(socket.SHUT_WR)
            for number, each in enumerate(silent):
                each.close()
                if number % 20 == 0:
                    assert one.status()["totals"]["open"] <= 20
            assert fast.recv(100) == b"Hello, fast\n"
    assert outcomes(quiet_totals(one, connections=101)) == {"greetings": 1, "empty": 100}
    assert blocked(one) == [0]
    unusual = {each["event"] for each in one.events() if each["level"] != "info"}
    assert unusual <= {"workers are root"}


@pytest.mark.shows("when a worker is out of descriptors")
@pytest.mark.parametrize("wait", ["rotate", "exclusive", "epoll"])
def test_an_idle_worker_takes_what_another_was_woken_for_and_cannot_take(
    daemon: StartDaemon, wait: str
) -> None:
    one = daemon("--mode=inherit", f"--wait={wait}", "--workers=2", "--reply")
    # The kernel wakes nearly always the same one; which, a first greeting shows.
    greet(one.address, "first")
    full = one.greetings()[0]["pid"]
    taken = {int(entry.name) for entry in Path(f"/proc/{full}/fd").iterdir()}
    free = min(set(range(len(taken) + 1)) - taken)  # the limit is of the numbers
    resource.prlimit(full, resource.RLIMIT_NOFILE, (free, free))
    began = monotonic()
    for number in range(6):
        assert greet(one.address, f"client {number}") == f"Hello, client {number}\n"
    print(f"{wait}: 6 greetings took {monotonic() - began:.1f} s")

    def tried() -> list[Record]:
        """Let one more come, which the full one may be woken for or not."""
        greet(one.address, "another")
        return one.events("cannot accept")

    assert until(tried, what="the full one is woken")[0]["pid"] == full
    assert [each["pid"] for each in one.greetings()].count(full) == 1


def test_loads_are_unharmed_by_clients_that_fill_a_worker(daemon: StartDaemon) -> None:
    one = daemon(
        "--mode=inherit", "--workers=2", "--reply", "--max-connections=50", "--client-timeout=60"
    )
    with silent_clients(one.address, 75):
        until(lambda: one.status()["totals"]["open"] == 75, what="all are accepted")
        result = run_load(one.address, 1_000, concurrency=8, reply=True)
        totals: Record = one.status()["totals"]
        assert result.counts == {"ok": 1_000}
        assert totals["open"] == 75
