"""Lends the listener of a slot that cannot serve it to a sibling, and ends the loan.

Only where each slot has a listener of its own, or what stands for one: the socketpair by which the
dispatcher hands connections to it.  The dispatcher's slot is lent as well, but its worker borrows
nothing.  A slot has one borrower at a time; one that refuses, is stuck or gone is forgotten, and
another takes its place.  A slot that retires and has no worker to empty its listener is lent, too,
and called back at once: a borrower empties what it gives back.
"""

from typing import Final

from greeterd.supervisor.actions import Lend, TakeBack
from greeterd.supervisor.ids import WorkerState
from greeterd.supervisor.machine import Cause, LoanState
from greeterd.supervisor.records import Slot, Worker
from greeterd.supervisor.state import State

UNSERVED_AFTER: Final = 0.5
"""Seconds without a ready worker after which a slot's listener is lent to a sibling."""


def settle(state: State) -> None:
    """Forget the borrowers that are gone or leave, and call back from one that does not serve."""
    for slot in state.slots.values():
        if slot.borrower is None:
            continue
        borrower = state.worker(slot.borrower)
        if borrower is not None and (borrower.able or state.leaving):
            continue  # when all leave, those who have borrowed empty what they hold
        serves = borrower is not None and borrower.life is WorkerState.READY
        if serves and slot.loan is LoanState.LENT:
            state.do(TakeBack(slot.index, slot.borrower))
        slot.move_loan(Cause.FORGET)


def lend(state: State, now: float) -> None:
    """Let a sibling serve the listener of a slot that cannot, and end the loan when it can."""
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
    """Return the ready worker of another slot, that has not refused, with the fewest loans."""
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
    if not state.policy.rescue or not slot.served:
        return False
    if slot.ready is not None:
        return not slot.ready.able
    if slot.borrower is not None or state.leaving:
        return True
    return now < slot.retry_at or now - slot.unserved_since >= UNSERVED_AFTER
