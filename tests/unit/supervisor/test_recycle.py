"""When a worker has served for long enough, and how one at a time is replaced."""

from dataclasses import replace

import pytest

from greeterd.supervisor.actions import GateAll, Say, Started
from greeterd.supervisor.events import Pulse, Ready
from greeterd.supervisor.ids import WorkerId, WorkerState
from greeterd.supervisor.policy import Policy
from tests.unit.supervisor.supervised import (
    Daemon,
    closed,
    died,
    finished,
    hand_over,
    left,
    look,
    ready,
    reload,
    restart,
    returned,
    scale,
    spawn,
    stalls,
    started,
    stop,
    sweep,
    upgrade,
)

MIB = 2**20


def has(worker: int, *, greetings: int = 0, rss: int = 0) -> Pulse:
    return Pulse(
        WorkerId(worker), 0.0, turned=True, queued=0, greetings=greetings, rss_bytes=rss * MIB
    )


def recycled(worker: int, reason: str) -> Say:
    return Say("info", "worker is recycled", (("worker", worker), ("reason", reason)))


def test_by_default_a_worker_serves_for_ever() -> None:
    daemon = started(1)
    assert daemon.tell(look(has(1, greetings=10**12, rss=10**6)), after=10**9) == []


def test_a_worker_is_replaced_after_so_many_greetings() -> None:
    daemon = started(1, policy=Policy(max_greetings=100))
    assert daemon.tell(look(has(1, greetings=99))) == []
    assert daemon.hear(look(has(1, greetings=101))) == [
        recycled(1, "101 greetings"),
        spawn(2, slot=1, place=1),
    ]
    assert daemon.tell(ready(2)) == [hand_over(1)]
    assert daemon.tell(closed(1)) == [finished("recycle")]
    assert daemon.tell(left(1), look(has(2, greetings=3))) == []


def test_a_worker_is_replaced_at_an_age_which_counts_from_when_it_was_ready() -> None:
    daemon = Daemon(1, policy=Policy(max_age=50.0))
    daemon.tell(look())
    daemon.tell(ready(1), after=20.0)
    assert daemon.tell(look(has(1)), after=49.5) == []
    assert daemon.hear(look(has(1)), after=0.5)[0] == recycled(1, "50.0 s old")


def test_a_worker_is_replaced_when_it_has_so_much_memory() -> None:
    daemon = started(1, policy=Policy(max_rss_bytes=64 * MIB))
    assert daemon.tell(look(has(1, rss=30)), look(has(1, rss=63))) == []
    assert daemon.hear(look(has(1, rss=64)))[0] == recycled(1, "64.0 MiB resident")


def test_a_limit_of_memory_that_a_new_worker_exceeds_is_not_looked_at_and_told_once() -> None:
    daemon = Daemon(2, policy=Policy(max_rss_bytes=20 * MIB))
    daemon.tell(look())
    told = Say(
        "warning",
        "max_rss is out of reach",
        (("max_rss_mib", 20), ("rss_mib", 30.0)),
    )
    both = [Ready(WorkerId(1), 30 * MIB), Ready(WorkerId(2), 31 * MIB)]
    assert daemon.hear(*both) == [Started(), told]
    assert daemon.hear(look(has(1, rss=90), has(2, rss=90))) == []


def test_a_worker_that_grows_at_once_is_replaced_all_the_same() -> None:
    daemon = Daemon(1, policy=Policy(max_rss_bytes=64 * MIB))
    daemon.tell(look())
    daemon.tell(Ready(WorkerId(1), 30 * MIB))
    assert daemon.tell(look(has(1, rss=70))) == [spawn(2, slot=1, place=1)]


@pytest.mark.parametrize(
    ("pulse", "after"), [(has(1, greetings=91), 0.0), (has(1), 90.0)], ids=["greetings", "age"]
)
def test_chance_takes_up_to_a_tenth_off_a_worker_s_limits(pulse: Pulse, after: float) -> None:
    policy = Policy(max_greetings=100, max_age=100.0)
    patient, hasty = started(1, policy=policy), started(1, policy=policy, jitter=0.999999)
    assert patient.tell(look(pulse), after=after) == []
    assert hasty.tell(look(pulse), after=after + 0.001) != []
    assert started(1, policy=policy, jitter=0.999999).tell(look(has(1, greetings=89))) == []


