"""Records what an event says; the only action asked for here is a line in the log.

What an event means in the state that it meets stands in the tables of `machine`, and is looked up
before anything else.
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
    WorkerEvent,
)
from greeterd.supervisor.ids import DISPATCHER, NO_TICKET, DrainMode, WorkerState, name_of
from greeterd.supervisor.machine import (
    LOANS,
    OPERATIONS,
    STOPS,
    WORKERS,
    Cause,
    DaemonState,
    OperationState,
    Outcome,
    Trigger,
    follow,
)
from greeterd.supervisor.records import (
    Launch,
    Preflight,
    Resize,
    Roll,
    Slot,
    Worker,
    backoff_delay,
    state_of,
)
from greeterd.supervisor.state import State

REFUSED_FOR: Final = 5.0
"""Seconds for which a worker that could not serve another's listener is not asked again."""
STUCK_AFTER: Final = 0.4
"""Seconds of waiting connections without a turn of the loop that make a worker stuck."""


def apply(state: State, event: Event, now: float) -> None:
    """Record what the event says."""
    match event:
        case Tick():
            for pulse in event.pulses:
                _observe_worker(state, pulse, now)
        case Returned() | LoanRefused():
            _observe_loan(state, event, now)
        case PreflightEnded():
            _observe_preflight(state, event)
        case Reload() | Restart() | Scale() | Upgrade():
            if STOPS[type(event)][state.daemon] is not Outcome.IGNORED:
                state.commands.append(event)
        case Unreachable(reason):
            state.end(Unreachable, Exit(69, reason))
        case Stop():
            _observe_stop(state, event, now)
        case _:
            _observe_worker(state, event, now)


def _observe_worker(  # noqa: C901, PLR0912 - a case an event
    state: State, event: WorkerEvent | Pulse, now: float
) -> None:
    worker = state.worker(event.worker)
    what: Trigger = type(event)
    if worker is None:
        assert WORKERS[what][WorkerState.GONE] is Outcome.IGNORED
        return
    if isinstance(event, Ready) and worker.sent is not None:
        what = Cause.LATE_READY
    outcome = WORKERS[what][worker.state]
    if outcome is Outcome.IGNORED:
        return
    if outcome is Outcome.LOGGED:
        _log_unexpected(state, event, worker.state, worker=worker.slot)
        return
    match event:
        case Spawned():
            worker.pid = event.pid
        case SpawnFailed():
            _on_end(state, worker, event, 71, now)
        case Ready():
            _on_ready(state, worker, event, what, now)
        case ExitRequested():
            if worker.slot == DISPATCHER:  # which greets no client
                _log_unexpected(state, event, worker.state, worker=worker.slot)
            else:
                state.exit_requests.append(worker.slot)
        case Leaving():
            _on_leaving(state, worker, now)
        case Closed():
            worker.accepts = False
        case Exited():
            _on_end(state, worker, event, event.code, now)
        case Pulse():
            _on_pulse(state, worker, event, now)
        case _:
            assert_never(event)


def _log_unexpected(
    state: State, event: Event | Pulse, found: WorkerState | OperationState, **fields: object
) -> None:
    what = type(event).__name__
    state.say("warning", "unexpected event", what=what, state=found.name.lower(), **fields)


# Workers ------------------------------------------------------------------------------------


def _on_ready(state: State, worker: Worker, event: Ready, what: Trigger, now: float) -> None:
    slot = state.slots[worker.slot]
    slot.served = True  # also by a late one: the slot has a listener now
    if what is Cause.LATE_READY:
        return
    if slot.ready is None:
        slot.served_since = now
    worker.move(what, now)
    worker.deadline = None
    worker.first_rss_bytes = event.rss_bytes
    worker.limit_share = 1.0 - recycling.JITTER * state.jitter()
    slot.recycle_failures = 0
    slot.recycle_at = 0.0
    # What has served once is what is started again after a crash.
    slot.generation = worker.generation


def _on_leaving(state: State, worker: Worker, now: float) -> None:
    """Let the slot have a new worker at once.

    The drain mode stays None: the supervisor did not choose it.
    """
    worker.move(Leaving, now)
    worker.end_by(now + state.timeout(DrainMode.SWEEP))
    slot = state.slots[worker.slot]
    if slot.ready is None:
        _end_service(state, slot, now)


def _on_end(
    state: State, worker: Worker, event: SpawnFailed | Exited, code: int, now: float
) -> None:
    """Forget the worker; unless it was draining, its slot has lost one that it needs."""
    slot = state.slots[worker.slot]
    before = worker.state
    worker.move(type(event), now)
    del state.workers[worker.id]
    slot.workers.remove(worker)
    if before is WorkerState.DRAINING:
        # Only one that was asked to sweep has emptied the listener, and only if it ended in peace.
        if worker.leaving is DrainMode.SWEEP and code == 0:
            slot.move(Cause.EMPTIED)
        return
    if before is WorkerState.STARTING:
        reason = f"{worker.end_reason}; {event.reason}" if worker.end_reason else event.reason
        _fail_start(state, worker, reason, code)
    if slot.ready is None:
        # A replacement that dies costs the slot nothing while the old worker serves.
        if before is WorkerState.READY:
            _end_service(state, slot, now)
        else:
            _back_off(state, slot, now)
        _count_death(state, slot, now)


