"""Workers: what the master makes of a worker's row, of its messages and of its end."""

import mmap
import os
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greeterd.balance import balance
from greeterd.cli.balance import count_daemon
from greeterd.cli.status import table_rows
from greeterd.config.schema import Config
from greeterd.control.status import from_plain
from greeterd.errors import ListenError
from greeterd.master.children import ChildExit
from greeterd.master.status import StatusInputs, survey
from greeterd.master.workers import HANG_UP_GRACE, Workers
from greeterd.sockets import rights
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.events import (
    Closed,
    Exited,
    ExitRequested,
    Leaving,
    LoanRefused,
    Pulse,
    Ready,
    Returned,
    Spawned,
    Stop,
    Tick,
)
from greeterd.supervisor.ids import DrainMode, Signal, SlotIndex, WorkerId, WorkerState
from greeterd.supervisor.policy import Policy
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
from greeterd.worker.messages import (
    Breach,
    ClosedMessage,
    DrainMessage,
    ExitMessage,
    FailedMessage,
    GoMessage,
    LeavingMessage,
    LendMessage,
    Message,
    ReadyMessage,
    RefusedMessage,
    ReopenedMessage,
    ReopenMessage,
    ReturnedMessage,
)
from greeterd.worker.row import Claim
from greeterd.worker.scoreboard import Scoreboard
from tests.integration.master.parts import FakeChild, fake_child, free, open_fds, turn
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
        free(self.board)
        self.row.release()
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


# What they say


class Talking:
    """Workers of a daemon that are no processes; the escrow notes what it is asked for."""

    def __init__(self, workers: int = 1) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.flaw = ""
        self.refusal = ""
        groups = SimpleNamespace(flaw_of=lambda _fds: self.flaw, admit=self._admit)
        self.lent = socket.socketpair()
        escrow = SimpleNamespace(
            groups=groups,
            pairs=SimpleNamespace(routes={}, unroute=lambda _slot: None),
            use=lambda _slot: None,
            holdings=dict,
            for_slot=lambda _slot: [self.lent[0]],
        )
        self.selector = selectors.DefaultSelector()
        self.parts = Parts(
            workers=workers,
            escrow=escrow,
            scoreboard=Scoreboard(4),
            selector=self.selector,
            policy=Policy(own_listeners=True),
        )
        self.workers = Workers(self.parts.context)
        self.children: dict[WorkerId, FakeChild] = {}
        self.channels: dict[WorkerId, Channel] = {}

    def _admit(self, slot: SlotIndex, fds: list[int]) -> None:
        self.calls.append(("admit", slot, len(fds)))
        rights.close_all(fds)
        if self.refusal:
            raise ListenError(self.refusal)

    def spawn(self, *, listeners: int = 0) -> list[WorkerId]:
        """Have every worker that is asked for begin; return them."""
        self.parts.feed(Tick())
        begun: list[WorkerId] = []
        for spawn in self.parts.take(Spawn):
            child, channel = fake_child(spawn, Conversation(listeners=listeners, may_exit=True))
            self.children[spawn.worker], self.channels[spawn.worker] = child, channel
            self.workers.enter(child)
            self.parts.feed(Spawned(spawn.worker, child.pid))
            begun.append(spawn.worker)
        return begun

    def ready(self) -> list[WorkerId]:
        """Have every worker that is asked for begin and be ready."""
        begun = self.spawn()
        for ident in begun:
            self.say(ident, ReadyMessage())
        return begun

    def say(self, ident: WorkerId, message: Message, fds: Sequence[int] = ()) -> None:
        """Have a worker send a message, and the master hear it."""
        self.channels[ident].send(message, [*fds])
        turn(self.selector)

    def told(self, ident: WorkerId) -> Message | None:
        """Return the next message that a worker has got."""
        received = self.channels[ident].receive()
        if received is None:
            return None
        rights.close_all(received.fds)
        assert not isinstance(received.message, Breach)
        return received.message

    def exit(self, ident: WorkerId, exitcode: int = 0, stack: str = "") -> None:
        """Have a worker end."""
        child = self.children.pop(ident)
        child.exit = ChildExit(exitcode, stack)
        self.channels.pop(ident).close()
        self.workers.reap([])

    def close(self) -> None:
        """Release what the kernel has given."""
        for child in self.children.values():
            child.channel.close()
        for channel in self.channels.values():
            channel.close()
        for sock in self.lent:
            sock.close()
        free(self.parts.context.scoreboard)
        self.selector.close()


@pytest.fixture
def talking() -> Iterator[Callable[..., Talking]]:
    opened: list[Talking] = []

    def start(workers: int = 1) -> Talking:
        opened.append(Talking(workers))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


Start = Callable[..., Talking]


def fed(one: Talking, kind: type[Any]) -> list[Any]:
    """Return the events of a kind that the supervisor was fed."""
    return [each for each in one.parts.fed if isinstance(each, kind)]