def test_one_slot_at_a_time_the_oldest_first_and_the_last_has_to_leave_before_the_next() -> None:
    daemon = started(3, policy=Policy(max_age=10.0))
    daemon.tell(died(1), after=1.0)
    daemon.tell(ready(4), after=1.0)
    everyone = [has(2), has(3), has(4)]
    assert daemon.tell(look(*everyone), after=20.0) == [spawn(5, slot=2, place=1)]
    assert daemon.tell(look(*everyone)) == []
    daemon.tell(ready(5), closed(2))
    assert daemon.tell(look(has(3), has(4))) == []
    assert daemon.tell(left(2)) == [spawn(6, slot=3, place=1)]
    daemon.tell(ready(6), closed(3))
    assert daemon.tell(left(3)) == [spawn(7, slot=1, place=1)]


def test_a_worker_that_was_replaced_otherwise_is_not_recycled() -> None:
    daemon = started(2, policy=Policy(max_greetings=10))
    daemon.tell(look(has(1, greetings=10), has(2, greetings=10)))
    assert daemon.tell(died(2)) == [spawn(4, slot=2)]
    daemon.tell(ready(3), ready(4), closed(1))
    assert daemon.tell(left(1)) == []


def test_commands_go_first() -> None:
    daemon = started(2, policy=Policy(max_greetings=10))
    due = look(has(1, greetings=10), has(2, greetings=10))
    daemon.tell(restart(1))
    assert daemon.tell(due) == []
    assert daemon.tell(scale(3), ready(3)) == [hand_over(1)]
    assert daemon.tell(closed(1)) == [finished("restart"), spawn(4, slot=3)]
    assert daemon.tell(due) == []
    assert daemon.tell(left(1)) == []
    assert daemon.tell(ready(4)) == [finished("scale"), spawn(5, slot=2, place=1)]


def test_a_command_waits_for_the_end_of_a_recycling() -> None:
    daemon = started(1, policy=Policy(max_greetings=10))
    daemon.tell(look(has(1, greetings=10)))
    assert daemon.tell(scale(2, ticket=7), upgrade(ticket=8)) == []
    assert daemon.tell(ready(2)) == [hand_over(1)]
    assert daemon.tell(closed(1)) == [finished("recycle"), spawn(3, slot=2)]


def test_a_replacement_that_fails_leaves_the_old_worker_and_is_tried_again_later() -> None:
    daemon = started(2, policy=Policy(max_greetings=10))
    reason = "worker 1 did not start: exit status 78"
    due = look(has(1, greetings=11), has(2))
    attempt, delay = 3, 1.0
    daemon.tell(due)
    for _ in range(8):
        dies = died(attempt, "exit status 78", 78)
        assert daemon.tell(dies) == [finished("recycle", reason)]
        assert daemon.states(1) == [WorkerState.READY]
        assert daemon.tell(due, after=delay - 0.1) == []
        attempt += 1
        assert daemon.tell(due, after=0.1) == [spawn(attempt, slot=1, place=1)]
        delay = min(60.0, 2 * delay)
    assert daemon.supervisor.recent_restarts(daemon.now) == 0
    daemon.tell(ready(attempt), left(1))
    after = look(has(attempt, greetings=11))
    assert daemon.tell(after) == [spawn(attempt + 1, slot=1)]
    daemon.tell(died(attempt + 1))
    assert daemon.tell(after, after=1.0) != [], "one that has succeeded begins anew"


def test_a_worker_that_came_otherwise_does_not_wait_for_a_failure_before_it() -> None:
    daemon = started(1, policy=Policy(max_greetings=10))
    daemon.tell(look(has(1, greetings=10)), died(2), restart(1))
    daemon.tell(ready(3), left(1))
    assert daemon.tell(look(has(3, greetings=10))) == [spawn(4, slot=1)]


