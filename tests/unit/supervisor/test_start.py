"""The first generation, restarts, back-off, restart intensity, and workers that hang."""

import pytest

from greeterd.supervisor.actions import Exit, GateAll, Say, Spawn, Started
from greeterd.supervisor.events import SpawnFailed, Tick
from greeterd.supervisor.ids import SlotIndex, WorkerId, WorkerState
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.records import Launch
from tests.unit.supervisor.supervised import (
    Daemon,
    abort,
    died,
    finished,
    kill,
    left,
    look,
    ready,
    reload,
    restart,
    scale,
    spawn,
    stalls,
    started,
    sweep,
    turns,
)


def launched(workers: int, **settings: float) -> Daemon:
    daemon = Daemon(workers, policy=Policy(**settings))  # type: ignore[arg-type]
    daemon.tell(Tick())
    return daemon


def fails_again(daemon: Daemon, worker: int) -> float:
    """Let this worker die, and return the seconds until the next one is started."""
    assert daemon.tell(died(worker)) == []
    deadline = daemon.supervisor.next_deadline()
    assert deadline is not None
    wait = deadline - daemon.now
    assert daemon.wait(wait) == [spawn(worker + 1, slot=1)]
    return wait


# The first generation


def test_every_slot_gets_a_worker_at_the_first_tick() -> None:
    daemon = Daemon(3, policy=Policy())
    assert daemon.supervisor.next_deadline() == 0.0
    assert daemon.tell(Tick()) == [spawn(1, slot=1), spawn(2, slot=2), spawn(3, slot=3)]
    assert isinstance(daemon.supervisor.operation, Launch)
    assert daemon.supervisor.highest_slot == 3


def test_the_daemon_has_started_when_every_worker_is_ready() -> None:
    daemon = launched(2)
    assert daemon.tell(ready(2)) == []
    assert daemon.tell(ready(1)) == [Started()]
    assert daemon.supervisor.operation is None
    assert daemon.supervisor.next_deadline() is None


def test_a_first_worker_that_fails_ends_the_daemon_with_its_reason_and_code() -> None:
    daemon = launched(2)
    assert daemon.tell(died(1, "cannot listen on 127.0.0.1:80", 69)) == [GateAll(), sweep(2)]
    assert daemon.tell(left(2)) == [
        Exit(69, "worker 1 did not start: cannot listen on 127.0.0.1:80")
    ]


def test_a_first_worker_that_ends_without_a_code_does_not_make_a_good_end() -> None:
    daemon = launched(1)
    assert daemon.tell(left(1))[1:] == [Exit(70, "worker 1 did not start: exit status 0")]


def test_a_first_fork_that_fails_ends_the_daemon() -> None:
    daemon = launched(1)
    assert daemon.tell(SpawnFailed(WorkerId(1), "fork: out of memory"))[1:] == [
        Exit(71, "worker 1 did not start: fork: out of memory")
    ]


def test_a_first_worker_that_is_never_ready_is_aborted_then_killed_and_ends_the_daemon() -> None:
    daemon = launched(1, start_timeout=5.0)
    reason = "not ready within 5 s"
    assert daemon.wait(4.9) == []
    assert daemon.wait(0.1) == [abort(1, reason)]
    assert daemon.wait(1.9) == []
    assert daemon.wait(0.2) == [kill(1, reason)]
    assert daemon.supervisor.next_deadline() is None
    assert daemon.tell(died(1, "killed by SIGKILL"))[1:] == [
        Exit(70, "worker 1 did not start: not ready within 5 s; killed by SIGKILL")
    ]


def test_the_first_failure_is_the_one_that_is_told() -> None:
    daemon = launched(2, max_restarts=0)
    daemon.tell(died(1, "first", 69), died(2, "second", 78))
    assert daemon.supervisor.stopping is not None
    assert daemon.hear(Tick()) == []


def test_a_worker_that_was_ready_is_restarted_while_others_still_start() -> None:
    daemon = launched(2)
    daemon.tell(ready(1))
    assert daemon.tell(died(1)) == [spawn(3, slot=1)]
    assert daemon.tell(ready(3), ready(2)) == [Started()]


def test_a_worker_that_retires_while_others_start_is_not_waited_for() -> None:
    daemon = launched(2)
    daemon.tell(ready(1), scale(1))
    assert daemon.supervisor.slots[daemon.supervisor.live_slots[1].index].ready is None
    assert Started() in daemon.tell(ready(2))


# Restarts


