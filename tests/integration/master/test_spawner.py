"""Spawner: what a worker that is forked is given, and what becomes of a fork that fails."""

import os
import selectors
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greeterd.config.schema import Config
from greeterd.errors import ConfigError
from greeterd.master import spawner as module
from greeterd.master.escrow import Escrow
from greeterd.master.spawner import Spawner
from greeterd.master.workers import Workers
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.events import Exited, Ready, Spawned, SpawnFailed, Tick
from greeterd.supervisor.ids import DISPATCHER, WorkerId
from greeterd.supervisor.policy import Policy
from greeterd.worker import main as worker_main
from greeterd.worker.context import WorkerContext
from greeterd.worker.counters import GREETINGS
from greeterd.worker.messages import FailedMessage
from greeterd.worker.scoreboard import Scoreboard
from tests.integration.master.parts import free, turn
from tests.support import until
from tests.unit.master.parts import Parts

FAR = 1e12


class Spawning:
    """A spawner whose workers do what the test says."""

    def __init__(self, config: Config) -> None:
        self.selector = selectors.DefaultSelector()
        self.escrow = Escrow(config)
        self.board = Scoreboard(4)
        policy = Policy(own_listeners=config.mode != "inherit", dispatcher=config.mode == "handoff")
        self.parts = Parts(
            workers=config.worker_count,
            config=config,
            policy=policy,
            escrow=self.escrow,
            scoreboard=self.board,
            selector=self.selector,
        )
        self.workers = Workers(self.parts.context)
        self.spawner = Spawner(self.parts.context, self.workers)

    def ask(self) -> list[Spawn]:
        """Have the workers wanted that the supervisor wants now."""
        self.parts.feed(Tick())
        wanted: list[Spawn] = self.parts.take(Spawn)
        for each in wanted:
            self.spawner.ask(each)
        return wanted

    def reap(self) -> None:
        """Wait until every worker has ended."""

        def over() -> bool:
            turn(self.selector)
            self.workers.reap([])
            return not self.workers._children

        until(over, what="the workers to end")

    def close(self) -> None:
        """End the workers that are left, and release what the kernel has given."""
        for child in self.workers._children.values():
            child.end(70, "the test is over")
        self.reap()
        self.escrow.close()
        self.selector.close()
        free(self.board)


@pytest.fixture
def spawning() -> Iterator[Callable[..., Spawning]]:
    opened: list[Spawning] = []

    def start(**settings: Any) -> Spawning:
        given: dict[str, Any] = {"bind": ("127.0.0.1:0",), "workers": 2} | settings
        opened.append(Spawning(Config(**given)))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


Start = Callable[..., Spawning]
Main = Callable[[WorkerContext], int]


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Callable[[Main], None]:
    """Set what workers do instead of greeting."""
    return lambda main: monkeypatch.setattr(worker_main, "main", main)


Live = Callable[[Main], None]


def test_workers_are_forked_in_order_and_as_time_allows(spawning: Start, live: Live) -> None:
    live(lambda _context: 0)
    one = spawning()
    first, second = one.ask()
    assert len(one.spawner) == 2
    one.spawner.fork_pending(until=0.0)
    assert [each.worker for each in one.parts.fed if isinstance(each, Spawned)] == [first.worker]
    one.spawner.fork_pending(until=FAR)
    assert len(one.spawner) == 0
    spawned = [each for each in one.parts.fed if isinstance(each, Spawned)]
    assert [each.worker for each in spawned] == [first.worker, second.worker]
    children = [one.workers.get(each.worker) for each in spawned]
    assert [child.pid for child in children if child] == [each.pid for each in spawned]
    one.spawner.fork_pending(until=FAR)


def test_a_worker_that_is_not_needed_any_more_is_not_forked(spawning: Start) -> None:
    one = spawning()
    first, second = one.ask()
    assert one.spawner.renounce(second.worker)
    assert not one.spawner.renounce(second.worker)
    assert not one.spawner.renounce(WorkerId(99))
    assert one.parts.fed[-1] == SpawnFailed(second.worker, "not needed any more")
    assert [each.worker for each in one.spawner._pending] == [first.worker]


def test_a_worker_has_its_slots_things(spawning: Start, live: Live) -> None:
    def main(context: WorkerContext) -> int:
        wrong = [
            context.slot != 1,
            context.generation != 1,
            context.config.workers != 2,
            context.listeners is None or context.listeners[0].getsockname() != where,
            [str(each) for each in context.addresses] != addresses,
            context.handoff is not None,
            context.rehearsal,
            context.passed or context.gated,
        ]
        context.row[GREETINGS] = 5
        return sum(bit << n for n, bit in enumerate(wrong))

    live(main)
    one = spawning()
    addresses = [str(each) for each in one.escrow.addresses]
    where = one.escrow.listeners()[0].getsockname()
    [spawn, _] = one.ask()
    one.spawner.fork_pending(until=0.0)
    one.reap()
    assert one.parts.fed[-1] == Exited(spawn.worker, "exit status 0", 0)
    assert one.board.total(1).greetings == 5


