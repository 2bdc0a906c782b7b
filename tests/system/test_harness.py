"""The harness: it believes nothing that the daemon has not said, and leaves nothing behind.

A stand-in takes the daemon's place where it is to misbehave.
"""

import functools
import json
import socket
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.support import until
from tests.system import harness
from tests.system.clients import Load, LoadResult, connect, fire, greet, run_load, silent_clients
from tests.system.conftest import StartDaemon

COMMAND = (sys.executable, "-m", "tests.system.stand_in")


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pytest remove the directories that these tests make the harness keep."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def stand_in(daemon: StartDaemon) -> StartDaemon:
    """Start stand-ins; the first argument is the behaviour."""
    return functools.partial(daemon, command=COMMAND)


def test_a_daemon_is_ready_greets_and_stops(stand_in: StartDaemon) -> None:
    daemon = stand_in("serve")
    assert greet(daemon.address, "Alice") == "Hello, Alice\n"
    assert [one["name"] for one in daemon.greetings()] == ["Alice"]
    assert len(daemon.log_lines(1)) == 1
    assert daemon.log_lines(2) == []
    assert daemon.stop() == 0
    assert daemon.wait_event("stopped")["pid"] == daemon.pid


def test_arguments_of_the_test_come_before_the_defaults(stand_in: StartDaemon) -> None:
    daemon = stand_in("serve", "--bind=127.0.0.2:0")
    assert daemon.address.startswith("127.0.0.2:")


def test_a_daemon_that_dies_is_reported_with_its_exit_code_and_log() -> None:
    with pytest.raises(AssertionError, match=r"exit code 69 before 'ready'(?s:.*)cannot listen"):
        harness.Daemon("die", command=COMMAND)


def test_a_daemon_that_may_die_is_waited_for(stand_in: StartDaemon) -> None:
    assert stand_in("die", wait=False).wait() == 69


def test_a_daemon_that_never_is_ready_is_reported_and_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[harness.Daemon] = []
    close = harness.Daemon.close

    def closed(daemon: harness.Daemon, *, failed: bool) -> None:
        started.append(daemon)
        close(daemon, failed=failed)

    monkeypatch.setattr(harness.Daemon, "close", closed)
    with pytest.raises(AssertionError, match="event 'ready'"):
        harness.Daemon("mute", command=COMMAND, timeout=0.3)
    assert started[0].processes() == []


def test_what_is_left_behind_fails_the_test_and_is_killed() -> None:
    daemon = harness.Daemon("litter", command=COMMAND, patience=0.3)
    left = daemon.events("littered")[0]["pid"]
    assert left in daemon.processes()
    assert left in daemon.worker_pids()
    with pytest.raises(AssertionError, match=f"left behind by .*{left}"):
        daemon.close()
    until(lambda: not psutil.pid_exists(left))
    assert daemon.directory.exists()


def test_the_directory_is_kept_with_the_log_printed_if_the_test_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ZeroDivisionError), harness.Daemon("serve", command=COMMAND) as daemon:
        _ = 1 / 0
    assert daemon.stderr.exists()
    assert '"event": "ready"' in capsys.readouterr().out


def test_the_directory_is_removed_if_the_test_passed() -> None:
    with harness.Daemon("serve", command=COMMAND) as daemon:
        assert daemon.directory.exists()
    assert not daemon.directory.exists()


def test_the_caller_s_service_manager_does_not_reach_the_daemon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("GREETERD_WORKERS", "99")
    environment = harness.clean_environment({"GREETERD_MODE": "inherit"})
    assert "NOTIFY_SOCKET" not in environment
    assert "GREETERD_WORKERS" not in environment
    assert environment["GREETERD_MODE"] == "inherit"


def test_a_torn_or_foreign_line_of_the_log_is_no_record() -> None:
    assert harness.records('{"a": 1}\nFatal Python error\n{"a": 2}\n{"a":') == [{"a": 1}, {"a": 2}]


def test_every_greeting_of_a_load_is_accounted_for(stand_in: StartDaemon) -> None:
    daemon = stand_in("serve")
    result = run_load(daemon.address, 101, reply=True)
    assert result.counts == {"ok": 101}
    assert result.lost == {}
    assert sorted(one["name"] for one in daemon.greetings()) == sorted(result.names["ok"])


def test_a_load_goes_on_until_it_is_stopped(stand_in: StartDaemon) -> None:
    daemon = stand_in("serve")
    with Load(daemon.address, reply=True, interval=0.001) as load:
        load.wait_going()
        result = load.stop()
    assert 2 <= result.total < 100_000
    assert result.counts["ok"] == result.total == len(daemon.greetings())


def test_a_load_tells_refused_connections_from_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        address = f"127.0.0.1:{bound.getsockname()[1]}"
    assert run_load(address, 5).counts == {"refused": 5}


def test_a_load_tells_a_missing_greeting_from_the_greeting(stand_in: StartDaemon) -> None:
    # Without `reply` no byte is due, so the stand-in's answer is one that was not asked for.
    assert run_load(stand_in("serve").address, 5).counts == {"silent": 5}


def test_a_load_gives_up_on_a_server_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with Load(address, count=4, timeout=0.2) as load:
            assert load.finish().counts == {"timeout": 4}


def test_a_load_tells_a_connection_that_was_never_made() -> None:
    # A queue of one that is full: the kernel drops what comes next, and the client tries again.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with silent_clients(address, 1), Load(address, count=2, timeout=0.2) as load:
            assert load.finish().counts == {"unreached": 2}


def test_a_refusal_is_no_loss_if_it_came_after_the_stop() -> None:
    result = LoadResult(
        names={"ok": ["a"], "refused": ["b"], "unreached": [], "reset": ["c"]},
        slowest=0.0,
        since={"ok": 1.0, "refused": 5.0, "reset": 6.0},
    )
    assert result.lost_by_stop(4.0) == {"reset": 1}
    assert result.lost_by_stop(5.5) == {"refused": 1, "reset": 1}


def test_a_load_reaches_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert run_load(f"unix:{path}", 2).counts == {"refused": 2}


def test_fire_waits_for_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        fire(f"127.0.0.1:{deaf.getsockname()[1]}", "Alice")
        with deaf.accept()[0] as client:
            assert client.recv(16) == b"Alice"


def test_silent_clients_are_connected_and_say_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with silent_clients(address, 2):
            for _ in range(2):
                with listener.accept()[0] as client, pytest.raises(BlockingIOError):
                    client.recv(16, socket.MSG_DONTWAIT)


def test_nobody_listens_where_a_stopped_daemon_did(stand_in: StartDaemon) -> None:
    daemon = stand_in("serve")
    daemon.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(daemon.address)


def test_status_is_what_greeterctl_prints(daemon: StartDaemon) -> None:
    real = daemon("--workers", "2")
    status = real.status()
    assert status["pid"] == real.pid
    assert status["addresses"] == real.addresses
    assert sorted(worker["pid"] for worker in status["workers"]) == real.worker_pids()
    assert json.loads(real.ctl("status", "--json").stdout).keys() == status.keys()


def test_a_daemonized_daemon_is_found_and_ended(daemon: StartDaemon) -> None:
    real = daemon("--workers", "1", "--daemonize")
    assert real.pid != real.process.pid
    assert greet(real.address, "Alice") == ""
    assert real.stop() == 0
    assert real.processes() == []
