"""Rescue: lends the listener of a slot that cannot serve it to a worker of another slot.

Only where each slot has a listener of its own (reuseport), or the socketpair on which it receives
connections (handoff).  The dispatcher's listener is lent, too, but the dispatcher borrows none.
A slot has one borrower at a time.  One that refuses, is stuck or gone is forgotten, and another
borrows.  A slot that retires and has no worker to empty its listener is lent, too, and taken back
at once: a borrower empties what it returns.
"""

from typing import Final

from greeterd.supervisor.actions import Lend, TakeBack
from greeterd.supervisor.ids import WorkerState
from greeterd.supervisor.machine import Cause, LoanState
from greeterd.supervisor.records import Slot, Worker
from greeterd.supervisor.state import State

UNSERVED_AFTER: Final = 0.5
"""Seconds without a ready worker after which a slot's listener is lent."""


def settle(state: State) -> None:
    """Forget borrowers that are gone, leave or are stuck."""
    for slot in state.slots.values():
        if slot.borrower is None:
            continue
        borrower = state.worker(slot.borrower)
        if borrower is not None and (borrower.able or state.leaving):
            continue  # when all leave, borrowers empty what they hold
        # One that is stuck may come back, and then must not hold the listener for ever.
        serves = borrower is not None and borrower.state is WorkerState.READY
        if serves and slot.loan is LoanState.LENT:
            state.do(TakeBack(slot.index, slot.borrower))
        slot.move_loan(Cause.FORGET)


def lend(state: State, now: float) -> None:
    """Lend the listeners of slots that cannot serve them; take them back from those that can."""
    if not state.policy.own_listeners:
        return
    for slot in state.slots.values():
        rescue = not slot.steered and _needs_rescue(state, slot, now)
        if slot.borrower is None:
            sibling = _find_sibling(state, slot, now) if rescue or slot.unswept else None
            if sibling is not None:
                slot.move_loan(Lend, sibling.id)
                state.do(Lend(slot.index, sibling.id))
        elif slot.loan is LoanState.LENT and not rescue:
            slot.move_loan(TakeBack, slot.borrower)
            state.do(TakeBack(slot.index, slot.borrower))


def _find_sibling(state: State, slot: Slot, now: float) -> Worker | None:
    """Return the able worker of another slot with the fewest loans, or None."""
    loans = [other.borrower for other in state.slots.values()]
    return min(
        (
            other.ready
            for other in state.live_slots
            if other is not slot
            and other.ready is not None
            and other.ready.able
            and now >= other.ready.borrows_from
        ),
        key=lambda worker: (loans.count(worker.id), worker.slot),
        default=None,
    )


def _needs_rescue(state: State, slot: Slot, now: float) -> bool:
    """Tell whether the slot has a listener, and no worker that serves it."""
    if not state.policy.rescue or not slot.served:
        return False
    if slot.ready is not None:
        return not slot.ready.able
    if slot.borrower is not None or state.leaving:
        return True
    # During a back-off at once; else a restart is usually quicker than a loan.
    return now < slot.retry_at or now - slot.unserved_since >= UNSERVED_AFTER
