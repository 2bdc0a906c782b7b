"""Addresses: refused when taken, several at once, IPv6, unix sockets, and ports that need root."""

import os
import pwd
import socket
import stat
import subprocess
from contextlib import closing
from pathlib import Path
from signal import SIGKILL

import pytest

from greeterd.sockets.listener import effective_backlog
from tests.support import until
from tests.system.clients import connect, greet, run_load
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, program
from tests.system.proc import inodes, listeners, uids

MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport"])
BY_WORKERS = pytest.mark.parametrize("mode", ["inherit", "reuseport"])
"""In which the workers have the listeners."""


def refused(daemon: StartDaemon, *arguments: str) -> str:
    """Start a daemon that has to refuse its address; return what it said."""
    server = daemon(*arguments, wait=False)
    assert server.wait() == 69, server.log_text()
    return str(server.log_text())


@pytest.mark.shows("exit 69 greeterd", "when the port is taken")
@MODES
@pytest.mark.parametrize("option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_an_address_that_a_stranger_listens_on_is_refused(
    daemon: StartDaemon, mode: str, option: int | None
) -> None:
    with socket.socket() as stranger:
        if option is not None:
            stranger.setsockopt(socket.SOL_SOCKET, option, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        address = "{}:{}".format(*stranger.getsockname())
        said = refused(daemon, "--mode", mode, "--bind", address)
    assert f"cannot listen on {address}: another process uses this address" in said


@pytest.mark.shows("when the port is taken")
@MODES
@pytest.mark.parametrize("other", ["inherit", "reuseport"])
def test_an_address_that_another_greeterd_has_is_refused(
    daemon: StartDaemon, mode: str, other: str
) -> None:
    first = daemon("--mode", other, "--workers", "1")
    said = refused(daemon, "--mode", mode, "--bind", first.address)
    assert f"cannot listen on {first.address}: another process uses this address" in said
    assert greet(first.address, "Alice") == ""


@MODES
def test_an_address_is_free_again_though_its_connections_linger(
    daemon: StartDaemon, mode: str
) -> None:
    # Who closes first is left with the connection in TIME_WAIT, for a minute.
    first = daemon("--mode", mode, "--workers", "1", "--client-timeout", "0.1")
    with connect(first.address) as silent:
        assert silent.recv(1) == b""
    assert first.stop() == 0
    for again in ("inherit", "reuseport"):
        second = daemon("--mode", again, "--workers", "1", "--reply", "--bind", first.address)
        assert greet(second.address, "Alice") == "Hello, Alice\n"
        assert second.stop() == 0


@pytest.fixture
def ipv6() -> str:
    """Return a free IPv6 address of this machine's; skips where there is none."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return "[::1]:0"
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")


@BY_WORKERS
def test_several_addresses_are_served_by_every_worker(
    daemon: StartDaemon, mode: str, ipv6: str
) -> None:
    binds = [word for one in ("127.0.0.1:0", "127.0.0.2:0", ipv6) for word in ("--bind", one)]
    server = daemon("--mode", mode, "--workers", "2", "--reply", *binds)
    assert [one.rpartition(":")[0] for one in server.addresses] == [
        "127.0.0.1",
        "127.0.0.2",
        "[::1]",
    ]
    for address in server.addresses:
        assert run_load(address, 50, reply=True).counts == {"ok": 50}
    assert server.status()["addresses"] == server.addresses
    for pid in server.worker_pids():
        assert sorted(listeners(pid).values()) == sorted(server.addresses)
    sockets = set.union(*(inodes(pid) for pid in server.worker_pids()))
    assert len(sockets) == (3 if mode == "inherit" else 6)
    clients = {one["client"].rpartition(":")[0] for one in server.greetings()}
    assert clients == {"127.0.0.1", "[::1]"}


@BY_WORKERS
def test_port_0_becomes_one_port_that_is_not_0(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "3")
    assert int(server.address.rpartition(":")[2]) > 0
    for pid in server.worker_pids():
        assert list(listeners(pid).values()) == [server.address]


def test_blocking_with_several_addresses_is_refused(daemon: StartDaemon) -> None:
    binds = ["--bind", "127.0.0.1:0", "--bind", "127.0.0.2:0"]
    server = daemon("--wait", "blocking", *binds, wait=False)
    assert server.wait() == 78
    assert "a worker blocks on one listener" in server.log_text()


def test_a_backlog_that_the_kernel_caps_is_warned_of(daemon: StartDaemon) -> None:
    wanted = 2**30
    server = daemon("--backlog", str(wanted), "--workers", "1")
    limit = effective_backlog(wanted)
    (warning,) = server.events("backlog is capped")
    assert (warning["level"], warning["backlog"], warning["somaxconn"]) == (
        "warning",
        wanted,
        limit,
    )
    assert [one["limit"] for one in server.status()["listeners"]] == [limit]
    assert daemon("--backlog", "16", "--workers", "1").events("backlog is capped") == []


# Unix sockets


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a path that is short enough for a unix socket."""
    return tmp_path_factory.mktemp("unix") / "socket"


def test_a_unix_socket_has_its_mode_while_the_daemon_runs_and_then_is_gone(
    daemon: StartDaemon, path: Path
) -> None:
    server = daemon("--bind", f"unix:{path}", "--unix-mode", "0640", "--reply", "--workers", "2")
    assert server.address == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert run_load(server.address, 50, reply=True).counts == {"ok": 50}
    assert {one["client"] for one in server.greetings()} == {"unix"}
    assert server.stop() == 0
    assert not path.exists()


def test_a_unix_socket_that_a_dead_daemon_left_is_replaced(daemon: StartDaemon, path: Path) -> None:
    first = daemon("--bind", f"unix:{path}", "--workers", "1")
    first.signal(SIGKILL)
    first.wait()
    assert path.is_socket()
    second = daemon("--bind", f"unix:{path}", "--workers", "1", "--reply")
    assert greet(second.address, "Alice") == "Hello, Alice\n"


def test_a_unix_socket_that_somebody_answers_on_is_refused_and_left(
    daemon: StartDaemon, path: Path
) -> None:
    first = daemon("--bind", f"unix:{path}", "--workers", "1", "--reply")
    said = refused(daemon, "--bind", f"unix:{path}")
    assert f"cannot listen on unix:{path}: another process uses this address" in said
    assert greet(first.address, "Alice") == "Hello, Alice\n"


def test_a_file_that_is_no_socket_is_refused_and_left(daemon: StartDaemon, path: Path) -> None:
    path.write_text("precious")
    said = refused(daemon, "--bind", f"unix:{path}")
    assert f"cannot listen on unix:{path}: the path exists and is not a socket" in said
    assert path.read_text() == "precious"


def test_a_unix_socket_that_took_the_place_of_ours_is_left(daemon: StartDaemon, path: Path) -> None:
    server = daemon("--bind", f"unix:{path}", "--workers", "1")
    path.unlink()
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(path))
        other.listen()
        assert server.stop() == 0
        assert path.is_socket()


