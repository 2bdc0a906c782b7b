"""What the master makes of a worker's row, whatever stands in it."""

import mmap
import os
import selectors
import signal
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greeterd.balance import balance
from greeterd.cli.balance import count_daemon
from greeterd.cli.status import table_rows
from greeterd.config.schema import Config
from greeterd.control.status import from_plain
from greeterd.master.status import StatusInputs, survey
from greeterd.master.workers import Workers
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.events import Pulse, Ready, Spawned, Tick
from greeterd.supervisor.ids import WorkerState
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
from tests.integration.master.parts import fake_child
from tests.unit.master.parts import Parts


class OneWorker:
    """A ready worker of a daemon that has one; this process writes its row."""

    def __init__(self) -> None:
        self.queued: Counter[int] = Counter()
        escrow = SimpleNamespace(
            queues=SimpleNamespace(by_owner=lambda: self.queued, look=list),
            addresses=[],
            passed=False,
        )
        self.board = Scoreboard(1)
        self._selector = selectors.DefaultSelector()
        self.parts = Parts(escrow=escrow, scoreboard=self.board, selector=self._selector)
        self.workers = Workers(self.parts.context)
        self.parts.feed(Tick())
        [spawn] = self.parts.take(Spawn)
        self.child, self._theirs = fake_child(spawn)
        self.workers.enter(self.child)
        self.parts.feed(Spawned(spawn.worker, self.child.pid))
        self.parts.feed(Ready(spawn.worker, rss_bytes=0))
        [worker] = self.parts.supervisor.workers
        assert worker.state is WorkerState.READY
        self.place = worker.place
        self.row = self.new_row()

    def new_row(self) -> Row:
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
        self.child.channel.close()
        self._theirs.close()
        self._selector.close()


@pytest.fixture
def one() -> Iterator[OneWorker]:
    opened = OneWorker()
    yield opened
    opened.close()


def test_a_worker_fares_as_it_says(one: OneWorker) -> None:
    one.pulse()
    one.row[TURNS], one.row[GREETINGS] = 5, 3
    one.row[HEARTBEAT_NS] = time.monotonic_ns()
    pulse = one.pulse()
    assert (pulse.turned, pulse.greetings) == (True, 3)
    assert pulse.age < 5.0
    assert not one.pulse().turned
    assert (one.parts.log.records, one.child.killed) == ([], [])


def test_who_turns_and_leaves_what_waits_has_not_turned_unless_it_says_why(one: OneWorker) -> None:
    one.pulse()
    one.row[TURNS] += 1
    assert one.pulse().turned, "nothing waits"
    one.queued[1] = 1
    one.row[TURNS] += 1
    assert not one.pulse().turned
    one.row[TURNS] += 1
    one.row[CONNECTIONS] += 1
    assert one.pulse().turned
    one.row[TURNS] += 1
    one.row[BLOCKED] = BLOCKED_BY_LIMIT
    assert one.pulse().turned


def test_who_says_what_cannot_be_is_killed_and_that_is_said_once(one: OneWorker) -> None:
    one.row[GREETINGS] = 2**64 - 1
    for _ in range(3):
        one.pulse()
    assert one.child.killed == [signal.SIGKILL]
    [(_, event, said)] = one.parts.log.records
    assert event == "worker is ended"
    assert said["reason"].startswith("its counters cannot be: greetings leapt from 0 to ")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=CELLS, max_size=CELLS))
def test_whatever_a_worker_says_the_master_and_its_readers_go_on(
    one: OneWorker, cells: list[int]
) -> None:
    for cell, value in enumerate(cells):
        one.row[cell] = value
    pulse = one.pulse()
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
    status = survey(one.parts.supervisor, one.board, one.parts.context.escrow, about)
    assert status.workers[0].state == "ready"
    assert table_rows(from_plain(msgspec.json.decode(msgspec.json.encode(status))))
    assert balance(count_daemon(status).greetings).sentence
    assert one.parts.supervisor.handle(Tick((pulse,)), time.monotonic()) is not None
    one.board.settle(1, one.place)
    one.row = one.new_row()
