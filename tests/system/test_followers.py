"""Nothing answered is lost, and nothing shown twice to those who follow the logs.

A disk that fills and empties, a directory that vanishes, a rotation that leaves a log which the
worker may not open, a worker that is killed, a reload.
"""

import json
import os
import pwd
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.support import remove_tree, until
from tests.system.books import names, worker_of
from tests.system.clients import Load, greet, run_load
from tests.system.conftest import StartDaemon
from tests.system.followers import Follow, Output, imfile, tail, tail_of_open_file
from tests.system.harness import Daemon
from tests.system.obstacles import SmallDisk
from tests.system.sizes import sized

TIMES = sized(20, 4)
REPLACED = {
    "kill": sized(8, 4),  # more would be restarted with a long back-off
    "reload": TIMES,
    "upgrade": sized(10, 1),
}
LOG = 1  # why a worker is blocked, as in the status

both_modes = pytest.mark.parametrize("mode", ["inherit", "reuseport"])
followers = pytest.mark.parametrize("follow", [tail, imfile])


def is_blocked(daemon: Daemon) -> bool:
    """Tell whether any slot cannot write its log."""
    return any(each["blocked"] == LOG for each in daemon.status()["counters"].values())


def has_greeted(daemon: Daemon, count: int) -> bool:
    """Tell whether there have been so many greetings."""
    return bool(daemon.status()["totals"]["greetings"] >= count)


def has_failed(daemon: Daemon, count: int) -> bool:
    """Tell whether a log could not be written so often."""
    return bool(daemon.status()["totals"]["log_errors"] >= count)


def has_another(daemon: Daemon, victim: int) -> bool:
    """Tell whether both slots have a worker again, which is not this one."""
    workers = {worker_of(daemon, 1), worker_of(daemon, 2)}
    return not workers & {0, victim}


def greeted(data: bytes) -> Counter[str]:
    """Return how often each name was greeted, of lines that are all whole."""
    assert not data or data.endswith(b"\n")
    return Counter(json.loads(line)["name"] for line in data.splitlines())


def assert_seen_once(seen: Output, answered: list[str]) -> None:
    """Wait until all that was answered has been seen; assert that each was once, and no other.

    A name that was answered twice is two greetings.
    """
    lines = len(answered)
    until(lambda: seen().count(b"\n") >= lines, timeout=30.0, what=f"{lines} lines are followed")
    counts = greeted(seen())
    print(f"{lines} answered, {counts.total()} lines seen, {len(counts)} names")
    assert counts == Counter(answered)


def fill_and_clear(one: Daemon, disk: SmallDisk, times: int) -> None:
    """Fill the disk until a worker stops and has tried again, then give room; so many times."""
    for _ in range(times):
        disk.fill(one)
        errors = one.status()["totals"]["log_errors"]
        until(partial(has_failed, one, errors + 8), what="a worker is out of room")
        assert is_blocked(one)
        disk.clear(one)
        until(lambda: not is_blocked(one), what="all have room")
        wanted = one.status()["totals"]["greetings"] + 50
        until(partial(has_greeted, one, wanted), what="it goes on")


@pytest.mark.shows("when the disk is full")
@both_modes
@followers
def test_a_disk_that_fills_and_empties_shows_followers_each_line_once(
    daemon: StartDaemon, tmp_path: Path, mode: str, follow: Follow
) -> None:
    disk, place = SmallDisk(tmp_path / "disk"), tmp_path / "follower"
    disk.log_dir.mkdir()
    place.mkdir()
    one = daemon(
        f"--mode={mode}", "--workers=2", "--reply", f"--log-dir={disk.log_dir}",
        prefix=disk.prefix,
    )  # fmt: skip
    disk.give(one)
    with follow(disk.log_dir, [1, 2], place, disk.inside(one)) as seen:
        with Load(one.address, concurrency=50, reply=True, timeout=60.0) as load:
            load.wait_going()
            fill_and_clear(one, disk, TIMES)
            result = load.stop()
        assert result.lost == {}
        assert_seen_once(seen, result.names["ok"])


@pytest.mark.shows("when the log directory is removed")
@pytest.mark.parametrize("fsync", ["never", "always"])
@followers
def test_a_directory_that_vanishes_and_comes_back_costs_no_answered_greeting(
    daemon: StartDaemon, tmp_path: Path, fsync: str, follow: Follow
) -> None:
    # Its parent goes with it: a directory alone would be made anew at once.
    place = tmp_path / "place"
    one = daemon(
        "--workers=2", "--reply", f"--fsync={fsync}", "--max-restarts=100",
        f"--log-dir={place / 'logs'}",
    )  # fmt: skip
    one.log_dir = place / "logs"
    with follow(one.log_dir, [1, 2], tmp_path, []) as seen:
        before = run_load(one.address, 300, reply=True).names["ok"]
        assert_seen_once(seen, before)
        remove_tree(place)
        with Load(one.address, count=500, reply=True, timeout=60.0) as load:
            until(partial(is_blocked, one), what="a worker has no log")
            warned = one.wait_event("cannot write greetings")
            assert warned["reason"] == "No such file or directory"
            assert "log: No such file or directory" in one.ctl("status").stdout
            totals = one.status()["totals"]
            assert totals["greetings"] == len(before), "nobody is answered"
            place.mkdir()
            result = load.finish()
        assert result.counts == {"ok": 500}
        assert names(one.greetings()) == dict.fromkeys(result.names["ok"], 1)
        assert_seen_once(seen, before + result.names["ok"])


