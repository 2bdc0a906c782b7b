"""How the daemon and its workers end: signals from a shell, from a terminal, and as an init."""

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support import until
from tests.system.clients import Load, connect, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon
from tests.system.proc import listeners, terminal_of

MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])
PROMPT = 5.0  # seconds that a quick stop may take on a busy machine; its clients would take 60


def unfinished(server: Daemon) -> socket.socket:
    """Return a connection that a worker has accepted and that has sent half a name."""
    client = connect(server.address, timeout=20.0)
    client.sendall(b"Al")
    until(lambda: server.status()["totals"]["open"] == 1)
    return client


def finish(client: socket.socket) -> bytes:
    """Send the other half of the name; return the answer."""
    client.sendall(b"ice")
    client.shutdown(socket.SHUT_WR)
    return client.recv(100)


def nobody_listens(server: Daemon) -> bool:
    """Tell whether a new client gets nothing; what a gate drops takes a second to be retried."""
    try:
        with connect(server.address, timeout=0.1):
            return False
    except (ConnectionRefusedError, TimeoutError):
        return True


@pytest.mark.shows("signal TERM", "exit 0 greeterd")
@MODES
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_stop_serves_what_has_begun(
    daemon: StartDaemon, mode: str, number: signal.Signals
) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply", "--client-timeout", "60")
    with unfinished(server) as client:
        server.signal(number)
        until(lambda: nobody_listens(server))
        assert finish(client) == b"Hello, Alice\n"
        assert server.wait() == 0
    assert [one["name"] for one in server.greetings()] == ["Alice"]
    assert [one["code"] for one in server.events("stopped")] == [0]


@pytest.mark.shows("signal QUIT")
@MODES
@pytest.mark.parametrize("numbers", [[signal.SIGQUIT], [signal.SIGINT, signal.SIGINT]])
def test_a_quick_stop_drops_what_is_unfinished(
    daemon: StartDaemon, mode: str, numbers: list[signal.Signals]
) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--client-timeout", "60")
    with unfinished(server) as client:
        began = time.monotonic()
        for number in numbers:
            count = len(server.events("signal"))
            server.signal(number)
            server.wait_event("signal", count=count + 1)
        assert server.wait() == 0
        assert time.monotonic() - began < PROMPT
        with pytest.raises(ConnectionResetError):
            client.recv(100)


@contextmanager
def terminal() -> Iterator[tuple[int, str]]:
    """Make a terminal; give the descriptor of its keyboard and screen, and its name."""
    keyboard, screen = pty.openpty()
    try:
        yield keyboard, os.ttyname(screen)
    finally:
        os.close(keyboard)
        os.close(screen)


def on_terminal(daemon: StartDaemon, name: str, *arguments: str) -> Daemon:
    """Start a daemon in the foreground of a terminal."""
    # The first terminal that a session's leader opens becomes the session's.
    server = daemon(*arguments, prefix=("sh", "-c", 'exec "$@" <"$0"', name))
    for pid in [server.pid, *server.worker_pids()]:
        assert terminal_of(pid) == Path(name).stat().st_rdev
    return server


@MODES
def test_ctrl_c_at_a_terminal_is_graceful_though_every_process_gets_it(
    daemon: StartDaemon, mode: str
) -> None:
    with terminal() as (keyboard, name):
        server = on_terminal(daemon, name, "--mode", mode, "--workers", "2", "--reply")
        with unfinished(server) as client:
            os.write(keyboard, b"\x03")
            assert server.wait_event("signal")["signal"] == "SIGINT"
            until(lambda: nobody_listens(server))
            assert finish(client) == b"Hello, Alice\n"
            assert server.wait() == 0
    assert {one["reason"] for one in server.events("worker exited")} == {"exit status 0"}


@pytest.mark.shows("signal INT")
@pytest.mark.parametrize("keys", [b"\x1c", b"\x03\x03"])
def test_ctrl_backslash_and_a_second_ctrl_c_are_quick(daemon: StartDaemon, keys: bytes) -> None:
    with terminal() as (keyboard, name):
        server = on_terminal(daemon, name, "--workers", "2", "--client-timeout", "60")
        with unfinished(server):
            began = time.monotonic()
            for number in range(len(keys)):
                os.write(keyboard, keys[number : number + 1])
                server.wait_event("signal", count=number + 1)
            assert server.wait() == 0
            assert time.monotonic() - began < PROMPT


@MODES
def test_term_to_the_whole_process_group_fails_nobody_who_has_connected(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "4", "--reply")
    with Load(server.address, concurrency=16, reply=True) as load:
        load.wait_going()
        began = time.monotonic()
        os.killpg(server.process.pid, signal.SIGTERM)
        assert server.wait() == 0
        result = load.stop()
    print(result.counts)
    assert result.lost_by_stop(began) == {}