def test_a_ready_worker_is_told_to_the_supervisor_and_logged(talking: Start) -> None:
    one = talking()
    [ident] = one.ready()
    assert one.parts.fed[-1] == Ready(ident, rss_bytes=0)
    facts = {"worker": 1, "worker_pid": 0, "generation": 1}
    assert one.parts.log.records == [("info", "worker ready", facts)]
    assert one.parts.service_manager.calls == []


def test_listeners_that_a_worker_has_opened_are_admitted_before_it_is_ready(talking: Start) -> None:
    one = talking()
    [ident] = one.spawn(listeners=2)
    one.say(ident, ReadyMessage(), [0, 0])
    admitted: list[tuple[object, ...]] = [("admit", 1, 2)]
    assert one.calls == admitted
    assert (one.told(ident), one.parts.service_manager.calls) == (GoMessage(), ["keep"])
    assert one.parts.fed[-1] == Ready(ident, rss_bytes=0)


def test_a_ready_that_comes_too_late_leaves_no_descriptor_open(talking: Start) -> None:
    one = talking(workers=2)
    first, second = one.spawn(listeners=2)
    one.say(first, ReadyMessage(), [0, 0])
    one.parts.feed(Stop(quick=True))
    before = open_fds()
    one.say(second, ReadyMessage(), [0, 0])
    assert open_fds() == before
    assert (one.calls, one.parts.fed[-1]) == ([("admit", 1, 2)], Stop(quick=True))
    assert not any(child.killed for child in one.children.values())


def test_listeners_with_a_flaw_end_their_worker_and_are_closed(talking: Start) -> None:
    one = talking()
    [ident] = one.spawn(listeners=2)
    before = open_fds()
    one.flaw = "a descriptor that is no listener"
    one.say(ident, ReadyMessage(), [0, 0])
    assert one.children[ident].reason == "protocol error: a descriptor that is no listener"
    assert (one.calls, fed(one, Ready), open_fds()) == ([], [], before)


def test_listeners_that_cannot_listen_end_their_worker_with_their_reason(talking: Start) -> None:
    one = talking()
    [ident] = one.spawn(listeners=2)
    one.refusal = "cannot listen on 127.0.0.1:7"
    one.say(ident, ReadyMessage(), [0, 0])
    failure = FailedMessage(ListenError.exit_code, "cannot listen on 127.0.0.1:7")
    assert (one.children[ident].failure, fed(one, Ready)) == (failure, [])


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (LeavingMessage(), Leaving),
        (ExitMessage(), ExitRequested),
    ],
)
def test_what_a_worker_says_is_an_event(talking: Start, message: Message, event: type[Any]) -> None:
    one = talking()
    [ident] = one.ready()
    one.say(ident, message)
    assert fed(one, event) == [event(ident)]


def test_what_a_worker_answers_is_an_event(talking: Start) -> None:
    one = talking(workers=2)
    ident, _ = one.ready()
    one.workers.send(ident, DrainMessage(DrainMode.HAND_OVER.value))
    one.workers.take_back(SlotIndex(2), ident)
    one.workers.lend(SlotIndex(2), ident)
    for message in (ClosedMessage(), ReturnedMessage(2), RefusedMessage(2, "no room")):
        one.say(ident, message)
    assert fed(one, Closed) == [Closed(ident)]
    assert fed(one, Returned) == [Returned(SlotIndex(2), ident)]
    assert fed(one, LoanRefused) == [LoanRefused(SlotIndex(2), ident)]
    [(_, _, fields)] = [each for each in one.parts.log.records if each[1] == "loan refused"]
    assert fields == {"worker": 2, "to": 1, "reason": "no room"}


def test_why_a_worker_failed_is_what_the_supervisor_hears_when_it_has_ended(
    talking: Start,
) -> None:
    one = talking()
    [ident] = one.spawn()
    one.say(ident, FailedMessage(78, "no such user"))
    assert fed(one, Exited) == []
    one.exit(ident, exitcode=78)
    assert fed(one, Exited) == [Exited(ident, "no such user", 78)]
    assert one.parts.log.last_error == "worker 1: no such user"


# What they are told


def test_a_loan_is_descriptors_and_a_refusal_by_the_channel_is_one(talking: Start) -> None:
    one = talking(workers=2)
    ident, _ = one.ready()
    one.workers.lend(SlotIndex(2), ident)
    assert one.told(ident) == LendMessage(2)
    assert one.parts.log.records[-1] == ("warning", "listener lent", {"worker": 2, "to": 1})
    while not one.children[ident].send(GoMessage()):
        pass
    one.workers.lend(SlotIndex(2), ident)
    assert fed(one, LoanRefused) == [LoanRefused(SlotIndex(2), ident)]
    refused: Any = one.parts.log.records[-1]
    assert refused[1] == "worker does not listen"
    assert (refused[2]["worker"], refused[2]["message"]) == (1, "LendMessage")


def test_a_message_to_a_worker_that_is_gone_is_no_failure(talking: Start) -> None:
    one = talking()
    assert one.workers.send(WorkerId(99), GoMessage()) == ""
    assert one.parts.log.records == []
    one.workers.kill(WorkerId(99), Signal.KILL, "late")


