"""Rescue: a slot that cannot serve its listener lends it to a sibling."""

from dataclasses import replace

import pytest

from greeterd.supervisor.events import LoanRefused
from greeterd.supervisor.ids import SlotIndex, WorkerId
from greeterd.supervisor.policy import Policy
from tests.unit.supervisor.supervised import (
    OWN,
    abort,
    closed,
    died,
    finished,
    hand_over,
    is_stuck,
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
    started,
    take_back,
    turns,
)

# Stuck workers


def test_a_stuck_workers_listener_is_lent_within_half_a_second_of_waiting() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(look(stalls(1), turns(2)))
    assert daemon.tell(look(stalls(1), turns(2)), after=0.39) == []
    assert daemon.tell(look(stalls(1), turns(2)), after=0.02) == [lend(1, 2)]
    assert daemon.tell(look(stalls(1), turns(2)), after=0.2) == []


def test_it_is_taken_back_when_the_worker_turns() -> None:
    daemon = started(2, policy=OWN)
    is_stuck(daemon, 1)
    assert daemon.tell(look(turns(1)), after=0.2) == [take_back(1, 2)]
    assert daemon.tell(look(turns(1)), after=0.2) == []
    assert daemon.tell(returned(1, 2), after=0.2) == []
    assert daemon.supervisor.slots[SlotIndex(1)].borrower is None


def test_a_worker_that_is_stuck_again_waits_until_its_listener_was_given_back() -> None:
    daemon = started(2, policy=OWN)
    is_stuck(daemon, 1)
    daemon.tell(look(turns(1)), after=0.2)
    assert is_stuck(daemon, 1) == []
    assert daemon.tell(returned(1, 2)) == [lend(1, 2)]


def test_a_worker_that_has_refused_a_loan_is_not_asked_again_for_five_seconds() -> None:
    daemon = started(2, policy=OWN)
    is_stuck(daemon, 1)
    assert daemon.tell(LoanRefused(SlotIndex(1), WorkerId(2))) == []
    assert daemon.tell(look(stalls(1), turns(2)), after=4.9) == []
    assert daemon.tell(look(stalls(1), turns(2)), after=0.2) == [lend(1, 2)]


def test_a_worker_that_turns_is_not_stuck_however_much_waits() -> None:
    daemon = started(2, policy=OWN)
    for _ in range(5):
        assert daemon.tell(look(turns(1, queued=9)), after=0.2) == []


def test_a_worker_that_has_nothing_to_do_is_not_stuck() -> None:
    daemon = started(2, policy=OWN)
    for _ in range(5):
        assert daemon.tell(look(stalls(1, queued=0)), after=0.2) == []


def test_a_worker_that_turned_in_between_is_not_stuck() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(look(stalls(1)), after=0.2)
    daemon.tell(look(turns(1, queued=1)), after=0.2)
    assert daemon.tell(look(stalls(1)), after=0.2) == []


def test_a_stuck_worker_stays_stuck_when_its_sibling_has_emptied_the_queue() -> None:
    daemon = started(2, policy=OWN)
    is_stuck(daemon, 1)
    assert daemon.tell(look(stalls(1, queued=0)), after=0.2) == []


def test_nothing_is_lent_when_rescue_is_off() -> None:
    daemon = started(3, policy=Policy(own_listeners=True, rescue=False))
    assert is_stuck(daemon, 1) == []
    daemon.tell(died(2), died(4))
    assert daemon.states(2) == []
    assert daemon.wait(29.0) == [spawn(5, slot=2)]


def test_nothing_is_lent_where_the_listener_is_shared() -> None:
    daemon = started(3)
    assert is_stuck(daemon, 1) == []
    daemon.tell(died(2))
    assert daemon.tell(died(4), after=0.6) == []


def test_nobody_lends_to_himself() -> None:
    daemon = started(1, policy=OWN)
    assert is_stuck(daemon, 1) == []


def test_a_reload_that_turns_rescue_off_ends_the_loans() -> None:
    daemon = started(3, policy=OWN)
    daemon.tell(reload(2, 3, policy=replace(OWN, rescue=False)), ready(4), ready(5))
    assert is_stuck(daemon, 4) == [lend(1, 5)]
    assert daemon.tell(closed(1), closed(2), ready(6)) == [hand_over(3)]
    assert daemon.tell(closed(3)) == [finished("reload"), take_back(1, 5)]


# Slots without a worker


