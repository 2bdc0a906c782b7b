"""Greetings from many senders at once: none is lost, doubled or given to another name.

TEST_SIZE=full sends 40,000 in each mode, by senders that wait for the end of each connection and by
such that do not.
"""

import re
import socket
import subprocess
from collections.abc import Sequence

import pytest

from greeterd.supervisor.ids import DISPATCHER
from tests.support import until
from tests.system.books import (
    assert_gap_free,
    held_sockets,
    listening,
    names,
    outcomes,
    quiet_totals,
)
from tests.system.clients import fire, greet, socket_for
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, clean_environment, program
from tests.system.sizes import sized

WORKERS = 4
SENDERS = ("Alice", "Bob", "Çağla", "Dan\u200b Q")

both_modes = pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])


def send_all(address: str, count: int, *options: str) -> list[str]:
    """Greet `count` times with each name, from a process each; return what each said."""
    senders = [
        subprocess.Popen(
            [program("greeter"), "send", name, "--address", address, f"--count={count}", *options],
            env=clean_environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in SENDERS
    ]
    said = [sender.communicate(timeout=120)[1] for sender in senders]
    assert [sender.returncode for sender in senders] == [0] * len(senders), said
    return said


def wait_workers(daemon: Daemon, count: int) -> None:
    """Wait until so many workers are there, and the master says so."""
    until(lambda: len(daemon.worker_pids()) == count, what=f"{count} workers")
    until(lambda: len(daemon.status()["workers"]) == count, what=f"{count} slots")


def lines(daemon: Daemon) -> int:
    """Return the number of lines of all greeting logs, as wc counts them."""
    files = sorted(map(str, daemon.log_dir.glob("worker-*.log")))
    done = subprocess.run(["wc", "-l", *files], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-2])


@both_modes
@pytest.mark.parametrize(
    ("options", "count"), [([], sized(10_000, 4_000)), (["--no-wait"], sized(10_000, 2_000))]
)
def test_every_greeting_is_one_line_of_its_name(
    daemon: StartDaemon, mode: str, options: Sequence[str], count: int
) -> None:
    one = daemon(f"--mode={mode}", f"--workers={WORKERS}")
    said = send_all(one.address, count, "--concurrency=8", *options)
    total = count * len(SENDERS)
    totals = quiet_totals(one, connections=total, timeout=60.0)
    assert outcomes(totals) == {"greetings": total}
    assert lines(one) == total
    greetings = one.greetings()
    assert names(greetings) == dict.fromkeys(SENDERS, count)
    assert_gap_free(greetings)
    by_slot = {slot: counters["greetings"] for slot, counters in one.status()["counters"].items()}
    assert by_slot == {str(slot): len(one.log_lines(slot)) for slot in range(1, WORKERS + 1)}
    print(mode, options, by_slot, *(re.findall(r"[\d.]+ s, \d+/s", text)[0] for text in said))


def test_each_client_is_answered_by_its_own_name(daemon: StartDaemon) -> None:
    one = daemon("--workers=2", "--reply")
    assert [greet(one.address, f"client {n}") for n in range(50)] == [
        f"Hello, client {n}\n" for n in range(50)
    ]
    assert quiet_totals(one, connections=50)["replies"] == 50


@pytest.mark.parametrize(
    ("mode", "wait", "listeners"),
    [
        ("inherit", "rotate", 1),
        ("inherit", "blocking", 1),
        ("reuseport", "epoll", WORKERS),
        ("reuseport", "blocking", WORKERS),
    ],
)
def test_the_mode_decides_the_number_of_listening_sockets(
    daemon: StartDaemon, mode: str, wait: str, listeners: int
) -> None:
    one = daemon(f"--mode={mode}", f"--wait={wait}", f"--workers={WORKERS}")
    found = listening(one.address)
    assert len(found) == listeners
    held = [held_sockets(pid) & found for pid in one.worker_pids()]
    assert [len(each) for each in held] == [1] * WORKERS
    assert set.union(*held) == found
    assert held_sockets(one.pid) >= found, "the master keeps every listener"


@pytest.mark.shows("protocol exactly exit, with allow_exit = true")
@both_modes
def test_exit_retires_one_worker_after_the_other_and_then_the_daemon(
    daemon: StartDaemon, mode: str
) -> None:
    one = daemon(f"--mode={mode}", f"--workers={WORKERS}", "--allow-exit")
    for left in range(WORKERS - 1, 0, -1):
        assert greet(one.address, "exit") == ""
        wait_workers(one, left)
        assert greet(one.address, "Alice") == ""
    totals = quiet_totals(one, connections=2 * (WORKERS - 1))
    assert outcomes(totals) == {"greetings": WORKERS - 1, "exit": WORKERS - 1}
    assert len(one.events("worker retired")) == WORKERS - 1
    greet(one.address, "exit\r\n")
    assert one.wait() == 0
    assert one.events("stopped")[-1]["code"] == 0
    exits = one.events("worker exited")
    workers = [each["worker"] for each in exits if each["worker"] != DISPATCHER]
    assert sorted(workers) == list(range(1, WORKERS + 1))
    assert {each["reason"] for each in exits} == {"exit status 0"}
    assert names(one.greetings()) == {"Alice": WORKERS - 1}


@both_modes
def test_as_many_exits_as_workers_in_one_burst_end_the_daemon(
    daemon: StartDaemon, mode: str
) -> None:
    one = daemon(f"--mode={mode}", f"--workers={WORKERS}", "--allow-exit")
    for _ in range(WORKERS):
        fire(one.address, "exit")
    assert one.wait() == 0
    exits = one.events("worker exited")
    workers = [each["worker"] for each in exits if each["worker"] != DISPATCHER]
    assert sorted(workers) == list(range(1, WORKERS + 1))
    assert {each["reason"] for each in exits} == {"exit status 0"}
    assert one.greetings() == []


@both_modes
def test_fewer_exits_than_workers_leave_a_daemon_that_greets(
    daemon: StartDaemon, mode: str
) -> None:
    one = daemon(f"--mode={mode}", f"--workers={WORKERS}", "--allow-exit", "--reply")
    for _ in range(WORKERS - 1):
        fire(one.address, "exit")
    wait_workers(one, 1)
    assert greet(one.address, "Alice") == "Hello, Alice\n"
    assert one.process.poll() is None


@both_modes
def test_a_reply_of_four_mebibytes_reaches_a_client_that_reads_slowly(
    daemon: StartDaemon, mode: str
) -> None:
    """A reply can be four times its name; it counts when the last byte is sent, and not before."""
    most = 2**20
    server = daemon("--mode", mode, "--reply", f"--max-name-bytes={most}", "--client-timeout=60")
    sock, where = socket_for(server.address)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(60.0)
        sock.connect(where)
        sock.sendall(b"\xff" * most)
        sock.shutdown(socket.SHUT_WR)
        until(lambda: server.status()["totals"]["greetings"] == 1)
        assert greet(server.address, "Bob") == "Hello, Bob\n", "it delays no other"
        assert server.status()["totals"]["replies"] == 1, "the long one is not sent yet"
        with sock.makefile("rb") as stream:
            assert stream.read() == b"Hello, " + rb"\xff" * most + b"\n"
    assert quiet_totals(server, connections=2)["replies"] == 2
