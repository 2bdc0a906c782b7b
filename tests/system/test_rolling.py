"""Reloads, scaling and the final stop under load: nobody who has connected is failed.

A client is served when its own greeting came back; the greeting logs must tell the same.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from greeterd.control import ask
from tests.support import until
from tests.system.books import worker_of
from tests.system.clients import Load, LoadResult, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, Record
from tests.system.obstacles import clear, obstruct
from tests.system.sizes import sized

TIMES = sized(50, 10)
MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])


@contextmanager
def loaded(server: Daemon) -> Iterator[Load]:
    """Greet all the while, as fast as it goes."""
    with Load(server.address, concurrency=16, timeout=20.0, reply=True) as load:
        load.wait_going()
        yield load


def end_load(load: Load) -> LoadResult:
    """Stop a load whose every client must have been served."""
    result = load.stop()
    print(f"served {result.total}, slowest {result.slowest:.2f} s")
    assert result.lost == {}
    assert result.total > TIMES
    return result


def assert_logged(server: Daemon, result: LoadResult, *others: str) -> list[Record]:
    """Assert that every client that was served has one record, and no other has; return them."""
    greetings = server.greetings()
    assert Counter(one["name"] for one in greetings) == Counter([*result.names["ok"], *others])
    return greetings


def order(server: Daemon, number: signal.Signals, done: str) -> None:
    """Send a signal, and wait for the event that tells that it has had its effect."""
    count = len(server.events(done))
    server.signal(number)
    server.wait_event(done, count=count + 1, timeout=30.0)


def generations(server: Daemon) -> list[int]:
    """Return the generation of each slot's serving worker."""
    return [one["generation"] for one in server.status()["workers"] if not one["leaving"]]


def descriptors(server: Daemon) -> int:
    """Return how many descriptors the master has open."""
    return psutil.Process(server.pid).num_fds()


def has_served(server: Daemon, slot: int) -> bool:
    """Tell whether a slot has had a connection."""
    return bool(server.status()["counters"][str(slot)]["connections"])


