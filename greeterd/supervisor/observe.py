"""Records what an event says; nothing is asked for here.

An event that comes twice, or too late, about a worker that is gone, says nothing.
"""

from typing import Final, assert_never

from greeterd.supervisor import recycling
from greeterd.supervisor.actions import Exit
from greeterd.supervisor.events import (
    Closed,
    Event,
    Exited,
    ExitRequested,
    Leaving,
    LoanRefused,
    PreflightEnded,
    Pulse,
    Ready,
    Reload,
    Restart,
    Returned,
    Scale,
    Spawned,
    SpawnFailed,
    Stop,
    Tick,
    Unreachable,
    Upgrade,
)
from greeterd.supervisor.ids import DISPATCHER, NO_TICKET, DrainMode, WorkerId, WorkerState, name_of
from greeterd.supervisor.records import Launch, Preflight, Resize, Roll, Slot, Worker, backoff_delay
from greeterd.supervisor.state import State

REFUSED_FOR: Final = 5.0
"""Seconds for which a worker that could not serve another's listener is not asked again."""
STUCK_AFTER: Final = 0.4
"""Seconds of waiting connections without a turn of the loop that make a worker stuck."""


def apply(state: State, event: Event, now: float) -> None:  # noqa: C901, PLR0912 - a case an event
    """Record what the event says."""
    match event:
        case Spawned():
            if worker := state.worker(event.worker):
                worker.pid = event.pid
        case SpawnFailed():
            _bury(state, event.worker, event.reason, 71, now)
        case Ready():
            _note_ready(state, event, now)
        case Exited():
            _bury(state, event.worker, event.reason, event.code, now)
        case ExitRequested():
            worker = state.worker(event.worker)
            if worker is not None and worker.slot != DISPATCHER:
                state.exit_requests.append(worker.slot)
        case Leaving():
            _note_leaving(state, event.worker, now)
        case Closed():
            if worker := state.worker(event.worker):
                worker.accepts = False
        case Returned():
            _note_returned(state, event)
        case Unreachable(reason):
            if state.stopping is None:
                state.end(Exit(69, reason))
        case LoanRefused():
            _note_refused(state, event, now)
        case Stop():
            _note_stop(state, event, now)
        case Reload() | Restart() | Scale() | Upgrade():
            state.commands.append(event)
        case PreflightEnded(reason):
            _note_trial(state, reason)
        case Tick():
            for pulse in event.pulses:
                _feel(state, pulse, now)
        case _:
            assert_never(event)


def _note_trial(state: State, reason: str) -> None:
    if isinstance(state.operation, Preflight) and not state.operation.failure:
        state.operation.ended = True
        state.operation.failure = reason


def _note_ready(state: State, event: Ready, now: float) -> None:
    worker = state.worker(event.worker)
    if worker is None or worker.life is not WorkerState.STARTING:
        return
    slot = state.slots[worker.slot]
    slot.served = True
    if worker.aborted:
        return  # too late: it is about to die, and must not take the place of one that serves
    if slot.ready is None:
        slot.served_since = now
    worker.become(WorkerState.READY, now)
    worker.deadline = None
    worker.first_rss_bytes = event.rss_bytes
    worker.patience = 1.0 - recycling.JITTER * state.jitter()
    slot.recycle_failures = 0
    slot.recycle_at = 0.0
    slot.generation = worker.generation


def _note_leaving(state: State, ident: WorkerId, now: float) -> None:
    """Let the slot have a new worker at once; `leaving` stays open, nobody here has told how."""
    worker = state.worker(ident)
    if worker is None or worker.life is not WorkerState.READY:
        return
    worker.become(WorkerState.DRAINING, now)
    worker.end_by(now + state.timeout(DrainMode.SWEEP))
    slot = state.slots[worker.slot]
    if slot.ready is None:
        _lose(state, slot, now)


