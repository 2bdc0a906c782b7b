"""A stop with a delay: not ready at once, and serving until the delay is over."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greeterd.control import ask
from tests.support import until
from tests.system.clients import Load, greet
from tests.system.conftest import StartDaemon

DELAY = 2.0
MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport"])
PROMPT = 10.0  # seconds within which a stop that does not wait has ended on a busy machine


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Return a socket that hears what a service manager is told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10.0)
        yield sock


def hear(manager: socket.socket, word: str) -> None:
    """Wait until the service manager is told a word."""
    while word not in manager.recv(4096).decode().splitlines():
        pass


@pytest.mark.shows("command ping refused", "when a load balancer needs time before a stop")
@pytest.mark.alone
@MODES
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_told_at_once_and_serves_for_the_delay(
    daemon: StartDaemon, manager: socket.socket, mode: str, number: signal.Signals
) -> None:
    environment = {"NOTIFY_SOCKET": str(manager.getsockname())}
    server = daemon(
        "--mode", mode, "--workers", "2", "--reply", "--shutdown-delay", str(DELAY),
        environment=environment,
    )  # fmt: skip
    hear(manager, "READY=1")
    assert server.ctl("ping").returncode == 0
    began = time.monotonic()
    server.signal(number)
    hear(manager, "STOPPING=1")
    assert server.status()["state"] == "stopping"
    control = server.run_dir / "control.sock"
    ping = ask(control, "ping", 10.0)
    assert (ping["ok"], ping["error"]) == (False, "the daemon is stopping")
    assert not ask(control, "scale", 10.0, workers=3)["ok"]
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    workers = server.worker_pids()
    os.kill(workers[0], signal.SIGKILL)
    until(lambda: len(set(server.worker_pids()) - set(workers)) == 1, what="a replacement")
    assert time.monotonic() - began < DELAY, "the machine is too busy for this test"
    assert server.wait() == 0
    assert time.monotonic() - began >= DELAY
    assert [one["code"] for one in server.events("stopped")] == [0]


@MODES
def test_a_stop_with_a_delay_fails_nobody_who_has_connected(daemon: StartDaemon, mode: str) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply", "--shutdown-delay", "1")
    with Load(server.address, concurrency=16, timeout=20.0, reply=True) as load:
        load.wait_going()
        began = time.monotonic()
        assert server.stop() == 0
        result = load.stop()
    assert result.lost_by_stop(began + 1.0) == {}


@pytest.mark.shows("when a load balancer needs time before a stop")
@MODES
@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGQUIT]], ids=str
)
def test_a_second_interrupt_or_a_quick_stop_cuts_the_delay_short(
    daemon: StartDaemon, mode: str, numbers: list[signal.Signals]
) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--shutdown-delay", "600")
    began = time.monotonic()
    for count, number in enumerate(numbers, start=1):
        server.signal(number)
        server.wait_event("signal", count=count)
    assert server.wait() == 0
    assert time.monotonic() - began < PROMPT


def test_a_second_term_does_not_cut_the_delay_short_and_stop_now_does(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1", "--reply", "--shutdown-delay", "600")
    for count in (1, 2):
        server.signal(signal.SIGTERM)
        server.wait_event("signal", count=count)
    ping = server.ctl("ping")
    assert (ping.returncode, ping.stderr) == (1, "greeterctl: ping: the daemon is stopping\n")
    assert server.ctl("scale", "3").returncode == 1
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    assert server.ctl("stop", "--now").returncode == 0
    assert server.wait() == 0


def test_the_command_stop_waits_for_the_delay_too(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1", "--shutdown-delay", "1")
    began = time.monotonic()
    assert server.ctl("stop").returncode == 0
    assert time.monotonic() - began >= 1.0
