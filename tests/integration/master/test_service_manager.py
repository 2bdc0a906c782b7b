"""The service manager: what its socket hears, and what it is given to keep."""

import array
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from greeterd.errors import ConfigError
from greeterd.master.systemd.service_manager import ServiceManager
from greeterd.supervisor.events import Ready, Stop, Tick
from greeterd.supervisor.ids import WorkerId
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.supervisor import Supervisor


@pytest.fixture
def hears(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def environment(hears: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": hears.getsockname(), **more}


def heard(hears: socket.socket) -> list[str]:
    """Return the messages since the last call; descriptors that came with them are closed."""
    found: list[str] = []
    while True:
        try:
            data, rights, _, _ = hears.recvmsg(4096, socket.CMSG_SPACE(64))
        except BlockingIOError:
            return found
        for _, _, raw in rights:
            for fd in array.array("i", raw):
                os.close(fd)
        found.append(data.decode())


def started(workers: int) -> Supervisor:
    supervisor = Supervisor(workers=workers, policy=Policy(), jitter=lambda: 0.0)
    supervisor.handle(Tick(), 0.0)
    for worker in range(1, workers + 1):
        supervisor.handle(Ready(WorkerId(worker), rss_bytes=0), 0.0)
    return supervisor


def attend(manager: ServiceManager, supervisor: Supervisor, now: float = 0.0) -> None:
    manager.attend(supervisor, started=True, figures=lambda: "figures", now=now)


def test_without_a_manager_nothing_is_told_or_kept_and_there_is_no_deadline() -> None:
    manager = ServiceManager(upgraded=False, environ={})
    manager.begin()
    manager.keep({"name": 10**6})
    attend(manager, started(1))
    assert manager.next_deadline() is None


def test_a_period_of_the_watchdog_that_is_no_number_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="WATCHDOG_USEC"):
        ServiceManager(upgraded=False, environ={"WATCHDOG_USEC": "soon"})


def test_a_life_as_the_manager_hears_it(hears: socket.socket) -> None:
    manager = ServiceManager(upgraded=False, environ=environment(hears, WATCHDOG_USEC="4000000"))
    supervisor = started(2)
    attend(manager, supervisor)
    assert heard(hears) == ["READY=1", "STATUS=ready: figures", "WATCHDOG=1"]
    assert manager.next_deadline() == 2.0
    attend(manager, supervisor, 2.0)
    assert heard(hears) == ["WATCHDOG=1"]
    manager.begin()
    [reloading] = heard(hears)
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    manager.end("reload failed: why")
    attend(manager, supervisor, 2.0)
    assert heard(hears) == ["READY=1", "STATUS=ready: figures; reload failed: why"]
    supervisor.handle(Stop(), 2.0)
    attend(manager, supervisor, 2.0)
    assert heard(hears)[0] == "STOPPING=1"


def test_an_upgraded_image_tells_its_pid(hears: socket.socket) -> None:
    manager = ServiceManager(upgraded=True, environ=environment(hears))
    attend(manager, started(1))
    assert heard(hears)[0] == f"READY=1\nMAINPID={os.getpid()}"


def test_a_worker_that_does_not_turn_its_loop_is_not_well(hears: socket.socket) -> None:
    manager = ServiceManager(upgraded=False, environ=environment(hears, WATCHDOG_USEC="4000000"))
    supervisor = started(2)
    next(iter(supervisor.workers)).overdue = True
    attend(manager, supervisor)
    assert "WATCHDOG=1" not in heard(hears)


def test_the_store_is_brought_in_line(hears: socket.socket) -> None:
    manager = ServiceManager(upgraded=False, environ=environment(hears))
    with socket.socket() as one, socket.socket() as two:
        manager.keep({"a": one.fileno(), "b": two.fileno()})
        store = "FDSTORE=1\nFDNAME={}\nFDPOLL=0".format
        remove = "FDSTOREREMOVE=1\nFDNAME={}".format
        assert heard(hears) == [store("a"), store("b")]
        manager.keep({"a": one.fileno(), "b": two.fileno()})
        assert heard(hears) == []
        manager.keep({"a": one.fileno(), "c": two.fileno()})
        assert heard(hears) == [remove("b"), store("c")], "a socket has one name at a time"
        manager.keep({"a": two.fileno()})
        assert heard(hears) == [remove("a"), remove("c"), store("a")]


def test_a_word_that_is_not_taken_is_told_again_in_its_order(hears: socket.socket) -> None:
    environ = environment(hears, WATCHDOG_USEC="4000000")
    manager = ServiceManager(upgraded=False, environ=environ)
    path = Path(environ["NOTIFY_SOCKET"])
    supervisor = started(1)
    path.rename(path.with_name("away"))
    attend(manager, supervisor)
    assert manager.next_deadline() == 0.0
    manager.begin()
    attend(manager, supervisor, 0.5)
    assert manager.next_deadline() == 1.5
    manager.end("reload failed: why")
    path.with_name("away").rename(path)
    attend(manager, supervisor, 1.0)
    assert heard(hears) == [], "not before its time"
    attend(manager, supervisor, 1.5)
    status = "STATUS=ready: figures; reload failed: why"
    reloading, *others = heard(hears)
    assert reloading.startswith("RELOADING=1\n")
    assert others == ["READY=1", status], "the latest of each kind; no stale ping"
    attend(manager, supervisor, 2.0)
    assert heard(hears) == ["WATCHDOG=1"]
    assert manager.next_deadline() == 4.0


def test_service_manager_is_notified_again_of_a_stop_that_it_has_missed(
    hears: socket.socket,
) -> None:
    environ = environment(hears)
    manager = ServiceManager(upgraded=False, environ=environ)
    path = Path(environ["NOTIFY_SOCKET"])
    supervisor = started(1)
    attend(manager, supervisor)
    path.rename(path.with_name("away"))
    supervisor.handle(Stop(), 0.0)
    attend(manager, supervisor, 0.5)
    path.with_name("away").rename(path)
    heard(hears)
    attend(manager, supervisor, 2.0)
    assert heard(hears)[:1] == ["STOPPING=1"]


def test_what_could_not_be_told_is_told_at_the_next_turn(hears: socket.socket) -> None:
    environ = environment(hears)
    manager = ServiceManager(upgraded=False, environ=environ)
    path = environ["NOTIFY_SOCKET"]
    with socket.socket() as one:
        Path(path).rename(path + "-away")
        manager.keep({"a": one.fileno()})
        Path(path + "-away").rename(path)
        attend(manager, started(1))
        assert "FDSTORE=1\nFDNAME=a\nFDPOLL=0" in heard(hears)
        attend(manager, started(1), 1.0)
        assert heard(hears) == []
