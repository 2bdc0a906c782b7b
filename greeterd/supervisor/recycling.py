"""Recycling: replaces workers that have served for long enough, one at a time.

A worker is due by its greetings, its age or its memory.  Its limits are lower than the policy's by
a random share of up to a tenth, so that workers which start together are not due together.
A recycling is a roll over one slot: the old worker drains when the new one is ready, and goes on
serving if that fails.  It begins when no operation is under way, no command waits and no replaced
worker still drains: so only one slot at a time has two workers.
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
"""Seconds until a failed recycling is tried again; they double each time up to RETRY_CAP."""
RETRY_CAP: Final = 60.0
JITTER: Final = 0.1
MIB: Final = 2**20


def judge(policy: Policy, worker: Worker, pulse: Pulse, now: float) -> None:
    """Record whether the worker is due to be recycled, and why."""
    worker.due = ""
    age = now - worker.since
    if policy.max_greetings and pulse.greetings >= policy.max_greetings * worker.limit_share:
        worker.due = f"{pulse.greetings} greetings"
    elif policy.max_age and age >= policy.max_age * worker.limit_share:
        worker.due = f"{age:.1f} s old"
    elif 0 < policy.max_rss_bytes <= pulse.rss_bytes and not _futile(policy, worker):
        worker.due = f"{pulse.rss_bytes / MIB:.1f} MiB resident"


def begin(state: State, now: float) -> None:
    """Begin to replace the oldest worker that is due, if there is one."""
    _warn_of_futile_limit(state)
    under_way = any(worker.state is not WorkerState.READY for worker in state.workers.values())
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
    """Back off after a recycling that has failed."""
    delay = min(RETRY_CAP, RETRY_BASE * 2.0 ** min(slot.recycle_failures, 16))
    slot.recycle_failures += 1
    slot.recycle_at = now + delay * (1.0 - state.jitter() / 2.0)


def _futile(policy: Policy, worker: Worker) -> bool:
    """Tell whether the worker had too much memory from the start: the next would be due, too."""
    return worker.first_rss_bytes >= policy.max_rss_bytes > 0


def _warn_of_futile_limit(state: State) -> None:
    """Log once for each `max_rss` that recycling for memory is suspended."""
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