def test_a_slot_whose_replacements_fail_does_not_hinder_the_others() -> None:
    daemon = started(2, policy=Policy(max_greetings=10))
    due = look(has(1, greetings=10), has(2, greetings=10))
    daemon.tell(due)
    assert daemon.tell(died(3)) == [
        finished("recycle", "worker 1 did not start: killed by SIGSEGV"),
        spawn(4, slot=2, place=1),
    ]


def test_the_wait_for_the_next_trial_is_shorter_by_chance_and_half_at_most() -> None:
    daemon = started(1, policy=Policy(max_greetings=10), jitter=0.999999)
    due = look(has(1, greetings=10))
    daemon.tell(due, died(2))
    assert daemon.tell(due, after=0.4) == []
    assert daemon.tell(due, after=0.11) != []


def test_a_worker_that_dies_while_it_is_replaced_is_replaced_by_that() -> None:
    daemon = started(1, policy=Policy(max_greetings=10))
    daemon.tell(look(has(1, greetings=10)))
    assert daemon.tell(died(1)) == []
    assert daemon.tell(ready(2)) == [finished("recycle")]
    assert daemon.states(1) == [WorkerState.READY]


def test_a_worker_that_is_stuck_or_hung_is_not_recycled() -> None:
    daemon = started(1, policy=Policy(max_age=10.0, own_listeners=True))
    daemon.tell(look(stalls(1)), after=9.0)
    assert daemon.tell(look(stalls(1)), after=5.0) == []
    assert daemon.tell(look(has(1))) == [spawn(2, slot=1, place=1)]


def test_nobody_is_recycled_while_a_slot_retires() -> None:
    daemon = started(2, policy=Policy(max_greetings=10, own_listeners=True))
    daemon.tell(scale(1))
    assert daemon.tell(look(has(1, greetings=10))) == []
    assert spawn(3, slot=1, place=1) in daemon.tell(left(2))


def test_who_empties_the_listener_of_a_slot_that_retires_is_not_recycled_before_that() -> None:
    daemon = started(2, policy=Policy(max_greetings=10, own_listeners=True))
    daemon.tell(scale(1), died(2))
    assert daemon.tell(look(has(1, greetings=10))) == []
    assert spawn(3, slot=1, place=1) in daemon.tell(returned(2, 1))


def test_a_reload_sets_other_limits() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1, policy=Policy(max_greetings=10)), ready(2), left(1))
    assert daemon.tell(look(has(2, greetings=10))) == [spawn(3, slot=1, generation=2)]
    daemon.tell(ready(3), left(2), reload(3, 1), ready(4), left(3))
    assert daemon.tell(look(has(4, greetings=10))) == []


def test_what_was_due_by_limits_that_a_reload_has_lifted_stays() -> None:
    daemon = started(2, policy=Policy(max_greetings=10))
    daemon.tell(reload(2, 2))
    daemon.tell(ready(3), look(has(2), has(3, greetings=10)), ready(4))
    daemon.tell(closed(1), closed(2))
    assert daemon.tell(look(has(3, greetings=10), has(4))) == []
    assert daemon.tell(left(1), left(2)) == []


def test_a_recycling_replaces_a_worker_by_one_of_its_own_generation() -> None:
    policy = Policy(max_greetings=10)
    daemon = started(2, policy=policy)
    daemon.tell(reload(2, 2, policy=replace(policy, max_age=1e6)), ready(3), died(4))
    daemon.tell(left(1), ready(5), left(3))
    assert daemon.generations() == {1: 1, 2: 1}
    assert daemon.tell(look(has(5), has(2, greetings=10))) == [spawn(6, slot=2, place=1)]


def test_a_stop_ends_a_recycling_without_a_word() -> None:
    daemon = started(1, policy=Policy(max_greetings=10))
    daemon.tell(look(has(1, greetings=10)))
    assert daemon.tell(stop()) == [GateAll(), sweep(1), sweep(2)]
