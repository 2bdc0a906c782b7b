"""The life of a worker, its place, and the delay before it is started again."""

from dataclasses import replace

import pytest

from greeterd.supervisor.actions import Drain, GateAll
from greeterd.supervisor.events import Leaving, Spawned, SpawnFailed, Tick
from greeterd.supervisor.ids import Generation, Pid, SlotIndex, WorkerId, WorkerState
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.records import Worker, backoff_delay
from tests.unit.supervisor.supervised import (
    Daemon,
    closed,
    died,
    hand_over,
    kill,
    left,
    ready,
    reload,
    scale,
    spawn,
    started,
    stop,
    sweep,
)


def worker_in(life: WorkerState) -> Worker:
    return Worker(
        id=WorkerId(1),
        slot=SlotIndex(1),
        place=0,
        generation=Generation(1),
        since=0.0,
        state=life,
    )


def test_a_change_of_life_forgets_what_was_felt_of_the_former() -> None:
    worker = replace(worker_in(WorkerState.READY), stalled_since=1.0, stuck=True, overdue=True)
    worker.move(Drain, 5.0)
    assert worker.since == 5.0
    assert worker.stalled_since is None
    assert [worker.stuck, worker.overdue] == [False, False]


def test_starting_becomes_ready_when_the_worker_says_so() -> None:
    daemon = Daemon(1, policy=Policy())
    assert daemon.tell(Tick()) == [spawn(1, slot=1)]
    assert daemon.states(1) == [WorkerState.STARTING]
    daemon.tell(Spawned(WorkerId(1), Pid(4242)), ready(1))
    assert daemon.states(1) == [WorkerState.READY]
    worker = daemon.supervisor.worker(WorkerId(1))
    assert worker is not None
    assert worker.pid == 4242


def test_starting_becomes_draining_when_the_daemon_stops() -> None:
    daemon = started(1)
    daemon.tell(died(1))
    assert daemon.tell(stop()) == [GateAll(), sweep(2)]
    assert daemon.states(1) == [WorkerState.DRAINING]


def test_starting_becomes_draining_when_its_slot_retires() -> None:
    daemon = started(2)
    daemon.tell(died(2))
    assert daemon.tell(scale(1)) == [hand_over(3)]
    assert daemon.states(2) == [WorkerState.DRAINING]


def test_starting_becomes_gone_when_the_fork_fails() -> None:
    daemon = started(1)
    daemon.tell(died(1))
    assert daemon.states(1) == [WorkerState.STARTING]
    daemon.tell(SpawnFailed(WorkerId(2), "fork: out of memory"))
    assert daemon.states(1) == []


def test_starting_becomes_gone_when_the_process_ends() -> None:
    daemon = started(1)
    daemon.tell(died(1), died(2))
    assert daemon.states(1) == []


def test_ready_becomes_draining_when_another_is_ready_in_its_slot() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1))
    assert daemon.states(1) == [WorkerState.READY, WorkerState.STARTING]
    assert hand_over(1) in daemon.tell(ready(2))
    assert daemon.states(1) == [WorkerState.DRAINING, WorkerState.READY]


def test_ready_becomes_draining_when_its_slot_retires() -> None:
    daemon = started(2)
    assert daemon.tell(scale(1)) == [hand_over(2)]
    assert daemon.states(2) == [WorkerState.DRAINING]


def test_ready_becomes_draining_when_it_leaves_unasked_and_another_is_started() -> None:
    daemon = started(1)
    assert daemon.tell(Leaving(WorkerId(1))) == [spawn(2, slot=1, place=1)]
    assert daemon.states(1) == [WorkerState.DRAINING, WorkerState.STARTING]
    assert daemon.supervisor.slots[SlotIndex(1)].restarts == 0, "it has not died"


def test_a_worker_that_leaves_unasked_is_told_when_the_daemon_stops() -> None:
    daemon = started(1)
    daemon.tell(Leaving(WorkerId(1)))
    daemon.tell(ready(2))
    assert sweep(1) in daemon.tell(stop())


def test_ready_becomes_gone_when_the_process_ends_and_another_is_started() -> None:
    daemon = started(1)
    assert daemon.tell(died(1)) == [spawn(2, slot=1)]
    assert daemon.supervisor.worker(WorkerId(1)) is None


def test_draining_becomes_gone_when_the_process_ends_and_nobody_takes_its_place() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1), ready(2), closed(1))
    assert daemon.tell(left(1)) == []
    assert daemon.states(1) == [WorkerState.READY]


def test_ready_that_comes_while_it_drains_changes_nothing() -> None:
    daemon = started(1)
    daemon.tell(scale(2), stop())
    assert daemon.tell(ready(2)) == []
    assert daemon.states(2) == [WorkerState.DRAINING]


