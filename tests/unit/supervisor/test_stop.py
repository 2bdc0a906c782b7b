"""How the daemon stops: in peace, quickly, and in bounded time whatever the workers do."""

from dataclasses import replace

import pytest

from greeterd.supervisor.actions import CloseSlot, Exit, GateAll, Say
from greeterd.supervisor.events import Tick, Unreachable
from greeterd.supervisor.ids import SlotIndex, WorkerState
from greeterd.supervisor.policy import Policy
from tests.unit.supervisor.supervised import (
    Daemon,
    abort,
    asked_to_exit,
    closed,
    died,
    finished,
    hand_over,
    kill,
    left,
    lend,
    look,
    quick,
    ready,
    reload,
    restart,
    scale,
    spawn,
    stalls,
    started,
    stop,
    sweep,
    take_back,
    turns,
)

STOPPING = "the daemon is stopping"


def test_a_stop_lets_nothing_new_in_and_drains_everyone_then_ends_with_0() -> None:
    daemon = started(2)
    assert daemon.tell(stop(ticket=1)) == [GateAll(), sweep(1), sweep(2)]
    assert daemon.tell(left(1)) == []
    assert daemon.tell(left(2)) == [finished("stop", ticket=1), Exit(0, "")]


def test_a_second_stop_is_answered_too_and_changes_nothing() -> None:
    daemon = started(1)
    daemon.tell(stop(ticket=1))
    assert daemon.tell(stop(ticket=2), stop()) == []
    assert daemon.tell(left(1)) == [
        finished("stop", ticket=1),
        finished("stop", ticket=2),
        Exit(0, ""),
    ]


def test_after_the_end_nothing_is_asked_for() -> None:
    daemon = started(1)
    daemon.tell(stop(), left(1))
    assert daemon.hear(stop(), scale(2), reload(2, 2), asked_to_exit(1), Tick(), died(1)) == []
    assert daemon.supervisor.next_deadline() is None


def test_a_worker_that_does_not_leave_is_killed_at_the_graceful_timeout() -> None:
    daemon = started(2, policy=Policy(graceful_timeout=7.0))
    daemon.tell(stop())
    assert daemon.wait(6.9) == []
    assert daemon.wait(0.2) == [kill(1), kill(2)]
    assert daemon.wait(60.0) == []
    assert daemon.tell(died(1), died(2)) == [Exit(0, "")]


def test_a_quick_stop_gives_two_seconds() -> None:
    daemon = started(1)
    assert daemon.tell(stop(quick=True)) == [quick(1)]
    assert daemon.wait(1.9) == []
    assert daemon.wait(0.2) == [kill(1)]


def test_a_quick_stop_hurries_a_graceful_one_but_not_the_other_way_round() -> None:
    daemon = started(1)
    daemon.tell(stop())
    assert daemon.tell(stop(quick=True), after=1.0) == [quick(1)]
    assert daemon.tell(stop()) == []
    assert daemon.supervisor.stopping == stop(quick=True)
    assert daemon.wait(2.0) == [kill(1)]


def test_a_quick_stop_does_not_put_a_deadline_off() -> None:
    daemon = started(1, policy=Policy(graceful_timeout=7.0))
    daemon.tell(stop())
    daemon.tell(stop(quick=True), after=6.5)
    assert daemon.wait(0.5) == [kill(1)]


def test_a_quick_stop_hurries_those_that_drain_already() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1), ready(2), closed(1))
    assert daemon.tell(stop(quick=True)) == [quick(1), quick(2)]


def test_a_graceful_stop_leaves_those_alone_that_drain_already() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1), ready(2), closed(1))
    assert daemon.tell(stop()) == [GateAll(), sweep(2)]


def test_a_stop_does_not_wait_for_one_that_may_still_accept_though_it_was_replaced() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1, ticket=1), ready(2))
    refused = finished("reload", "the daemon is stopping", ticket=1)
    assert daemon.tell(stop()) == [refused, GateAll(), sweep(2)]


