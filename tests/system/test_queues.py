"""What the status tells of accept queues: how long they have been, and what the kernel dropped."""

import contextlib
import os
import signal
import tempfile

import psutil
import pytest

from tests.support import until
from tests.system.clients import fire, socket_for
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, Record

CALLERS = 32  # with 2 listeners one of them is missed by so many in 1 of 2,000,000,000 cases


def the_listener(server: Daemon) -> Record:
    """Return what is told of the only listener at the address."""
    told = server.status()["listeners"]
    (listener,) = (one for one in told if one["address"] == server.address)
    assert isinstance(listener, dict)
    return listener


def freeze(pid: int) -> None:
    """Stop a process as a debugger would; return when it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


def test_the_queue_of_a_stopped_worker_is_remembered_when_it_goes_on(daemon: StartDaemon) -> None:
    server = daemon("--mode", "inherit", "--workers", "1")
    (pid,) = server.worker_pids()
    assert (the_listener(server)["queued_max"], the_listener(server)["drops"]) == (0, 0)
    freeze(pid)
    for number in range(5):
        fire(server.address, f"caller-{number}")
    until(lambda: the_listener(server)["queued_max"] == 5)
    assert "(queue 5 of 4096, 5 at most)" in server.ctl("status").stdout
    os.kill(pid, signal.SIGCONT)
    until(lambda: the_listener(server)["queued"] == 0)
    assert the_listener(server)["queued_max"] == 5


def test_a_queue_is_remembered_though_nobody_asked_meanwhile(daemon: StartDaemon) -> None:
    server = daemon("--mode", "reuseport", "--workers", "2")
    pid = next(one["pid"] for one in server.status()["workers"] if one["slot"] == 2)
    freeze(pid)
    for number in range(CALLERS):
        fire(server.address, f"caller-{number}")
    # It is lent after the master has found something in its queue, and then emptied.
    server.wait_event("listener lent")
    until(lambda: len(server.greetings()) == CALLERS)
    (own,) = (one for one in server.status()["listeners"] if one["slot"] == 2)
    assert own["queued"] == 0
    assert own["queued_max"] > 0
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])
def test_what_a_full_queue_drops_is_told(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "1", "--backlog", "1")
    children = [one.pid for one in psutil.Process(server.pid).children()]
    for pid in children:
        freeze(pid)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client, where = socket_for(server.address)
            stack.enter_context(client).setblocking(False)
            client.connect_ex(where)
        until(lambda: the_listener(server)["drops"] > 0)
        assert the_listener(server)["queued_max"] == 2
        table = server.ctl("status").stdout
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    assert " dropped" in table
    assert ("2 at most" if mode == "inherit" else "queue was full") in table


def test_of_a_unix_socket_the_kernel_tells_no_drops(daemon: StartDaemon) -> None:
    with tempfile.TemporaryDirectory() as short:
        server = daemon("--workers", "1", "--bind", f"unix:{short}/socket")
        listener = the_listener(server)
        assert server.stop() == 0
    assert (listener["queued_max"], listener["drops"]) == (0, None)
