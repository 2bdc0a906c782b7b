"""Reload and restart: one slot at a time, the new worker first, and back again when it fails."""

import pytest

from greeterd.supervisor.actions import Exit, GateAll, Say
from greeterd.supervisor.events import SpawnFailed
from greeterd.supervisor.ids import WorkerId, WorkerState
from greeterd.supervisor.policy import Policy
from tests.unit.supervisor.supervised import (
    asked_to_exit,
    closed,
    died,
    finished,
    hand_over,
    kill,
    left,
    ready,
    reload,
    restart,
    scale,
    spawn,
    started,
    sweep,
)

FAILED = "worker {} did not start: killed by SIGSEGV"


def test_a_reload_replaces_one_slot_at_a_time_and_the_old_worker_leaves_when_the_new_is_ready() -> (
    None
):
    daemon = started(2)
    assert daemon.tell(reload(2, 2, ticket=1)) == [spawn(3, slot=1, place=1, generation=2)]
    assert daemon.states(1) == [WorkerState.READY, WorkerState.STARTING]
    assert daemon.tell(ready(3)) == [spawn(4, slot=2, place=1, generation=2), hand_over(1)]
    assert daemon.supervisor.generation == 1
    assert daemon.tell(left(1)) == []
    assert daemon.tell(ready(4)) == [hand_over(2)]
    assert daemon.supervisor.generation == 1
    assert daemon.tell(closed(2)) == [finished("reload", ticket=1)]
    assert daemon.supervisor.generation == 2
    assert daemon.generations() == {1: 2, 2: 2}


def test_a_reload_brings_its_policy_into_force_when_it_has_succeeded() -> None:
    daemon = started(1)
    policy = Policy(start_timeout=1.0)
    daemon.tell(reload(2, 1, policy=policy))
    assert daemon.supervisor.policy == Policy()
    daemon.tell(ready(2), closed(1))
    assert daemon.supervisor.policy == policy


def test_a_worker_that_dies_after_a_reload_is_restarted_in_the_new_generation() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1), ready(2), left(1))
    assert daemon.tell(died(2)) == [spawn(3, slot=1, place=0, generation=2)]


def test_a_reload_that_fails_leaves_the_old_generation_serving() -> None:
    daemon = started(2)
    daemon.tell(reload(2, 2, policy=Policy(rescue=False), ticket=1))
    assert daemon.tell(died(3)) == [finished("reload", FAILED.format(1), ticket=1)]
    assert daemon.generations() == {1: 1, 2: 1}
    assert daemon.supervisor.generation == 1
    assert daemon.supervisor.policy == Policy()


def test_a_reload_whose_fork_fails_has_failed() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1, ticket=1))
    assert daemon.tell(SpawnFailed(WorkerId(2), "fork: out of memory")) == [
        finished("reload", "worker 1 did not start: fork: out of memory", ticket=1)
    ]


def test_a_reload_that_fails_is_undone_in_the_slots_that_were_replaced() -> None:
    daemon = started(3)
    daemon.tell(reload(2, 3, ticket=1), ready(4), left(1), ready(5), left(2))
    assert daemon.generations() == {1: 2, 2: 2, 3: 1}
    actions = daemon.hear(died(6))
    assert actions == [
        Say("warning", "reload is undone", (("reason", FAILED.format(3)),)),
        spawn(7, slot=1, place=0, generation=1),
    ]
    assert daemon.tell(ready(7)) == [spawn(8, slot=2, place=0, generation=1), hand_over(4)]
    assert daemon.tell(ready(8), closed(4)) == [hand_over(5)]
    assert daemon.tell(closed(5)) == [finished("reload", FAILED.format(3), ticket=1)]
    assert daemon.generations() == {1: 1, 2: 1, 3: 1}
    assert daemon.supervisor.generation == 1


def test_undoing_that_fails_too_is_told_with_both_reasons_and_is_not_undone() -> None:
    daemon = started(3)
    daemon.tell(reload(2, 3, ticket=1), ready(4), left(1), ready(5), left(2), died(6))
    daemon.tell(ready(7), left(4))
    assert daemon.tell(died(8, "no memory")) == [
        finished(
            "reload",
            f"{FAILED.format(3)}; undoing it: worker 2 did not start: no memory",
            ticket=1,
        )
    ]
    assert daemon.supervisor.operation is None