@pytest.mark.shows("when a worker crashes or is killed")
def test_the_first_restart_is_immediate_and_the_next_ones_wait_twice_as_long_each() -> None:
    daemon = started(1, policy=Policy(max_restarts=20))
    assert daemon.tell(died(1)) == [spawn(2, slot=1)]
    waits = [fails_again(daemon, worker) for worker in range(2, 13)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0])


def test_jitter_shortens_the_wait() -> None:
    daemon = started(1, jitter=0.5)
    daemon.tell(died(1))
    assert fails_again(daemon, 2) == pytest.approx(0.075)


def test_a_restart_does_not_come_before_its_time() -> None:
    daemon = started(1)
    daemon.tell(died(1), died(2))
    assert daemon.tell(Tick(), after=0.09) == []
    assert daemon.tell(Tick(), after=0.02) == [spawn(3, slot=1)]


def test_the_log_tells_of_a_death_once_and_when_the_restart_is() -> None:
    daemon = started(1)
    daemon.tell(died(1))
    said = [each for each in daemon.hear(died(2), Tick()) if isinstance(each, Say)]
    assert said == [Say("warning", "worker died", (("worker", 1), ("restart_in", 0.1)))]


def test_a_slot_that_was_served_for_the_restart_window_starts_anew_without_delay() -> None:
    daemon = started(1, policy=Policy(restart_window=60.0))
    daemon.tell(died(1), ready(2))
    assert daemon.tell(died(2), after=60.0) == [spawn(3, slot=1)]
    assert fails_again(daemon, 3) == pytest.approx(0.1)


def test_a_slot_that_was_served_for_less_waits() -> None:
    daemon = started(1, policy=Policy(restart_window=60.0))
    daemon.tell(died(1), ready(2))
    assert daemon.tell(died(2), after=59.9) == []


def test_a_slot_is_served_across_a_replacement() -> None:
    daemon = started(1, policy=Policy(restart_window=60.0))
    daemon.tell(died(1), ready(2))
    daemon.tell(restart(1), ready(3), left(2), after=50.0)
    assert daemon.tell(died(3), after=10.0) == [spawn(4, slot=1)]


def test_a_worker_that_starts_for_long_has_not_served() -> None:
    daemon = started(1, policy=Policy(restart_window=5.0, start_timeout=30.0))
    daemon.tell(died(1))
    assert daemon.tell(died(2), after=20.0) == []


def test_a_replacement_that_fails_counts_not_while_the_old_worker_serves() -> None:
    daemon = started(1, policy=Policy(max_restarts=0))
    assert daemon.tell(restart(1), died(2)) == [
        spawn(2, slot=1, place=1),
        finished("restart", "worker 1 did not start: killed by SIGSEGV"),
    ]
    assert daemon.supervisor.recent_restarts(daemon.now) == 0
    assert daemon.supervisor.slots[daemon.supervisor.live_slots[0].index].restarts == 0


def test_a_slot_counts_its_restarts() -> None:
    daemon = started(2)
    daemon.tell(died(1), ready(3), died(3))
    assert [slot.restarts for slot in daemon.supervisor.live_slots] == [2, 0]


# Restart intensity


def test_more_deaths_of_one_slot_than_max_restarts_end_the_daemon_with_70() -> None:
    daemon = started(3, policy=Policy(max_restarts=2, restart_window=60.0))
    daemon.tell(died(1), ready(4))
    daemon.tell(died(4), Tick(), ready(5), after=30.0)
    daemon.tell(Tick(), ready(5), after=1.0)
    actions = daemon.tell(died(5), after=28.0)
    assert actions == [GateAll(), sweep(2), sweep(3)]
    assert daemon.tell(left(2), left(3)) == [Exit(70, "worker 1 died 3 times within 60 s")]


def test_with_no_restarts_allowed_one_death_ends_the_daemon() -> None:
    daemon = started(1, policy=Policy(max_restarts=0, restart_window=5.0))
    assert daemon.tell(died(1)) == [GateAll(), Exit(70, "worker 1 died once within 5 s")]


def test_deaths_of_different_slots_are_not_added_up() -> None:
    daemon = started(24, policy=Policy(max_restarts=1))
    actions = daemon.tell(*(died(worker) for worker in range(1, 25)))
    assert actions == [spawn(24 + slot, slot=slot) for slot in range(1, 25)]
    assert daemon.supervisor.recent_restarts(daemon.now) == 24
    assert daemon.supervisor.stopping is None


