"""The start of a worker, in a process of its own: what it reports, and when it begins to serve."""

import multiprocessing
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from greeterd.config.schema import Config
from greeterd.sockets.address import Address
from greeterd.sockets.fd_passing import HandoffPair, waiting
from greeterd.sockets.listener import guard_address, local_address
from greeterd.supervisor.ids import DrainMode, SlotIndex
from greeterd.worker import main
from greeterd.worker.channel import Channel, Received
from greeterd.worker.context import DispatcherContext, WorkerContext
from greeterd.worker.counters import spare_row
from greeterd.worker.messages import (
    ClosedMessage,
    DrainMessage,
    FailedMessage,
    GoMessage,
    ReadyMessage,
    ReopenMessage,
)
from tests.integration.worker.loops import DaemonLogStub, Signals
from tests.support import until

FORK = multiprocessing.get_context("fork")


class Started:
    """A worker's process, and the master's end of its channel."""

    def __init__(self, directory: Path, *, close: bool = False, **given: Any) -> None:
        """`close`: the master is gone before the worker is ready."""
        ours, self.channel = Channel.pair()
        self.lock = os.memfd_create("lock")
        signals = Signals()
        facts: dict[str, Any] = {
            "slot": 1,
            "generation": 1,
            "config": Config(log_dir=directory, run_dir=directory, wait="epoll"),
            "addresses": [],
            "listeners": None,
            "row": spare_row(),
            "log_lock": self.lock,
            "identity": None,
            "channel": ours,
            "signals": signals,
            "daemon_log": DaemonLogStub(),
            "log": structlog.wrap_logger(None, processors=[self._note]),
        }
        context = WorkerContext(**(facts | given))
        self._records = os.memfd_create("records", 0)
        self._facts = directory / "facts"
        if close:
            self.channel.close()
        self.process = FORK.Process(target=self._live, args=(context,))
        self.process.start()
        ours.close()
        signals.close()

    def _note(self, _logger: object, level: str, event: Any) -> str:
        os.write(self._records, msgspec.json.encode({**event, "level": level}) + b"\n")
        raise structlog.DropEvent

    def _live(self, context: WorkerContext) -> None:
        self.channel.close()  # or the worker would hold its master's end
        code = main.main(context)
        facts = {
            "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
            "cpus": sorted(os.sched_getaffinity(0)),
            "names": sorted(os.environ),
            "lock": os.path.exists(f"/proc/self/fd/{self.lock}"),  # noqa: PTH110
            "title": Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode(),
        }
        self._facts.write_bytes(msgspec.json.encode(facts))
        os._exit(code)

    def hear(self) -> Received:
        """Return the next message of the worker."""
        received = until(self.channel.receive)
        assert received is not None
        return received

    def records(self) -> list[dict[str, Any]]:
        """Return what the worker has logged."""
        lines = os.pread(self._records, 100_000, 0).splitlines()
        return [msgspec.json.decode(line) for line in lines]

    def facts(self) -> dict[str, Any]:
        """Return what became of the process."""
        found: dict[str, Any] = msgspec.json.decode(self._facts.read_bytes())
        return found

    def wait(self) -> int:
        """Return the exit code."""
        self.process.join(20.0)
        assert self.process.exitcode is not None
        return self.process.exitcode

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.join()
        self.channel.close()
        os.close(self.lock)
        os.close(self._records)


Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(**given: Any) -> Started:
            made = Started(tmp_path, **given)
            stack.callback(made.close)
            return made

        yield started


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


@pytest.fixture
def guard() -> Iterator[Address]:
    """Return an address whose port is reserved."""
    with guard_address(Address(host="127.0.0.1", port=0)) as made:
        yield local_address(made)


def greet(where: tuple[str, int]) -> None:
    """Greet, and wait for the end."""
    with socket.create_connection(where, timeout=10.0) as client:
        client.sendall(b"Alice")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_a_worker_serves_inherited_listeners_at_once(
    start: Start, listener: socket.socket, tmp_path: Path
) -> None:
    worker = start(listeners=[listener])
    assert worker.hear() == Received(ReadyMessage())
    greet(listener.getsockname())
    worker.channel.send(DrainMessage(DrainMode.HAND_OVER.value))
    assert worker.hear() == Received(ClosedMessage())
    assert worker.wait() == 0
    assert (tmp_path / "worker-1.log").read_text().count("Hello, Alice") == 1
    facts = worker.facts()
    assert not facts["lock"], "the log has its own descriptor"
    assert facts["core"] == 0
    assert facts["limit"] == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert "PYTEST_CURRENT_TEST" not in facts["names"]
    assert "worker 1 gen 1 [draining]" in facts["title"]


