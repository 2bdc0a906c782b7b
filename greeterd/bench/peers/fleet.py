"""What the peers in Python share: a command line, N processes, their log, their end.

The first process opens the address, starts the workers by `multiprocessing`, and sleeps in
sigwait(); signals reach it blocked, so no handler runs anywhere.  In mode inherit the workers share
its listener; in mode reuseport each opens one of its own, and the first keeps a socket that is
bound and never listens, so that all of them find the same port.  A worker is killed by the kernel
when the first process dies, and the first is told to end when the process that started it dies.

The log is set up as structlog's page on performance tells it: a filtering bound logger, few
processors, a renderer that returns bytes, one write(2) a record.  A record has the fields of
greeterd's, in the order in which structlog has them.
"""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from greeterd.errors import GreeterdError, ListenError
from greeterd.protocol import classify
from greeterd.sockets.address import Address, parse_address
from greeterd.system.signals import die_with_parent

BACKLOG: Final = 4096
MAX_NAME_BYTES: Final = 4096
MOST_BYTES: Final = MAX_NAME_BYTES + 3
"""Read of a connection: a name, its CRLF, and one byte that shows that there is more."""
CLIENT_TIMEOUT: Final = 10.0
GENERATION: Final = 1
ENDINGS: Final = frozenset({signal.SIGTERM, signal.SIGINT})


@dataclass(frozen=True, slots=True)
class Seat:
    """What a worker is given."""

    worker: int
    address: Address
    shared: socket.socket | None
    """The listener of all; None when each has its own."""
    log_dir: Path
    ready: Callable[[], None]
    """To be called once the worker accepts."""


Serve = Callable[[Seat], None]
"""Serves until SIGTERM, which is blocked when it is called, and finishes what it has accepted."""


def main(serve: Serve, name: str, arguments: list[str] | None = None) -> int:
    """Be the first process of the peer `name`; return the exit code.  Blocks until told to end."""
    options = _options(name, arguments)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDINGS, signal.SIGCHLD})
    die_with_parent(signal.SIGTERM)
    try:
        with _open(options.bind, shared=options.mode == "inherit") as first:
            return _run(serve, options, first)
    except GreeterdError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201 - a program's message
        return error.exit_code


def _options(name: str, arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m greeterd.bench.peers.{name}")
    parser.add_argument("--bind", type=_address, default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--log-dir", type=Path, default=Path("logs"))
    parser.add_argument("--mode", choices=["inherit", "reuseport"], default="inherit")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers must be 1 or more")
    return options


def _address(text: str) -> Address:
    try:
        address = parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if address.is_unix:
        raise argparse.ArgumentTypeError("a peer listens on TCP only")
    return address


def _open(address: Address, *, shared: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if address.is_v6 else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((address.host, address.port))
        if shared:
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def _run(serve: Serve, options: argparse.Namespace, first: socket.socket) -> int:
    options.log_dir.mkdir(parents=True, exist_ok=True)
    address = options.bind.with_port(first.getsockname()[1])
    shared = first if options.mode == "inherit" else None
    fork = multiprocessing.get_context("fork")
    workers: list[BaseProcess] = []
    try:
        said = []
        for number in range(1, options.workers + 1):
            reader, writer = fork.Pipe(duplex=False)
            place = (number, address, shared, options.log_dir)
            worker = fork.Process(target=_work, args=(serve, place, writer, os.getpid()))
            worker.start()
            writer.close()
            workers.append(worker)
            said.append(reader)
        for number, reader in enumerate(said, 1):
            _await_ready(number, reader)
        print(f"ready {address}", flush=True)  # noqa: T201 - what a peer answers
        return _await_end(workers)
    finally:
        first.close()
        _end(workers)


def _await_ready(number: int, reader: Connection) -> None:
    try:
        reader.recv_bytes()
    except EOFError:
        raise GreeterdError(f"worker {number} did not start") from None
    finally:
        reader.close()


def _await_end(workers: list[BaseProcess]) -> int:
    while True:
        number = signal.sigwait({*ENDINGS, signal.SIGCHLD})
        if number in ENDINGS:
            return 130 if number == signal.SIGINT else 0
        # SIGCHLD also tells that a worker has been stopped or continued.
        for worker in workers:
            if not worker.is_alive():
                raise GreeterdError(f"a worker has died (exit code {worker.exitcode})")


def _end(workers: list[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive() and worker.pid:
            worker.terminate()
            os.kill(worker.pid, signal.SIGCONT)  # it may be stopped
    for worker in workers:
        worker.join()


def _work(
    serve: Serve,
    place: tuple[int, Address, socket.socket | None, Path],
    writer: Connection,
    parent: int,
) -> None:
    # SIGKILL also ends a worker that is stopped.
    die_with_parent(signal.SIGKILL, parent)

    def ready() -> None:
        writer.send_bytes(b"ready")
        writer.close()

    try:
        serve(Seat(*place, ready))
    except (OSError, GreeterdError) as error:
        sys.exit(f"worker {place[0]}: {error}")


def open_listener(seat: Seat) -> socket.socket:
    """Return the shared listener, or open the worker's own; it does not block.

    Raises:
        ListenError: the address cannot be listened on.

    """
    if seat.shared is not None:
        return seat.shared
    own = _open(seat.address, shared=False)
    own.listen(BACKLOG)
    return own


def open_log(seat: Seat) -> FilteringBoundLogger:
    """Open the worker's log for appending; to be called in the worker."""
    path = seat.log_dir / f"worker-{seat.worker}.log"
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.BytesLogger(path.open("ab")),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        context_class=dict,
    ).bind(worker=seat.worker, generation=GENERATION, pid=os.getpid())
    return logger


def _render(_logger: object, _method: str, event: EventDict) -> bytes:
    # Not JSONRenderer: it hands its serializer an argument that msgspec does not know.
    return msgspec.json.encode(event)


def name_of(data: bytes) -> str | None:
    """Return the name that a whole stream greets, by greeterd's rules; None if it greets nobody."""
    name = classify(data, MAX_NAME_BYTES, allow_exit=False)
    return name if isinstance(name, str) else None


def client_of(peer: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """Return a client's address as greeterd writes it."""
    return str(Address(peer[0], peer[1]))
