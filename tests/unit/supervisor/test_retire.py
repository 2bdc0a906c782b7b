"""Retiring slots with listeners of their own lose no connection; nor does a stop of the rest."""

from greeterd.supervisor.actions import GateAll
from greeterd.supervisor.ids import SlotIndex, WorkerState
from greeterd.supervisor.policy import Policy
from tests.unit.supervisor.supervised import (
    OWN,
    asked_to_exit,
    close,
    closed,
    died,
    finished,
    is_stuck,
    kill,
    left,
    lend,
    look,
    ready,
    restart,
    returned,
    scale,
    spawn,
    started,
    steer_away,
    stop,
    sweep,
    take_back,
    turns,
)

# Retiring slots


def test_a_retiring_slot_that_nobody_has_swept_is_emptied_by_a_sibling() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(scale(1, ticket=1))
    assert daemon.tell(died(2)) == [lend(2, 1), take_back(2, 1)]
    assert daemon.tell(returned(2, 1)) == [close(2), finished("scale", ticket=1)]


def test_a_retiring_slot_is_emptied_when_rescue_is_off_too() -> None:
    daemon = started(2, policy=Policy(own_listeners=True, rescue=False))
    daemon.tell(died(2), died(3))
    assert daemon.tell(scale(1)) == [steer_away(2), lend(2, 1), take_back(2, 1)]


def test_a_sweep_that_ended_badly_is_none() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(scale(1), after=1.0)
    assert daemon.wait(10.0) == [kill(2)]
    assert daemon.tell(died(2, "killed by SIGKILL")) == [lend(2, 1), take_back(2, 1)]


def test_a_worker_that_handed_over_has_swept_nothing() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(restart(2), ready(3), closed(2))
    assert daemon.tell(scale(1)) == [steer_away(2), sweep(3)]
    assert daemon.tell(died(3)) == [lend(2, 1), take_back(2, 1)]
    assert daemon.tell(left(2)) == []
    assert daemon.tell(returned(2, 1)) == [close(2), finished("scale")]


def test_a_slot_is_not_closed_before_its_last_worker_is_gone() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(restart(2), ready(3), closed(2), scale(1), died(3))
    assert daemon.tell(returned(2, 1)) == []
    assert daemon.tell(left(2)) == [close(2), finished("scale")]


def test_a_slot_is_not_closed_before_its_borrower_has_given_back() -> None:
    daemon = started(2, policy=OWN)
    is_stuck(daemon, 2)
    assert daemon.tell(scale(1)) == [steer_away(2), sweep(2), take_back(2, 1)]
    assert daemon.tell(left(2)) == []
    assert daemon.tell(returned(2, 1)) == [close(2), finished("scale")]


def test_what_was_called_back_before_the_steering_is_waited_for() -> None:
    daemon = started(2, policy=OWN)
    is_stuck(daemon, 2)
    assert daemon.tell(look(turns(2))) == [take_back(2, 1)]
    assert daemon.tell(scale(1)) == []
    assert daemon.states(2) == [WorkerState.READY]
    assert daemon.tell(returned(2, 1)) == [steer_away(2), sweep(2)]
    assert daemon.tell(died(2)) == [lend(2, 1), take_back(2, 1)]


def test_a_retiring_slot_that_waits_for_its_turn_is_lent_like_any_other() -> None:
    daemon = started(3, policy=OWN)
    daemon.tell(scale(1))
    daemon.tell(died(2))
    assert daemon.states(2) == []
    assert daemon.wait(0.5) == [lend(2, 1)]
    assert daemon.tell(left(3)) == [close(3), steer_away(2), take_back(2, 1)]
    assert daemon.tell(returned(2, 1)) == [close(2), finished("scale")]


def test_a_listener_that_no_sibling_can_empty_waits_for_one() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(scale(1), died(1), died(3), died(2))
    assert daemon.wait(0.1) == [spawn(4, slot=1)]
    assert daemon.tell(ready(4), after=1.0) == [lend(2, 4), take_back(2, 4)]


def test_a_listener_that_no_sibling_empties_in_time_is_closed_as_it_is() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(scale(1))
    daemon.tell(died(2), after=1.0)
    assert daemon.supervisor.next_deadline() == daemon.now + 10.0
    assert daemon.wait(9.9) == []
    assert daemon.wait(0.2) == [close(2), finished("scale")]
    assert daemon.tell(returned(2, 1)) == []


# A stop


def test_at_a_stop_a_sibling_gets_the_listener_of_a_slot_that_nobody_serves() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(died(1))
    assert daemon.tell(stop()) == [lend(1, 2), GateAll(), sweep(2), sweep(3)]


def test_at_a_stop_loans_go_on_until_the_borrower_has_left() -> None:
    daemon = started(2, policy=OWN)
    is_stuck(daemon, 1)
    assert daemon.tell(stop()) == [GateAll(), sweep(1), sweep(2)]
    assert daemon.supervisor.slots[SlotIndex(1)].borrower == 2
    assert daemon.tell(left(2)) == []
    assert daemon.supervisor.slots[SlotIndex(1)].borrower is None


def test_at_a_stop_a_slot_that_is_served_is_not_lent() -> None:
    daemon = started(2, policy=OWN)
    assert daemon.tell(stop()) == [GateAll(), sweep(1), sweep(2)]


def test_at_a_stop_nothing_is_lent_when_rescue_is_off() -> None:
    daemon = started(2, policy=Policy(own_listeners=True, rescue=False))
    daemon.tell(died(1))
    assert daemon.tell(stop()) == [GateAll(), sweep(2), sweep(3)]


def test_a_request_to_exit_while_a_slot_is_emptied_is_granted_afterwards() -> None:
    daemon = started(3, policy=OWN)
    daemon.tell(asked_to_exit(3), died(3))
    assert daemon.tell(asked_to_exit(2)) == []
    assert daemon.tell(returned(3, 1)) == [close(3), steer_away(2), sweep(2)]