def test_a_worker_that_dies_in_a_slot_that_was_replaced_is_restarted_in_the_new_generation() -> (
    None
):
    daemon = started(2)
    daemon.tell(reload(2, 2), ready(3), left(1))
    assert daemon.tell(died(3)) == [spawn(5, slot=1, place=0, generation=2)]
    assert daemon.tell(ready(5), ready(4), closed(2))[-1] == finished("reload")


def test_a_worker_that_dies_in_a_slot_that_is_not_yet_replaced_is_restarted_in_the_old() -> None:
    daemon = started(2)
    daemon.tell(reload(2, 2))
    assert daemon.tell(died(2)) == [spawn(4, slot=2, place=0, generation=1)]
    assert daemon.tell(ready(3)) == [hand_over(1)]
    assert daemon.states(2) == [WorkerState.STARTING]
    assert daemon.tell(ready(4)) == [spawn(5, slot=2, place=1, generation=2)]


def test_an_old_worker_that_dies_during_its_replacement_is_not_restarted() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1, ticket=1))
    assert daemon.tell(died(1)) == []
    assert daemon.states(1) == [WorkerState.STARTING]
    assert daemon.tell(ready(2)) == [finished("reload", ticket=1)]


def test_when_old_and_new_die_during_a_replacement_the_old_generation_is_restarted() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1, ticket=1), died(1))
    assert daemon.tell(died(2)) == [finished("reload", FAILED.format(1), ticket=1)]
    assert daemon.wait(0.1) == [spawn(3, slot=1, place=0, generation=1)]


def test_a_slot_in_back_off_is_replaced_at_once() -> None:
    daemon = started(1)
    daemon.tell(died(1), died(2))
    assert daemon.supervisor.next_deadline() == daemon.now + 0.1
    assert daemon.tell(reload(2, 1)) == [spawn(3, slot=1, place=0, generation=2)]


def test_a_reload_with_other_numbers_of_workers_grows_in_the_new_generation() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 3, ticket=1))
    assert daemon.tell(ready(2)) == [hand_over(1)]
    assert daemon.tell(closed(1)) == [
        spawn(3, slot=2, generation=2),
        spawn(4, slot=3, generation=2),
    ]
    assert daemon.tell(ready(3), ready(4)) == [finished("reload", ticket=1)]
    assert daemon.slots() == [1, 2, 3]


def test_a_reload_with_fewer_workers_shrinks_when_all_are_replaced() -> None:
    daemon = started(2)
    daemon.tell(reload(2, 1, ticket=1), ready(3), left(1), ready(4), closed(2))
    assert daemon.slots() == [1]
    assert daemon.states(2) == [WorkerState.DRAINING, WorkerState.DRAINING]
    assert daemon.tell(left(4), left(2))[-1] == finished("reload", ticket=1)


def test_a_reload_that_cannot_grow_says_so() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 2, ticket=1), ready(2), closed(1))
    assert finished("reload", FAILED.format(2), ticket=1) in daemon.tell(died(3))
    assert daemon.generations() == {1: 2}


def test_a_slot_that_retires_during_a_reload_is_passed_over() -> None:
    daemon = started(3)
    daemon.tell(reload(2, 3, ticket=1))
    daemon.tell(asked_to_exit(2), left(2))
    assert daemon.tell(ready(4)) == [spawn(5, slot=3, place=1, generation=2), hand_over(1)]


def test_a_slot_that_retires_during_its_replacement_is_passed_over() -> None:
    daemon = started(2)
    daemon.tell(reload(2, 1, ticket=1))
    assert daemon.tell(asked_to_exit(1)) == [
        spawn(4, slot=2, place=1, generation=2),
        hand_over(1),
        hand_over(3),
    ]
    assert daemon.tell(left(3), left(1))[-1:] != [finished("reload", ticket=1)]
    assert daemon.tell(ready(4)) == [hand_over(2)]
    assert daemon.tell(closed(2)) == [finished("reload", ticket=1)]


def test_a_restart_of_all_replaces_every_slot_in_its_own_generation() -> None:
    daemon = started(2)
    assert daemon.tell(restart(None, ticket=1)) == [spawn(3, slot=1, place=1)]
    assert daemon.tell(ready(3)) == [spawn(4, slot=2, place=1), hand_over(1)]
    assert daemon.tell(ready(4), closed(1)) == [hand_over(2)]
    assert daemon.tell(closed(2)) == [finished("restart", ticket=1)]
    assert daemon.supervisor.generation == 1


