"""What the supervisor knows goes on in the next image: back-off, deadlines, who leaves."""

from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from greeterd.master.upgrade.serialize import adopt_supervisor, dump_slots
from greeterd.master.upgrade.state import InheritedListeners, InheritedSlot, UpgradeState
from greeterd.master.workers import Workers
from greeterd.supervisor.actions import Action, Kill, Spawn
from greeterd.supervisor.events import Tick
from greeterd.supervisor.ids import DrainMode, SlotIndex, WorkerId
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.supervisor import Supervisor
from tests.unit.supervisor.supervised import closed, died, ready, reload, spawn, started

POLICY = Policy(graceful_timeout=7.0, start_timeout=5.0)


def children_of(supervisor: Supervisor) -> Workers:
    """Return the children of a supervisor's workers; their descriptors tell which they are of."""
    found = {
        worker.id: SimpleNamespace(
            pid=1000 + worker.id,
            channel=SimpleNamespace(fileno=lambda number=worker.id: 100 + number),
            stack_fd=200 + worker.id,
            log_lock_fd=300 + worker.id,
            conversation=SimpleNamespace(credit={"leaving": 1}),
        )
        for worker in supervisor.workers
    }
    return cast("Workers", found)


def state_of(supervisor: Supervisor, slots: list[InheritedSlot]) -> UpgradeState:
    """Return an upgrade state with these slots, as it comes out of its JSON."""
    state = UpgradeState(
        program="1", fixed={}, listeners=InheritedListeners(), slots=slots, board_fd=3, lock_fd=4,
        control_fd=5, generation=supervisor.generation, last_generation=supervisor.generation,
        last_worker=supervisor.last_worker, highest_slot=supervisor.highest_slot, since=0.0,
        started=0.0,
    )  # fmt: skip
    return msgspec.json.decode(msgspec.json.encode(state), type=UpgradeState)


def upgraded(supervisor: Supervisor) -> Supervisor:
    """Return the supervisor of the next image."""
    state = state_of(supervisor, dump_slots(supervisor, children_of(supervisor)))
    return adopt_supervisor(state, POLICY, lambda: 0.0)


def facts(supervisor: Supervisor) -> list[InheritedSlot]:
    """Return what is handed on about every slot."""
    return dump_slots(supervisor, children_of(supervisor))


def told(supervisor: Supervisor, now: float) -> list[Action]:
    """Return what a supervisor asks for when nothing but time has passed."""
    return supervisor.handle(Tick(), now)


def test_serialize_keeps_the_back_off_of_a_slot_whose_workers_die() -> None:
    daemon = started(2, policy=POLICY)
    daemon.tell(died(1))
    daemon.tell(died(3))
    before = daemon.supervisor.slots[SlotIndex(1)]
    assert before.retry_at > daemon.now, "the second death in a row"
    after = upgraded(daemon.supervisor)
    assert after.next_deadline() == before.retry_at
    assert told(after, before.retry_at - 0.001) == []
    assert [each for each in told(after, before.retry_at) if isinstance(each, Spawn)] == [
        spawn(4, slot=1)
    ]
    record = after.slots[SlotIndex(1)]
    assert (record.failures, record.restarts) == (before.failures, before.restarts)
    assert after.recent_restarts(daemon.now) == daemon.supervisor.recent_restarts(daemon.now) == 2


def test_serialize_keeps_the_deadline_of_a_worker_that_leaves() -> None:
    daemon = started(1, policy=POLICY)
    daemon.tell(reload(2, 1, policy=POLICY), ready(2), after=10.0)
    leaver = daemon.supervisor.worker(WorkerId(1))
    assert leaver is not None
    assert leaver.deadline == daemon.now + POLICY.graceful_timeout
    after = upgraded(daemon.supervisor)
    assert after.next_deadline() == leaver.deadline
    assert not any(isinstance(each, Kill) for each in told(after, leaver.deadline - 0.001))
    kills = [each for each in told(after, leaver.deadline) if isinstance(each, Kill)]
    assert [each.worker for each in kills] == [leaver.id]


@pytest.mark.parametrize("has_closed", [False, True])
def test_serialize_keeps_how_a_worker_leaves_and_whether_it_still_accepts(
    has_closed: bool,
) -> None:
    daemon = started(1, policy=POLICY)
    daemon.tell(reload(2, 1, policy=POLICY), ready(2))
    if has_closed:
        daemon.tell(closed(1))
    leaver = upgraded(daemon.supervisor).worker(WorkerId(1))
    assert leaver is not None
    assert (leaver.leaving, leaver.accepts) == (DrainMode.HAND_OVER, not has_closed)
    successor = upgraded(daemon.supervisor).worker(WorkerId(2))
    assert successor is not None
    assert (successor.leaving, successor.accepts) == (None, True)


def test_serialize_is_the_same_after_two_upgrades() -> None:
    daemon = started(3, policy=Policy(own_listeners=True, dispatcher=True))
    daemon.tell(reload(2, 3, policy=daemon.supervisor.policy), *map(ready, range(5, 7)))
    daemon.tell(died(3))
    once = upgraded(daemon.supervisor)
    assert facts(once) == facts(daemon.supervisor)
    assert facts(upgraded(once)) == facts(once)
    assert (once.generation, once.last_worker, once.highest_slot) == (
        daemon.supervisor.generation, daemon.supervisor.last_worker, 3,
    )  # fmt: skip


def test_serialize_names_each_descriptor_and_pid_by_its_worker() -> None:
    daemon = started(2)
    [one, two] = [slot.workers[0] for slot in facts(daemon.supervisor)]
    assert (one.pid, one.channel_fd, one.stack_fd, one.log_lock_fd) == (1001, 101, 201, 301)
    assert (two.pid, two.channel_fd, two.stack_fd, two.log_lock_fd) == (1002, 102, 202, 302)
    assert one.credit == {"leaving": 1}


def test_serialize_leaves_out_a_worker_that_is_not_forked() -> None:
    daemon = started(2)
    daemon.tell(died(1))
    known = children_of(daemon.supervisor)
    del cast("dict[WorkerId, object]", known)[WorkerId(3)]
    [one, two] = dump_slots(daemon.supervisor, known)
    assert (one.workers, len(two.workers)) == ([], 1)


def test_serialize_goes_on_counting_slots_and_workers() -> None:
    daemon = started(3)
    after = adopt_supervisor(
        state_of(daemon.supervisor, facts(daemon.supervisor)[:2]), POLICY, lambda: 0.0
    )
    assert (after.last_worker, after.highest_slot, after.generation) == (3, 3, 1)
