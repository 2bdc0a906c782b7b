"""What a worker does to a listener that it shares with others: found, undone, and told.

The test takes the worker's part: it holds a duplicate of its descriptor.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from greeterd.sockets.address import parse_address
from tests.support import until
from tests.system import proc
from tests.system.books import worker_of
from tests.system.clients import connect, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon
from tests.system.hostile import drop_everything

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes another process's descriptors")
MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])


def holder(server: Daemon) -> int:
    """Return the pid of who accepts: the dispatcher, or worker 1."""
    status = server.status()
    return int((status["dispatcher"] or status["workers"])[0]["pid"])


def told(server: Daemon, what: str) -> list[dict[str, object]]:
    """Return the records of what was done to a listener."""
    return [one for one in server.events("listener meddled with") if what in one["what"]]


def serves(server: Daemon, *, address: str = "") -> bool:
    """Tell whether every slot's worker greets, and nobody hangs."""
    address = address or server.address
    before = {row["slot"] for row in server.status()["workers"]}
    with contextlib.suppress(OSError):
        return len(before) == 2 and all(
            greet(address, "Alice", timeout=3.0) == "Hello, Alice\n" for _ in range(12)
        )
    return False


@pytest.mark.shows("when a worker shuts or changes a listener")
@MODES
@pytest.mark.parametrize("chosen", ["by the kernel", "by bind"])
def test_a_listener_that_was_shut_down_is_opened_again(
    daemon: StartDaemon, mode: str, chosen: str
) -> None:
    where = "127.0.0.1:0"
    if chosen == "by bind":
        with socket.create_server(("127.0.0.1", 0)) as free:
            where = f"127.0.0.1:{free.getsockname()[1]}"
    server = daemon("--mode", mode, "--workers=2", "--reply", "--bind", where)
    pid = holder(server)
    with proc.listener_of(pid) as listener, connect(server.address) as queued:
        listener.shutdown(socket.SHUT_RDWR)
        until(lambda: told(server, "shut down"))
        queued.settimeout(5.0)
    until(lambda: holder(server) not in {pid, 0}, what="whoever held it is replaced")
    until(lambda: serves(server))
    assert server.ctl("ping").returncode == 0
    status = server.status()
    assert status["trouble"] is None
    assert status["last_error"] == f"{server.address} was shut down"
    assert status["addresses"] == [server.address]
    assert len(told(server, "shut down")) == 1
    assert server.stop() == 0


@MODES
def test_a_listener_that_listens_again_and_spoils_connections_is_found(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers=2", "--reply")
    pid, where = holder(server), parse_address(server.address)
    with proc.listener_of(pid) as listener:
        listener.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            listener.bind((where.host, where.port))
        listener.listen(4096)
    until(lambda: told(server, "shut down"))
    until(lambda: holder(server) not in {pid, 0})
    until(lambda: serves(server))


@pytest.mark.shows("when a worker shuts or changes a listener")
@MODES
def test_what_was_changed_on_a_shared_description_is_set_right(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers=2", "--reply", "--backlog=64")
    pid = holder(server)
    with proc.listener_of(pid) as listener:
        listener.setblocking(True)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 500)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, b"\x01" + bytes(15))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 9)
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01" + bytes(7))
        drop_everything(listener)
        listener.listen(1)
        names = {
            "O_NONBLOCK", "SO_RCVLOWAT", "SO_RCVTIMEO", "TCP_DEFER_ACCEPT", "IP_TTL", "SO_LINGER",
            "SO_ATTACH_FILTER", "backlog",
        }  # fmt: skip

        def found() -> set[str]:
            texts = [str(one["what"]).removeprefix("changed: ") for one in told(server, "changed")]
            return {name for text in texts for name in text.split(", ")}

        until(lambda: names <= found())
    until(lambda: serves(server))
    assert holder(server) == pid, "nobody had to be replaced"
    assert server.status()["trouble"] is None


