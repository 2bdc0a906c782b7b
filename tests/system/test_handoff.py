"""What only mode handoff has: a dispatcher that others wait for, and socketpairs that end."""

import os
import signal

import pytest

from tests.support import until
from tests.system.books import worker_of
from tests.system.clients import Load, fire, silent_clients
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon


def dispatcher_of(server: Daemon) -> int:
    """Return the dispatcher's pid."""
    [row] = server.status()["dispatcher"]
    return int(row["pid"])


def test_orphans_do_not_wait_for_ever_for_a_dispatcher_that_is_stopped(
    daemon: StartDaemon,
) -> None:
    server = daemon("--mode=handoff", "--workers=2", "--graceful-timeout=1")
    dispatcher, workers = dispatcher_of(server), server.worker_pids()
    os.kill(dispatcher, signal.SIGSTOP)
    server.process.kill()
    server.process.wait()
    until(lambda: not set(workers) & set(server.processes()), what="the workers are gone")
    os.kill(dispatcher, signal.SIGCONT)
    until(lambda: not server.processes(), what="the dispatcher is gone, too")


def test_an_orphaned_dispatcher_does_not_wait_for_ever_for_workers_that_are_dead(
    daemon: StartDaemon,
) -> None:
    server = daemon(
        *("--mode=handoff", "--workers=1", "--graceful-timeout=1", "--max-connections=1"),
        "--client-timeout=60",
    )
    dispatcher, workers = dispatcher_of(server), server.worker_pids()
    with silent_clients(server.address, 300):
        until(lambda: server.status()["handed"]["open"], what="the dispatcher holds one")
        os.kill(dispatcher, signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        os.kill(dispatcher, signal.SIGCONT)
        until(lambda: not server.processes(), what="the dispatcher is gone")


def test_scaling_down_is_no_error_of_accept(daemon: StartDaemon) -> None:
    server = daemon("--mode=handoff", "--workers=3")
    assert server.ctl("scale", "1").returncode == 0
    assert server.ctl("scale", "3").returncode == 0
    for number in range(6):
        fire(server.address, f"client {number}")
    until(lambda: server.status()["totals"]["greetings"] == 6)
    assert server.status()["totals"]["accept_errors"] == 0


@pytest.mark.parametrize("files", range(64, 68))
def test_more_workers_than_descriptors_are_refused_and_the_daemon_goes_on(
    daemon: StartDaemon, files: int
) -> None:
    server = daemon("--mode=handoff", "--workers=2", f"--max-files={files}", "--max-restarts=1000")
    assert server.ctl("scale", "40").returncode == 1
    with Load(server.address, count=20) as load:
        assert load.finish().counts == {"ok": 20}


def test_what_waits_in_a_socketpair_at_the_end_is_told(daemon: StartDaemon) -> None:
    server = daemon(
        *("--mode=handoff", "--workers=1", "--graceful-timeout=0.5", "--max-connections=1"),
        "--client-timeout=60",
    )
    with silent_clients(server.address, 20):
        until(lambda: server.status()["totals"]["open"], what="the worker is full")
        until(lambda: server.status()["handed"]["handed_over"] == 20)
        assert server.stop() == 0
    assert server.events("connections dropped")[0]["connections_lost"] == 19


def test_the_load_of_a_worker_that_is_dead_is_not_its_successors(daemon: StartDaemon) -> None:
    server = daemon(
        *("--mode=handoff", "--workers=2", "--handoff-policy=least-busy", "--client-timeout=60")
    )
    dead = worker_of(server, 1)
    with silent_clients(server.address, 40):
        until(lambda: server.status()["totals"]["open"] == 40, what="both have as many")
        os.kill(dead, signal.SIGKILL)
        until(lambda: len({*server.worker_pids()} - {dead}) == 2, what="it is replaced")
    until(lambda: server.status()["totals"]["open"] == 0, what="nobody is busy")
    for number in range(20):
        fire(server.address, f"client {number}")
    until(lambda: server.status()["totals"]["greetings"] == 20, what="all are greeted")
    assert {one["worker"] for one in server.greetings()} == {1, 2}