@pytest.mark.shows("signal TERM to a worker")
@MODES
def test_term_to_one_worker_replaces_it_and_fails_nobody(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply", "--max-restarts", "100")
    with Load(server.address, concurrency=16, reply=True) as load:
        load.wait_going()
        ready = len(server.events("worker ready"))
        for number in range(1, 6):
            os.kill(server.worker_pids()[0], signal.SIGTERM)
            exited = server.wait_event("worker exited", count=number)
            assert exited["reason"] == "exit status 0"
            server.wait_event("worker ready", count=ready + number)
        result = load.stop()
    print(result.counts, f"slowest {result.slowest:.2f} s")
    assert result.lost == {}
    assert len(server.worker_pids()) == 2


def test_term_to_a_worker_and_to_its_successor_while_both_have_clients_ends_nobody_else(
    daemon: StartDaemon,
) -> None:
    server = daemon("--workers", "1", "--reply", "--client-timeout", "60")
    (first,) = server.worker_pids()
    with connect(server.address) as one, connect(server.address) as other:
        until(lambda: server.status()["totals"]["open"] == 2, what="two clients")
        os.kill(first, signal.SIGTERM)
        server.wait_event("worker ready", count=2)
        until(lambda: listeners(first) == {}, what="the first has emptied its listener")
        with connect(server.address) as third:
            until(lambda: server.status()["totals"]["open"] == 3, what="a client of the second")
            (second,) = set(server.worker_pids()) - {first}
            os.kill(second, signal.SIGTERM)
            until(lambda: listeners(second) == {}, what="the second has emptied its listener")
            for client in (third, one, other):
                client.sendall(b"Alice")
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b"Hello, Alice\n"
    server.wait_event("worker ready", count=3)
    assert greet(server.address, "Bob") == "Hello, Bob\n"


@MODES
def test_a_slow_client_of_a_worker_that_leaves_delays_nobody(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply", "--client-timeout", "60")
    with unfinished(server) as client:
        status = server.status()
        (slot,) = (int(slot) for slot, one in status["counters"].items() if one["open"])
        (pid,) = (one["pid"] for one in status["workers"] if one["slot"] == slot)
        os.kill(pid, signal.SIGTERM)
        until(lambda: listeners(pid) == {}, what="the worker has emptied its listener")
        with Load(server.address, count=100, concurrency=8, reply=True) as load:
            result = load.finish()
        assert result.counts == {"ok": 100}
        assert result.slowest < PROMPT
        assert finish(client) == b"Hello, Alice\n"
    until(lambda: pid not in server.worker_pids() and len(server.worker_pids()) == 2)


def title(pid: int) -> str:
    """Return what ps shows of a process."""
    command = ["ps", "-ww", "-o", "args=", "-p", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return done.stdout.strip()


@MODES
def test_ps_tells_who_is_who(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply", "--client-timeout", "60")
    assert title(server.pid) == f"greeterd: master [{mode} {server.address}]"
    assert sorted(map(title, server.worker_pids())) == [
        "greeterd: worker 1 gen 1",
        "greeterd: worker 2 gen 1",
    ]
    assert server.ctl("reload").returncode == 0
    until(lambda: len(server.worker_pids()) == 2)
    assert sorted(map(title, server.worker_pids())) == [
        "greeterd: worker 1 gen 2",
        "greeterd: worker 2 gen 2",
    ]
    with unfinished(server) as client:
        server.signal(signal.SIGTERM)
        until(lambda: [title(pid) for pid in server.worker_pids() if "[draining]" in title(pid)])
        assert title(server.pid).endswith("(stopping)")
        assert finish(client) == b"Hello, Alice\n"
    assert server.wait() == 0


def test_as_pid_1_it_reaps_the_orphans_of_strangers(daemon: StartDaemon) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a pid namespace needs root and unshare(1)")
    server = daemon(
        *("--workers", "2", "--reply"),
        prefix=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"),
    )
    (init,) = psutil.Process(server.process.pid).children()
    inside = Path(f"/proc/{init.pid}/status").read_text()
    assert re.search(r"^NSpid:.*\t1$", inside, re.MULTILINE)
    workers = init.children()
    assert len(workers) == 2

    enter = ("nsenter", "-t", str(init.pid), "--pid", "--")
    subprocess.run([*enter, "sh", "-c", "sleep 60 &"], check=True, timeout=10)
    (orphan,) = set(init.children()) - set(workers)
    orphan.kill()
    until(lambda: init.children() == workers, what="no orphan, not even as a zombie")
    assert greet(server.address, "Alice") == "Hello, Alice\n"

    workers[0].kill()
    server.wait_event("worker ready", count=3)
    init.terminate()
    assert server.wait() == 0
    assert server.events("stopped")[0]["pid"] == 1


@pytest.mark.parametrize("mode", ["inherit", "reuseport"])
def test_at_a_stop_workers_leave_by_themselves_when_the_master_hangs(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers=2", "--drain-grace=1", "--graceful-timeout=4")
    children = psutil.Process(server.pid).children()
    server.signal(signal.SIGTERM)
    until(lambda: all("[draining]" in title(child.pid) for child in children))
    server.signal(signal.SIGSTOP)
    try:
        until(lambda: all(child.status() == psutil.STATUS_ZOMBIE for child in children))
    finally:
        server.signal(signal.SIGCONT)
    assert server.wait() == 0
    assert server.events("worker is ended") == []
