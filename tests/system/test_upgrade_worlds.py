"""Upgrades wherever the daemon runs, and what lives on through them."""

import os
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import until
from tests.system.asking import Ask, answer
from tests.system.books import quiet_totals
from tests.system.clients import greet, run_load
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon
from tests.system.image import Image, versions
from tests.system.proc import terminal_of
from tests.system.test_lifecycle import finish, terminal, unfinished

MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport"])


def upgrade(server: Daemon, image: Image, version: str) -> None:
    """Upgrade to this version, which all processes run then, the master under its old pid."""
    image.release(version)
    pid = server.pid
    assert server.ctl("upgrade").returncode == 0
    until(lambda: versions(server.worker_pids()) == {version})
    assert (server.pid, versions([pid])) == (pid, {version})
    assert server.status()["version"] == version


# Where it runs


def test_a_detached_daemon_finds_its_files_again(daemon: StartDaemon, image: Image) -> None:
    server = daemon(
        *("--daemonize", "--config", "relative.toml"),
        prefix=("sh", "-c", 'echo "workers = 2" >relative.toml; exec "$@"', "sh"),
        wait=False,
        without={"--log-dir"},
        environment=image.environment,
    )
    assert server.process.wait(30.0) == 0
    assert greet(server.address, "Alice") == ""
    (server.directory / "relative.toml").write_text("workers = 3\nreply = true\n")
    upgrade(server, image, "2")
    assert greet(server.address, "Bob") == "Hello, Bob\n"
    assert sorted(one["name"] for one in server.greetings()) == ["Alice", "Bob"]
    assert len(server.worker_pids()) == 3
    null = Path(os.devnull)
    for pid in [server.pid, *server.worker_pids()]:
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        assert [Path(f"/proc/{pid}/fd/{fd}").readlink() for fd in (0, 1, 2)] == [null] * 3
    assert len(server.events("ready")) == len(server.events("new image")) == 1
    assert server.stop() == 0
    assert server.events("stopped")[0]["code"] == 0


def test_a_daemon_keeps_its_terminal(daemon: StartDaemon, image: Image) -> None:
    with terminal() as (keyboard, name):
        server = daemon(
            *("--workers", "2", "--reply"),
            prefix=("sh", "-c", 'exec "$@" <"$0"', name),
            environment=image.environment,
        )
        upgrade(server, image, "2")
        assert terminal_of(server.pid) == Path(name).stat().st_rdev
        with unfinished(server) as client:
            os.write(keyboard, b"\x03")
            assert server.wait_event("signal")["signal"] == "SIGINT"
            assert finish(client) == b"Hello, Alice\n"
            assert server.wait() == 0


def test_as_pid_1_it_stays_that_and_hears_signals_that_came_meanwhile(
    daemon: StartDaemon, image: Image, ask: Ask
) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a pid namespace needs root and unshare(1)")
    server = daemon(
        *("--workers", "2", "--reply"),
        prefix=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"),
        environment=image.environment,
    )
    (init,) = psutil.Process(server.process.pid).children()
    image.release("2")
    gate = image.hold_up()
    asking = ask(server, "upgrade")
    server.wait_event("becoming the new image")
    until(lambda: sys.executable in init.cmdline())
    # The kernel keeps signals from an init that has no handler for them, unless it holds them.
    init.send_signal(signal.SIGTTIN)
    gate.open()
    assert answer(asking) == (0, "upgraded: generation 2 serves\n")
    assert versions([init.pid]) == {"2"}
    server.wait_event("scale done")
    until(lambda: len(init.children()) == 3)
    assert versions([one.pid for one in init.children()]) == {"2"}
    init.terminate()
    assert server.wait() == 0
    assert server.events("stopped")[0]["pid"] == 1


@pytest.mark.parametrize(
    ("mode", "wait"),
    [
        ("inherit", "exclusive"),
        ("inherit", "epoll"),
        ("inherit", "blocking"),
        ("reuseport", "blocking"),
    ],
)
def test_every_wait_strategy_is_kept(
    daemon: StartDaemon, image: Image, mode: str, wait: str
) -> None:
    server = daemon(
        *("--mode", mode, "--wait", wait, "--workers", "2", "--reply"),
        environment=image.environment,
    )
    upgrade(server, image, "2")
    assert server.status()["wait"] == wait
    assert run_load(server.address, 50, reply=True).counts == {"ok": 50}


def test_a_unix_socket_s_file_stays_until_the_stop(
    daemon: StartDaemon, image: Image, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    bind = ("--bind", f"unix:{path}", "--bind", "127.0.0.1:0")
    server = daemon(*bind, "--workers", "2", "--reply", environment=image.environment)
    addresses, inode = server.addresses, path.stat().st_ino
    upgrade(server, image, "2")
    assert path.stat().st_ino == inode
    assert server.status()["addresses"] == addresses
    for address in addresses:
        assert greet(address, "Alice") == "Hello, Alice\n"
    assert server.stop() == 0
    assert not path.exists()


# What is kept


@MODES
def test_an_unfinished_client_is_served_by_the_worker_that_has_it(
    daemon: StartDaemon, image: Image, mode: str
) -> None:
    server = daemon(
        *("--mode", mode, "--workers", "2", "--reply", "--client-timeout", "60"),
        environment=image.environment,
    )
    with unfinished(server) as client:
        before = set(server.worker_pids())
        image.release("2")
        assert server.ctl("upgrade").returncode == 0
        until(lambda: len(before & {*server.worker_pids()}) == 1)
        (old,) = before & {*server.worker_pids()}
        (leaving,) = (one for one in server.status()["workers"] if one["leaving"])
        assert (leaving["pid"], leaving["generation"]) == (old, 1)
        assert versions([old]) == {"1"}
        assert finish(client) == b"Hello, Alice\n"
    until(lambda: old not in server.worker_pids())
    assert [(one["name"], one["pid"]) for one in server.greetings()] == [("Alice", old)]
    quiet_totals(server, connections=1)


@MODES
def test_counters_go_on_also_those_of_slots_that_are_gone(
    daemon: StartDaemon, image: Image, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "4", "--reply", environment=image.environment)
    run_load(server.address, 100)
    assert server.ctl("scale", "2").returncode == 0
    before = quiet_totals(server, connections=100)
    image.release("2")
    status = server.status()
    assert server.ctl("upgrade").returncode == 0
    after = server.status()
    assert (after["since"], after["pid"]) == (status["since"], status["pid"])
    assert after["uptime"] > status["uptime"]
    counted = ("connections", "greetings", "replies")
    assert [after["totals"][one] for one in counted] == [before[one] for one in counted]
    assert server.ctl("scale", "2").returncode == 0
    image.release("3")
    assert server.ctl("upgrade").returncode == 0
    run_load(server.address, 10)
    quiet_totals(server, connections=110)
