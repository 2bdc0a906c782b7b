"""What the README says, done as it says: its demonstration, and what no other test here shows."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from greeterd.succession import ESTATE, TRIAL
from tests.support import until
from tests.system.books import names, outcomes, quiet_totals, worker_of
from tests.system.clients import connect, greet, silent_clients
from tests.system.conftest import StartDaemon
from tests.system.harness import ROOT, Daemon, clean_environment, program

README = (ROOT / "README.md").read_text()

both_modes = pytest.mark.parametrize("mode", ["inherit", "reuseport"])


# The demonstration --------------------------------------------------------------------------


def demonstration() -> list[tuple[str, list[str]]]:
    """Return the commands of the README's first block, each with the output that it shows."""
    (text,) = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    steps: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            steps[-1][1].append(line)
    return steps


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
    steps = demonstration()
    end = "--- the end of a command"
    script = "".join(f"{command}\necho '{end}'\n" for command, _ in steps)
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
    printed = [one.splitlines() for one in done.stdout.split(f"{end}\n")[:-1]]
    for (command, shown), lines in zip(steps, printed, strict=True):
        assert list(map(shape, lines)) == list(map(shape, shown)), command
        if "wc -l" in command:
            assert lines == shown
    assert (tmp_path / "logs" / "greeterd.log").exists()


# What happens when --------------------------------------------------------------------------


def limit(pid: int, what: int, soft: int) -> None:
    """Set a soft limit of a process."""
    _, hard = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, hard))


def lift(pid: int, what: int) -> None:
    """Take a soft limit away."""
    _, hard = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (hard, hard))


def limit_leaving_free(pid: int, count: int) -> int:
    """Return the limit of descriptors below which so many numbers are free."""
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    free = [number for number in range(len(taken) + count) if number not in taken]
    return free[count - 1] + 1


def send(stack: ExitStack, daemon: Daemon, name: str) -> socket.socket:
    """Send a whole name, and keep the connection open for the reply."""
    client = stack.enter_context(connect(daemon.address, timeout=10.0))
    client.sendall(name.encode())
    client.shutdown(socket.SHUT_WR)
    return client


def wait_blocked(daemon: Daemon, note: str) -> None:
    """Wait until the worker says that it does not accept, and why."""
    until(lambda: daemon.status()["totals"]["blocked"], what=f"not accepting: {note}")
    assert f"not accepting: {note}" in daemon.ctl("status").stdout


@both_modes
def test_a_full_disk_stops_the_accepting_and_loses_nothing(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=1", "--reply")
    pid = worker_of(one, 1)
    # More than the daemon log has, which the limit of the file size is for as well.
    before = [f"before {number}" for number in range(50)]
    for name in before:
        assert greet(one.address, name) == f"Hello, {name}\n"
    # A file that may not grow is the same to write(2) as a disk that is full.
    size = (one.log_dir / "worker-1.log").stat().st_size
    limit(pid, resource.RLIMIT_FSIZE, size + 20)
    with ExitStack() as stack:
        accepted = send(stack, one, "accepted")
        wait_blocked(one, "log cannot be written")
        queued = send(stack, one, "queued")
        accepted.settimeout(0.3)
        with pytest.raises(TimeoutError):
            accepted.recv(1)
        assert one.status()["listeners"][0]["queued"] == 1
        assert one.events("cannot write greetings")[0]["reason"] == "[Errno 27] File too large"
        lift(pid, resource.RLIMIT_FSIZE)
        accepted.settimeout(10.0)
        assert accepted.recv(100) == b"Hello, accepted\n"
        assert queued.recv(100) == b"Hello, queued\n"
    assert names(one.greetings()) == dict.fromkeys([*before, "accepted", "queued"], 1)
    assert one.status()["totals"]["blocked"] == 0
    assert worker_of(one, 1) == pid


@both_modes
def test_without_descriptors_clients_wait_in_the_queue(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=1", "--reply")
    pid = worker_of(one, 1)
    limit(pid, resource.RLIMIT_NOFILE, limit_leaving_free(pid, 4))
    with ExitStack() as stack:
        with silent_clients(one.address, 8):
            wait_blocked(one, "out of descriptors")
            waiting = send(stack, one, "Alice")
            assert one.events("cannot accept")[0]["reason"] == "Too many open files"
        assert waiting.recv(100) == b"Hello, Alice\n"
    assert outcomes(quiet_totals(one, connections=9)) == {"greetings": 1, "empty": 8}
    assert worker_of(one, 1) == pid


@both_modes
def test_at_max_connections_clients_wait_in_the_queue(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=1", "--reply", "--max-connections=3")
    with ExitStack() as stack:
        with silent_clients(one.address, 3):
            wait_blocked(one, "at max_connections")
            waiting = send(stack, one, "Alice")
            until(lambda: one.status()["listeners"][0]["queued"] == 1)
        assert waiting.recv(100) == b"Hello, Alice\n"
    assert outcomes(quiet_totals(one, connections=4)) == {"greetings": 1, "empty": 3}


@both_modes
def test_a_rotated_log_is_noticed_without_a_word(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=1", "--reply")
    log = one.log_dir / "worker-1.log"
    assert greet(one.address, "Alice") == "Hello, Alice\n"
    log.rename(log.with_suffix(".1"))
    until(log.exists, timeout=5.0, what="the log is opened anew")
    assert greet(one.address, "Bob") == "Hello, Bob\n"
    assert names(one.greetings()) == {"Bob": 1}
    assert len(log.with_suffix(".1").read_text().splitlines()) == 1
    assert [each["worker"] for each in one.events("log reopened")] == [1]


# Limits -------------------------------------------------------------------------------------

BROKEN_HEIR = f"""
import os, sys
if "{ESTATE}" in os.environ and "{TRIAL}" not in os.environ:
    sys.exit("broken")
from greeterd.cli.daemon import main
sys.exit(main())
"""


@both_modes
def test_an_upgrade_that_fails_after_the_exec_ends_the_daemon_and_the_workers_drain(
    daemon: StartDaemon, mode: str
) -> None:
    one = daemon(
        *(f"--mode={mode}", "--workers=2", "--reply"),
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
            stranger.accept()[0].close()
