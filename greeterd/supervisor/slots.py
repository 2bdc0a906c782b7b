"""Keeps the live slots served, ends workers that are overdue, and closes slots that retire."""

from typing import Final

from greeterd.supervisor.actions import CloseSlot, Exit, Kill, SteerAway
from greeterd.supervisor.ids import DrainMode, Signal, WorkerState
from greeterd.supervisor.machine import OVERDUE, Cause, LoanState, Outcome, SlotState
from greeterd.supervisor.state import State

ABORT_GRACE: Final = 2.0
"""Seconds that an aborted worker gets to write its stack before it is killed."""


def end_overdue(state: State, now: float) -> None:
    """Abort what hangs, and kill what neither an abort nor a drain has ended."""
    for worker in state.workers.values():
        if worker.deadline is None or now < worker.deadline:
            continue
        signal = OVERDUE[worker.sent][worker.life]
        if isinstance(signal, Outcome):
            continue  # it was killed, and is waited for
        if signal is Signal.ABORT:
            worker.doomed = worker.doomed or f"not ready within {state.policy.start_timeout:g} s"
            worker.deadline = now + ABORT_GRACE
        else:
            worker.doomed = worker.doomed or "not drained in time"
        worker.sent = signal
        state.do(Kill(worker.id, signal, worker.doomed))


def drain_replaced(state: State, now: float) -> None:
    """Where two workers are ready, the older one leaves: start first, stop second."""
    for slot in state.slots.values():
        for worker in slot.replaced:
            state.drain(worker, DrainMode.HAND_OVER, now)


def respawn(state: State, now: float) -> None:
    """Start a worker in the place of a dead one, when its back-off is over."""
    for slot in state.staffed_slots:
        if slot.died:
            slot.died = False
            restart_in = round(slot.retry_at - now, 3)
            state.say("warning", "worker died", worker=slot.index, restart_in=restart_in)
        # Two may be on their way out, and then the first place that is free is waited for.
        if slot.vacant and slot.free_place is not None and now >= slot.retry_at:
            state.spawn(slot, slot.generation, now)


def grant_exits(state: State) -> None:
    """One slot less for each request: that worker's, or another's when it retires already."""
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
    """Empty and close the slots that are to go.

    One at a time where each has a listener of its own, since a listener that closes changes the
    index of another, and with two on their way out no program would be right for both.  The highest
    goes first, but for one that is on its way already.  A listener that no sibling has emptied in
    time is closed as it is.
    """
    how = DrainMode.SWEEP if state.policy.own_listeners else DrainMode.HAND_OVER
    retiring = [slot for slot in state.slots.values() if slot.retiring]
    order = sorted(retiring, key=lambda slot: (not slot.served, slot.steered, slot.index))
    for slot in reversed(order):
        has_listener = state.policy.own_listeners and slot.served
        if has_listener and not slot.steered:
            if slot.loan is LoanState.RETURNING:
                return  # so that what is given back from now on has been emptied since
            slot.move(SteerAway)
            state.do(SteerAway(slot.index))
        for worker in slot.workers:
            if worker.life is not WorkerState.DRAINING:
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
            return
