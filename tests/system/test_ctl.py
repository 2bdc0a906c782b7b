"""greeterctl and a real daemon: each command returns when what it asked for is so.

Every exit code of every command is in test_ctl_codes.
"""

import json
import signal
import time

import pytest

from tests.support import until
from tests.system.books import serving
from tests.system.clients import connect, greet, run_load
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon

MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport"])


def succeed(server: Daemon, *arguments: str) -> str:
    """Run a command that has to succeed; return what it printed."""
    done = server.ctl(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.shows("command status")
@MODES
def test_status_shows_what_is_and_what_was_counted(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "3")
    assert run_load(server.address, 60).counts == {"ok": 60}
    until(lambda: server.status()["totals"]["greetings"] == 60)
    with connect(server.address) as silent:
        silent.shutdown(1)
        assert silent.recv(1) == b""
    told = json.loads(succeed(server, "status", "--json"))
    assert (told["mode"], told["state"], told["generation"]) == (mode, "running", 1)
    assert (told["pid"], told["addresses"]) == (server.pid, server.addresses)
    assert (told["totals"]["connections"], told["totals"]["empty"]) == (61, 1)
    assert sum(one["greetings"] for one in told["counters"].values()) == 60
    assert len(told["listeners"]) == {"inherit": 1, "reuseport": 3, "handoff": 1 + 3}[mode]
    table = succeed(server, "status")
    for pid in server.worker_pids():
        assert str(pid) in table
    assert f"listening on {server.address}" in table
    assert "not greeted: 1 empty" in table


@pytest.mark.shows("command balance")
@MODES
def test_balance_is_the_same_by_counters_and_by_logs(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "3")
    assert run_load(server.address, 60).counts == {"ok": 60}
    until(lambda: server.status()["totals"]["greetings"] == 60)
    logs = [str(server.log_dir / f"worker-{slot}.log") for slot in (1, 2, 3)]
    by_counters = json.loads(succeed(server, "balance", "--json"))
    by_logs = json.loads(succeed(server, "balance", "--json", *logs))
    assert (by_counters.pop("source"), by_logs.pop("source")) == ("daemon", "logs")
    assert by_counters == by_logs
    assert by_counters["total"] == 60
    assert [one["greetings"] for one in by_counters["workers"]] == [
        len(server.log_lines(slot)) for slot in (1, 2, 3)
    ]
    text = succeed(server, "balance")
    assert f"pid {server.pid}, {mode} (" in text
    assert by_counters["sentence"] in text


@pytest.mark.shows("command ping")
def test_ping_tells_the_pid(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    assert f"pid {server.pid}" in succeed(server, "ping")


def test_the_dispatcher_is_restarted_as_slot_0(daemon: StartDaemon) -> None:
    server = daemon("--mode", "handoff", "--workers", "2")
    before, workers = server.status()["dispatcher"], serving(server)
    assert succeed(server, "restart", "0") == "restarted: slot 0\n"
    [after] = [one for one in server.status()["dispatcher"] if not one["leaving"]]
    assert (after["slot"], after["state"]) == (0, "ready")
    assert after["pid"] != before[0]["pid"]
    assert serving(server) == workers
    [row] = [
        line for line in succeed(server, "status").splitlines() if str(after["pid"]) in line.split()
    ]
    assert row.endswith("dispatcher")


@pytest.mark.shows("command restart")
@MODES
def test_reload_and_restart_return_when_the_new_workers_serve(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "2")
    first = serving(server)
    assert succeed(server, "reload") == "reloaded: generation 2\n"
    second = serving(server)
    assert {generation for _, generation in second.values()} == {2}
    assert not set(first.values()) & set(second.values())

    assert succeed(server, "restart", "2") == "restarted: slot 2\n"
    third = serving(server)
    assert third[1] == second[1]
    assert third[2][0] != second[2][0]
    assert succeed(server, "restart") == "restarted: every slot\n"
    assert not set(third.values()) & set(serving(server).values())
    assert {generation for _, generation in serving(server).values()} == {2}

    refused = server.ctl("restart", "3")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "there is no worker 3" in refused.stderr


@pytest.mark.shows("command scale")
@MODES
def test_scale_returns_when_so_many_serve(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "1")
    before = serving(server)
    assert succeed(server, "scale", "4") == "workers: 4\n"
    assert sorted(serving(server)) == [1, 2, 3, 4]
    assert succeed(server, "scale", "2") == "workers: 2\n"
    assert sorted(serving(server)) == [1, 2]
    assert serving(server)[1] == before[1]
    assert len(server.worker_pids()) == 2
    assert server.ctl("scale", "0").returncode == 2


@pytest.mark.shows("command reopen")
@MODES
def test_reopen_leaves_rotated_logs_alone(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "1", "--reply")
    log = server.log_dir / "worker-1.log"
    greet(server.address, "Alice")
    log.rename(log.with_suffix(".1"))
    assert succeed(server, "reopen") == "reopened: every log\n"
    until(log.exists)
    greet(server.address, "Bob")
    assert [one["name"] for one in server.greetings()] == ["Bob"]
    assert len(log.with_suffix(".1").read_text().splitlines()) == 1


@pytest.mark.shows("command stop")
@MODES
def test_stop_returns_when_the_daemon_has_ended_and_all_were_served(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--client-timeout", "1")
    with connect(server.address) as silent:
        until(lambda: server.status()["totals"]["open"] == 1)
        assert succeed(server, "stop") == "stopped\n"
        assert silent.recv(1) == b""
    assert server.process.wait(5.0) == 0
    assert server.ctl("status").returncode == 69


@pytest.mark.shows("command stop --now")
@MODES
def test_stop_now_does_not_wait_for_a_client(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--client-timeout", "60")
    with connect(server.address) as silent:
        until(lambda: server.status()["totals"]["open"] == 1)
        began = time.monotonic()
        assert succeed(server, "stop", "--now") == "stopped\n"
        assert time.monotonic() - began < 10.0
        with pytest.raises(ConnectionResetError):
            silent.recv(1)
    assert server.process.wait(5.0) == 0


def test_stop_now_overtakes_a_graceful_stop(daemon: StartDaemon) -> None:
    server = daemon("--workers", "2", "--client-timeout", "60")
    with connect(server.address):
        until(lambda: server.status()["totals"]["open"] == 1)
        server.signal(signal.SIGTERM)
        until(lambda: server.status()["state"] == "stopping")
        refused = server.ctl("reload")
        assert (refused.returncode, "stopping" in refused.stderr) == (1, True)
        assert succeed(server, "stop", "--now") == "stopped\n"
    assert server.process.wait(5.0) == 0


def test_a_daemonized_daemon_is_told_the_same_way(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1", "--daemonize")
    assert succeed(server, "reload") == "reloaded: generation 2\n"
    assert succeed(server, "stop") == "stopped\n"
    assert server.processes() == []