def test_what_is_told_of_a_worker_that_is_gone_changes_nothing() -> None:
    daemon = started(1)
    daemon.tell(died(1), ready(2))
    failed, spawned = SpawnFailed(WorkerId(1), "x"), Spawned(WorkerId(1), Pid(1))
    assert daemon.hear(died(1), ready(1), failed, spawned) == []
    assert daemon.supervisor.recent_restarts(daemon.now) == 1


def test_what_is_told_twice_changes_nothing() -> None:
    daemon = started(2)
    assert daemon.hear(ready(1), ready(2), ready(1)) == []
    assert daemon.states(1) == [WorkerState.READY]


def test_a_slot_gives_its_two_places_in_turn() -> None:
    daemon = started(1)
    assert spawn(2, slot=1, place=1, generation=2) in daemon.tell(reload(2, 1))
    daemon.tell(ready(2), left(1))
    assert spawn(3, slot=1, place=0, generation=3) in daemon.tell(reload(3, 1))


def test_a_replacement_waits_until_one_of_two_workers_has_left() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1), ready(2), closed(1))
    assert daemon.states(1) == [WorkerState.DRAINING, WorkerState.READY]
    assert daemon.tell(reload(3, 1)) == []
    assert daemon.tell(left(1)) == [spawn(3, slot=1, place=0, generation=3)]


def test_a_new_slot_takes_the_lowest_number_that_is_free() -> None:
    daemon = started(3)
    daemon.tell(scale(1), left(3), left(2))
    assert daemon.tell(scale(2)) == [spawn(4, slot=2)]
    assert daemon.supervisor.highest_slot == 3


@pytest.mark.parametrize(
    ("failures", "delay"),
    [(0, 0.0), (1, 0.0), (2, 0.1), (3, 0.2), (4, 0.4), (9, 12.8), (10, 25.6), (11, 30.0)],
)
def test_the_first_restart_is_immediate_and_then_the_delay_doubles(
    failures: int, delay: float
) -> None:
    assert backoff_delay(failures, 0.0) == pytest.approx(delay)


def test_a_slot_that_has_failed_for_weeks_waits_as_long_as_the_cap() -> None:
    assert backoff_delay(10**9, 0.0) == 30.0


def test_jitter_takes_off_up_to_a_half() -> None:
    assert backoff_delay(2, 0.5) == pytest.approx(0.075)
    assert backoff_delay(2, 0.999999) == pytest.approx(0.05, rel=1e-3)
    assert backoff_delay(99, 0.999999) == pytest.approx(15.0, rel=1e-3)


def test_a_worker_that_leaves_of_its_own_is_killed_when_it_does_not_get_done() -> None:
    daemon = started(1, policy=Policy(graceful_timeout=10.0))
    daemon.tell(Leaving(WorkerId(1)))
    daemon.tell(ready(2))
    assert daemon.wait(9.9) == []
    assert daemon.wait(0.2) == [kill(1)]


def test_that_it_has_left_is_no_death() -> None:
    daemon = started(1)
    daemon.tell(Leaving(WorkerId(1)))
    daemon.tell(left(1))
    assert daemon.supervisor.recent_restarts(daemon.now) == 0


def test_workers_that_leave_one_after_the_other_are_replaced_later_each_time() -> None:
    daemon = started(1)
    assert daemon.tell(Leaving(WorkerId(1))) == [spawn(2, slot=1, place=1)]
    daemon.tell(left(1), ready(2))
    assert daemon.tell(Leaving(WorkerId(2)), left(2)) == []
    assert daemon.wait(0.1) == [spawn(3, slot=1)]
    daemon.tell(ready(3))
    assert daemon.tell(Leaving(WorkerId(3)), left(3)) == []
    assert daemon.wait(0.1) == []
    assert daemon.wait(0.1) == [spawn(4, slot=1)]


def test_a_slot_whose_two_workers_are_leaving_waits_for_the_first_that_has_left() -> None:
    daemon = started(1, policy=Policy(graceful_timeout=10.0))
    daemon.tell(Leaving(WorkerId(1)))
    daemon.tell(ready(2))
    assert daemon.tell(Leaving(WorkerId(2))) == []
    assert daemon.wait(1.0) == []
    assert daemon.supervisor.next_deadline() == daemon.now - 1.0 + 10.0
    assert daemon.tell(left(2)) == [spawn(3, slot=1, place=1)]


def test_who_does_not_serve_cannot_leave_of_its_own() -> None:
    daemon = Daemon(1, policy=Policy())
    daemon.tell(Tick())
    assert daemon.tell(Leaving(WorkerId(1)), Leaving(WorkerId(7))) == []
    assert daemon.states(1) == [WorkerState.STARTING]
