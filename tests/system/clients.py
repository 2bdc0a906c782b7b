"""Clients of a daemon under test: one greeting, many at a time, and silent ones.

They know the address and the protocol, and nothing else of the daemon. Every wait is bounded;
durations are seconds. An address is written as in the daemon's ready record.
"""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Self

from greeterd.sockets.address import parse_address
from tests.support import until
from tests.system.harness import ROOT
from tests.system.sizes import sized

KINDS = ("ok", "refused", "unreached", "reset", "timeout", "silent", "error")
"""What may become of a connection. Refused and unreached ones were never made (unreached: no answer
to the connect within the time); silent: end-of-stream without the greeting that was due."""

ENDLESS = 10**9
"""So many greetings that only stop() ends a load of them."""
LEISURE = 0.001 * sized(0, 2)
"""Seconds between two connections of a process, where nothing depends on how many there are."""

Where = str | tuple[str, int]


def socket_for(address: str) -> tuple[socket.socket, Where]:
    """Return an unconnected socket of the address's family, and what to connect it to."""
    target = parse_address(address)
    if target.is_unix:
        return socket.socket(socket.AF_UNIX), target.path
    family = socket.AF_INET6 if target.is_v6 else socket.AF_INET
    return socket.socket(family), (target.host, target.port)


def connect(address: str, *, timeout: float = 5.0) -> socket.socket:
    """Return a connected socket that has sent nothing: a silent client until told otherwise."""
    sock, where = socket_for(address)
    sock.settimeout(timeout)
    try:
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def silent_clients(address: str, count: int) -> Iterator[list[socket.socket]]:
    """Hold `count` connections that send nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(address)) for _ in range(count)]


def greet(address: str, name: str | bytes, *, timeout: float = 5.0) -> str:
    """Send a name, half-close, and return all that comes back until end-of-stream."""
    with connect(address, timeout=timeout) as sock:
        sock.sendall(name if isinstance(name, bytes) else name.encode())
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as stream:
            return stream.read().decode()


def fire(address: str, name: str) -> None:
    """Send a name and close, waiting for nothing but the handshake."""
    with connect(address) as sock:
        sock.sendall(name.encode())


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What became of a load: names by kind, and the longest time an ok one took.

    `since` has the instant (monotonic) at which the first connection of each kind ended so.
    """

    names: dict[str, list[str]]
    slowest: float
    since: dict[str, float]

    @property
    def counts(self) -> dict[str, int]:
        """How many connections ended in each way; ways that did not occur are left out."""
        return {kind: len(names) for kind, names in self.names.items() if names}

    @property
    def total(self) -> int:
        """How many connections there were."""
        return sum(self.counts.values())

    @property
    def lost(self) -> dict[str, int]:
        """The counts of all that were not ok."""
        return {kind: count for kind, count in self.counts.items() if kind != "ok"}

    def lost_by_stop(self, began: float) -> dict[str, int]:
        """Return the counts of all that a stop may not cost, which began at that instant.

        Who has not connected by then may find nobody, and be told so or not.
        """
        allowed = {
            kind for kind in ("refused", "unreached") if self.since.get(kind, began) >= began
        }
        return {kind: count for kind, count in self.lost.items() if kind not in allowed}


class Load:
    """Greetings from several client processes until `count` in all, or until stop().

    A context manager. `prefix` is put before each client's command, to start it elsewhere. With
    `reply` a connection is ok only if its own greeting came back. `concurrency` is the number of
    open connections, and `interval` the least time between two starts, of each process; by default
    a load that lasts until stop() leaves some of the machine to what it is a load for.
    """

    def __init__(
        self,
        address: str,
        *,
        count: int = ENDLESS,
        processes: int = 2,
        concurrency: int = 4,
        interval: float | None = None,
        timeout: float = 10.0,
        reply: bool = False,
        prefix: Sequence[str] = (),
    ) -> None:
        if interval is None:
            interval = LEISURE if count == ENDLESS else 0.0
        self._clients: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        for index in range(processes):
            share = count // processes + (index < count % processes)
            arguments = [
                f"--count={share}", f"--concurrency={concurrency}", f"--interval={interval}",
                f"--timeout={timeout}", f"--prefix=c{index}-", *(["--reply"] if reply else []),
            ]  # fmt: skip
            # A file, because a pipe would be full before a long list of names is read.
            out = tempfile.TemporaryFile()  # noqa: SIM115 -- closed in __exit__
            client = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.system.load_client", address, *arguments],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=out,
            )
            self._clients.append((client, out))

    def __enter__(self) -> Self:
        """Return the load, which already runs."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the clients that still run."""
        for client, out in self._clients:
            client.kill()
            client.wait()
            out.close()
            if client.stdin is not None:
                client.stdin.close()

    def wait_going(self) -> None:
        """Wait until each client's first connection has ended, whatever became of it."""
        for client, out in self._clients:
            until(functools.partial(_output, out), what=f"a first end from {client.args!r}")

    def stop(self) -> LoadResult:
        """Start no more connections, wait for the open ones; return what became of all."""
        for client, _ in self._clients:
            assert client.stdin is not None
            client.stdin.close()
        return self.finish()

    def finish(self, *, timeout: float = 120.0) -> LoadResult:
        """Wait until all clients have ended by themselves; return what became of all."""
        results = []
        for client, out in self._clients:
            code = client.wait(timeout)
            assert code == 0, f"{client.args!r} ended with {code}"
            results.append(json.loads(_output(out).splitlines()[-1]))
        names = {kind: [name for one in results for name in one["names"][kind]] for kind in KINDS}
        since = {
            kind: min(one["since"][kind] for one in results if kind in one["since"])
            for kind in KINDS
            if names[kind]
        }
        return LoadResult(names, max(one["slowest"] for one in results), since)


def _output(out: IO[bytes]) -> bytes:
    """Return what a client has written; it shares the file's offset, which pread leaves alone."""
    return os.pread(out.fileno(), os.fstat(out.fileno()).st_size, 0)


def run_load(
    address: str, count: int, *, processes: int = 2, concurrency: int = 4, reply: bool = False
) -> LoadResult:
    """Greet `count` times to the end, as Load does; return what became of all."""
    with Load(
        address, count=count, processes=processes, concurrency=concurrency, reply=reply
    ) as load:
        return load.finish()