def _fail_start(state: State, worker: Worker, reason: str, code: int) -> None:
    """Let the operation fail that waits for this worker."""
    failure = f"{name_of(worker.slot)} did not start: {reason}"
    match state.operation:
        case Launch():
            state.end(Cause.GIVE_UP, Exit(code or 70, failure))
        case Roll() as roll if roll.replacement == worker.id:
            roll.failure = failure
        case Resize() as resize if worker.slot in resize.added:
            # One that has served is no failed start: it is restarted like any other.
            if not state.slots[worker.slot].served:
                resize.failure = failure
        case _:
            pass


def _end_service(state: State, slot: Slot, now: float) -> None:
    """Note that no worker is ready in the slot any more, and when the next may be started."""
    slot.unserved_since = now
    if now - slot.served_since >= state.policy.restart_window:
        slot.failures = 0
    _back_off(state, slot, now)


def _back_off(state: State, slot: Slot, now: float) -> None:
    slot.failures += 1
    slot.retry_at = now + backoff_delay(slot.failures, state.jitter())


def _count_death(state: State, slot: Slot, now: float) -> None:
    """Count it for the restart intensity; end the daemon if that is too high."""
    slot.restarts += 1
    slot.died = True
    # By slot: when all workers are killed at once, none of them is in a crash loop.
    horizon = now - state.policy.restart_window
    slot.deaths = [when for when in slot.deaths if when > horizon]
    slot.deaths.append(now)
    if len(slot.deaths) > state.policy.max_restarts:
        window = f"{state.policy.restart_window:g} s"
        times = f"{len(slot.deaths)} times" if len(slot.deaths) > 1 else "once"
        reason = f"{name_of(slot.index)} died {times} within {window}"
        state.end(Cause.GIVE_UP, Exit(70, reason))


def _on_pulse(state: State, worker: Worker, pulse: Pulse, now: float) -> None:
    """Judge whether the worker is stuck, due to be replaced, or hung."""
    if pulse.turned:
        worker.stalled_since = None
        worker.stuck = False
    elif pulse.queued and worker.stalled_since is None:
        worker.stalled_since = now
    if worker.stalled_since is not None and now - worker.stalled_since >= STUCK_AFTER:
        worker.stuck = True
    recycling.judge(state.policy, worker, pulse, now)
    overdue, worker.overdue = worker.overdue, pulse.age > state.policy.worker_timeout
    if overdue and worker.overdue and not worker.end_reason:
        worker.deadline = now
        worker.end_reason = f"no heartbeat for {pulse.age:.1f} s"


# Loans, operations, the daemon --------------------------------------------------------------


def _observe_loan(state: State, event: Returned | LoanRefused, now: float) -> None:
    if isinstance(event, LoanRefused) and (worker := state.worker(event.worker)):
        worker.borrows_from = now + REFUSED_FOR
    slot = state.slots.get(event.slot)
    if slot is None or LOANS[type(event)][slot.loan_to(event.worker)] is Outcome.IGNORED:
        return
    slot.move_loan(type(event))
    if isinstance(event, Returned):
        slot.move(Cause.EMPTIED)


def _observe_preflight(state: State, event: PreflightEnded) -> None:
    found = state_of(state.operation)
    what: Trigger = Cause.NO_IMAGE if event.reason else PreflightEnded
    outcome = OPERATIONS[what][found]
    if outcome is Outcome.LOGGED:
        _log_unexpected(state, event, found)
    elif isinstance(state.operation, Preflight) and outcome is not Outcome.IGNORED:
        if event.reason:
            state.operation.failure = event.reason  # and `operations` ends it
        else:
            state.operation.state = follow(OPERATIONS, what, found)


def _observe_stop(state: State, event: Stop, now: float) -> None:
    if event.ticket != NO_TICKET:
        state.stop_tickets.append(event.ticket)
    # Before the first start has ended, no client was sent here: there is nothing to delay for.
    if event.quick or isinstance(state.operation, Launch):
        state.end(Cause.STOP_NOW, state.exit, quick=event.quick)
    elif state.daemon is DaemonState.RUNNING:
        state.daemon = follow(STOPS, Stop, state.daemon)
        state.leave_at = now + state.policy.shutdown_delay
        if state.leave_at > now:
            state.say("info", "stopping", delay=round(state.policy.shutdown_delay, 3))