def test_a_stop_bounds_those_that_were_given_longer_before() -> None:
    daemon = started(1, policy=Policy(graceful_timeout=300.0))
    daemon.tell(restart(1), ready(2), left(1))
    daemon.tell(reload(2, 1, policy=Policy(graceful_timeout=5.0)), ready(3), closed(2))
    assert daemon.states(1) == [WorkerState.DRAINING, WorkerState.READY]
    daemon.tell(died(3), ready(4), scale(2), ready(5))
    daemon.tell(stop())
    assert kill(2) in daemon.wait(5.0)


def test_a_stop_does_not_put_off_the_end_of_a_worker_that_was_aborted() -> None:
    daemon = started(1)
    daemon.tell(look(stalls(1, age=40.0)), look(stalls(1, age=41.0)))
    assert daemon.tell(stop(), after=1.0) == [GateAll(), sweep(1)]
    assert daemon.wait(1.0) == [kill(1, "no heartbeat for 41.0 s")]


def test_a_worker_that_was_killed_is_left_alone_by_a_stop() -> None:
    daemon = started(1)
    daemon.tell(look(stalls(1, age=40.0)), look(stalls(1, age=41.0)))
    daemon.wait(2.0)
    assert daemon.tell(stop()) == [GateAll(), sweep(1)]
    assert daemon.supervisor.next_deadline() is None
    assert daemon.wait(60.0) == []


def test_a_worker_that_starts_gets_as_long_as_the_others_to_leave() -> None:
    daemon = started(1, policy=Policy(start_timeout=3.0, graceful_timeout=7.0))
    daemon.tell(died(1))
    daemon.tell(stop(), after=2.0)
    assert daemon.wait(6.9) == []
    assert daemon.wait(0.2) == [kill(2)]


def test_a_stop_before_the_start_is_over_ends_with_0() -> None:
    daemon = Daemon(2, policy=Policy())
    daemon.tell(Tick(), ready(1))
    assert daemon.tell(stop()) == [GateAll(), sweep(1), sweep(2)]
    assert daemon.tell(left(1), died(2)) == [Exit(0, "")]


def test_a_stop_without_any_worker_ends_at_once() -> None:
    daemon = started(1)
    daemon.tell(died(1), died(2))
    assert daemon.tell(stop(ticket=1)) == [GateAll(), finished("stop", ticket=1), Exit(0, "")]


def test_a_stop_starts_nobody() -> None:
    daemon = started(2)
    daemon.tell(died(1), died(3))
    daemon.tell(stop())
    assert daemon.wait(1.0) == []
    assert daemon.tell(died(2)) == [Exit(0, "")]


@pytest.mark.parametrize(
    ("command", "name"),
    [(reload(2, 2, ticket=1), "reload"), (restart(1, ticket=1), "restart")],
)
def test_a_stop_answers_the_command_that_is_under_way(command: object, name: str) -> None:
    daemon = started(1)
    daemon.tell(command)  # type: ignore[arg-type]
    assert daemon.tell(stop())[0] == finished(name, STOPPING, ticket=1)


@pytest.mark.shows("when a stop comes while commands wait")
def test_a_stop_answers_the_commands_that_wait_in_their_order() -> None:
    daemon = started(1)
    daemon.tell(scale(2, ticket=1), reload(2, 1, ticket=2), restart(1, ticket=3))
    assert daemon.tell(stop())[:3] == [
        finished("scale", STOPPING, ticket=1),
        finished("reload", STOPPING, ticket=2),
        finished("restart", STOPPING, ticket=3),
    ]


def test_a_command_that_comes_after_the_stop_is_answered_at_once() -> None:
    daemon = started(1)
    daemon.tell(stop())
    assert daemon.tell(reload(2, 1, ticket=1)) == [finished("reload", STOPPING, ticket=1)]
    assert daemon.tell(scale(4, ticket=2)) == [finished("scale", STOPPING, ticket=2)]
    assert daemon.tell(restart(None, ticket=3)) == [finished("restart", STOPPING, ticket=3)]
    assert daemon.tell(left(1)) == [Exit(0, "")]


