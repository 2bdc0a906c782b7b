"""The dispatcher of mode handoff: a slot like the others, but for what it is to them."""

from dataclasses import replace

import pytest

from greeterd.supervisor.actions import CloseSlot, Drain, Exit, GateAll, Say, Started
from greeterd.supervisor.events import Leaving, Stop, Tick
from greeterd.supervisor.ids import DISPATCHER, DrainMode, WorkerId, WorkerState
from greeterd.supervisor.policy import Policy
from tests.unit.supervisor.supervised import (
    Daemon,
    asked_to_exit,
    died,
    finished,
    hand_over,
    kill,
    left,
    lend,
    look,
    ready,
    reload,
    restart,
    returned,
    scale,
    spawn,
    stalls,
    take_back,
    turns,
)

HANDOFF = Policy(own_listeners=True, dispatcher=True, graceful_timeout=10.0)


def started(workers: int, *, policy: Policy = HANDOFF) -> Daemon:
    """Return a daemon whose dispatcher is worker 1, and whose other workers follow, all ready."""
    daemon = Daemon(workers, policy=policy)
    daemon.tell(Tick())
    daemon.tell(*(ready(worker) for worker in range(1, workers + 2)))
    return daemon


def drain(worker: int, how: DrainMode) -> Drain:
    return Drain(WorkerId(worker), how)


def test_the_dispatcher_is_started_with_the_workers_and_waited_for() -> None:
    daemon = Daemon(2, policy=HANDOFF)
    assert daemon.tell(Tick()) == [spawn(1, 0), spawn(2, 1), spawn(3, 2)]
    assert daemon.tell(ready(2), ready(3)) == []
    assert daemon.tell(ready(1)) == [Started()]


def test_a_dispatcher_that_does_not_start_ends_the_start_by_its_name() -> None:
    daemon = Daemon(1, policy=HANDOFF)
    daemon.tell(Tick())
    daemon.tell(died(1, "no memory", 71))
    [final] = [each for each in daemon.tell(left(2)) if isinstance(each, Exit)]
    assert final == Exit(71, "the dispatcher did not start: no memory")


def test_it_is_no_worker_to_be_counted_or_scaled_away() -> None:
    daemon = started(2)
    assert daemon.slots() == [1, 2]
    refusal = finished("scale", "0 workers: not between 1 and 512", ticket=1)
    assert daemon.tell(scale(0, ticket=1)) == [refusal]
    assert drain(3, DrainMode.SWEEP) in daemon.tell(scale(1))
    assert daemon.states(0) == [WorkerState.READY]


def test_all_slots_that_there_can_be_are_workers() -> None:
    daemon = started(2, policy=replace(HANDOFF, most_slots=3))
    assert daemon.tell(scale(3)) == [spawn(4, 3)]


def test_a_reload_replaces_the_dispatcher_first() -> None:
    daemon = started(1)
    assert daemon.tell(reload(2, 1, policy=HANDOFF)) == [spawn(3, 0, place=1, generation=2)]
    done = daemon.tell(ready(3))
    assert hand_over(1) in done
    assert spawn(4, 1, place=1, generation=2) in done


def test_a_restart_can_name_it() -> None:
    daemon = started(1)
    assert daemon.tell(restart(0)) == [spawn(3, 0, place=1)]


def test_a_dead_one_is_replaced_at_once() -> None:
    daemon = started(2)
    assert daemon.tell(died(1)) == [spawn(4, 0)]


def test_its_listener_is_lent_to_a_worker_while_it_is_stuck() -> None:
    daemon = started(2)
    for _ in range(2):
        assert daemon.tell(look(stalls(1), turns(2), turns(3)), after=0.2) == []
    assert daemon.tell(look(stalls(1), turns(2), turns(3)), after=0.2) == [lend(0, 2)]
    assert daemon.tell(look(turns(1), turns(2), turns(3)), after=0.2) == [take_back(0, 2)]
    assert daemon.tell(returned(0, 2)) == []


def test_it_borrows_from_nobody() -> None:
    daemon = started(1)
    for _ in range(4):
        assert daemon.tell(look(turns(1), stalls(2)), after=0.2) == []


def test_a_worker_that_is_stuck_is_rescued_by_another_worker() -> None:
    daemon = started(2)
    for _ in range(2):
        daemon.tell(look(turns(1), stalls(2), turns(3)), after=0.2)
    assert daemon.tell(look(turns(1), stalls(2), turns(3)), after=0.2) == [lend(1, 3)]


def test_no_client_can_retire_it() -> None:
    daemon = started(1)
    told = (("what", "ExitRequested"), ("state", "ready"), ("worker", 0))
    assert daemon.hear(asked_to_exit(1)) == [Say("warning", "unexpected event", told)]
    assert daemon.states(0) == [WorkerState.READY]


def test_when_the_last_worker_has_retired_it_goes_too() -> None:
    daemon = started(1)
    assert drain(1, DrainMode.SWEEP) in daemon.tell(asked_to_exit(2))
    assert daemon.tell(left(1)) == [CloseSlot(DISPATCHER)]
    assert daemon.tell(left(2)) == [Exit(0, "")]


@pytest.mark.parametrize("first", [1, 2])
def test_at_a_stop_its_slot_is_closed_when_it_has_left(first: int) -> None:
    daemon = started(1)
    sweep = DrainMode.SWEEP
    assert daemon.tell(Stop()) == [GateAll(), drain(1, sweep), drain(2, sweep)]
    closed = [CloseSlot(DISPATCHER)]
    gone = {1: closed, 2: []}
    assert daemon.tell(left(first)) == gone[first]
    assert daemon.tell(left(3 - first)) == [*gone[3 - first], Exit(0, "")]


def test_a_dispatcher_that_leaves_of_its_own_is_replaced_at_once() -> None:
    daemon = started(1)
    assert daemon.tell(Leaving(WorkerId(1))) == [spawn(3, 0, place=1)]


def test_a_dispatcher_that_hangs_at_a_stop_leaves_half_of_the_time_to_the_workers() -> None:
    daemon = started(1)
    daemon.tell(Stop())
    assert daemon.wait(4.9) == []
    assert daemon.wait(0.2) == [kill(1)]
    assert daemon.tell(died(1)) == [CloseSlot(DISPATCHER)]
    assert daemon.wait(4.8) == []
    assert daemon.wait(0.2) == [kill(2)]