def test_what_a_worker_has_greeted_does_not_count_for_its_successor_in_the_same_row(
    spawning: Start, live: Live
) -> None:
    def main(context: WorkerContext) -> int:
        context.row[GREETINGS] += 5
        return 0

    live(main)
    one = spawning(workers=1)
    for number in (1, 2, 3):
        one.parts.now = 100.0 * number
        [spawn] = one.ask()
        one.spawner.fork_pending(until=FAR)
        child = one.workers.get(spawn.worker)
        assert child
        one.parts.feed(Ready(spawn.worker, rss_bytes=0))
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert one.board.look(1, spawn.place) == ""
        assert one.board.worker(1, spawn.place).greetings == 5, number
        one.reap()
        assert one.board.total(1).greetings == 5 * number


def test_a_worker_keeps_the_descriptors_that_it_needs_and_no_other(
    spawning: Start, live: Live
) -> None:
    other = os.memfd_create("of the master's")

    def main(context: WorkerContext) -> int:
        [sock] = context.listeners or []
        sock.getsockname()
        try:
            os.fstat(other)
        except OSError:
            return 0
        return 1

    live(main)
    one = spawning(workers=1)
    one.ask()
    one.spawner.fork_pending(until=FAR)
    one.reap()
    os.close(other)
    [end] = [each for each in one.parts.fed if isinstance(each, Exited)]
    assert end.reason == "exit status 0"


def test_the_dispatcher_has_the_pairs_and_rows_of_the_slots_that_are_served(
    spawning: Start, live: Live
) -> None:
    def main(context: WorkerContext) -> int:
        if context.slot != DISPATCHER:
            return 0
        assert context.handoff is not None
        for pair in context.handoff.routes.values():
            os.fstat(pair.entry.fileno())
        found = {*context.handoff.routes}, {*context.handoff.rows}
        return 10 * len(found[0]) + len(found[1])

    live(main)
    one = spawning(mode="handoff")
    dispatcher, worker, _ = one.ask()
    assert dispatcher.slot == DISPATCHER
    one.spawner._pending.rotate(-1)  # the worker is forked first
    one.escrow.for_slot(worker.slot)
    one.escrow.use(worker.slot)
    one.spawner.fork_pending(until=0.0)
    one.spawner._pending.rotate(1)
    one.spawner.fork_pending(until=0.0)
    one.reap()
    ends = {each.worker: each.reason for each in one.parts.fed if isinstance(each, Exited)}
    assert ends[dispatcher.worker] == "exit status 11"


def test_a_worker_that_opens_its_listeners_may_send_as_many_as_there_are_addresses(
    spawning: Start, live: Live
) -> None:
    live(lambda _context: 0)
    one = spawning(mode="reuseport", bind=("127.0.0.1:0", "[::1]:0"), workers=1)
    [spawn] = one.ask()
    one.spawner.fork_pending(until=FAR)
    child = one.workers.get(spawn.worker)
    assert child
    assert child.conversation.descriptors_due == 2


def test_a_fork_that_fails_is_the_supervisors_to_know(
    spawning: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    one = spawning(workers=1)
    [spawn] = one.ask()
    monkeypatch.setattr(module, "fork", refuse)
    one.spawner.fork_pending(until=FAR)
    assert one.parts.fed[-1] == SpawnFailed(spawn.worker, "fork: Resource temporarily unavailable")
    [(level, event, fields)] = one.parts.log.records
    assert (level, event) == ("warning", "cannot fork")
    assert fields == {"worker": 1, "reason": "Resource temporarily unavailable"}
    assert one.workers.get(spawn.worker) is None


def test_a_worker_whose_channel_cannot_be_watched_is_ended(
    spawning: Start, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    live(lambda _context: threading.Event().wait() and 0)
    one = spawning(workers=1)
    [spawn] = one.ask()
    monkeypatch.setattr(one.selector, "register", refuse)
    one.spawner.fork_pending(until=FAR)
    child = one.workers.get(spawn.worker)
    assert child is not None
    assert child.failure == FailedMessage(71, "cannot watch its channel: No space left on device")
    one.reap()


def test_a_worker_whose_daemon_log_cannot_be_had_says_so(
    spawning: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_config: Config) -> None:
        raise ConfigError("daemon log /x: Permission denied")

    one = spawning(workers=1)
    monkeypatch.setattr(one.parts.log, "of", refuse, raising=False)
    [spawn] = one.ask()
    one.spawner.fork_pending(until=FAR)
    one.reap()
    error = ConfigError("daemon log /x: Permission denied")
    failed = FailedMessage(error.exit_code, str(error))
    assert one.parts.fed[-1] == Exited(spawn.worker, failed.reason, failed.code)
