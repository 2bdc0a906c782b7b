"""Too few descriptors for what is asked: it is refused with the reason, and the old goes on."""

import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support import until
from tests.system.books import worker_of
from tests.system.clients import connect, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon

ADDRESSES = [f"--bind=127.0.0.{number}:0" for number in range(1, 9)]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to limit other processes")


@contextmanager
def no_room_in(pid: int) -> Iterator[None]:
    """Let a process open no descriptor."""
    numbers = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    lowest = next(number for number in range(10_000) if number not in numbers)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def dispatcher_of(server: Daemon) -> int:
    """Return the pid of the dispatcher."""
    children = psutil.Process(server.pid).children()
    (pid,) = {one.pid for one in children} - set(server.worker_pids())
    return pid


@pytest.mark.shows("when descriptors are too few")
def test_a_scale_beyond_the_descriptors_of_the_master_is_refused(daemon: StartDaemon) -> None:
    server = daemon(
        "--mode=reuseport", "--workers=20", "--reply", *ADDRESSES,
        prefix=("prlimit", "--nofile=420:420"),
    )  # fmt: skip
    asked = server.ctl("scale", "40")
    assert asked.returncode == 1
    assert "as many as the limit of open files allows" in asked.stderr
    assert {greet(where, "Alice") for where in server.addresses} == {"Hello, Alice\n"}
    until(lambda: len(server.worker_pids()) == 20, what="those that were there, and no other")
    assert server.ctl("scale", "21").returncode == 0, "there is room for one"
    assert "Traceback" not in server.log_text()
    assert server.stop() == 0


def test_a_start_beyond_the_descriptors_of_the_master_is_refused(daemon: StartDaemon) -> None:
    failed = daemon(
        "--mode=reuseport", "--workers=20", *ADDRESSES,
        prefix=("prlimit", "--nofile=100:100"), wait=False,
    )  # fmt: skip
    assert failed.wait() == 71
    assert "Traceback" not in failed.log_text()


def test_more_addresses_than_a_message_takes_are_refused_by_a_check(daemon: StartDaemon) -> None:
    many = [f"--bind=127.0.{number // 250}.{number % 250 + 1}:0" for number in range(254)]
    for mode in ("reuseport", "handoff"):
        failed = daemon("--check", f"--mode={mode}", *many, wait=False)
        assert failed.wait() == 78
        assert f"{mode} passes a listener of each address between processes" in failed.log_text()
    served = daemon("--check", "--mode=inherit", *many, wait=False)
    assert served.wait() == 0


def test_as_many_addresses_as_a_message_takes_are_served(daemon: StartDaemon) -> None:
    many = [f"--bind=127.0.{number // 250}.{number % 250 + 1}:0" for number in range(253)]
    server = daemon("--mode=reuseport", "--workers=1", "--reply", *many)
    assert greet(server.addresses[-1], "Alice") == "Hello, Alice\n"


@pytest.mark.shows("when descriptors are too few")
@needs_root
def test_a_scale_beyond_the_descriptors_of_the_dispatcher_is_refused(daemon: StartDaemon) -> None:
    server = daemon("--mode=handoff", "--workers=2", "--reply")
    dispatcher = dispatcher_of(server)
    with no_room_in(dispatcher):
        asked = server.ctl("scale", "4")
        assert asked.returncode == 1
        assert "the dispatcher cannot hand on to it: Too many open files" in asked.stderr
        until(lambda: len(server.worker_pids()) == 2, what="those that were there, and no other")
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    assert server.ctl("scale", "4").returncode == 0
    assert [greet(server.address, "Alice") for _ in range(8)] == ["Hello, Alice\n"] * 8
    greeted = {one["worker"] for one in server.greetings()}
    assert greeted >= {3, 4}, "it hands on to the new ones"
    assert dispatcher_of(server) == dispatcher
    assert server.stop() == 0


@pytest.mark.shows("when descriptors are too few")
@needs_root
def test_a_loan_that_a_worker_has_no_descriptors_for_goes_to_another(daemon: StartDaemon) -> None:
    server = daemon("--mode=reuseport", "--workers=3", "--reply")
    stuck, full = worker_of(server, 1), worker_of(server, 2)
    with no_room_in(full):
        os.kill(stuck, signal.SIGSTOP)
        clients = []
        while not server.events("listener lent"):
            clients.append(connect(server.address))
            clients[-1].sendall(b"Alice")
            clients[-1].shutdown(socket.SHUT_WR)
        refused = server.wait_event("loan refused")
        assert (refused["worker"], refused["to"]) == (1, 2)
        assert refused["reason"] == "Too many open files"
        lent = server.wait_event("listener lent", count=2)
        assert (lent["worker"], lent["to"]) == (1, 3)
    assert [client.recv(100) for client in clients] == [b"Hello, Alice\n"] * len(clients)
    for client in clients:
        client.close()
    os.kill(stuck, signal.SIGCONT)
    server.wait_event("listener taken back")
    assert worker_of(server, 2) == full, "who refuses goes on"
    assert server.stop() == 0