def rotate_as_root(log: Path) -> None:
    """Rotate as logrotate does with `create 600 root root`, where workers are nobody."""
    log.rename(log.with_name(f"{log.name}.1"))
    log.touch(0o600)


@pytest.mark.shows("when a log is rotated")
@pytest.mark.skipif(os.geteuid() != 0, reason="workers become another user, which needs root")
@both_modes
def test_a_rotation_with_a_wrong_owner_is_told_and_costs_nothing(
    daemon: StartDaemon, tmp_path: Path, mode: str
) -> None:
    one = daemon(f"--mode={mode}", "--workers=1", "--reply", "--user=nobody")
    log = one.log_dir / "worker-1.log"
    with tail_of_open_file(log, tmp_path) as old:
        before = run_load(one.address, 100, reply=True).names["ok"]
        assert_seen_once(old, before)
        rotate_as_root(log)
        assert one.wait_event("cannot reopen a log")["reason"] == f"{log}: Permission denied"
        told = "writes to its old log, cannot open the new one: Permission denied"
        until(lambda: told in one.ctl("status").stdout, what="the status tells it")
        with tail_of_open_file(log, tmp_path) as new:
            astray = run_load(one.address, 200, reply=True).names["ok"]
            assert log.stat().st_size == 0
            os.chown(log, pwd.getpwnam("nobody").pw_uid, -1)
            one.wait_event("log reopened")
            until(lambda: told not in one.ctl("status").stdout, what="the status is clear")
            after = run_load(one.address, 100, reply=True).names["ok"]
            assert_seen_once(old, before + astray)
            assert_seen_once(new, after)


@pytest.mark.shows("when the log directory is removed")
def test_a_removed_log_loses_nothing_that_is_answered_afterwards(daemon: StartDaemon) -> None:
    one = daemon("--workers=1", "--reply")
    for number in range(sized(20, 5)):
        greet(one.address, "before")
        (one.log_dir / "worker-1.log").unlink()
        told = [f"after {number} {each}" for each in range(10)]
        for name in told:
            assert greet(one.address, name) == f"Hello, {name}\n"
        # "before" may be there as well, when that was at nearly the same time.
        logged = names(one.greetings())
        assert {name: logged[name] for name in told} == dict.fromkeys(told, 1)
    one.wait_event("log reopened")


@pytest.mark.shows("when the log directory is removed")
def test_a_daemon_whose_log_directory_is_gone_stops_in_time(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    one = daemon("--workers=2", "--reply", f"--log-dir={place / 'logs'}")
    remove_tree(place)
    until(lambda: len(one.events("cannot write greetings")) >= 2, what="both have noticed")
    assert one.stop(timeout=10.0) == 0


@pytest.mark.shows("when the disk is full")
@pytest.mark.parametrize("kind", REPLACED)
@both_modes
def test_beside_a_full_disk_a_replaced_worker_leaves_no_torn_or_glued_line(
    daemon: StartDaemon, tmp_path: Path, mode: str, kind: str
) -> None:
    disk = SmallDisk(tmp_path)
    one = daemon(
        f"--mode={mode}", "--workers=2", "--reply", f"--log-dir={tmp_path}", "--max-restarts=100",
        prefix=disk.prefix,
    )  # fmt: skip
    one.log_dir = disk.seen(one)
    disk.give(one)
    with Load(one.address, concurrency=50, reply=True, timeout=60.0) as load:
        load.wait_going()
        for turn in range(REPLACED[kind]):
            disk.fill(one)
            errors = one.status()["totals"]["log_errors"]
            until(partial(has_failed, one, errors + 3), what="a worker is out of room")
            if kind == "kill":
                victim = until(partial(worker_of, one, 1 + turn % 2), what="a worker")
                os.kill(victim, signal.SIGKILL)
                until(partial(has_another, one, victim), what="the next worker")
                disk.clear(one)
            else:
                generation = one.status()["generation"]
                one.signal(signal.SIGHUP if kind == "reload" else signal.SIGUSR2)
                until(lambda: len(one.status()["workers"]) > 2, what="two writers")
                disk.clear(one)
                until(lambda: one.status()["generation"] > generation)  # noqa: B023
                until(lambda: len(one.status()["workers"]) == 2, what="the old ones are gone")
            wanted = one.status()["totals"]["greetings"] + 50
            until(partial(has_greeted, one, wanted), what="it goes on")
        result = load.stop()
    assert kind == "kill" or not result.lost
    until(lambda: one.status()["totals"]["open"] == 0)
    logged: Counter[str] = Counter()
    for log in one.log_dir.glob("worker-*.log"):
        logged += greeted(log.read_bytes())
    assert max(logged.values()) == 1
    assert set(result.names["ok"]) <= set(logged)
    if kind != "kill":
        assert len(logged) == len(result.names["ok"])
    print(
        f"{len(result.names['ok'])} answered, {logged.total()} lines, lost: {result.lost},"
        f" {len(one.events('torn record removed'))} torn lines cut"
    )
