"""Every cell of the tables is what the code does; and every state can be reached."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from enum import Enum
from typing import Any, get_args

import pytest

from greeterd.supervisor import machine, observe
from greeterd.supervisor.actions import (
    Action,
    Exit,
    Kill,
    Say,
    Spawn,
)
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
from greeterd.supervisor.ids import (
    Generation,
    Pid,
    Signal,
    SlotIndex,
    Ticket,
    WorkerId,
    WorkerState,
)
from greeterd.supervisor.machine import (
    LOANS,
    OPERATIONS,
    OVERDUE,
    SLOTS,
    STOPS,
    WORKERS,
    Cause,
    DaemonState,
    LoanState,
    OperationState,
    Outcome,
    SlotState,
    Trigger,
)
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.records import (
    Launch,
    Operation,
    Preflight,
    Resize,
    Roll,
    Slot,
    Worker,
    state_of,
)
from greeterd.supervisor.slots import end_overdue
from greeterd.supervisor.state import State

NOW = 100.0
ONE = WorkerId(1)
OTHER = WorkerId(2)
SLOT = SlotIndex(1)
TABLES: list[tuple[Mapping[Any, Mapping[Any, Any]], type[Enum]]] = [
    (WORKERS, WorkerState),
    (SLOTS, SlotState),
    (LOANS, LoanState),
    (OPERATIONS, OperationState),
    (STOPS, DaemonState),
]
EVENTS: dict[Trigger, Event | Pulse] = {
    Spawned: Spawned(ONE, Pid(7)),
    SpawnFailed: SpawnFailed(ONE, "fork: out of memory"),
    Ready: Ready(ONE, rss_bytes=5),
    Cause.LATE_READY: Ready(ONE, rss_bytes=5),
    Exited: Exited(ONE, "killed by SIGKILL", 70),
    ExitRequested: ExitRequested(ONE),
    Leaving: Leaving(ONE),
    Closed: Closed(ONE),
    Pulse: Pulse(ONE, 0.0, turned=False, queued=1, greetings=0, rss_bytes=0),
    Returned: Returned(SLOT, ONE),
    LoanRefused: LoanRefused(SLOT, ONE),
    PreflightEnded: PreflightEnded(),
    Cause.NO_IMAGE: PreflightEnded("no such file"),
    Reload: Reload(Generation(2), 1, Policy(), Ticket(1), "reload"),
    Restart: Restart(None, Ticket(1)),
    Scale: Scale(2, ticket=Ticket(1)),
    Upgrade: Upgrade(Ticket(1)),
    Unreachable: Unreachable("no listener"),
    Stop: Stop(),
    Cause.STOP_NOW: Stop(quick=True),
}


def cells(table: Mapping[Any, Mapping[Any, Any]]) -> list[Any]:
    """Return a case for each cell: the trigger, the state before, what the table says."""
    return [
        pytest.param(what, before, then, id=f"{getattr(what, '__name__', what)}-{before.name}")
        for what, row in table.items()
        for before, then in row.items()
    ]


def with_slot(**fields: Any) -> State:
    """Return a running daemon with one slot of its own listener, and no worker."""
    state = State(policy=Policy(own_listeners=True), jitter=lambda: 0.0, operation=None, **fields)
    state.add_slot(0.0)
    return state


def with_worker(life: WorkerState) -> State:
    """Return a running daemon with one worker in this state, or that it has forgotten."""
    state = with_slot()
    if life is not WorkerState.GONE:
        state.spawn(state.slots[SLOT], Generation(1), 0.0)
        state.workers[ONE].state = life
        state.actions.clear()
    return state


def snapshot(state: State) -> dict[str, Any]:
    return asdict(deepcopy(state)) | {"jitter": None}


def observed(state: State, event: Event | Pulse) -> dict[str, Any]:
    """Have the event recorded; return what the state was before."""
    before = snapshot(state)
    observe.apply(state, Tick((event,)) if isinstance(event, Pulse) else event, NOW)
    return before


def assert_outcome(state: State, before: dict[str, Any], outcome: Outcome) -> None:
    """Assert that an event was taken note of, left no trace, or only one in the log."""
    if outcome is Outcome.LOGGED:
        (said,) = state.actions
        assert isinstance(said, Say)
        assert (said.level, said.event) == ("warning", "unexpected event")
        state.actions.clear()
    assert (snapshot(state) != before) == (outcome in {Outcome.SAME, Outcome.QUEUED})


# The tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_a_row_has_a_cell_for_each_state(
    table: Mapping[Any, Mapping[Any, Any]], states: type[Enum]
) -> None:
    for what, row in table.items():
        assert list(row) == list(states), what


def test_every_event_has_a_row() -> None:
    rows = {what for table, _ in TABLES for what in table}
    assert {*get_args(Event), Pulse} - {Tick} <= rows
    assert {what for what in rows if not isinstance(what, Cause)} <= {
        *get_args(Event),
        *get_args(Action),
        Pulse,
    }
    assert set(Cause) <= rows


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_every_state_is_reached_from_the_first(
    table: Mapping[Any, Mapping[Any, Any]], states: type[Enum]
) -> None:
    # A worker begins with its Spawn, the daemon with its launch.
    first = {WorkerState: WorkerState.GONE, OperationState: OperationState.LAUNCH}
    found = [first.get(states, next(iter(states)))]
    for state in found:
        moves = (row[state] for row in table.values())
        found += {then for then in moves if isinstance(then, states)} - set(found)
    assert set(found) == set(states)


def test_a_worker_never_goes_back() -> None:
    order = [WorkerState.STARTING, WorkerState.READY, WorkerState.DRAINING, WorkerState.GONE]
    for what, row in WORKERS.items():
        for before, then in row.items():
            if isinstance(then, WorkerState) and what is not Spawn:
                assert order.index(then) > order.index(before)


# Workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "life", "then"), cells(WORKERS))
def test_worker(what: Trigger, life: WorkerState, then: WorkerState | Outcome) -> None:
    state = with_worker(life)
    if what in EVENTS:
        if what is Cause.LATE_READY and life is not WorkerState.GONE:
            state.workers[ONE].sent = Signal.ABORT
        before = observed(state, EVENTS[what])
        found = state.workers[ONE].state if ONE in state.workers else WorkerState.GONE
        assert found is (life if isinstance(then, Outcome) else then)
        if isinstance(then, Outcome):
            assert_outcome(state, before, then)
    else:
        assert_moves(lambda worker: worker.move(what, NOW), a_worker(life), "state", then)


def a_worker(life: WorkerState) -> Worker:
    return Worker(id=ONE, slot=SLOT, place=0, generation=Generation(1), since=0.0, state=life)


def assert_moves(move: Callable[[Any], None], record: Any, field: str, then: Enum) -> None:
    before = getattr(record, field)
    if then is Outcome.SAME or not isinstance(then, Outcome):
        move(record)
        assert getattr(record, field) is (before if then is Outcome.SAME else then)
        return
    with pytest.raises(AssertionError, match=f" while {before}: {then}$"):
        move(record)
    assert getattr(record, field) is before


def test_a_new_worker_is_in_the_state_that_its_spawn_leads_to() -> None:
    state = with_slot()
    state.spawn(state.slots[SLOT], Generation(1), 0.0)
    assert state.workers[ONE].state is WORKERS[Spawn][WorkerState.GONE]


@pytest.mark.parametrize(("sent", "life", "then"), cells(OVERDUE))
def test_a_worker_past_its_deadline(
    sent: Signal | None, life: WorkerState, then: Signal | Outcome
) -> None:
    state = with_worker(life)
    worker = state.workers[ONE]
    worker.sent, worker.deadline = sent, NOW
    end_overdue(state, NOW - 0.1)
    assert state.actions == []
    end_overdue(state, NOW)
    sends = [action.signal for action in state.actions if isinstance(action, Kill)]
    assert sends == ([] if isinstance(then, Outcome) else [then])
    assert worker.sent is (sent if isinstance(then, Outcome) else then)


# Slots and loans ----------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "before", "then"), cells(SLOTS))
def test_slot(what: Trigger, before: SlotState, then: SlotState | Outcome) -> None:
    slot = Slot(index=SLOT, generation=Generation(1), state=before)
    assert_moves(lambda slot: slot.move(what), slot, "state", then)


def lent(loan: LoanState) -> Slot:
    borrower = None if loan is LoanState.KEPT else ONE
    return Slot(index=SLOT, generation=Generation(1), loan=loan, borrower=borrower)


@pytest.mark.parametrize(("what", "before", "then"), cells(LOANS))
def test_loan(what: Trigger, before: LoanState, then: LoanState | Outcome) -> None:
    slot = lent(before)
    if what in EVENTS:
        state = with_slot()
        state.slots[SLOT] = slot
        was = observed(state, EVENTS[what])
        if isinstance(then, Outcome):
            assert_outcome(state, was, then)
    else:
        assert_moves(lambda slot: slot.move_loan(what, ONE), slot, "loan", then)
    assert slot.loan is (before if isinstance(then, Outcome) else then)
    assert slot.borrower == (None if slot.loan is LoanState.KEPT else ONE)


@pytest.mark.parametrize("event", [Returned(SLOT, OTHER), LoanRefused(SLOT, OTHER)])
@pytest.mark.parametrize("loan", LoanState)
def test_a_loan_is_not_changed_by_another_than_its_borrower(
    event: Returned | LoanRefused, loan: LoanState
) -> None:
    state = with_slot()
    state.slots[SLOT] = lent(loan)
    assert_outcome(state, observed(state, event), Outcome.IGNORED)


# Operations and the daemon ------------------------------------------------------------------


def operation_in(state: OperationState) -> Operation | None:
    match state:
        case OperationState.IDLE:
            return None
        case OperationState.LAUNCH:
            return Launch()
        case OperationState.ROLL:
            return Roll(command="reload", targets={})
        case OperationState.UNDO:
            return Roll(command="reload", targets={}, undoing="worker 1 did not start")
        case OperationState.RESIZE:
            return Resize(command="scale", want=1)
        case OperationState.PREFLIGHT | OperationState.PASSED | OperationState.REPLACE:
            return Preflight(command="upgrade", deadline=0.0, state=state)


@pytest.mark.parametrize("state", OperationState)
def test_an_operation_tells_its_state(state: OperationState) -> None:
    assert state_of(operation_in(state)) is state


COMMANDS = (Reload, Restart, Scale, Upgrade)


@pytest.mark.parametrize(("what", "before", "then"), cells(OPERATIONS))
def test_operation(what: Trigger, before: OperationState, then: OperationState | Outcome) -> None:
    state = with_slot()
    state.operation = operation_in(before)
    if what in EVENTS and what not in COMMANDS:
        was = observed(state, EVENTS[what])
        if isinstance(then, Outcome):
            assert_outcome(state, was, then)
        elif what is Cause.NO_IMAGE:
            assert isinstance(state.operation, Preflight)
            assert state.operation.failure == "no such file"
        else:
            assert state_of(state.operation) is then
        return
    if then is Outcome.QUEUED:
        observed(state, EVENTS[what])
        assert (list(state.commands), state_of(state.operation)) == ([EVENTS[what]], before)
    for after in OperationState:
        state.operation = operation_in(before)
        if after is (before if then is Outcome.SAME else then):
            state.switch(what, operation_in(after))
            assert state_of(state.operation) is after
        else:
            with pytest.raises(AssertionError):
                state.switch(what, operation_in(after))


@pytest.mark.parametrize(("what", "before", "then"), cells(STOPS))
def test_stop(what: Trigger, before: DaemonState, then: DaemonState | Outcome) -> None:
    state = with_slot(daemon=before)
    if what in EVENTS:
        was = observed(state, EVENTS[what])
        assert state.daemon is (before if isinstance(then, Outcome) else then)
        if then is Outcome.IGNORED:
            assert_outcome(state, was, then)
        if what in COMMANDS and then is not Outcome.IGNORED:
            assert list(state.commands) == [EVENTS[what]]
    elif what is Cause.GIVE_UP:
        state.end(what, Exit(70, "crash loop"))
        assert state.daemon is (before if isinstance(then, Outcome) else then)
    else:
        found = {before}
        try:
            found = {machine.follow(STOPS, what, before)}
        except AssertionError:
            assert then is Outcome.NEVER
        assert found == {before if isinstance(then, Outcome) else then}
