"""More slots, fewer slots, and workers that are asked to exit."""

import pytest

from greeterd.supervisor.actions import CloseSlot, Exit, GateAll, Say, SteerAway
from greeterd.supervisor.ids import SlotIndex, WorkerState
from greeterd.supervisor.policy import Policy
from tests.unit.supervisor.supervised import (
    asked_to_exit,
    died,
    finished,
    hand_over,
    kill,
    left,
    ready,
    restart,
    scale,
    spawn,
    started,
    stop,
    sweep,
)

OWN = Policy(own_listeners=True, graceful_timeout=10.0)


def steer_away(slot: int) -> SteerAway:
    return SteerAway(SlotIndex(slot))


def close(slot: int) -> CloseSlot:
    return CloseSlot(SlotIndex(slot))


# More


def test_a_scale_up_starts_all_at_once_and_has_succeeded_when_all_are_ready() -> None:
    daemon = started(1)
    assert daemon.tell(scale(3, ticket=1)) == [spawn(2, slot=2), spawn(3, slot=3)]
    assert daemon.tell(ready(3)) == []
    assert daemon.tell(ready(2)) == [finished("scale", ticket=1)]
    assert daemon.slots() == [1, 2, 3]


@pytest.mark.shows("command scale refused")
def test_a_scale_up_that_fails_adds_nothing() -> None:
    daemon = started(1)
    daemon.tell(scale(4, ticket=1), ready(2))
    assert daemon.tell(died(3)) == [
        finished("scale", "worker 3 did not start: killed by SIGSEGV", ticket=1),
        hand_over(4),
        close(3),
        hand_over(2),
    ]
    assert daemon.slots() == [1]
    assert daemon.tell(left(4), left(2)) == [close(4), close(2)]


def test_a_worker_that_was_ready_and_dies_does_not_fail_the_scale_up() -> None:
    daemon = started(1)
    daemon.tell(scale(3, ticket=1), ready(2), died(2))
    assert daemon.tell(died(4)) == []
    assert daemon.tell(ready(3)) == []
    assert daemon.wait(0.1) == [spawn(5, slot=2)]
    assert daemon.tell(ready(5)) == [finished("scale", ticket=1)]


def test_another_worker_that_dies_does_not_fail_the_scale_up() -> None:
    daemon = started(1)
    daemon.tell(scale(2, ticket=1), died(1), died(3))
    assert daemon.tell(ready(2)) == [finished("scale", ticket=1)]


def test_an_added_slot_that_retires_is_not_waited_for() -> None:
    daemon = started(1)
    daemon.tell(scale(3, ticket=1), ready(2))
    assert finished("scale", ticket=1) in daemon.tell(asked_to_exit(3))
    daemon.tell(scale(3, ticket=2), left(3), ready(4), asked_to_exit(4), left(4))
    assert daemon.slots() == [1, 2]


@pytest.mark.parametrize(("change", "slots"), [(1, [1, 2, 3]), (2, [1, 2, 3, 4]), (-1, [1])])
def test_a_scale_by_so_many_counts_from_what_is_there(change: int, slots: list[int]) -> None:
    daemon = started(2)
    daemon.tell(scale(change=change))
    assert daemon.slots() == slots


def test_a_scale_to_what_is_there_is_done_at_once() -> None:
    daemon = started(2)
    assert daemon.tell(scale(2, ticket=1)) == [finished("scale", ticket=1)]


@pytest.mark.parametrize("want", [-1, 0, 513])
def test_a_scale_to_nothing_or_above_512_is_refused(want: int) -> None:
    daemon = started(1)
    reason = f"{want} workers: not between 1 and 512"
    assert daemon.tell(scale(want, ticket=1)) == [finished("scale", reason, ticket=1)]
    assert daemon.slots() == [1]


def test_a_scale_by_so_many_that_nothing_is_left_is_refused() -> None:
    daemon = started(1)
    reason = "0 workers: not between 1 and 512"
    assert daemon.tell(scale(change=-1, ticket=1)) == [finished("scale", reason, ticket=1)]


def test_512_slots_are_not_too_many() -> None:
    daemon = started(1)
    assert daemon.tell(scale(512))[-1] == spawn(512, slot=512)


def test_there_are_no_more_slots_than_sockets_were_passed() -> None:
    daemon = started(2, policy=Policy(own_listeners=True, most_slots=2))
    reason = "3 workers: not between 1 and 2, as many as the service manager has passed sockets for"
    assert daemon.tell(scale(change=1, ticket=1)) == [finished("scale", reason, ticket=1)]
    assert daemon.tell(scale(1, ticket=2)) == [steer_away(2), sweep(2)]
    assert daemon.tell(left(2)) == [close(2), finished("scale", ticket=2)]
    assert daemon.tell(scale(2)) == [spawn(3, slot=2)], "up to that number it is possible"


def test_a_scale_waits_for_the_numbers_of_slots_that_retire() -> None:
    daemon = started(4, policy=Policy(most_slots=4))
    daemon.tell(asked_to_exit(2), asked_to_exit(3), asked_to_exit(4))
    assert daemon.tell(scale(3, ticket=1)) == []
    assert daemon.tell(left(3)) == [close(3)]
    assert daemon.tell(left(2)) == [close(2), spawn(5, slot=2), spawn(6, slot=3)]
    assert daemon.tell(ready(5), ready(6)) == [finished("scale", ticket=1)]


# Fewer


def test_a_scale_down_with_a_shared_listener_drains_all_that_go_at_once() -> None:
    daemon = started(4)
    assert daemon.tell(scale(2, ticket=1)) == [hand_over(4), hand_over(3)]
    assert daemon.tell(left(3)) == [close(3)]
    assert daemon.tell(left(4)) == [close(4), finished("scale", ticket=1)]
    assert daemon.slots() == [1, 2]