def _bury(state: State, ident: WorkerId, reason: str, code: int, now: float) -> None:
    worker = state.workers.pop(ident, None)
    if worker is None:
        return
    slot = state.slots[worker.slot]
    life = worker.life
    worker.become(WorkerState.GONE, now)
    slot.workers.remove(worker)
    reason = f"{worker.doomed}; {reason}" if worker.doomed else reason
    if life is WorkerState.DRAINING:
        # Only one that was told to has emptied the listener, and only if it ended in peace.
        slot.swept = slot.swept or (
            slot.steered and worker.leaving is DrainMode.SWEEP and code == 0
        )
        return
    if life is WorkerState.STARTING:
        _note_failed_start(state, worker, reason, code)
    if slot.ready is None:
        if life is WorkerState.READY:
            _lose(state, slot, now)
        else:
            _back_off(state, slot, now)
        _count_death(state, slot, now)


def _note_failed_start(state: State, worker: Worker, reason: str, code: int) -> None:
    """Let the operation fail that waits for this worker."""
    failure = f"{name_of(worker.slot)} did not start: {reason}"
    match state.operation:
        case Launch():
            state.end(Exit(code or 70, failure))
        case Roll() as roll if roll.replacement == worker.id:
            roll.failure = failure
        case Resize() as resize if worker.slot in resize.added:
            if not state.slots[worker.slot].served:
                resize.failure = failure
        case _:
            pass


def _lose(state: State, slot: Slot, now: float) -> None:
    """Note that nobody is ready in the slot any more, and when the next may be started."""
    slot.unserved_since = now
    if now - slot.served_since >= state.policy.restart_window:
        slot.failures = 0
    _back_off(state, slot, now)


def _back_off(state: State, slot: Slot, now: float) -> None:
    slot.failures += 1
    slot.retry_at = now + backoff_delay(slot.failures, state.jitter())


def _count_death(state: State, slot: Slot, now: float) -> None:
    slot.restarts += 1
    slot.died = True
    # By slot: when all workers are killed at once, none of them is in a crash loop.
    horizon = now - state.policy.restart_window
    slot.deaths = [when for when in slot.deaths if when > horizon]
    slot.deaths.append(now)
    if len(slot.deaths) > state.policy.max_restarts and state.stopping is None:
        window = f"{state.policy.restart_window:g} s"
        times = f"{len(slot.deaths)} times" if len(slot.deaths) > 1 else "once"
        state.end(Exit(70, f"{name_of(slot.index)} died {times} within {window}"))


def _note_returned(state: State, event: Returned) -> None:
    slot = state.slots.get(event.slot)
    if slot is None or slot.borrower != event.worker:
        return
    slot.borrower = None
    slot.returning = False
    slot.swept = slot.steered


def _note_refused(state: State, event: LoanRefused, now: float) -> None:
    if worker := state.worker(event.worker):
        worker.borrows_from = now + REFUSED_FOR
    slot = state.slots.get(event.slot)
    if slot is not None and slot.borrower == event.worker:
        slot.borrower = None
        slot.returning = False


def _note_stop(state: State, event: Stop, now: float) -> None:
    if event.ticket != NO_TICKET:
        state.stop_tickets.append(event.ticket)
    if state.stopping is None:
        state.end(state.exit, quick=event.quick)
        # Nobody has been sent here before the start has ended.
        if not event.quick and not isinstance(state.operation, Launch):
            state.leave_at = now + state.policy.shutdown_delay
            state.leaving = False
    elif event.quick and not state.stopping.quick:
        state.end(state.exit, quick=True)


def _feel(state: State, pulse: Pulse, now: float) -> None:
    worker = state.worker(pulse.worker)
    if worker is None or worker.life is not WorkerState.READY:
        return
    if pulse.turned:
        worker.stalled_since = None
        worker.stuck = False
    elif pulse.queued and worker.stalled_since is None:
        worker.stalled_since = now
    if worker.stalled_since is not None and now - worker.stalled_since >= STUCK_AFTER:
        worker.stuck = True
    recycling.weigh(state.policy, worker, pulse, now)
    overdue, worker.overdue = worker.overdue, pulse.age > state.policy.worker_timeout
    if overdue and worker.overdue and not worker.doomed:
        worker.deadline = now
        worker.doomed = f"no heartbeat for {pulse.age:.1f} s"