def test_a_kill_is_logged_with_its_reason(talking: Start) -> None:
    one = talking()
    [ident] = one.ready()
    one.workers.kill(ident, Signal.ABORT, "it hangs")
    assert one.children[ident].killed == [signal.SIGABRT]
    (level, event, fields) = one.parts.log.records[-1]
    assert (level, event) == ("warning", "worker is ended")
    assert (fields["signal"], fields["reason"]) == ("SIGABRT", "it hangs")


# Reopening the logs


def test_logs_are_reopened_when_every_worker_has_said_so(talking: Start) -> None:
    one = talking(workers=2)
    first, second = one.ready()
    done: list[str] = []
    one.workers.reopen("", done.append)
    one.say(first, ReopenedMessage(""))
    assert (one.told(first), one.told(second), done) == (ReopenMessage(), ReopenMessage(), [])
    one.say(second, ReopenedMessage(""))
    assert done == [""]


def test_each_reason_why_logs_were_not_reopened_is_named_once(talking: Start) -> None:
    one = talking(workers=2)
    first, second = one.ready()
    done: list[str] = []
    one.workers.reopen("daemon log: gone", done.append)
    one.say(first, ReopenedMessage("full"))
    one.say(second, ReopenedMessage("full"))
    assert done == ["daemon log: gone; full"]


def test_two_requests_to_reopen_are_answered_each_by_its_own_answers(talking: Start) -> None:
    one = talking()
    [ident] = one.ready()
    done: list[str] = []
    one.workers.reopen("", lambda reasons: done.append(f"first {reasons}"))
    one.workers.reopen("", lambda reasons: done.append(f"second {reasons}"))
    one.say(ident, ReopenedMessage("full"))
    assert done == ["first full"]
    one.say(ident, ReopenedMessage(""))
    assert done == ["first full", "second "]


def test_a_worker_that_ends_or_cannot_be_asked_is_not_waited_for(talking: Start) -> None:
    one = talking(workers=3)
    first, second, third = one.ready()
    while not one.children[second].send(GoMessage()):
        pass
    one.children[third].hung_up = time.monotonic()
    one.selector.unregister(one.children[third].channel)
    done: list[str] = []
    one.workers.reopen("", done.append)
    assert done == []
    one.exit(first)
    assert done == [""]
    assert one.told(third) is None


def test_without_workers_logs_are_reopened_at_once(talking: Start) -> None:
    done: list[str] = []
    talking().workers.reopen("full", done.append)
    assert done == ["full"]


# Their ends


@pytest.mark.parametrize(
    ("exitcode", "level", "reason", "code"),
    [(0, "info", "exit status 0", 0), (-11, "warning", "killed by SIGSEGV", 70)],
)
def test_how_a_worker_ended_is_logged_and_fed(
    talking: Start, exitcode: int, level: str, reason: str, code: int
) -> None:
    one = talking()
    [ident] = one.ready()
    one.exit(ident, exitcode, stack="in f" if code else "")
    assert one.parts.fed[-1] == Exited(ident, reason, code)
    found, event, fields = one.parts.log.records[-1]
    assert (found, event, fields["reason"]) == (level, "worker exited", reason)
    assert fields.get("stack") == ("in f" if code else None)
    assert one.parts.log.last_error == (f"worker 1: {reason}" if code else None)
    assert one.workers.get(ident) is None


def test_connections_that_a_worker_leaves_open_are_told(talking: Start) -> None:
    one = talking()
    [ident] = one.ready()
    [worker] = one.parts.supervisor.workers
    with one.parts.context.scoreboard.open_row(1, worker.place) as row:
        row[CONNECTIONS] = 3
    one.exit(ident)
    level, _, fields = one.parts.log.records[-1]
    assert (level, fields["connections_lost"]) == ("warning", 3)


def test_a_worker_that_closes_its_channel_and_lives_on_is_ended_after_a_while(
    talking: Start,
) -> None:
    one = talking()
    [ident] = one.ready()
    one.channels[ident].close()
    one.workers.end_silent(time.monotonic() + 2 * HANG_UP_GRACE)
    assert one.children[ident].killed == [], "it was not found yet"
    turn(one.selector)
    silent_since = one.children[ident].hung_up
    assert silent_since is not None
    one.workers.end_silent(silent_since + 0.9 * HANG_UP_GRACE)
    assert one.children[ident].killed == []
    one.workers.end_silent(silent_since + HANG_UP_GRACE)
    assert one.children[ident].reason == "protocol error: it has closed its channel"


def test_the_log_lock_of_a_slot_is_that_of_any_of_its_workers_that_has_one(talking: Start) -> None:
    one = talking(workers=2)
    first, second = one.ready()
    assert one.workers.log_lock_of(SlotIndex(1)) is None
    one.children[first].log_lock_fd = 5
    one.children[second].log_lock_fd = 6
    assert one.workers.log_lock_of(SlotIndex(1)) == 5
    assert one.workers.log_lock_of(SlotIndex(3)) is None