def test_a_request_to_exit_during_a_stop_changes_nothing() -> None:
    daemon = started(2)
    daemon.tell(stop())
    assert daemon.hear(asked_to_exit(1), asked_to_exit(2)) == []
    assert daemon.slots() == [1, 2]


def test_a_stop_in_the_middle_of_a_reload_ends_with_0() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1))
    assert daemon.tell(stop())[1:] == [GateAll(), sweep(1), sweep(2)]
    assert daemon.tell(ready(2), left(2), left(1)) == [Exit(0, "")]


def test_an_end_with_70_stays_one_when_it_is_hurried() -> None:
    daemon = started(2, policy=Policy(max_restarts=0))
    daemon.tell(died(1))
    assert daemon.tell(stop(quick=True, ticket=1)) == [quick(2)]
    assert daemon.tell(left(2)) == [
        finished("stop", ticket=1),
        Exit(70, "worker 1 died once within 60 s"),
    ]


def test_what_drained_for_a_reload_is_killed_in_time_too() -> None:
    daemon = started(1, policy=Policy(graceful_timeout=7.0))
    assert daemon.tell(reload(2, 1), ready(2)) == [
        spawn(2, slot=1, place=1, generation=2),
        hand_over(1),
    ]
    assert daemon.tell(closed(1)) == [finished("reload")]
    assert daemon.wait(6.9) == []
    assert daemon.wait(0.2) == [kill(1)]


def test_a_starting_worker_that_was_aborted_is_killed_in_a_stop_when_its_time_comes() -> None:
    daemon = started(1, policy=Policy(start_timeout=3.0))
    daemon.tell(died(1))
    assert daemon.wait(3.0) == [abort(2, "not ready within 3 s")]
    daemon.tell(stop(), after=1.0)
    assert daemon.wait(1.0) == [kill(2, "not ready within 3 s")]


# The delay


DELAYED = Policy(shutdown_delay=5.0, graceful_timeout=7.0)


def test_with_a_delay_a_stop_is_told_at_once_and_carried_out_later() -> None:
    daemon = started(2, policy=DELAYED)
    assert daemon.hear(stop(ticket=1)) == [Say("info", "stopping", (("delay", 5.0),))]
    assert daemon.supervisor.stopping == stop()
    assert daemon.supervisor.next_deadline() == daemon.now + 5.0
    assert daemon.wait(4.9) == []
    assert daemon.wait(0.1) == [GateAll(), sweep(1), sweep(2)]
    assert daemon.wait(6.9) == []
    assert daemon.wait(0.1) == [kill(1), kill(2)]
    assert daemon.tell(died(1), died(2)) == [finished("stop", ticket=1), Exit(0, "")]


def test_a_quick_stop_cuts_the_delay_short() -> None:
    daemon = started(1, policy=DELAYED)
    daemon.tell(stop())
    assert daemon.hear(stop(quick=True), after=1.0) == [quick(1)]
    assert daemon.tell(left(1)) == [Exit(0, "")]


def test_a_second_stop_does_not_put_the_end_off() -> None:
    daemon = started(1, policy=DELAYED)
    daemon.tell(stop())
    assert daemon.tell(stop(), after=4.0) == []
    assert daemon.wait(1.0) == [GateAll(), sweep(1)]


def test_a_quick_stop_does_not_wait() -> None:
    assert started(1, policy=DELAYED).tell(stop(quick=True)) == [quick(1)]


def test_a_start_is_not_waited_for() -> None:
    daemon = Daemon(2, policy=DELAYED)
    daemon.tell(Tick(), ready(1))
    assert daemon.tell(stop()) == [GateAll(), sweep(1), sweep(2)]


def test_an_end_of_its_own_accord_is_not_delayed() -> None:
    daemon = started(1, policy=replace(DELAYED, max_restarts=0))
    assert daemon.tell(died(1)) == [GateAll(), Exit(70, "worker 1 died once within 60 s")]