# Ports that need root


@pytest.fixture(params=["inherit", "reuseport"])
def privileged(daemon: StartDaemon, request: pytest.FixtureRequest) -> Daemon:
    """Return a daemon on port 80 of a network of its own, whose workers are nobody."""
    if os.geteuid() != 0:
        pytest.skip("only root can bind port 80 and become another user")
    return daemon(
        *("--mode", request.param, "--workers", "2", "--reply"),
        *("--bind", "127.0.0.1:80", "--user", "nobody"),
        prefix=("unshare", "--net", "--", "sh", "-c", 'ip link set lo up; exec "$@"', "--"),
    )


def ask_port_80(server: Daemon, name: str) -> str:
    """Greet the daemon within its network; return its answer."""
    inside = ("nsenter", "-t", str(server.pid), "--net", "--")
    done = subprocess.run(
        [*inside, program("greeter"), "send", "--address", "127.0.0.1:80", "--wait-reply", name],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.stdout + done.stderr


def test_workers_of_a_privileged_port_are_nobody_and_go_on_after_a_death_a_reload_and_a_rotation(
    privileged: Daemon,
) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    before = privileged.worker_pids()
    assert "Hello, Alice" in ask_port_80(privileged, "Alice")

    os.kill(before[0], SIGKILL)
    privileged.wait_event("worker ready", count=3)
    assert privileged.ctl("reload").returncode == 0
    assert privileged.ctl("scale", "3").returncode == 0
    until(lambda: len(privileged.worker_pids()) == 3)
    assert not set(before) & set(privileged.worker_pids())
    for pid in privileged.worker_pids():
        assert uids(pid) == {nobody}
        assert list(listeners(pid).values()) == ["127.0.0.1:80"]
    assert "Hello, Bob" in ask_port_80(privileged, "Bob")

    logs = sorted(privileged.log_dir.glob("worker-*.log"))
    assert len(logs) == 3
    for log in logs:
        log.rename(log.with_suffix(".1"))
    assert privileged.ctl("reopen").returncode == 0
    until(lambda: all(log.exists() for log in logs), what="new logs")
    assert {log.stat().st_uid for log in [*logs, privileged.log_dir]} == {nobody}
    assert "Hello, Carol" in ask_port_80(privileged, "Carol")
    assert [one["name"] for one in privileged.greetings()] == ["Carol"]
    assert privileged.stop() == 0
