"""Keeps the live slots served, ends workers that are overdue, and closes slots that retire."""

from typing import Final

from greeterd.supervisor.actions import CloseSlot, Exit, Kill, SteerAway
from greeterd.supervisor.ids import DrainMode, Signal, WorkerState
from greeterd.supervisor.machine import OVERDUE, Cause, LoanState, Outcome, SlotState
from greeterd.supervisor.state import State

ABORT_GRACE: Final = 2.0
"""Seconds that an aborted worker gets to write its stack before it is killed."""


def end_overdue(state: State, now: float) -> None:
    """Send the next signal to each worker whose deadline has passed."""
    for worker in state.workers.values():
        if worker.deadline is None or now < worker.deadline:
            continue
        signal = OVERDUE[worker.sent][worker.state]
        if isinstance(signal, Outcome):
            continue  # it was killed: wait until it is reaped
        if signal is Signal.ABORT:
            reason = f"not ready within {state.policy.start_timeout:g} s"
            worker.deadline = now + ABORT_GRACE
        else:
            reason = "not drained in time"
        # One that hangs has its reason already: `observe` has set it with the deadline.
        worker.end_reason = worker.end_reason or reason
        worker.sent = signal
        state.do(Kill(worker.id, signal, worker.end_reason))


def drain_replaced(state: State, now: float) -> None:
    """Where two workers are ready, drain the older one: start first, stop second."""
    for slot in state.slots.values():
        for worker in slot.replaced:
            state.drain(worker, DrainMode.HAND_OVER, now)


def respawn(state: State, now: float) -> None:
    """Start a worker in each vacant slot whose back-off is over."""
    for slot in state.staffed_slots:
        if slot.died:
            slot.died = False
            restart_in = round(slot.retry_at - now, 3)
            state.say("warning", "worker died", worker=slot.index, restart_in=restart_in)
        # Without a free row, two workers drain: wait until one of them is gone.
        if slot.vacant and slot.free_place is not None and now >= slot.retry_at:
            state.spawn(slot, slot.generation, now)


def grant_exits(state: State) -> None:
    """Retire a slot for each request: that worker's, or another if it retires already."""
    for index in state.exit_requests:
        slot = state.slots[index]
        for victim in state.live_slots[:1] if slot.retiring else [slot]:
            victim.move(Cause.RETIRE)
            state.say("info", "worker retires", worker=victim.index)
    state.exit_requests.clear()
    if not state.live_slots:
        state.say("info", "the last worker retires")
        state.end(Cause.GIVE_UP, Exit(0, ""))


def retire(state: State, now: float) -> None:
    """Empty and close the slots that retire.

    Slots with a listener of their own go one at a time: the close of one changes the index of
    another, and no steering program would be right for two.  One that has begun goes first, then
    the highest number.  A listener that is not emptied in time is closed as it is.
    """
    how = DrainMode.SWEEP if state.policy.own_listeners else DrainMode.HAND_OVER
    retiring = [slot for slot in state.slots.values() if slot.retiring]
    # Reversed, so the last is first: without a listener, then steered, then the highest number.
    order = sorted(retiring, key=lambda slot: (not slot.served, slot.steered, slot.index))
    for slot in reversed(order):
        has_listener = state.policy.own_listeners and slot.served
        if has_listener and not slot.steered:
            if slot.loan is LoanState.RETURNING:
                return  # a return that is under way says nothing of what arrives until the steering
            slot.move(SteerAway)
            state.do(SteerAway(slot.index))
        for worker in slot.workers:
            if worker.state is not WorkerState.DRAINING:
                state.drain(worker, how, now)
        if not slot.workers:
            if slot.close_by is None:
                slot.close_by = now + state.policy.graceful_timeout
            emptied = not has_listener or (slot.state is SlotState.SWEPT and slot.borrower is None)
            if emptied or now >= slot.close_by:
                slot.move(CloseSlot)
                del state.slots[slot.index]
                state.do(CloseSlot(slot.index))
                continue
        if has_listener:
            return  # one at a time