def test_a_daemon_that_nobody_can_reach_ends_with_69_and_without_delay() -> None:
    daemon = started(1, policy=DELAYED)
    assert daemon.tell(Unreachable("it is gone")) == [GateAll(), sweep(1)]
    assert daemon.tell(left(1)) == [Exit(69, "it is gone")]


def test_what_stops_already_is_not_made_a_failure_by_being_unreachable() -> None:
    daemon = started(1, policy=DELAYED)
    daemon.tell(stop(), Unreachable("it is gone"))
    assert daemon.wait(5.0) == [GateAll(), sweep(1)]
    assert daemon.tell(left(1)) == [Exit(0, "")]


def test_a_worker_that_dies_during_the_delay_is_replaced() -> None:
    daemon = started(2, policy=replace(DELAYED, own_listeners=True))
    daemon.tell(stop())
    assert daemon.tell(died(1)) == [spawn(3, slot=1)]
    assert daemon.tell(died(3)) == [lend(1, 2)]
    assert daemon.supervisor.next_deadline() == daemon.now + 0.1
    assert daemon.wait(0.1) == [spawn(4, slot=1)]
    assert daemon.tell(ready(4)) == [take_back(1, 2)]
    assert daemon.wait(4.9) == [GateAll(), sweep(2), sweep(4)]


def test_more_deaths_than_max_restarts_do_not_make_a_stop_a_failure() -> None:
    daemon = started(1, policy=replace(DELAYED, max_restarts=0))
    daemon.tell(stop())
    assert daemon.tell(died(1)) == [spawn(2, slot=1)]
    daemon.tell(ready(2))
    daemon.wait(5.0)
    assert daemon.tell(left(2)) == [Exit(0, "")]


def test_a_listener_is_lent_during_the_delay_and_taken_back() -> None:
    daemon = started(2, policy=replace(DELAYED, own_listeners=True))
    daemon.tell(stop(), look(stalls(1)))
    assert daemon.tell(look(stalls(1)), after=0.5) == [lend(1, 2)]
    assert daemon.tell(look(turns(1))) == [take_back(1, 2)]


def test_a_borrower_that_gets_stuck_during_the_delay_is_relieved() -> None:
    daemon = started(3, policy=replace(DELAYED, own_listeners=True))
    daemon.tell(stop(), look(stalls(1)))
    assert daemon.tell(look(stalls(1), stalls(2)), after=0.5) == [lend(1, 2)]
    assert daemon.tell(look(stalls(1), stalls(2)), after=0.5) == [
        take_back(1, 2),
        lend(1, 3),
        lend(2, 3),
    ]


def test_commands_are_refused_during_the_delay() -> None:
    daemon = started(2, policy=DELAYED)
    daemon.tell(restart(None, ticket=1))
    assert daemon.tell(stop()) == [finished("restart", STOPPING, ticket=1)]
    assert daemon.tell(ready(3)) == [hand_over(1)]
    refused = [finished("scale", STOPPING, ticket=2), finished("reload", STOPPING, ticket=3)]
    assert daemon.tell(scale(3, ticket=2), reload(2, 2, ticket=3)) == refused
    assert daemon.tell(left(1), asked_to_exit(2)) == []
    assert daemon.wait(5.0) == [GateAll(), sweep(2), sweep(3)]


def test_a_slot_that_retires_goes_on_to_do_so_during_the_delay() -> None:
    daemon = started(2, policy=replace(DELAYED, own_listeners=True))
    daemon.tell(scale(1))
    daemon.tell(stop())
    assert daemon.tell(left(2)) == [CloseSlot(SlotIndex(2))]
    assert daemon.wait(5.0) == [GateAll(), sweep(1)]


def test_nobody_is_recycled_during_the_delay() -> None:
    daemon = started(1, policy=replace(DELAYED, max_age=1.0))
    daemon.tell(stop())
    assert daemon.tell(look(turns(1)), after=2.0) == []


def test_a_reload_sets_another_delay() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1, policy=DELAYED), ready(2), left(1))
    assert daemon.tell(stop()) == []
