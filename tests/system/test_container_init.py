"""The daemon as PID 1, as in a container: in a pid namespace of its own."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from greeterd.control import ask
from tests.support import until
from tests.system.clients import greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, clean_environment

CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="a pid namespace needs root and unshare(1)",
)


def init_of(server: Daemon) -> psutil.Process:
    """Return the process that is PID 1 in the container."""
    (init,) = psutil.Process(server.process.pid).children()
    return init


@pytest.mark.shows("when it is PID 1 of a container")
@pytest.mark.parametrize("mode", ["inherit", "reuseport"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_as_pid_1_it_serves_and_stops_as_orchestrators_ask(
    daemon: StartDaemon, mode: str, number: signal.Signals
) -> None:
    server = daemon(
        "--mode", mode, "--workers", "2", "--reply", "--shutdown-delay", "3", prefix=CONTAINER
    )  # fmt: skip
    assert server.events("ready")[0]["pid"] == 1
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    init_of(server).send_signal(number)
    until(lambda: server.status()["state"] == "stopping")
    # Not by greeterctl, which may take longer to start than the delay lasts.
    assert not ask(server.run_dir / "control.sock", "ping", 10.0)["ok"]
    assert greet(server.address, "Bob") == "Hello, Bob\n"
    assert server.wait() == 0
    assert server.events("stopped")[0]["code"] == 0


@pytest.mark.shows("when it is PID 1 of a container")
def test_pid_1_refuses_to_detach(daemon: StartDaemon) -> None:
    server = daemon("--daemonize", prefix=CONTAINER, wait=False)
    assert server.wait() == 78
    reason = "daemonize: PID 1 cannot detach, run in the foreground"
    assert server.log_text() == f"greeterd: {reason}\n"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Give the two ends of a terminal: what reads its screen, and the screen."""
    reader, screen = pty.openpty()
    yield reader, screen
    os.close(reader)
    with suppress(OSError):
        os.close(screen)


def test_pid_1_logs_json_though_standard_error_looks_like_a_terminal(
    terminal: tuple[int, int], tmp_path: Path
) -> None:
    reader, screen = terminal
    process = subprocess.Popen(
        [
            *CONTAINER, sys.executable, "-m", "greeterd", "--bind", "127.0.0.1:0", "--workers", "1",
            "--log-dir", str(tmp_path / "logs"), "--run-dir", str(tmp_path / "run"),
        ],
        env=clean_environment({}),
        stdin=subprocess.DEVNULL,
        stderr=screen,
    )  # fmt: skip
    try:
        said = b""
        while b'"ready"' not in said:
            said += os.read(reader, 4096)
        lines = said.decode().splitlines()
        assert [json.loads(line)["event"] for line in lines[:1]] == ["starting"]
        (init,) = psutil.Process(process.pid).children()
        init.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
