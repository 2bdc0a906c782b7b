"""How the daemon stops: in peace, quickly, and in bounded time whatever the workers do."""

import pytest

from greeterd.core.events import Exit, GateAll, Life, Policy, Tick
from tests.core.supervised import (
    Daemon,
    abort,
    asked_to_exit,
    died,
    finished,
    hand_over,
    kill,
    left,
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
    daemon.tell(reload(2, 1), ready(2))
    assert daemon.tell(stop(quick=True)) == [quick(1), quick(2)]


def test_a_graceful_stop_leaves_those_alone_that_drain_already() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1), ready(2))
    assert daemon.tell(stop()) == [GateAll(), sweep(2)]


def test_a_stop_bounds_those_that_were_given_longer_before() -> None:
    daemon = started(1, policy=Policy(graceful_timeout=300.0))
    daemon.tell(restart(1), ready(2))
    daemon.tell(reload(2, 1, policy=Policy(graceful_timeout=5.0)), left(1), ready(3))
    assert daemon.lives(1) == [Life.DRAINING, Life.READY]
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
        Exit(70, "1 workers died within 60 s"),
    ]


def test_what_drained_for_a_reload_is_killed_in_time_too() -> None:
    daemon = started(1, policy=Policy(graceful_timeout=7.0))
    assert daemon.tell(reload(2, 1), ready(2)) == [
        spawn(2, slot=1, place=1, generation=2),
        finished("reload"),
        hand_over(1),
    ]
    assert daemon.wait(29.9) == []
    assert daemon.wait(0.2) == [kill(1)]


def test_a_starting_worker_that_was_aborted_is_killed_in_a_stop_when_its_time_comes() -> None:
    daemon = started(1, policy=Policy(start_timeout=3.0))
    daemon.tell(died(1))
    assert daemon.wait(3.0) == [abort(2, "not ready within 3 s")]
    daemon.tell(stop(), after=1.0)
    assert daemon.wait(1.0) == [kill(2, "not ready within 3 s")]
