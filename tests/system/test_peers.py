"""The peers do greeterd's job: each greeting once in the log, and an end in order at SIGTERM.

They are started by the very commands that an experiment uses.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from greeterd.bench import peers
from greeterd.bench.model import Case
from greeterd.bench.peers.compiled import compiler
from tests.support import until
from tests.system.harness import program

GREETINGS = 200
WORKERS = 2
MODES = ("inherit", "reuseport")
FIELDS = {
    "timestamp", "level", "event", "greeting", "name", "worker", "generation", "pid", "seq",
    "client",
}  # fmt: skip
needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
EVERY = [
    *peers.SCRIPTED,
    *(pytest.param(name, marks=needs_compiler) for name in ("threaded", "bare")),
]


@dataclass
class Peer:
    """A running peer."""

    process: subprocess.Popen[str]
    address: str
    log_dir: Path

    def send(self, *arguments: str) -> None:
        """Greet, and wait until the peer has closed every connection."""
        subprocess.run(
            [program("greeter"), "send", "--address", self.address, *arguments],
            check=True,
            capture_output=True,
            timeout=60,
        )

    def connect(self) -> socket.socket:
        """Return a connection."""
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=10)

    def all(self) -> list[psutil.Process]:
        """Return its processes, the first one first."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """Return the processes that the first one has started."""
        return psutil.Process(self.process.pid).children()

    def end(self) -> int:
        """Tell it to end; return its exit code, once all its processes are gone."""
        processes = self.all()
        self.process.terminate()
        code = self.process.wait(30)
        until(lambda: not any(one.is_running() for one in processes), what="the end of all")
        return code


@contextlib.contextmanager
def running(
    server: str, mode: str, directory: Path, prefix: tuple[str, ...] = ()
) -> Iterator[Peer]:
    case = Case(server=server, mode=mode, workers=WORKERS)
    log_dir = directory / "logs"
    command = [*prefix, *peers.command(case, log_dir, directory / "build")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            said = process.stdout.readline()
            assert re.fullmatch(r"ready 127\.0\.0\.1:[1-9]\d*\n", said), said
            peer = Peer(process, said.split()[1], log_dir)
            started = peer.all()
            try:
                yield peer
            finally:
                for one in started:  # that the peer does this itself is for a test to show
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
        finally:
            process.kill()


@pytest.mark.shows("peer socketserver", "peer asyncio", "peer uvloop", "peer threaded", "peer bare")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("server", EVERY)
def test_a_peer_counts_each_greeting_once_and_ends_in_order(
    server: str, mode: str, tmp_path: Path
) -> None:
    with running(server, mode, tmp_path) as peer:
        peer.send("--count", str(GREETINGS), "--concurrency", "8", "Ada", "Grace")
        assert sum(peers.counts(peer.log_dir)) == GREETINGS
        assert len(peer.workers()) == (0 if server == "threaded" else WORKERS)
        assert peer.end() == 0
        assert peer.process.stdout
        assert peer.process.stdout.read() == ""
    assert sum(peers.counts(peer.log_dir)) == GREETINGS


@pytest.mark.parametrize("server", peers.SCRIPTED)
def test_a_record_has_greeterd_s_fields(server: str, tmp_path: Path) -> None:
    names = [f"name-{number}" for number in range(20)]
    with running(server, "inherit", tmp_path) as peer:
        peer.send(*names, 'a "quoted" one', "Zoë")
        workers = {one.pid for one in peer.workers()}
        peer.end()
    records = [
        (int(path.stem.split("-")[1]), json.loads(line))
        for path in sorted(peer.log_dir.glob("worker-*.log"))
        for line in path.read_text().splitlines()
    ]
    assert sorted(one["name"] for _, one in records) == sorted([*names, 'a "quoted" one', "Zoë"])
    for worker, one in records:
        assert set(one) == FIELDS
        assert one["greeting"] == f"Hello, {one['name']}"
        assert (one["level"], one["event"]) == ("info", "greeting")
        assert (one["worker"], one["generation"]) == (worker, 1)
        assert datetime.fromisoformat(one["timestamp"]).utcoffset() is not None
        assert re.fullmatch(r"127\.0\.0\.1:\d+", one["client"])
    pids = {one["pid"] for _, one in records}
    assert pids.isdisjoint(workers) if server == "socketserver" else pids <= workers
    for pid in pids:
        numbers = [one["seq"] for _, one in records if one["pid"] == pid]
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("server", EVERY)
def test_a_peer_that_is_told_to_end_finishes_what_it_has_accepted(
    server: str, tmp_path: Path
) -> None:
    with running(server, "inherit", tmp_path) as peer:
        with peer.connect() as first:
            first.sendall(b"Ada")
            port = first.getsockname()[1]
            until(lambda: is_accepted(port, peer), what="the connection is accepted")
            peer.process.terminate()
            until(lambda: not is_listening(peer), what="it accepts no more")
            first.shutdown(socket.SHUT_WR)
            assert first.recv(1) == b""
        assert peer.process.wait(30) == 0
    assert sum(peers.counts(peer.log_dir)) == 1


def is_accepted(client_port: int, peer: Peer) -> bool:
    """Tell whether a process of the peer holds the connection of a client's port."""
    for one in peer.all():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(c.raddr[1:] == (client_port,) for c in one.net_connections("tcp4")):
                return True
    return False


def is_listening(peer: Peer) -> bool:
    """Tell whether the peer would still accept; what serves one connection does not count."""
    lasting = [psutil.Process(peer.process.pid), *peer.workers()]
    for one in lasting:
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker with nothing to finish is gone
            if any(c.status == "LISTEN" for c in one.net_connections("tcp4")):
                return True
    return False


def lives(one: psutil.Process) -> bool:
    """Tell whether a process has not ended."""
    with contextlib.suppress(psutil.NoSuchProcess):  # reaped between two looks
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("server", EVERY)
def test_a_peer_whose_first_process_is_killed_leaves_nothing_behind(
    server: str, tmp_path: Path
) -> None:
    with running(server, "reuseport", tmp_path) as peer:
        processes = peer.all()
        for one in processes[1:]:
            one.suspend()
        peer.process.kill()
        until(lambda: not any(map(lives, processes)), what="the end of all")


@pytest.mark.parametrize("server", peers.SCRIPTED)
def test_a_peer_whose_worker_dies_ends_with_a_reason(
    server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(server, "inherit", tmp_path) as peer:
        peer.workers()[0].kill()
        assert peer.process.wait(30) == 70
    assert capfd.readouterr().err == f"{server}: a worker has died (exit code -9)\n"


@pytest.mark.parametrize("server", peers.SCRIPTED)
def test_a_peer_says_that_its_port_is_taken(server: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", f"greeterd.bench.peers.{server}", "--bind", address],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == f"{server}: cannot listen on {address}: Address already in use\n"


def test_a_stopped_worker_does_not_keep_a_peer_from_ending(tmp_path: Path) -> None:
    with running("asyncio", "inherit", tmp_path) as peer:
        os.kill(peer.workers()[0].pid, signal.SIGSTOP)
        assert peer.end() == 0
