"""What the README says, done as it says: its demonstration, and what no other test here shows."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from greeterd.system.inheritance import PREFLIGHT, STATE_FD
from tests.documents import README
from tests.support import until
from tests.system.books import names
from tests.system.clients import connect, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import ROOT, clean_environment, program

both_modes = pytest.mark.parametrize("mode", ["inherit", "reuseport"])


# The demonstration --------------------------------------------------------------------------


def demonstration() -> tuple[list[str], list[str]]:
    """Return the commands of the README's demonstration, and the lines that it shows of them."""
    commands, shown = (README.block("Demonstration", language) for language in ("sh", "text"))
    return commands.splitlines(), shown.splitlines()


def own_network() -> list[str]:
    """Return what runs a command in a network of its own, where the default port is free."""
    become_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    prefix = ["unshare", "--net", *become_root, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("a network of its own needs unshare(1) and ip(8)")
    done = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no network of its own: {done.stderr.strip()}")
    return prefix


def shape(line: str) -> str:
    """Return a line with every number as N, and one space where a table has several."""
    return " ".join(re.sub(r"\d+(\.\d+)*", "N", line).split())


def test_the_demonstration_prints_what_the_readme_shows(tmp_path: Path) -> None:
    commands, shown = demonstration()
    assert commands.pop(0) == "PATH=$PWD/.venv/bin:$PATH"
    script = "\n".join(commands)
    done = subprocess.run(
        [*own_network(), "bash", "-e", "-c", script],
        cwd=tmp_path,
        env=clean_environment(
            {
                "PATH": f"{Path(program('greeterd')).parent}:{os.environ['PATH']}",
                "XDG_RUNTIME_DIR": str(tmp_path / "run"),
            }
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    printed = done.stdout.splitlines()
    assert list(map(shape, printed)) == list(map(shape, shown))
    assert "10001" in set(printed) & set(shown)  # the number of greetings in the logs
    assert (tmp_path / "logs" / "demo" / "greeterd.log").exists()


# What no other test shows -------------------------------------------------------------------


@pytest.mark.shows("signal USR2")
@both_modes
def test_usr2_is_an_upgrade(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=2", "--reply")
    pid, workers = one.pid, set(one.worker_pids())
    one.signal(signal.SIGUSR2)
    one.wait_event("upgrade done", timeout=30.0)
    assert one.pid == pid
    until(lambda: len(one.worker_pids()) == 2 and not workers & set(one.worker_pids()))
    assert one.status()["generation"] == 2
    assert greet(one.address, "Alice") == "Hello, Alice\n"


@pytest.mark.shows("when a reload or an upgrade comes after scale")
@both_modes
@pytest.mark.parametrize("command", ["reload", "upgrade"])
def test_a_reload_and_an_upgrade_go_back_to_the_configured_workers(
    daemon: StartDaemon, mode: str, command: str
) -> None:
    one = daemon(f"--mode={mode}", "--workers=1")
    assert one.ctl("scale", "3").returncode == 0
    assert len(one.status()["workers"]) == 3
    assert one.ctl(command).returncode == 0
    until(lambda: len(one.status()["workers"]) == 1)


BROKEN_HEIR = f"""
import os, sys
if "{STATE_FD}" in os.environ and "{PREFLIGHT}" not in os.environ:
    sys.exit("broken")
from greeterd.cli.greeterd import main
sys.exit(main())
"""


@pytest.mark.shows("limit after the exec")
@both_modes
def test_an_upgrade_that_fails_after_the_exec_ends_the_daemon_and_the_workers_drain(
    daemon: StartDaemon, mode: str
) -> None:
    one = daemon(
        *(f"--mode={mode}", "--workers=2", "--reply", "--client-timeout=60"),
        command=(sys.executable, "-c", BROKEN_HEIR),
        environment={"PYTHONPATH": str(ROOT)},
    )
    with connect(one.address) as client:
        client.sendall(b"half a na")
        until(lambda: one.status()["totals"]["open"] == 1)
        assert one.ctl("upgrade").returncode == 69
        assert one.process.wait(10.0) == 1
        client.sendall(b"me")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"Hello, half a name\n"
    one.wait()
    assert names(one.greetings()) == {"half a name": 1}


@pytest.mark.shows("limit an address in use")
def test_a_later_process_of_the_same_user_can_join_a_reuseport_address(
    daemon: StartDaemon,
) -> None:
    one = daemon("--mode=reuseport", "--workers=1")
    host, _, port = one.address.rpartition(":")
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind((host, int(port)))
        stranger.listen()
        stranger.setblocking(False)
        with ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(connect(one.address))
            taken = 0
            with suppress(BlockingIOError):
                while True:
                    stranger.accept()[0].close()
                    taken += 1
            assert 0 < taken < 50
            until(lambda: one.status()["totals"]["connections"] == 50 - taken)