def test_a_worker_opens_listeners_and_serves_when_they_listen(start: Start, guard: Address) -> None:
    worker = start(addresses=[guard])
    received = worker.hear()
    assert received.message == ReadyMessage()
    [fd] = received.fds
    with socket.socket(fileno=fd) as listener:
        worker.channel.send(ReopenMessage())  # not what it waits for
        listener.listen()
        worker.channel.send(GoMessage())
        greet((guard.host, guard.port))
        worker.channel.send(DrainMessage(DrainMode.HAND_OVER.value))
        assert worker.hear() == Received(ClosedMessage())
    assert worker.wait() == 0


@pytest.mark.parametrize("end", ["drain", "close"])
def test_a_worker_whose_listeners_never_listen_leaves(
    start: Start, guard: Address, end: str, tmp_path: Path
) -> None:
    worker = start(addresses=[guard])
    received = worker.hear()
    os.close(received.fds[0])
    if end == "drain":
        worker.channel.send(DrainMessage(DrainMode.QUICK.value))
    else:
        worker.channel.close()
    assert worker.wait() == 0
    assert "draining" not in worker.facts()["title"], "its loop has not turned"
    assert (tmp_path / "worker-1.log").exists()


def test_an_address_that_cannot_be_had_fails_the_start(start: Start, guard: Address) -> None:
    with socket.create_server((guard.host, 0)) as stranger:
        taken = Address(host=guard.host, port=stranger.getsockname()[1])
        worker = start(addresses=[taken])
        message = worker.hear().message
    assert isinstance(message, FailedMessage)
    assert message.code == 69
    assert str(taken.port) in message.reason
    assert worker.wait() == 69


def test_a_log_that_cannot_be_opened_fails_the_start(
    start: Start, listener: socket.socket, tmp_path: Path
) -> None:
    path = tmp_path / "worker-1.log"
    path.mkdir()
    worker = start(listeners=[listener])
    message = worker.hear().message
    assert isinstance(message, FailedMessage)
    assert str(path) in message.reason
    assert worker.wait() == message.code != 0


@pytest.mark.parametrize("rehearsal", [False, True])
def test_a_torn_record_is_removed_and_told_but_not_in_a_rehearsal(
    start: Start, listener: socket.socket, tmp_path: Path, *, rehearsal: bool
) -> None:
    path = tmp_path / "worker-1.log"
    path.write_bytes(b"whole\ntorn")
    worker = start(listeners=[listener], rehearsal=rehearsal)
    assert worker.hear() == Received(ReadyMessage())
    worker.channel.send(DrainMessage(DrainMode.QUICK.value))
    assert worker.wait() == 0
    assert path.read_bytes() == (b"whole\ntorn" if rehearsal else b"whole\n")
    told = [{"event": "torn record removed", "bytes": 4, "level": "warning"}]
    assert worker.records() == ([] if rehearsal else told)


def test_a_log_without_a_torn_record_is_not_worth_a_word(
    start: Start, listener: socket.socket
) -> None:
    worker = start(listeners=[listener])
    worker.hear()
    worker.channel.send(DrainMessage(DrainMode.QUICK.value))
    worker.wait()
    assert worker.records() == []


def test_a_rehearsal_ends_when_it_is_ready(start: Start, listener: socket.socket) -> None:
    worker = start(listeners=[listener], rehearsal=True)
    assert worker.hear() == Received(ReadyMessage())
    assert worker.wait() == 0


def test_who_cannot_pass_its_listeners_fails(start: Start, guard: Address) -> None:
    worker = start(addresses=[guard], close=True)
    assert worker.wait() == 71


@pytest.mark.parametrize("dispatcher", [False, True])
def test_a_worker_is_pinned_and_a_dispatcher_is_not(
    start: Start, listener: socket.socket, tmp_path: Path, *, dispatcher: bool
) -> None:
    pair = HandoffPair.make()
    cpus = sorted(os.sched_getaffinity(0))
    config = Config(
        log_dir=tmp_path,
        wait="epoll",
        cpu_affinity=str(cpus[0]),
        max_files=300,
        core_dumps=True,
        fsync="always",
    )
    handoff = DispatcherContext({SlotIndex(1): pair}, {}) if dispatcher else None
    worker = start(listeners=[listener], config=config, handoff=handoff)
    assert worker.hear() == Received(ReadyMessage())
    if dispatcher:
        with socket.create_connection(listener.getsockname()):
            until(lambda: waiting(pair.exit) == 1)
    worker.channel.send(DrainMessage(DrainMode.QUICK.value))
    assert worker.wait() == 0
    facts = worker.facts()
    assert facts["cpus"] == (cpus if dispatcher else cpus[:1])
    assert facts["limit"] == 300
    assert facts["core"] == resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert (tmp_path / "worker-1.log").exists() is not dispatcher
    pair.close()
