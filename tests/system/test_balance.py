"""Who serves: how evenly each wait strategy shares connections, and that it is what its name says.

One connection at a time, because then the kernel's choice alone decides, and not who is busy.
"""

import select

import pytest

from tests.support import until
from tests.system.clients import Load, connect, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon
from tests.system.proc import epoll_masks, inodes, is_blocking, listeners, sleeps_in

CONNECTIONS = 4000
PAUSE = 0.002  # seconds in which whoever has served is idle again
EPOLLIN_AND_ERRORS = select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP


def jain(counts: list[int]) -> float:
    """Return 1 for equal shares, 1/N where one has all (Jain, Chiu and Hawe 1984)."""
    return sum(counts) ** 2 / (len(counts) * sum(count**2 for count in counts))


def shares(daemon: Daemon) -> list[int]:
    """Return the connections of each slot."""
    return [one["connections"] for _, one in sorted(daemon.status()["counters"].items())]


@pytest.mark.shows("wait rotate", "wait exclusive", "wait epoll", "wait blocking")
@pytest.mark.parametrize(
    ("mode", "wait", "least", "most"),
    [
        ("inherit", "rotate", 0.99, 1.0),
        ("inherit", "blocking", 0.99, 1.0),
        ("inherit", "exclusive", 0.25, 0.7),
        # By chance alone below 0.99 in one of 100 million cases, of half the connections in 7,000.
        ("reuseport", "epoll", 0.99, 1.0),
        ("handoff", "epoll", 0.99, 1.0),
        ("reuseport", "blocking", 0.99, 1.0),
    ],
)
def test_the_wait_strategy_decides_the_balance(
    daemon: StartDaemon, mode: str, wait: str, least: float, most: float
) -> None:
    server = daemon("--mode", mode, "--wait", wait, "--workers", "4")
    # The one that was woken last is passed over while it is still busy with that.
    count, pause = (CONNECTIONS // 4, PAUSE) if wait == "exclusive" else (CONNECTIONS, 0.0)
    with Load(server.address, count=count, processes=1, concurrency=1, interval=pause) as load:
        result = load.finish()
    assert result.counts == {"ok": count}
    until(lambda: sum(shares(server)) == count)
    print(mode, wait, shares(server), round(jain(shares(server)), 4))
    assert least <= jain(shares(server)) <= most, shares(server)


def watched(pid: int) -> list[int]:
    """Return the masks with which a worker's epoll waits for its listeners."""
    masks = epoll_masks(pid)
    return [masks[fd] for fd in listeners(pid) if fd in masks]


def wait_asleep(pid: int, function: str) -> None:
    """Wait until the process sleeps in a kernel function whose name has this part."""
    until(lambda: function in sleeps_in(pid), what=f"{pid} asleep in {function}")


@pytest.mark.parametrize(
    ("mode", "wait", "exclusive"),
    [
        ("inherit", "rotate", select.EPOLLEXCLUSIVE),
        ("inherit", "exclusive", select.EPOLLEXCLUSIVE),
        ("inherit", "epoll", 0),
        ("reuseport", "epoll", 0),
    ],
)
def test_an_epoll_strategy_sleeps_in_epoll_and_only_two_of_them_ask_to_be_woken_alone(
    daemon: StartDaemon, mode: str, wait: str, exclusive: int
) -> None:
    server = daemon("--mode", mode, "--wait", wait, "--workers", "2")
    for pid in server.worker_pids():
        wait_asleep(pid, "poll")  # it is ready before it waits
        assert watched(pid) == [EPOLLIN_AND_ERRORS | exclusive]
        assert not any(is_blocking(pid, fd) for fd in listeners(pid))


@pytest.mark.parametrize("mode", ["inherit", "reuseport"])
def test_blocking_sleeps_in_accept_and_its_epoll_does_not_know_the_listener(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--wait", "blocking", "--workers", "2")
    for pid in server.worker_pids():
        wait_asleep(pid, "accept")
        assert watched(pid) == []
        assert all(is_blocking(pid, fd) for fd in listeners(pid))


@pytest.mark.shows("wait blocking")
def test_blocking_waits_in_epoll_too_while_a_connection_is_unfinished(daemon: StartDaemon) -> None:
    server = daemon("--mode", "inherit", "--wait", "blocking", "--workers", "1")
    (pid,) = server.worker_pids()
    with connect(server.address) as silent:
        silent.sendall(b"Al")
        until(lambda: watched(pid))
        wait_asleep(pid, "poll")
        assert greet(server.address, "Bob") == ""
        silent.sendall(b"ice")
    until(lambda: [one["name"] for one in server.greetings()] == ["Bob", "Alice"])
    wait_asleep(pid, "accept")


def test_in_mode_inherit_all_workers_share_one_listener(daemon: StartDaemon) -> None:
    server = daemon("--mode", "inherit", "--workers", "4")
    assert len(set.union(*(inodes(pid) for pid in [server.pid, *server.worker_pids()]))) == 1


def test_in_mode_reuseport_each_worker_has_a_listener_and_the_master_holds_them_all(
    daemon: StartDaemon,
) -> None:
    server = daemon("--mode", "reuseport", "--workers", "4")
    own = [inodes(pid) for pid in server.worker_pids()]
    assert [len(one) for one in own] == [1] * 4
    assert len(set.union(*own)) == 4
    assert inodes(server.pid) == set.union(*own)
    for pid in server.worker_pids():
        assert set(listeners(pid).values()) == {server.address}