@pytest.mark.shows("signal HUP", "when a reload, a scale or a stop comes under load")
@MODES
def test_reloads_fail_nobody_and_show_in_status_and_records(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply")
    before = descriptors(server)
    # The load alone need not meet each generation: on a busy machine it is slower than reloads.
    ours = {f"guest of {generation}": generation for generation in range(2, TIMES + 2)}
    with loaded(server) as load:
        for name, generation in ours.items():
            order(server, signal.SIGHUP, "reload done")
            assert server.status()["generation"] == generation
            assert generations(server) == [generation] * 2
            assert greet(server.address, name) == f"Hello, {name}\n"
        result = end_load(load)
    assert server.status()["reload"]["ok"]
    until(lambda: descriptors(server) == before, what="nothing left open by the master")
    greetings = assert_logged(server, result, *ours)
    assert {one["name"]: one["generation"] for one in greetings if one["name"] in ours} == ours
    assert {one["generation"] for one in greetings} == set(range(1, TIMES + 2))


@pytest.mark.shows("command reload")
@pytest.mark.parametrize(
    ("mode", "wait"),
    [
        ("inherit", "rotate"),
        ("inherit", "blocking"),
        ("reuseport", "epoll"),
        ("reuseport", "blocking"),
        ("handoff", "epoll"),
    ],
)
def test_who_connects_after_a_reload_meets_the_new_workers_only(
    daemon: StartDaemon, mode: str, wait: str
) -> None:
    server = daemon("--mode", mode, "--wait", wait, "--workers", "2", "--reply")
    for generation in range(2, TIMES + 2):
        assert ask(server.run_dir / "control.sock", "reload", 30.0)["ok"]
        for name in ("Alice", "Bob", "Carol", "Dave"):
            assert greet(server.address, f"{name}-{generation}") == f"Hello, {name}-{generation}\n"
    met = [(one["name"].partition("-")[2], str(one["generation"])) for one in server.greetings()]
    assert [one for one in met if one[0] != one[1]] == []
    assert len(met) == 4 * TIMES


@pytest.mark.shows(
    "signal TTIN", "signal TTOU", "when a reload, a scale or a stop comes under load"
)
@MODES
def test_scaling_up_and_down_fails_nobody(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply")
    before = descriptors(server)
    with loaded(server) as load:
        for _ in range(TIMES):
            order(server, signal.SIGTTIN, "scale done")
            assert len(generations(server)) == 3
            until(partial(has_served, server, 3), what="the third worker has taken some")
            order(server, signal.SIGTTOU, "scale done")
            assert len(generations(server)) == 2
        result = end_load(load)
    until(lambda: descriptors(server) == before, what="nothing left open by the master")
    found = {one["worker"] for one in assert_logged(server, result)}
    assert found == {1, 2, 3}
    assert server.events("worker exited") != []


@pytest.mark.shows("when a reload, a scale or a stop comes under load")
@MODES
def test_the_final_stop_fails_nobody_who_has_connected(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply")
    with loaded(server) as load:
        began = time.monotonic()
        assert server.stop() == 0
        took = time.monotonic() - began
        result = load.stop()
    print(f"{result.counts}, stopped in {took:.2f} s")
    assert result.lost_by_stop(began) == {}
    assert_logged(server, result)


@MODES
def test_a_stop_in_the_middle_of_a_reload_fails_nobody_who_has_connected(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "8", "--reply")
    with loaded(server) as load:
        ready = len(server.events("worker ready"))
        last = worker_of(server, 8)
        os.kill(last, signal.SIGSTOP)  # so the reload has no end: this one does not hand over
        server.signal(signal.SIGHUP)
        server.wait_event("worker ready", count=ready + 1)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait_event("reload failed")
        os.kill(last, signal.SIGCONT)
        assert server.wait() == 0
        result = load.stop()
    assert server.events("reload failed")[0]["reason"] == "the daemon is stopping"
    assert result.lost_by_stop(began) == {}
    assert_logged(server, result)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a configuration file that reloads may change."""
    path = tmp_path / "greeterd.toml"
    write(path)
    return path


def write(path: Path, **settings: object) -> None:
    """Write the configuration file, with these settings instead of its usual ones."""
    usual: dict[str, object] = {
        "workers": 2,
        "bind": ["127.0.0.1:0"],
        "log_dir": str(path.parent / "logs"),
    }
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in {**usual, **settings}.items()]
    path.write_text("".join(lines))


def start(daemon: StartDaemon, file: Path, *arguments: str) -> Daemon:
    """Start a daemon that the file configures."""
    server = daemon("--config", str(file), *arguments, without={"--bind", "--log-dir"})
    server.log_dir = file.parent / "logs"
    return server


@pytest.mark.shows("command reload refused", "when a reload is refused")
@MODES
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"werkers": 3}, "key werkers: no such setting; did you mean workers?"),
        ({"workers": 0}, "key workers: must be a whole number from 1"),
        ({"bind": ["127.0.0.2:0"]}, "only a restart changes bind"),
        ({"log_dir": "/dev/null"}, "directory /dev/null: Not a directory"),
    ],
)
def test_a_bad_reload_is_refused_and_the_old_goes_on(
    daemon: StartDaemon, file: Path, mode: str, settings: dict[str, object], reason: str
) -> None:
    server = start(daemon, file, "--mode", mode)
    before = server.worker_pids()
    write(file, **settings)
    server.signal(signal.SIGHUP)
    assert reason in server.wait_event("reload failed")["reason"]
    status = server.status()
    assert reason in status["last_error"]
    assert reason in status["reload"]["error"]
    assert (status["reload"]["ok"], status["generation"], status["state"]) == (False, 1, "running")
    asked = server.ctl("reload")
    assert (asked.returncode, reason in asked.stderr) == (1, True)
    assert server.worker_pids() == before
    greet(server.address, "Alice")
    write(file)
    assert server.ctl("reload").returncode == 0
    assert server.status()["reload"]["ok"]
    assert not set(before) & {
        one["pid"] for one in server.status()["workers"] if not one["leaving"]
    }


@pytest.mark.shows("when a worker crashes at each start")
@MODES
def test_a_reload_whose_workers_fail_is_undone(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply")
    log = server.log_dir / "worker-2.log"
    with loaded(server) as load:
        obstruct(log)
        server.signal(signal.SIGHUP)
        assert "worker 2 did not start" in server.wait_event("reload failed")["reason"]
        assert server.events("reload is undone") != []
        status = server.status()
        assert (status["generation"], status["reload"]["ok"]) == (1, False)
        assert generations(server) == [1, 1]
        clear(log)
        order(server, signal.SIGHUP, "reload done")
        until(lambda: generations(server) == [server.status()["generation"]] * 2)
        result = end_load(load)
    assert_logged(server, result)


@MODES
def test_a_reload_takes_new_settings_over(daemon: StartDaemon, file: Path, mode: str) -> None:
    server = start(daemon, file, "--mode", mode)
    assert greet(server.address, "Alice") == ""
    write(file, workers=3, reply=True)
    order(server, signal.SIGHUP, "reload done")
    assert generations(server) == [2, 2, 2]
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    write(file, workers=1, reply=True)
    order(server, signal.SIGHUP, "reload done")
    assert generations(server) == [3]
    until(lambda: len(server.worker_pids()) == 1)
    assert greet(server.address, "Alice") == "Hello, Alice\n"
