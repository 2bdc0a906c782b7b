"""The link: what crosses it is late or lost as told, and nothing of it stays.

Only lower bounds of time are asserted: they are the link's promise, whatever the machine does.
"""

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import psutil
import pytest

from tests.system.clients import Load
from tests.system.conftest import StartDaemon
from tests.system.link import SERVER, Link

OpenLink = Callable[..., Link]

# Echoes one connection to its end, then ends.
SERVE = f"""
import socket
with socket.create_server(("{SERVER}", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    with listener.accept()[0] as client:
        while data := client.recv(65536):
            client.sendall(data)
"""

# Prints how long the connect took, and whether what came back is what was sent.
CALL = f"""
import socket, sys, time
sent = bytes(range(256)) * 256
start = time.monotonic()
with socket.create_connection(("{SERVER}", int(sys.argv[1])), 30) as sock:
    took = time.monotonic() - start
    sock.sendall(sent)
    sock.shutdown(socket.SHUT_WR)
    with sock.makefile("rb") as stream:
        print(took, stream.read() == sent)
"""

# Prints the exception of a connect that may take so many seconds.
KNOCK = f"""
import socket, sys
try:
    socket.create_connection(("{SERVER}", 9), float(sys.argv[1]))
except OSError as error:
    print(type(error).__name__)
"""


def call(link: Link) -> tuple[float, bool]:
    """Send 64 KiB to an echo server over the link; return the connect's seconds, and success."""
    with Popen([*link.server_prefix, sys.executable, "-c", SERVE], stdout=PIPE, text=True) as echo:
        try:
            assert echo.stdout is not None
            port = echo.stdout.readline().strip()
            took, same = link.run_in_client(sys.executable, "-c", CALL, port).split()
        finally:
            echo.kill()
    return float(took), same == "True"


def test_a_handshake_takes_a_round_trip_at_least(link: OpenLink) -> None:
    took, same = call(link(delay=0.02))
    assert took >= 0.04
    assert same


def test_bytes_arrive_whole_over_a_lossy_link_that_reorders(link: OpenLink) -> None:
    _, same = call(link(delay=0.001, jitter=0.002, loss=0.02))
    assert same


@pytest.mark.parametrize(
    ("loss", "patience", "answer"),
    [(0.0, "30", "ConnectionRefusedError"), (1.0, "0.5", "TimeoutError")],
)
def test_what_is_lost_gets_no_answer(
    link: OpenLink, loss: float, patience: str, answer: str
) -> None:
    said = link(loss=loss).run_in_client(sys.executable, "-c", KNOCK, patience)
    assert said.strip() == answer


def test_a_daemon_and_its_clients_run_on_the_two_hosts(link: OpenLink, daemon: StartDaemon) -> None:
    hosts = link(delay=0.005)
    server = daemon(
        "serve",
        "--bind",
        f"{SERVER}:0",
        command=(sys.executable, "-m", "tests.system.stand_in"),
        prefix=hosts.server_prefix,
    )
    with Load(server.address, count=20, reply=True, prefix=hosts.client_prefix) as load:
        result = load.finish()
    assert result.counts == {"ok": 20}
    assert result.slowest >= 0.02
    assert server.stop() == 0


def test_a_link_that_is_down_leaves_nothing_behind() -> None:
    with Link(delay=0.001) as link:
        pids = [link.server_pid, link.client_pid, *forwarders()]
        assert len(pids) == 3
        inside = Path(f"/proc/{link.server_pid}/ns/net").readlink()
        assert inside != Path("/proc/self/ns/net").readlink()
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert "link0" not in [name for _, name in socket.if_nameindex()]


def forwarders() -> Iterator[int]:
    """Yield the pids of this process's forwarders."""
    for child in psutil.Process().children():
        # A zombie is another test's: its parent, this process, reaps it when it likes.
        with contextlib.suppress(psutil.ZombieProcess):
            if any("link_forwarder" in word for word in child.cmdline()):
                yield child.pid
