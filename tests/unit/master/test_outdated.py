"""OutdatedWorkers: those that hold a listener which was opened anew are replaced, once."""

import time

from greeterd.config.schema import Config
from greeterd.master.outdated import RETRY_AFTER, OutdatedWorkers
from greeterd.supervisor.actions import Finished, Spawn
from greeterd.supervisor.events import (
    MENDING,
    Exited,
    Ready,
    Reload,
    Restart,
    Scale,
    Spawned,
    SpawnFailed,
    Stop,
    Tick,
)
from greeterd.supervisor.ids import DISPATCHER, NO_TICKET, Generation, Pid, SlotIndex
from greeterd.supervisor.policy import Policy
from tests.unit.master.parts import Parts

SLOT = SlotIndex(2)


def restarts(parts: Parts) -> list[Restart]:
    return [each for each in parts.fed if isinstance(each, Restart)]


def test_a_marked_slot_is_restarted_once() -> None:
    parts = Parts(workers=3)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.attend(0.0)
    assert restarts(parts) == []
    outdated.mark(SLOT)
    for _ in range(3):
        outdated.attend(0.0)
    assert restarts(parts) == [Restart(SLOT, MENDING)]


def test_a_slot_whose_worker_was_replaced_is_forgotten() -> None:
    parts = Parts(workers=3)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(SLOT, "to be replaced")
    outdated.attend(0.0)
    [spawn] = parts.take(Spawn)
    assert (spawn.slot, outdated.warnings()) == (SLOT, ["to be replaced: worker 2"])
    parts.feed(Spawned(spawn.worker, Pid(9)))
    parts.feed(Ready(spawn.worker, rss_bytes=0))
    [old] = [each for each in parts.supervisor.slots[SLOT].workers if each.id != spawn.worker]
    parts.feed(Exited(old.id, "exit status 0", 0))
    [done] = parts.take(Finished)
    assert done.ticket == MENDING
    outdated.finished(done.reason)
    outdated.attend(time.monotonic())
    assert (len(restarts(parts)), outdated.warnings()) == (1, [])


def test_a_replacement_that_failed_is_tried_again_after_a_while() -> None:
    parts = Parts(workers=3)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(SLOT)
    outdated.attend(0.0)
    [spawn] = parts.take(Spawn)
    parts.feed(SpawnFailed(spawn.worker, "fork: no"))
    [done] = parts.take(Finished)
    outdated.finished(done.reason)
    failed = time.monotonic()
    outdated.attend(failed + RETRY_AFTER - 1.0)
    assert len(restarts(parts)) == 1
    outdated.attend(failed + RETRY_AFTER)
    assert len(restarts(parts)) == 2


def test_when_every_slot_is_marked_one_command_restarts_all() -> None:
    parts = Parts(workers=3)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(None)
    outdated.attend(0.0)
    assert restarts(parts) == [Restart(None, MENDING)]


def test_the_only_worker_is_restarted_by_its_slot() -> None:
    parts = Parts(workers=1)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(None)
    outdated.attend(0.0)
    assert restarts(parts) == [Restart(SlotIndex(1), MENDING)]


def test_in_mode_handoff_only_the_dispatcher_holds_shared_listeners() -> None:
    policy = Policy(own_listeners=True, dispatcher=True)
    parts = Parts(workers=2, config=Config(mode="handoff", workers=2), policy=policy)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(None, "to be replaced")
    outdated.attend(0.0)
    assert restarts(parts) == [Restart(DISPATCHER, MENDING)]
    assert outdated.warnings() == ["to be replaced: worker 0"]


def test_a_worker_that_starts_is_left_to_become_ready_first() -> None:
    parts = Parts(workers=1)
    parts.feed(Tick())
    [spawn] = parts.take(Spawn)
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(None, "to be replaced")
    outdated.attend(0.0)
    assert (restarts(parts), outdated.warnings()) == ([], [])
    parts.feed(Spawned(spawn.worker, Pid(9)))
    parts.feed(Ready(spawn.worker, rss_bytes=0))
    outdated.attend(0.0)
    assert restarts(parts) == [Restart(SlotIndex(1), MENDING)]


def test_a_reload_replaces_them_anyway() -> None:
    parts = Parts(workers=2)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(SLOT)
    parts.feed(Reload(Generation(2), 2, Policy(), NO_TICKET, "reload"))
    outdated.attend(0.0)
    assert restarts(parts) == []


def test_a_restart_that_is_under_way_is_awaited() -> None:
    """It may replace them itself."""
    parts = Parts(workers=2)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(SLOT)
    asked = Restart(None, NO_TICKET)
    parts.feed(asked)
    outdated.attend(0.0)
    assert restarts(parts) == [asked]


def test_a_slot_that_retires_is_not_restarted() -> None:
    parts = Parts(workers=2, policy=Policy(own_listeners=True))
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(SLOT)
    parts.feed(Scale(workers=1))
    assert parts.supervisor.slots[SLOT].retiring
    outdated.attend(0.0)
    assert restarts(parts) == []


def test_a_warning_stays_when_the_slot_is_marked_again_for_something_else() -> None:
    parts = Parts(workers=2)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(SLOT, "a")
    outdated.mark(SLOT)
    assert outdated.warnings() == ["a: worker 2"]


def test_a_daemon_that_stops_replaces_none() -> None:
    parts = Parts(workers=2)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    outdated.mark(SLOT)
    parts.feed(Stop())
    outdated.attend(0.0)
    assert restarts(parts) == []


def test_warnings_that_are_alike_are_one_line_and_none_is_none() -> None:
    parts = Parts(workers=4)
    parts.start()
    outdated = OutdatedWorkers(parts.context)
    for slot, warning in ((4, "a"), (1, "b"), (2, "a"), (3, "")):
        outdated.mark(SlotIndex(slot), warning)
    assert outdated.warnings() == ["b: worker 1", "a: worker 2, 4"]
