"""What the master makes of a worker's row, whatever stands in it."""

import mmap
import os
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greeterd.balance import balance
from greeterd.cli.balance import count_daemon
from greeterd.cli.status import table_rows
from greeterd.config.schema import Config
from greeterd.control.status import from_plain
from greeterd.master.children import Child
from greeterd.master.context import MasterContext
from greeterd.master.escrow import Escrow
from greeterd.master.status import StatusInputs, survey
from greeterd.master.workers import Workers
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.events import Pulse, Ready, Spawned, Tick
from greeterd.supervisor.ids import Pid, WorkerState
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.supervisor import Supervisor
from greeterd.worker.channel import Channel
from greeterd.worker.conversation import Conversation
from greeterd.worker.counters import (
    BLOCKED,
    BLOCKED_BY_LIMIT,
    CELLS,
    CONNECTIONS,
    GREETINGS,
    HEARTBEAT_NS,
    TURNS,
    Row,
)
from greeterd.worker.row import Claim
from greeterd.worker.scoreboard import Scoreboard


class Shop:
    """The workers of a daemon that has one, whose row this process writes."""

    def __init__(self) -> None:
        self.board = Scoreboard(1)
        self.queued: Counter[int] = Counter()
        self.killed: list[signal.Signals] = []
        self.supervisor = Supervisor(workers=1, policy=Policy(), jitter=lambda: 0.0)
        [spawn] = [each for each in self.supervisor.handle(Tick(), 0.0) if isinstance(each, Spawn)]
        self.escrow = cast(
            "Escrow",
            SimpleNamespace(
                queues=SimpleNamespace(by_owner=lambda: self.queued, look=list),
                addresses=[],
                passed=False,
            ),
        )
        self.said: list[dict[str, Any]] = []
        logger = SimpleNamespace(warning=lambda _event, **more: self.said.append(more))
        self._selector = selectors.DefaultSelector()
        self.workers = Workers(
            MasterContext(
                selector=self._selector,
                supervisor=self.supervisor,
                generations=cast("Any", None),
                scoreboard=self.board,
                escrow=self.escrow,
                service_manager=cast("Any", None),
                log=cast("Any", SimpleNamespace(logger=logger)),
                identity=None,
                feed=lambda _event: None,
            )
        )
        kill = lambda _child, number: self.killed.append(number)  # noqa: E731
        cast("Any", self.workers.children).kill = kill
        self._theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.workers.children.enter(
            Child(
                pid=Pid(1),
                spawn=spawn,
                channel=Channel(ours),
                conversation=Conversation(),
                stack_fd=os.memfd_create("stack"),
                log_lock_fd=None,
            )
        )
        self.supervisor.handle(Spawned(spawn.worker, Pid(1)), 0.0)
        self.supervisor.handle(Ready(spawn.worker, rss_bytes=0), 0.0)
        [worker] = self.supervisor.workers
        assert worker.state is WorkerState.READY
        self.place = worker.place
        self.row = self.employ()

    def employ(self) -> Row:
        """Give the slot a row."""
        fd = os.memfd_create("row")
        os.ftruncate(fd, mmap.PAGESIZE)
        self.board.adopt(1, self.place, Claim(fd))
        return memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")[:CELLS]

    def pulse(self) -> Pulse:
        """Return how the worker fares now."""
        [pulse] = self.workers.pulses(time.monotonic())
        return pulse

    def close(self) -> None:
        """Release what the kernel has given."""
        self.board.settle(1, self.place)
        [child] = self.workers.children._children.values()
        child.channel.close()
        os.close(child.stack_fd)
        self._theirs.close()
        self._selector.close()


@pytest.fixture
def shop() -> Iterator[Shop]:
    opened = Shop()
    yield opened
    opened.close()


def test_a_worker_fares_as_it_says(shop: Shop) -> None:
    shop.pulse()
    shop.row[TURNS], shop.row[GREETINGS] = 5, 3
    shop.row[HEARTBEAT_NS] = time.monotonic_ns()
    pulse = shop.pulse()
    assert (pulse.turned, pulse.greetings) == (True, 3)
    assert pulse.age < 5.0
    assert not shop.pulse().turned
    assert (shop.said, shop.killed) == ([], [])


def test_who_turns_and_leaves_what_waits_has_not_turned_unless_it_says_why(shop: Shop) -> None:
    shop.pulse()
    shop.row[TURNS] += 1
    assert shop.pulse().turned, "nothing waits"
    shop.queued[1] = 1
    shop.row[TURNS] += 1
    assert not shop.pulse().turned
    shop.row[TURNS] += 1
    shop.row[CONNECTIONS] += 1
    assert shop.pulse().turned
    shop.row[TURNS] += 1
    shop.row[BLOCKED] = BLOCKED_BY_LIMIT
    assert shop.pulse().turned


def test_who_says_what_cannot_be_is_killed_and_that_is_said_once(shop: Shop) -> None:
    shop.row[GREETINGS] = 2**64 - 1
    for _ in range(3):
        shop.pulse()
    assert shop.killed == [signal.SIGKILL]
    [said] = shop.said
    assert said["reason"].startswith("its counters cannot be: greetings leapt from 0 to ")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=CELLS, max_size=CELLS))
def test_whatever_a_worker_says_the_master_and_its_readers_go_on(
    shop: Shop, cells: list[int]
) -> None:
    for cell, value in enumerate(cells):
        shop.row[cell] = value
    pulse = shop.pulse()
    about = StatusInputs(
        pid=1,
        since=0.0,
        started=0.0,
        now=time.monotonic(),
        longest_stall=0.0,
        warnings=[],
        trouble=None,
        config=Config(),
        config_file=None,
        last_error=None,
        reload=None,
    )
    status = survey(shop.supervisor, shop.board, shop.escrow, about)
    assert status.workers[0].state == "ready"
    assert table_rows(from_plain(msgspec.json.decode(msgspec.json.encode(status))))
    assert balance(count_daemon(status).greetings).sentence
    assert shop.supervisor.handle(Tick((pulse,)), time.monotonic()) is not None
    shop.board.settle(1, shop.place)
    shop.row = shop.employ()
