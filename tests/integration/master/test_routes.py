"""Routes: a worker of mode handoff is ready once every dispatcher hands on to it."""

import os
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from greeterd.master.routes import Routes
from greeterd.sockets.fd_passing import HandoffPair
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.ids import DISPATCHER, Generation, SlotIndex, WorkerId, WorkerState
from greeterd.worker.channel import Channel
from greeterd.worker.conversation import Conversation
from greeterd.worker.messages import FailedMessage, RouteMessage
from greeterd.worker.scoreboard import Scoreboard
from tests.integration.master.parts import FakeChild, fake_child, free
from tests.unit.master.parts import Parts

SLOT, WORKER = SlotIndex(1), WorkerId(20)
OTHER = WorkerId(99)


class Handoff:
    """A worker of slot 1 and two dispatchers, of which none is a process."""

    def __init__(self) -> None:
        self.pair = HandoffPair.make()
        self.used: HandoffPair | None = self.pair
        self.unrouted: list[SlotIndex] = []
        self.routes: dict[SlotIndex, HandoffPair] = {}
        escrow = SimpleNamespace(
            use=lambda _slot: self.used,
            pairs=SimpleNamespace(routes=self.routes, unroute=self.unrouted.append),
        )
        self.workers: list[SimpleNamespace] = []
        supervisor: Any = SimpleNamespace(slots={DISPATCHER: SimpleNamespace(workers=self.workers)})
        self.board = Scoreboard(2)
        self.parts = Parts(escrow=escrow, supervisor=supervisor, scoreboard=self.board)
        self.children: dict[WorkerId, FakeChild] = {}
        self.channels: dict[WorkerId, Channel] = {}
        self.refusals: dict[WorkerId, str] = {}
        self.ready: list[object] = []
        processes: Any = SimpleNamespace(get=self.children.get, send=self._send)
        self.under_test = Routes(self.parts.context, processes, self.ready.append)
        self.child = self.enter(WORKER, SLOT)
        with self.board.open_row(SLOT, 0):
            pass

    def enter(self, ident: WorkerId, slot: SlotIndex) -> FakeChild:
        """Have a worker's process."""
        spawn = Spawn(ident, slot, 0, Generation(1))
        self.children[ident], self.channels[ident] = fake_child(spawn, Conversation())
        return self.children[ident]

    def dispatcher(self, number: int, *, knows_rows: bool = True) -> WorkerId:
        """Have one more dispatcher."""
        ident = WorkerId(number)
        self.enter(ident, DISPATCHER)
        place = len(self.workers)
        self.workers.append(SimpleNamespace(id=ident, place=place, state=WorkerState.READY))
        if knows_rows:
            with self.board.open_row(DISPATCHER, place):
                pass
        return ident

    def _send(self, ident: WorkerId, message: Any, fds: list[int]) -> str:
        child = self.children.get(ident)
        return self.refusals.get(ident) or (child.send(message, fds) if child else "")

    def told(self, ident: WorkerId) -> tuple[object, int] | None:
        """Return the next message that a dispatcher has got, and with how many descriptors."""
        received = self.channels[ident].receive()
        if received is None:
            return None
        for fd in received.fds:
            os.close(fd)
        return received.message, len(received.fds)

    def close(self) -> None:
        """Release what the kernel has given."""
        free(self.board)
        self.pair.close()
        for ident, channel in self.channels.items():
            channel.close()
            self.children[ident].channel.close()


@pytest.fixture
def handoff() -> Iterator[Handoff]:
    with closing(Handoff()) as opened:
        yield opened


def test_a_slot_that_is_used_already_is_ready_at_once(handoff: Handoff) -> None:
    handoff.used = None
    dispatcher = handoff.dispatcher(1)
    assert handoff.under_test.open(handoff.child)
    assert handoff.told(dispatcher) is None