def test_a_scale_down_with_own_listeners_goes_slot_by_slot_the_highest_first() -> None:
    daemon = started(3, policy=OWN)
    assert daemon.tell(scale(1, ticket=1)) == [steer_away(3), sweep(3)]
    assert daemon.tell(left(3)) == [close(3), steer_away(2), sweep(2)]
    assert daemon.tell(left(2)) == [close(2), finished("scale", ticket=1)]


def test_a_slot_on_its_way_is_closed_before_a_higher_one_is_steered_away() -> None:
    daemon = started(3, policy=OWN)
    assert daemon.tell(asked_to_exit(2)) == [steer_away(2), sweep(2)]
    assert daemon.tell(asked_to_exit(3)) == []
    assert daemon.states(3) == [WorkerState.READY]
    assert daemon.tell(left(2)) == [close(2), steer_away(3), sweep(3)]


def test_a_slot_without_listener_goes_at_once() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(asked_to_exit(2), scale(2, ticket=1))
    assert daemon.tell(asked_to_exit(3)) == [finished("scale", ticket=1), sweep(3)]
    assert daemon.tell(died(3)) == [close(3)]


def test_a_slot_in_back_off_retires_at_once_where_the_listener_is_shared() -> None:
    daemon = started(2)
    daemon.tell(died(2), died(3))
    assert daemon.tell(scale(1, ticket=1)) == [close(2), finished("scale", ticket=1)]


def test_a_worker_that_does_not_leave_its_slot_is_killed() -> None:
    daemon = started(2, policy=Policy(graceful_timeout=7.0))
    daemon.tell(scale(1, ticket=1))
    assert daemon.wait(6.9) == []
    assert daemon.wait(0.2) == [kill(2)]
    assert daemon.tell(died(2)) == [close(2), finished("scale", ticket=1)]


def test_both_workers_of_a_slot_leave_it() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(restart(2))
    assert daemon.tell(asked_to_exit(2)) == [
        finished("restart"),
        steer_away(2),
        sweep(2),
        sweep(3),
    ]
    assert daemon.tell(left(2)) == []
    assert daemon.tell(left(3)) == [close(2)]


# Asked to exit


def test_a_worker_that_is_asked_to_exit_retires_with_its_slot() -> None:
    daemon = started(3)
    assert daemon.hear(asked_to_exit(2)) == [
        Say("info", "worker retires", (("worker", 2),)),
        hand_over(2),
    ]
    assert daemon.tell(left(2)) == [close(2)]
    assert daemon.slots() == [1, 3]


def test_as_many_requests_as_workers_end_the_daemon_with_0() -> None:
    daemon = started(3)
    assert daemon.tell(asked_to_exit(1), asked_to_exit(2)) == [hand_over(1), hand_over(2)]
    assert daemon.hear(asked_to_exit(3)) == [
        Say("info", "worker retires", (("worker", 3),)),
        Say("info", "the last worker retires"),
        GateAll(),
        sweep(3),
    ]
    assert daemon.tell(left(1), left(2), left(3)) == [Exit(0, "")]


def test_requests_that_come_to_one_worker_retire_as_many_workers() -> None:
    daemon = started(3)
    assert daemon.tell(asked_to_exit(2), asked_to_exit(2)) == [hand_over(2), hand_over(1)]
    assert daemon.slots() == [3]
    assert daemon.tell(asked_to_exit(2)) == [GateAll(), sweep(3)]
    assert daemon.hear(asked_to_exit(2)) == []
    assert daemon.tell(left(3), left(2), left(1)) == [Exit(0, "")]


def test_a_request_to_a_worker_that_was_replaced_retires_its_slot() -> None:
    daemon = started(2)
    daemon.tell(restart(1), ready(3))
    assert daemon.tell(asked_to_exit(1)) == [hand_over(3)]
    assert daemon.slots() == [2]


def test_a_request_to_a_worker_that_is_gone_retires_nobody() -> None:
    daemon = started(2)
    daemon.tell(died(1))
    assert daemon.hear(asked_to_exit(1)) == []


def test_when_a_scale_fails_and_all_others_have_retired_the_daemon_ends() -> None:
    daemon = started(2)
    daemon.tell(scale(3, ticket=1), asked_to_exit(1), asked_to_exit(2))
    assert daemon.slots() == [3]
    reason = "worker 3 did not start: killed by SIGSEGV"
    assert daemon.tell(died(3)) == [
        finished("scale", reason, ticket=1),
        close(3),
        GateAll(),
    ]
    assert daemon.tell(left(1), left(2)) == [Exit(0, "")]


def test_a_retiring_slot_is_left_to_the_stop() -> None:
    daemon = started(2, policy=OWN)
    daemon.tell(scale(1, ticket=1))
    assert daemon.tell(stop()) == [
        finished("scale", "the daemon is stopping", ticket=1),
        GateAll(),
        sweep(1),
    ]
    assert daemon.tell(left(2)) == []
    assert daemon.tell(left(1)) == [Exit(0, "")]


def test_there_are_no_more_workers_than_descriptors_for_them() -> None:
    daemon = started(2, policy=Policy(most_by_files=3))
    assert daemon.tell(scale(4, ticket=1)) == [
        finished(
            "scale",
            "4 workers: not between 1 and 3, as many as the limit of open files allows (max_files)",
            ticket=1,
        )
    ]
    assert daemon.tell(scale(3, ticket=2)) == [spawn(3, slot=3)]