def test_a_restart_of_one_slot_leaves_the_others_alone() -> None:
    daemon = started(3)
    assert daemon.tell(restart(2, ticket=1)) == [spawn(4, slot=2, place=1)]
    assert daemon.tell(ready(4)) == [hand_over(2)]
    assert daemon.tell(closed(2)) == [finished("restart", ticket=1)]


def test_a_replacement_has_succeeded_when_none_of_the_replaced_accepts_any_longer() -> None:
    daemon = started(2)
    daemon.tell(restart(None, ticket=1), ready(3), ready(4))
    assert daemon.tell(closed(2)) == []
    assert daemon.tell(left(1)) == [finished("restart", ticket=1)]


@pytest.mark.shows("when a worker hangs while it is replaced")
def test_a_replacement_waits_for_one_that_hangs_until_it_is_killed() -> None:
    daemon = started(1, policy=Policy(graceful_timeout=5.0))
    daemon.tell(restart(1, ticket=1), ready(2))
    assert daemon.wait(4.9) == []
    assert daemon.wait(0.1) == [kill(1)]
    assert daemon.tell(died(1)) == [finished("restart", ticket=1)]


def test_a_replacement_does_not_wait_for_one_that_died_before_it_was_told_to_leave() -> None:
    daemon = started(1)
    daemon.tell(restart(1, ticket=1), died(1))
    assert daemon.tell(ready(2), closed(1)) == [finished("restart", ticket=1)]


def test_a_restart_that_fails_is_not_undone() -> None:
    daemon = started(2)
    daemon.tell(restart(None, ticket=1), ready(3), left(1))
    assert daemon.tell(died(4)) == [finished("restart", FAILED.format(2), ticket=1)]


def test_a_restart_of_an_unknown_slot_is_refused() -> None:
    daemon = started(1)
    reason = "there is no worker 7"
    assert daemon.tell(restart(7, ticket=1)) == [finished("restart", reason, ticket=1)]


def test_a_restart_of_a_slot_that_retires_is_refused() -> None:
    daemon = started(2)
    daemon.tell(asked_to_exit(2))
    reason = "there is no worker 2"
    assert daemon.tell(restart(2, ticket=1)) == [finished("restart", reason, ticket=1)]


@pytest.mark.shows("when several commands come at once")
def test_commands_are_carried_out_in_the_order_in_which_they_came() -> None:
    daemon = started(1)
    assert daemon.tell(
        restart(1, ticket=1), scale(2, ticket=2), restart(9, ticket=3), reload(2, 2, ticket=4)
    ) == [spawn(2, slot=1, place=1)]
    assert daemon.tell(ready(2)) == [hand_over(1)]
    assert daemon.tell(closed(1)) == [finished("restart", ticket=1), spawn(3, slot=2)]
    assert daemon.tell(left(1), ready(3)) == [
        finished("scale", ticket=2),
        finished("restart", "there is no worker 9", ticket=3),
        spawn(4, slot=1, place=0, generation=2),
    ]


def test_a_command_that_comes_before_the_start_is_over_waits_for_it() -> None:
    daemon = started(1)
    daemon.tell(scale(2), reload(2, 2, ticket=1))
    assert daemon.generations() == {1: 1}
    assert spawn(3, slot=1, place=1, generation=2) in daemon.tell(ready(2))


def test_another_worker_that_fails_to_start_does_not_fail_the_reload() -> None:
    daemon = started(2)
    daemon.tell(reload(2, 2, ticket=1), died(2))
    assert daemon.tell(died(4)) == []
    assert daemon.tell(ready(3)) == [spawn(5, slot=2, place=0, generation=2), hand_over(1)]


def test_the_restart_intensity_ends_a_reload() -> None:
    daemon = started(2, policy=Policy(max_restarts=0))
    daemon.tell(reload(2, 2, ticket=1))
    assert daemon.tell(died(2)) == [
        finished("reload", "the daemon is stopping", ticket=1),
        GateAll(),
        sweep(1),
        sweep(3),
    ]
    assert daemon.tell(left(1), left(3)) == [Exit(70, "worker 2 died once within 60 s")]
