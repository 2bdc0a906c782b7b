"""A worker's loop in this process: real listeners, channel and log; a clock that the test moves."""

import contextlib
import errno
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import structlog

from greeterd.config.schema import Config
from greeterd.sockets.address import Address, parse_address
from greeterd.sockets.fd_passing import HandoffPair
from greeterd.sockets.listener import local_address, open_shared
from greeterd.supervisor.ids import SlotIndex
from greeterd.worker import commands, connections, drain, logs, loop, replies
from greeterd.worker.channel import Channel
from greeterd.worker.context import DispatcherContext, WorkerContext
from greeterd.worker.counters import NAMES, Row, spare_row
from greeterd.worker.greeting_log import GreetingLog, open_greeting_log
from greeterd.worker.loop import WorkerLoop
from greeterd.worker.messages import Message

INTERVAL = 0.02
"""Seconds that a turn waits at most: a quarter of the tests' worker_timeout."""

IP_MINTTL = 21  # linux/in.h

T = TypeVar("T")


class Clock:
    """The monotonic clock of every module that a loop drives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (commands, connections, drain, logs, loop, replies):
            monkeypatch.setattr(module, "monotonic", self)

    def __call__(self) -> float:
        """Return the instant."""
        return self.now


class Signals:
    """Stands for the worker's signals: none is installed in this process."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._read_fd

    def read(self) -> list[signal.Signals]:
        """Return the signals that were sent."""
        return [signal.Signals(number) for number in os.read(self._read_fd, 100)]

    def send(self, number: signal.Signals) -> None:
        """Let a signal arrive."""
        os.write(self._write_fd, bytes([number]))

    def close(self) -> None:
        """Close both ends."""
        os.close(self._read_fd)
        os.close(self._write_fd)


class DaemonLogStub:
    """Stands for the daemon log: counts what is asked of it, and refuses where it is to."""

    def __init__(self) -> None:
        self.reopened = self.looked_at = 0
        self.error: OSError | None = None

    def reopen(self) -> None:
        """Count it, or refuse."""
        self.reopened += 1
        if self.error is not None:
            raise self.error

    def reopen_if_moved(self) -> bool:
        """Count it, or refuse."""
        self.looked_at += 1
        if self.error is not None:
            raise self.error
        return False


class FullEpoll:
    """An epoll that takes no more descriptors."""

    def register(self, fd: object, events: int) -> None:
        """Refuse."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{fd} {events}")


class LoopInTest:
    """A WorkerLoop, and the master's and the clients' sides of it."""

    def __init__(
        self,
        directory: Path,
        *,
        listeners: int = 1,
        routes: dict[SlotIndex, HandoffPair] | None = None,
        exits: list[socket.socket] | None = None,
        context: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """`routes` makes it the dispatcher's; `exits` are accepted from beside the listeners."""
        self.directory = directory
        self._stack = contextlib.ExitStack()
        self.config = Config(**{"worker_timeout": INTERVAL * 4, "wait": "epoll", **settings})
        opened = [
            open_shared(parse_address("127.0.0.1:0"), backlog=self.config.backlog, unix_mode=0)
            for _ in range(listeners)
        ]
        for sock in opened:
            sock.setblocking(self.config.wait == "blocking")
        self.listeners = [self._stack.enter_context(sock.dup()) for sock in opened]
        """The master's copies."""
        self.addresses = [local_address(sock) for sock in opened]
        self.row: Row = spare_row()
        self.signals = Signals()
        self._stack.callback(self.signals.close)
        ours, theirs = Channel.pair()
        self.channel = theirs
        """The master's end."""
        self._stack.callback(theirs.close)
        self._stack.callback(ours.close)
        self.daemon_log = DaemonLogStub()
        self.records = structlog.testing.LogCapture()
        self.greetings = None if routes is not None else self._open_log()
        self.context = WorkerContext(
            slot=1,
            generation=1,
            config=self.config,
            addresses=self.addresses,
            listeners=opened,
            handoff=None if routes is None else DispatcherContext(routes, {}),
            row=self.row,
            log_lock=-1,
            identity=None,
            channel=ours,
            signals=self.signals,  # type: ignore[arg-type]
            daemon_log=self.daemon_log,  # type: ignore[arg-type]
            log=structlog.wrap_logger(None, processors=[self.records]),
            **(context or {}),
        )
        self.loop = WorkerLoop(self.context, self.greetings, [*opened, *(exits or [])])
        self.loop._watch()

    def _open_log(self) -> GreetingLog:
        lock = os.memfd_create("lock")
        log = open_greeting_log(
            self.directory, lock=lock, worker=1, generation=1, pid=1, fsync=False
        )
        os.close(lock)
        self._stack.callback(log.close)
        return log

    def turn(self, times: int = 1) -> None:
        """Let the loop turn; a turn without events waits INTERVAL."""
        for _ in range(times):
            self.loop.turn()

    def turn_until(self, predicate: Callable[[], T], most: int = 500) -> T:
        """Turn until the predicate is true; return what it returned."""
        for _ in range(most):
            if value := predicate():
                return value
            self.loop.turn()
        raise AssertionError(f"not within {most} turns; {self.events()}")

    def send(self, message: Message, fds: list[int] | None = None) -> None:
        """Send a message as the master does."""
        assert self.channel.send(message, fds) == ""

    def heard(self) -> list[Message]:
        """Return what the worker has sent to the master since the last call."""
        found = []
        while (received := self.channel.receive()) is not None and received.message is not None:
            assert received.fds == []
            found.append(received.message)
        return found  # type: ignore[return-value]

    def connect(self, listener: int = 0) -> socket.socket:
        """Return a client's connected socket, to be closed with the rest."""
        where: Address = self.addresses[listener]
        client = socket.create_connection((where.host, where.port), timeout=10.0)
        return self._stack.enter_context(client)

    def say(self, data: bytes, listener: int = 0) -> socket.socket:
        """Connect, send it, and half-close."""
        client = self.connect(listener)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return client

    def greeted(self) -> list[str]:
        """Return the names in the log."""
        lines = (self.directory / "worker-1.log").read_bytes().splitlines()
        return [msgspec.json.decode(line)["name"] for line in lines]

    def counted(self) -> dict[str, int]:
        """Return the cells of the row that are not zero, without those of every turn."""
        cells = dict(zip(NAMES, self.row.tolist(), strict=True))
        ignored = ("turns", "heartbeat_ns", "wakeups")
        return {name: value for name, value in cells.items() if value and name not in ignored}

    def events(self) -> list[str]:
        """Return the names of the records that were logged."""
        return [entry["event"] for entry in self.records.entries]

    def close(self) -> None:
        """Close everything."""
        self.loop._handler.abandon()
        self.loop._handler.end_turn()
        self.loop._acceptor.close(list(self.loop._acceptor.sources))
        if self.loop._dispatcher is not None:
            for slot in list(self.loop._dispatcher._routes):
                self.loop._dispatcher._drop(slot)
        self.loop._epoll.close()
        self._stack.close()


def minimum_ttl(fd: int, value: int | None = None) -> int:
    """Look at what a gate leaves on a connection, or set it as a connection would inherit it."""
    with socket.socket(fileno=os.dup(fd)) as accepted:
        if value is not None:
            accepted.setsockopt(socket.IPPROTO_IP, IP_MINTTL, value)
        return accepted.getsockopt(socket.IPPROTO_IP, IP_MINTTL)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: writes stop short there, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