def test_a_new_slot_is_ready_when_every_dispatcher_has_answered(handoff: Handoff) -> None:
    first, second = handoff.dispatcher(1), handoff.dispatcher(2)
    assert not handoff.under_test.open(handoff.child)
    for ident in (first, second):
        assert handoff.told(ident) == (RouteMessage(SLOT), 3), "the pair's ends and the row"
    handoff.under_test.note_answer(SLOT, first, "")
    handoff.under_test.note_answer(SLOT, first, "")
    assert handoff.ready == []
    handoff.under_test.note_answer(SLOT, second, "")
    assert handoff.ready == [handoff.child]
    handoff.under_test.note_answer(SLOT, second, "")
    assert len(handoff.ready) == 1


def test_without_a_dispatcher_a_new_slot_is_ready_at_once(handoff: Handoff) -> None:
    assert handoff.under_test.open(handoff.child)


def test_a_dispatcher_that_leaves_or_is_gone_is_not_waited_for(handoff: Handoff) -> None:
    leaving, gone = handoff.dispatcher(1), handoff.dispatcher(2)
    silent = handoff.dispatcher(3, knows_rows=False)
    handoff.workers[0].state = WorkerState.DRAINING
    handoff.children.pop(gone).channel.close()
    handoff.channels.pop(gone).close()
    handoff.children[silent].hung_up = 1.0
    assert handoff.under_test.open(handoff.child)
    assert handoff.told(leaving) is not None


def test_a_dispatcher_of_an_older_build_gets_the_pair_only_and_answers_nothing(
    handoff: Handoff,
) -> None:
    old = handoff.dispatcher(1, knows_rows=False)
    handoff.children[old].conversation.answers_routes = False
    assert handoff.under_test.open(handoff.child)
    assert handoff.told(old) == (RouteMessage(SLOT), 2)


def test_a_dispatcher_that_cannot_hand_on_to_a_worker_ends_it(handoff: Handoff) -> None:
    first, second = handoff.dispatcher(1), handoff.dispatcher(2)
    handoff.under_test.open(handoff.child)
    handoff.under_test.note_answer(SLOT, first, "no room")
    reason = "the dispatcher cannot hand on to it: no room"
    assert handoff.child.failure == FailedMessage(71, reason)
    assert (handoff.unrouted, handoff.ready) == ([SLOT], [])
    handoff.under_test.note_answer(SLOT, second, "")
    assert handoff.ready == []


def test_a_dispatcher_that_cannot_be_asked_ends_the_worker(handoff: Handoff) -> None:
    first, second = handoff.dispatcher(1), handoff.dispatcher(2)
    handoff.refusals[second] = "it does not read"
    assert handoff.under_test.open(handoff.child), "it waits for no answer"
    assert handoff.child.reason.endswith("it does not read")
    handoff.under_test.note_answer(SLOT, first, "")
    assert (handoff.unrouted, handoff.ready) == ([SLOT], [])


def test_a_dispatcher_that_ends_need_not_answer(handoff: Handoff) -> None:
    first, second = handoff.dispatcher(1), handoff.dispatcher(2)
    handoff.under_test.open(handoff.child)
    handoff.under_test.note_exit(OTHER)
    handoff.under_test.note_exit(first)
    assert handoff.ready == []
    handoff.under_test.note_exit(second)
    assert handoff.ready == [handoff.child]
    assert handoff.unrouted == []


def test_a_worker_that_ends_needs_no_answer_and_its_successor_asks_again(handoff: Handoff) -> None:
    dispatcher = handoff.dispatcher(1)
    handoff.under_test.open(handoff.child)
    handoff.under_test.note_exit(WORKER)
    assert handoff.unrouted == [SLOT]
    handoff.under_test.note_answer(SLOT, dispatcher, "")
    assert handoff.ready == []
    assert not handoff.under_test.open(handoff.child)


def test_the_row_of_a_slots_next_worker_is_shown_to_dispatchers_that_know_rows(
    handoff: Handoff,
) -> None:
    new, old = handoff.dispatcher(1), handoff.dispatcher(2, knows_rows=False)
    handoff.used = None
    handoff.routes[SLOT] = handoff.pair
    assert handoff.under_test.open(handoff.child)
    assert (handoff.told(new), handoff.told(old)) == ((RouteMessage(SLOT), 3), None)
