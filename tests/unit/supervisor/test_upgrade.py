"""An upgrade: the new image is tried beside the old one, and takes its place when all is calm."""

from greeterd.supervisor.actions import EndPreflight, Exit, GateAll, Replace, StartPreflight
from greeterd.supervisor.events import Tick
from greeterd.supervisor.ids import Generation, SlotIndex, Ticket, WorkerId, WorkerState
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.records import Slot, Worker
from greeterd.supervisor.supervisor import Supervisor
from tests.unit.supervisor.supervised import (
    asked_to_exit,
    closed,
    died,
    finished,
    hand_over,
    left,
    ready,
    reload,
    restart,
    scale,
    spawn,
    started,
    stop,
    sweep,
    tried,
    upgrade,
)

NO_TRIAL = "the new image was not ready within 5 s"


def test_an_image_that_has_passed_its_trial_takes_the_place() -> None:
    daemon = started(2)
    assert daemon.tell(upgrade(ticket=1)) == [StartPreflight()]
    assert daemon.tell(Tick(), after=1.0) == []
    assert daemon.tell(tried()) == [Replace(Ticket(1))]
    assert daemon.tell(Tick(), after=1000.0) == []


def test_an_image_that_has_failed_its_trial_leaves_everything_as_it_was() -> None:
    daemon = started(1)
    daemon.tell(upgrade(ticket=1))
    assert daemon.tell(tried("no module")) == [finished("upgrade", "no module", ticket=1)]
    assert daemon.supervisor.operation is None
    assert daemon.generations() == {1: 1}


def test_a_trial_that_takes_too_long_is_ended() -> None:
    daemon = started(1, policy=Policy(start_timeout=5.0))
    daemon.tell(upgrade(ticket=1))
    assert daemon.wait(4.9) == []
    assert daemon.wait(0.1) == [EndPreflight(), finished("upgrade", NO_TRIAL, ticket=1)]
    assert daemon.tell(tried("killed by SIGKILL")) == []
    assert daemon.supervisor.next_deadline() is None


def test_an_image_that_cannot_take_the_place_after_all_says_why() -> None:
    daemon = started(1)
    daemon.tell(upgrade(ticket=1), tried())
    assert daemon.tell(tried("exec: no memory")) == [
        finished("upgrade", "exec: no memory", ticket=1)
    ]
    assert daemon.tell(restart(1)) == [spawn(2, slot=1, place=1)]


def test_the_first_reason_of_a_trial_is_the_one_that_is_told() -> None:
    daemon = started(1)
    daemon.tell(upgrade(ticket=1))
    assert daemon.tell(tried("first"), tried("second")) == [finished("upgrade", "first", ticket=1)]


def test_the_place_is_taken_when_no_worker_starts() -> None:
    daemon = started(2)
    daemon.tell(upgrade(ticket=1), died(1))
    assert daemon.tell(tried()) == []
    assert daemon.tell(ready(3)) == [Replace(Ticket(1))]


def test_the_place_is_taken_when_no_slot_retires() -> None:
    daemon = started(2)
    daemon.tell(upgrade(ticket=1), asked_to_exit(2))
    assert daemon.tell(tried()) == []
    assert Replace(Ticket(1)) in daemon.tell(left(2))


def test_the_deadline_of_a_trial_is_none_for_what_comes_after_it() -> None:
    daemon = started(2, policy=Policy(start_timeout=5.0))
    daemon.tell(upgrade(ticket=1), asked_to_exit(2), tried())
    assert daemon.wait(6.0) == []
    assert daemon.tell(left(2))[-1] == Replace(Ticket(1))


def test_commands_that_wait_for_an_upgrade_are_refused_when_it_comes() -> None:
    daemon = started(1)
    daemon.tell(upgrade(ticket=1), scale(2, ticket=2), reload(2, 1, ticket=3))
    reason = "the daemon was upgraded first: ask again"
    assert daemon.tell(tried()) == [
        finished("scale", reason, ticket=2),
        finished("reload", reason, ticket=3),
        Replace(Ticket(1)),
    ]


def test_commands_that_wait_for_an_upgrade_that_fails_are_carried_out() -> None:
    daemon = started(1)
    daemon.tell(upgrade(ticket=1), scale(2, ticket=2))
    assert daemon.tell(tried("no")) == [finished("upgrade", "no", ticket=1), spawn(2, slot=2)]


def test_an_upgrade_waits_for_the_commands_before_it() -> None:
    daemon = started(1)
    assert daemon.tell(scale(2), upgrade()) == [spawn(2, slot=2)]
    assert daemon.tell(ready(2)) == [finished("scale"), StartPreflight()]


def test_a_stop_ends_a_trial_and_answers_it() -> None:
    daemon = started(1)
    daemon.tell(upgrade(ticket=1))
    assert daemon.tell(stop()) == [
        EndPreflight(),
        finished("upgrade", "the daemon is stopping", ticket=1),
        GateAll(),
        sweep(1),
    ]
    assert daemon.tell(tried(), left(1)) == [Exit(0, "")]


def test_what_is_told_of_a_trial_when_there_is_none_changes_nothing() -> None:
    daemon = started(1)
    assert daemon.tell(tried(), tried("x")) == []
    assert daemon.tell(reload(2, 1), tried("x")) == [spawn(2, slot=1, place=1, generation=2)]
    assert daemon.tell(ready(2), closed(1)) == [hand_over(1), finished("reload")]


def test_the_last_step_of_an_upgrade_is_a_reload_of_that_name() -> None:
    daemon = started(1)
    daemon.tell(reload(2, 1, ticket=1, name="upgrade"))
    assert daemon.tell(ready(2), closed(1))[-1] == finished("upgrade", ticket=1)


def test_a_successor_goes_on_with_the_slots_and_their_workers() -> None:
    index, ident = SlotIndex(3), WorkerId(7)
    worker = Worker(
        id=ident, slot=index, place=1, generation=Generation(4), since=1.0, state=WorkerState.READY
    )
    slot = Slot(index=index, generation=Generation(4), workers=[worker], served=True)
    heir = Supervisor.adopt(
        policy=Policy(),
        jitter=lambda: 0.0,
        generation=Generation(4),
        slots=[slot],
        last_worker=WorkerId(9),
    )
    assert (heir.operation, heir.generation, heir.highest_slot) == (None, 4, 3)
    assert (heir.worker(ident), heir.last_worker) == (worker, 9)
    assert heir.handle(Tick(), 5.0) == []
    assert heir.handle(reload(5, 1), 5.0) == [spawn(10, slot=3, place=0, generation=5)]
    assert heir.handle(ready(10), 6.0) == [hand_over(7)]
    assert heir.handle(closed(7), 6.0) == [finished("reload")]


def test_the_time_of_a_trial_is_a_deadline() -> None:
    daemon = started(1, policy=Policy(start_timeout=3.0))
    daemon.tell(upgrade())
    assert daemon.supervisor.next_deadline() == daemon.now + 3.0