@MODES
def test_a_filter_that_stays_takes_a_new_listener(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers=2", "--reply")
    pid = holder(server)
    with proc.listener_of(pid) as listener:
        drop_everything(listener, for_good=True)
        until(lambda: told(server, "changed for good"))
    until(lambda: holder(server) not in {pid, 0})
    until(lambda: serves(server))
    assert server.status()["trouble"] is None
    assert server.stop() == 0


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_socketpair_that_was_shut_down_is_replaced(daemon: StartDaemon, how: int) -> None:
    server = daemon("--mode=handoff", "--workers=2", "--reply")
    pid = worker_of(server, 1)
    with proc.pair_exit_of(pid, server.pid) as end:
        end.shutdown(how)
    if how == socket.SHUT_WR:  # nothing goes this way
        until(lambda: serves(server))
        assert worker_of(server, 1) == pid
        return
    until(lambda: told(server, "shut down"))
    until(lambda: worker_of(server, 1) not in {pid, 0})
    until(lambda: serves(server))
    for _ in range(4):
        greet(server.address, "Bob")
    assert server.log_lines(1)
    assert server.stop() == 0


def test_a_socketpair_that_drops_everything_is_replaced(daemon: StartDaemon) -> None:
    server = daemon("--mode=handoff", "--workers=2", "--reply")
    pid = worker_of(server, 1)
    with proc.pair_exit_of(pid, server.pid) as end:
        drop_everything(end, for_good=True)
    until(lambda: told(server, "changed: SO_ATTACH_FILTER"))
    until(lambda: worker_of(server, 1) not in {pid, 0})
    until(lambda: serves(server))
    assert server.stop() == 0


@pytest.mark.parametrize("mode", ["inherit", "handoff"])
def test_a_unix_socket_that_was_shut_down_is_opened_again(
    daemon: StartDaemon, tmp_path: Path, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers=2", "--reply", f"--bind=unix:{tmp_path}/s")
    pid = holder(server)
    with proc.listener_of(pid, server.address) as listener:
        listener.shutdown(socket.SHUT_RDWR)
    until(lambda: told(server, "shut down"))
    until(lambda: holder(server) not in {pid, 0})
    until(lambda: serves(server))
    assert server.stop() == 0
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("mode", ["inherit", "handoff", "reuseport"])
@pytest.mark.parametrize("command", ["reload", "restart", "upgrade"])
def test_commands_that_meet_a_shut_listener_mend_it(
    daemon: StartDaemon, mode: str, command: str
) -> None:
    server = daemon("--mode", mode, "--workers=2", "--reply")
    with proc.listener_of(holder(server)) as listener:
        listener.shutdown(socket.SHUT_RDWR)
    done = server.ctl(command)
    assert (done.returncode, done.stderr) == (0, "")
    until(lambda: serves(server))
    assert server.stop() == 0


@contextlib.contextmanager
def taken(server: Daemon) -> Iterator[None]:
    """Shut the daemon's only listener, and have a stranger listen in its place."""
    address = parse_address(server.address)
    with proc.listener_of(holder(server)) as listener, socket.socket() as stranger:
        # A port that the kernel has chosen is free as soon as it is shut.
        for _ in range(100):
            listener.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                stranger.bind((address.host, address.port))
                break
        stranger.listen()
        until(lambda: server.status()["trouble"])
        yield


@pytest.mark.shows("when a worker shuts or changes a listener")
@pytest.mark.parametrize("mode", ["inherit", "handoff"])
def test_an_address_that_cannot_be_had_again_is_told_until_it_can(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers=2", "--reply")
    reason = f"{server.address} does not accept: "
    with taken(server):
        assert server.status()["trouble"].startswith(reason)
        assert "another process uses this address" in server.status()["trouble"]
        ping = server.ctl("ping")
        assert ping.returncode == 1
        assert reason in ping.stderr
        for command in ("reload", "restart"):
            done = server.ctl(command)
            assert done.returncode == 1
            assert reason in done.stderr
        assert len(told(server, "shut down")) == 1, "it is told once"
    until(lambda: server.status()["trouble"] is None)
    assert server.ctl("ping").returncode == 0
    until(lambda: serves(server))
    assert server.stop() == 0


@pytest.mark.shows("when a worker shuts or changes a listener")
def test_when_no_address_accepts_any_longer_the_daemon_ends_with_69(daemon: StartDaemon) -> None:
    server = daemon("--workers=2")
    with taken(server):
        assert server.wait() == 69
    last = server.events("stopped")[-1]
    assert (last["code"], last["level"]) == (69, "error")
    assert f"{server.address} does not accept" in last["reason"]


def test_while_one_of_two_addresses_accepts_the_daemon_stays(daemon: StartDaemon) -> None:
    server = daemon("--workers=2", "--reply", "--bind=127.0.0.1:0", "--bind=127.0.0.2:0")
    first, second = server.addresses
    where = parse_address(first)
    with proc.listener_of(holder(server), first) as listener, socket.socket() as stranger:
        listener.shutdown(socket.SHUT_RDWR)
        stranger.bind((where.host, where.port))
        stranger.listen()
        until(lambda: server.status()["trouble"])
        assert greet(second, "Alice") == "Hello, Alice\n"
        assert server.ctl("ping").returncode == 1
        assert "127.0.0.2" not in server.status()["trouble"]
    until(lambda: server.status()["trouble"] is None)
    until(lambda: serves(server, address=first))
    until(lambda: serves(server, address=second))