def test_a_slot_in_back_off_is_lent_at_once_and_taken_back_when_it_is_served() -> None:
    daemon = started(2, policy=OWN)
    assert daemon.tell(died(1)) == [spawn(3, slot=1)]
    assert daemon.tell(died(3)) == [lend(1, 2)]
    assert daemon.wait(0.1) == [spawn(4, slot=1)]
    assert daemon.wait(5.0) == []
    assert daemon.tell(ready(4)) == [take_back(1, 2)]


def test_a_slot_whose_restart_takes_long_is_lent_after_half_a_second() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(died(1), after=1.0)
    assert daemon.wait(0.49) == []
    assert daemon.wait(0.02) == [lend(1, 2)]


def test_the_half_second_counts_from_the_death_of_the_worker_that_served() -> None:
    daemon = started(3, policy=OWN)
    daemon.tell(restart(1), died(1))
    assert daemon.tell(look(), after=0.4) == []
    daemon.tell(died(2), after=0.0)
    assert daemon.supervisor.slots[SlotIndex(1)].unserved_since == daemon.now - 0.4
    assert daemon.wait(0.1) == [lend(1, 3)]


def test_a_slot_that_was_never_served_has_nothing_to_lend() -> None:
    daemon = started(1, policy=OWN)
    daemon.tell(scale(2))
    assert daemon.wait(5.0) == []


def test_a_slot_is_not_lent_during_a_replacement() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(restart(1))
    assert daemon.wait(5.0) == []
    assert daemon.tell(ready(3)) == [hand_over(1)]


# Borrowers


def test_the_sibling_with_the_fewest_loans_borrows_and_the_lowest_of_these() -> None:
    daemon = started(4, policy=OWN)
    stuck = [stalls(1), stalls(2)]
    daemon.tell(look(*stuck))
    assert daemon.tell(look(*stuck), after=0.5) == [lend(1, 3), lend(2, 4)]
    daemon.tell(look(stalls(3)))
    assert daemon.tell(look(stalls(3)), after=0.5) == [take_back(1, 3), lend(1, 4), lend(3, 4)]


@pytest.mark.parametrize("end", [died(2), left(2)])
def test_a_borrower_that_dies_is_replaced_by_another(end: object) -> None:
    daemon = started(3, policy=OWN)
    assert is_stuck(daemon, 1) == [lend(1, 2)]
    assert lend(1, 3) in daemon.tell(end)  # type: ignore[arg-type]


def test_a_borrower_that_gets_stuck_is_called_back_and_replaced() -> None:
    daemon = started(3, policy=OWN)
    is_stuck(daemon, 1)
    assert is_stuck(daemon, 2) == [take_back(1, 2), lend(1, 3), lend(2, 3)]
    assert daemon.tell(returned(1, 2)) == []
    assert daemon.supervisor.slots[SlotIndex(1)].borrower == 3


def test_a_borrower_that_gets_stuck_is_forgotten_even_when_nobody_else_is_there() -> None:
    daemon = started(2, policy=OWN)
    is_stuck(daemon, 1)
    assert is_stuck(daemon, 2) == [take_back(1, 2)]
    assert daemon.tell(look(stalls(1), turns(2))) == [lend(1, 2)]


def test_a_borrower_that_gets_stuck_while_it_gives_back_is_not_called_again() -> None:
    daemon = started(3, policy=OWN)
    is_stuck(daemon, 1)
    assert daemon.tell(look(turns(1))) == [take_back(1, 2)]
    assert is_stuck(daemon, 2) == [lend(2, 1)]
    assert daemon.supervisor.slots[SlotIndex(1)].borrower is None


def test_a_borrower_that_drains_is_replaced_by_its_successor() -> None:
    daemon = started(2, policy=OWN)
    is_stuck(daemon, 1)
    daemon.tell(restart(2))
    assert daemon.tell(ready(3)) == [hand_over(2), lend(1, 3)]


def test_a_borrower_that_is_aborted_is_replaced() -> None:
    daemon = started(3, policy=OWN)
    is_stuck(daemon, 1)
    daemon.tell(look(stalls(2, queued=0, age=40.0)))
    reason = "no heartbeat for 41.0 s"
    assert daemon.tell(look(stalls(2, queued=0, age=41.0))) == [
        abort(2, reason),
        take_back(1, 2),
        lend(1, 3),
        lend(2, 3),
    ]


def test_a_loan_that_somebody_else_gives_back_goes_on() -> None:
    daemon = started(3, policy=OWN)
    is_stuck(daemon, 1)
    assert daemon.tell(returned(1, 3), returned(9, 2)) == []
    assert daemon.supervisor.slots[SlotIndex(1)].borrower == 2