@pytest.mark.parametrize("life", [0.0, 0.5, 5.0])
def test_by_default_a_crash_loop_of_one_worker_of_many_ends_the_daemon(life: float) -> None:
    daemon = started(24)
    began, worker = daemon.now, 1
    for _ in range(Policy().max_restarts):
        daemon.tell(died(worker), after=life)
        daemon.wait(max(0.0, daemon.supervisor.slots[SlotIndex(1)].retry_at - daemon.now))
        worker = int(daemon.supervisor.last_worker)
        daemon.tell(ready(worker))
        assert daemon.supervisor.stopping is None
    assert GateAll() in daemon.tell(died(worker), after=life)
    assert daemon.now - began < Policy().restart_window


def test_deaths_before_the_restart_window_are_forgotten() -> None:
    daemon = started(1, policy=Policy(max_restarts=2, restart_window=60.0))
    daemon.tell(died(1), ready(2))
    daemon.tell(died(2), after=30.0)
    daemon.tell(Tick(), ready(3), after=1.0)
    daemon.tell(died(3), after=29.0)
    assert daemon.supervisor.stopping is None
    assert daemon.supervisor.slots[SlotIndex(1)].deaths == [daemon.now - 30.0, daemon.now]
    assert daemon.supervisor.recent_restarts(daemon.now) == 2
    assert daemon.supervisor.recent_restarts(daemon.now + 29.9) == 2
    assert daemon.supervisor.recent_restarts(daemon.now + 30.0) == 1


# Workers that hang


def test_a_worker_without_heartbeat_is_aborted_then_killed_and_replaced_when_it_is_gone() -> None:
    daemon = started(1, policy=Policy(worker_timeout=30.0))
    assert daemon.tell(look(stalls(1, age=30.1)), after=1.0) == []
    reason = "no heartbeat for 31.1 s"
    assert daemon.tell(look(stalls(1, age=31.1)), after=1.0) == [abort(1, reason)]
    assert daemon.states(1) == [WorkerState.READY]
    assert daemon.wait(1.9) == []
    assert daemon.wait(0.2) == [kill(1, reason)]
    assert daemon.tell(look(stalls(1, age=35.0)), after=1.0) == []
    assert daemon.tell(died(1)) == [spawn(2, slot=1)]


def test_a_worker_that_was_aborted_is_not_aborted_again() -> None:
    daemon = started(1, policy=Policy(worker_timeout=30.0))
    daemon.tell(look(stalls(1, age=40.0)), look(stalls(1, age=41.0)))
    deadline = daemon.supervisor.next_deadline()
    assert daemon.tell(look(stalls(1, age=42.0)), look(stalls(1, age=43.0)), after=1.0) == []
    assert daemon.supervisor.next_deadline() == deadline


def test_a_heartbeat_as_old_as_the_timeout_is_not_too_old() -> None:
    daemon = started(1, policy=Policy(worker_timeout=30.0))
    assert daemon.tell(*[look(stalls(1, age=30.0))] * 3) == []


def test_a_worker_that_goes_on_between_two_looks_is_not_hung() -> None:
    """After everybody was frozen, the master may be the first to go on."""
    daemon = started(1, policy=Policy(worker_timeout=30.0))
    for _ in range(3):
        assert daemon.tell(look(stalls(1, age=600.0)), after=0.2) == []
        assert daemon.tell(look(turns(1)), after=0.2) == []


def test_what_is_felt_of_a_worker_that_is_not_ready_is_nothing() -> None:
    daemon = launched(1)
    pulse = stalls(1, age=99.0)
    gone = stalls(7, age=99.0)
    assert daemon.tell(*[look(pulse, gone)] * 3) == []


def test_a_worker_that_is_ready_after_it_was_aborted_does_not_serve() -> None:
    daemon = started(1, policy=Policy(start_timeout=5.0))
    daemon.tell(reload(2, 1, ticket=1))
    assert daemon.wait(5.0) == [abort(2, "not ready within 5 s")]
    assert daemon.tell(ready(2)) == []
    assert daemon.states(1) == [WorkerState.READY, WorkerState.STARTING]
    reason = "worker 1 did not start: not ready within 5 s; killed by SIGABRT"
    assert daemon.tell(died(2, "killed by SIGABRT")) == [finished("reload", reason, ticket=1)]
    assert daemon.states(1) == [WorkerState.READY]


def test_a_worker_that_is_ready_in_time_is_not_aborted() -> None:
    daemon = started(1, policy=Policy(start_timeout=5.0))
    assert daemon.wait(100.0) == []


def test_spawns_are_named_once() -> None:
    daemon = started(2)
    actions = daemon.tell(died(1), died(2), ready(3), ready(4), died(3)) + daemon.wait(1.0)
    names = [each.worker for each in actions if isinstance(each, Spawn)]
    assert names == [3, 4, 5]
