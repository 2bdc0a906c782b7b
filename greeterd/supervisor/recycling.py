"""Decides which worker has served for long enough, and has one at a time replaced.

A worker is due by its greetings, its age or its memory.  Its limits are up to a tenth lower than
what the policy says, by chance, so that workers which start together are not due together.
A recycling is a roll over one slot: the old worker leaves when the new one is ready, and goes on
serving when that fails.  It begins only when nothing else is under way, commands first, and not
before the last worker that was replaced has left: so one slot at a time has two workers.
"""

from typing import Final

from greeterd.supervisor.events import Pulse
from greeterd.supervisor.ids import WorkerState
from greeterd.supervisor.machine import Cause
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.records import Roll, Slot, Worker
from greeterd.supervisor.state import State

COMMAND: Final = "recycle"
RETRY_BASE: Final = 1.0
"""Seconds until a recycling that has failed is tried again; they double, as those of a restart."""
RETRY_CAP: Final = 60.0
JITTER: Final = 0.1
MIB: Final = 2**20


def judge(policy: Policy, worker: Worker, pulse: Pulse, now: float) -> None:
    """Record why the worker is due to be replaced, or that it is not."""
    worker.due = ""
    age = now - worker.since
    if policy.max_greetings and pulse.greetings >= policy.max_greetings * worker.patience:
        worker.due = f"{pulse.greetings} greetings"
    elif policy.max_age and age >= policy.max_age * worker.patience:
        worker.due = f"{age:.1f} s old"
    elif 0 < policy.max_rss_bytes <= pulse.rss_bytes and not _futile(policy, worker):
        worker.due = f"{pulse.rss_bytes / MIB:.1f} MiB resident"


def begin(state: State, now: float) -> None:
    """Begin to replace the worker that has been due for longest, if one is."""
    _complain(state)
    under_way = any(worker.life is not WorkerState.READY for worker in state.workers.values())
    if under_way or any(slot.retiring for slot in state.slots.values()):
        return
    due = [
        (slot.ready.since, slot)
        for slot in state.staffed_slots
        if slot.ready is not None and slot.ready.due and slot.ready.able and now >= slot.recycle_at
    ]
    if not due:
        return
    _, slot = min(due, key=lambda each: each[0])
    assert slot.ready is not None
    state.say("info", "worker is recycled", worker=slot.index, reason=slot.ready.due)
    state.switch(Cause.RECYCLE, Roll(command=COMMAND, targets={slot.index: slot.generation}))


def put_off(state: State, slot: Slot, now: float) -> None:
    """Have a recycling that has failed wait for its next trial."""
    delay = min(RETRY_CAP, RETRY_BASE * 2.0 ** min(slot.recycle_failures, 16))
    slot.recycle_failures += 1
    slot.recycle_at = now + delay * (1.0 - state.jitter() / 2.0)


def _futile(policy: Policy, worker: Worker) -> bool:
    """Tell whether a new worker has as much memory as none may have: the next would be due, too."""
    return worker.first_rss_bytes >= policy.max_rss_bytes > 0


def _complain(state: State) -> None:
    limit = state.policy.max_rss_bytes
    if state.futile_rss_bytes == limit:
        return
    for worker in state.workers.values():
        if _futile(state.policy, worker):
            state.futile_rss_bytes = limit
            state.say(
                "warning",
                "max_rss is out of reach",
                max_rss_mib=limit // MIB,
                rss_mib=round(worker.first_rss_bytes / MIB, 1),
            )
            return
