"""The supervisor's state machines, each a table: what happens x state -> state.

Theory
======
There are five machines: one of the first for each worker, one of the next two for each slot, and
one of the last two for the daemon.

1. WORKERS: what is awaited of one process, from the decision to fork it until it is reaped.
2. SLOTS: how far a slot is on its way out.  What else a slot needs follows from its workers:

       its workers                what follows
       none                       start one when the back-off is over
       DRAINING                   the same, in the other one of the slot's two scoreboard rows
       DRAINING, DRAINING         wait until one is gone: there is no free row
       STARTING                   wait: it becomes ready, or is aborted at its deadline
       DRAINING, STARTING         the same
       READY                      none: the slot is served
       READY, STARTING            none: a replacement starts, and the slot is served meanwhile
       READY, READY               drain the older one by handing over
       DRAINING, READY            none: the slot is served

3. LOANS: where the listener of a slot is served while its own worker cannot (a rescue).
4. OPERATIONS: the first start, and the commands that take time; one is carried out at a time.
5. STOPS: the daemon's own end.

Two kinds of rows:

- An event (a class of `events`) comes from outside, through `observe`, which looks up the row
  before anything else.  Events may be late or come twice: a worker dies while its message is on
  its way, or is sent a Drain while it says that it is ready.
- An action (a class of `actions`) or a `Cause` is found by `reconcile`, which compares what is
  with what should be, and repeats that until nothing more follows.  Its effect on the state is
  made by the record's `move`, which looks up the row.

A cell names the next state, or why there is none: see `Outcome`.  Conditions that are more than
a state (deadlines, back-off, who is due) stand in the code, beside the action that they lead to.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, TypeVar

from greeterd.supervisor.actions import (
    Action,
    CloseSlot,
    Drain,
    Exit,
    Lend,
    Replace,
    Spawn,
    SteerAway,
    TakeBack,
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
    Unreachable,
    Upgrade,
)
from greeterd.supervisor.ids import Signal, WorkerState


class SlotState(Enum):
    """How far a slot is on its way out."""

    LIVE = auto()
    """It is to be served."""
    RETIRING = auto()
    """It is to go.  Without a listener of its own, it goes when its workers have."""
    STEERED = auto()
    """No new connection reaches its listener; what is queued there is to be emptied."""
    SWEPT = auto()
    """Its listener was emptied since."""
    CLOSED = auto()
    """It is no more."""


class LoanState(Enum):
    """Where a slot's listener is served besides by the slot's own worker."""

    KEPT = auto()
    """Nowhere: no loan, or none to the worker that the event is about."""
    LENT = auto()
    RETURNING = auto()
    """The borrower was asked to empty and close its duplicate."""


class OperationState(Enum):
    """What the daemon is busy with."""

    IDLE = auto()
    LAUNCH = auto()
    """Every slot gets its first worker; one that cannot start ends the daemon."""
    ROLL = auto()
    """Workers are replaced, slot by slot: reload, restart, recycling."""
    UNDO = auto()
    """A reload has failed half-way: its slots get their old generation back."""
    RESIZE = auto()
    PREFLIGHT = auto()
    """An upgrade: the new image runs beside this one, without clients."""
    PASSED = auto()
    """The new image can start; wait until no worker starts and no slot retires."""
    REPLACE = auto()
    """This process becomes the new image; only a failure comes back."""


class DaemonState(Enum):
    """How far the daemon is on its way out."""

    RUNNING = auto()
    STOPPING = auto()
    """It is to stop, and serves until `shutdown_delay` is over."""
    LEAVING = auto()
    """The workers drain."""
    ENDED = auto()


class Outcome(Enum):
    """What a table says in the place of a new state."""

    SAME = auto()
    """Taken note of, or done; the state stays."""
    QUEUED = auto()
    """Done when what is under way has ended."""
    REFUSED = auto()
    """Answered with the reason at once."""
    IGNORED = auto()
    """Late or a repetition, which is no fault: nothing follows."""
    LOGGED = auto()
    """Neither the master nor a worker should report this: a warning is logged, nothing follows."""
    NEVER = auto()
    """It would be a mistake of the supervisor itself: AssertionError."""


class Cause(Enum):
    """What moves a machine and is neither an event nor an action by itself."""

    LATE_READY = auto()
    """A Ready of a worker that was aborted because it was not ready in time."""
    RETIRE = auto()
    """The slot is one too many: a scale down, an `exit`, a scale up that has failed."""
    EMPTIED = auto()
    """By its worker, which swept and ended in peace, or by the borrower that has returned it."""
    FORGET = auto()
    """The borrower is gone, leaves or is stuck."""
    RECYCLE = auto()
    """A worker has served for long enough."""
    UNDO = auto()
    RESIZE = auto()
    """A reload also changes the number of workers."""
    DONE = auto()
    FAILED = auto()
    """A worker that the operation waits for did not start."""
    NO_IMAGE = auto()
    """A PreflightEnded with a reason, or none before the deadline."""
    STOP_NOW = auto()
    """A quick Stop, or any during the first start: without `shutdown_delay`."""
    DELAY_OVER = auto()
    GIVE_UP = auto()
    """A crash loop, a first start that has failed, or the last worker that retires."""
    SHUT_DOWN = auto()
    """The operation ends because the daemon does."""


Trigger = type[Event] | type[Action] | type[Pulse] | Cause
K = TypeVar("K")
S = TypeVar("S", bound=Enum)
C = TypeVar("C", bound=Enum)
Table = Mapping[K, Mapping[S, C | Outcome]]


def _table(
    states: tuple[S, ...], *rows: tuple[K, *tuple[C | Outcome, ...]]
) -> dict[K, dict[S, C | Outcome]]:
    """Return the cells of each row by state; the head is code, so that no column can drift."""
    return {what: dict(zip(states, cells, strict=True)) for what, *cells in rows}


STARTING, READY, DRAINING, GONE = WorkerState
LIVE, RETIRING, STEERED, SWEPT, CLOSED = SlotState
KEPT, LENT, RETURNING = LoanState
IDLE, LAUNCH, ROLL, UNDO, RESIZE, PREFLIGHT, PASSED, REPLACE = OperationState
RUNNING, STOPPING, LEAVING, ENDED = DaemonState
SAME, QUEUED, REFUSED, IGNORED, LOGGED, NEVER = Outcome
ABORT, KILL = Signal

WORKERS: Final[Table[Trigger, WorkerState, WorkerState]] = _table(
    (                  STARTING, READY,    DRAINING, GONE),
    (Spawn,            NEVER,    NEVER,    NEVER,    STARTING),
    (Spawned,          SAME,     IGNORED,  IGNORED,  IGNORED),
    # The order to fork is taken back when its worker is to drain.
    (SpawnFailed,      GONE,     LOGGED,   GONE,     IGNORED),
    (Ready,            READY,    IGNORED,  IGNORED,  IGNORED),
    # It is about to die, and must not take the place of one that serves.
    (Cause.LATE_READY, SAME,     IGNORED,  IGNORED,  IGNORED),
    # In mode handoff a worker that is still STARTING here may serve already: the answer of the
    # dispatcher is awaited.  So its client's `exit` counts, and its own end is awaited.
    (ExitRequested,    SAME,     SAME,     SAME,     IGNORED),
    (Leaving,          IGNORED,  DRAINING, IGNORED,  IGNORED),
    (Closed,           LOGGED,   LOGGED,   SAME,     IGNORED),
    (Pulse,            IGNORED,  SAME,     IGNORED,  IGNORED),
    (Exited,           GONE,     GONE,     GONE,     IGNORED),
    # Again while it drains: quickly now, or because it left without knowing that all others do.
    (Drain,            DRAINING, DRAINING, SAME,     NEVER),
)  # fmt: skip

OVERDUE: Final[Table[Signal | None, WorkerState, Signal]] = _table(
    # What a worker is sent when its deadline has passed, by what it was sent before.
    (          STARTING, READY,    DRAINING),
    (None,     ABORT,    ABORT,    KILL),
    (ABORT,    KILL,     KILL,     KILL),
    (KILL,     IGNORED,  IGNORED,  IGNORED),
)  # fmt: skip

SLOTS: Final[Table[Trigger, SlotState, SlotState]] = _table(
    (               LIVE,     RETIRING, STEERED,  SWEPT,    CLOSED),
    (Cause.RETIRE,  RETIRING, SAME,     SAME,     SAME,     NEVER),
    (SteerAway,     NEVER,    STEERED,  NEVER,    NEVER,    NEVER),
    # Before it is steered away, more may be queued again at once.
    (Cause.EMPTIED, SAME,     SAME,     SWEPT,    SAME,     NEVER),
    # LIVE: the dispatcher's, when the daemon stops.  RETIRING: without a listener of its own.
    # STEERED: it was not emptied within `graceful_timeout`.
    (CloseSlot,     CLOSED,   CLOSED,   CLOSED,   CLOSED,   NEVER),
)  # fmt: skip

LOANS: Final[Table[Trigger, LoanState, LoanState]] = _table(
    (              KEPT,    LENT,      RETURNING),
    (Lend,         LENT,    NEVER,     NEVER),
    (TakeBack,     NEVER,   RETURNING, NEVER),
    # KEPT: the borrower was forgotten meanwhile.  LENT: an answer to the TakeBack of a loan before.
    (Returned,     IGNORED, KEPT,      KEPT),
    (LoanRefused,  IGNORED, KEPT,      KEPT),
    # One that is stuck is sent a TakeBack, too, but its answer is not awaited.
    (Cause.FORGET, NEVER,   KEPT,      KEPT),
)  # fmt: skip

OPERATIONS: Final[Table[Trigger, OperationState, OperationState]] = _table(
    (                 IDLE,      LAUNCH,  ROLL,    UNDO,    RESIZE,  PREFLIGHT, PASSED,  REPLACE),
    # From IDLE: unless it is refused (no such worker, a number out of range).
    (Reload,          ROLL,      QUEUED,  QUEUED,  QUEUED,  QUEUED,  QUEUED,    QUEUED,  QUEUED),
    (Restart,         ROLL,      QUEUED,  QUEUED,  QUEUED,  QUEUED,  QUEUED,    QUEUED,  QUEUED),
    (Scale,           RESIZE,    QUEUED,  QUEUED,  QUEUED,  QUEUED,  QUEUED,    QUEUED,  QUEUED),
    (Upgrade,         PREFLIGHT, QUEUED,  QUEUED,  QUEUED,  QUEUED,  QUEUED,    QUEUED,  QUEUED),
    (Cause.RECYCLE,   ROLL,      NEVER,   NEVER,   NEVER,   NEVER,   NEVER,     NEVER,   NEVER),
    (Cause.DONE,      NEVER,     IDLE,    IDLE,    IDLE,    IDLE,    NEVER,     NEVER,   NEVER),
    # LAUNCH: that ends the daemon, see GIVE_UP.
    (Cause.FAILED,    NEVER,     NEVER,   IDLE,    IDLE,    IDLE,    NEVER,     NEVER,   NEVER),
    (Cause.UNDO,      NEVER,     NEVER,   UNDO,    NEVER,   NEVER,   NEVER,     NEVER,   NEVER),
    (Cause.RESIZE,    NEVER,     NEVER,   RESIZE,  NEVER,   NEVER,   NEVER,     NEVER,   NEVER),
    # What comes of a preflight that was ended at its deadline, or by a stop, is late.
    (PreflightEnded,  IGNORED,   IGNORED, IGNORED, IGNORED, IGNORED, PASSED,    LOGGED,  LOGGED),
    (Cause.NO_IMAGE,  IGNORED,   IGNORED, IGNORED, IGNORED, IGNORED, IDLE,      IDLE,    IDLE),
    (Replace,         NEVER,     NEVER,   NEVER,   NEVER,   NEVER,   NEVER,     REPLACE, NEVER),
    (Cause.SHUT_DOWN, SAME,      IDLE,    IDLE,    IDLE,    IDLE,    IDLE,      IDLE,    IDLE),
)  # fmt: skip


STOPS: Final[Table[Trigger, DaemonState, DaemonState]] = _table(
    (                  RUNNING,  STOPPING, LEAVING, ENDED),
    # STOPPING, LEAVING: all who have asked for the stop are answered at its end.
    (Stop,             STOPPING, SAME,     SAME,    IGNORED),
    (Cause.STOP_NOW,   LEAVING,  LEAVING,  SAME,    IGNORED),
    (Cause.DELAY_OVER, NEVER,    LEAVING,  NEVER,   NEVER),
    # The first reason is the one that the daemon exits with.
    (Unreachable,      LEAVING,  IGNORED,  IGNORED, IGNORED),
    (Cause.GIVE_UP,    LEAVING,  IGNORED,  IGNORED, IGNORED),
    # RUNNING: see OPERATIONS.
    (Reload,           SAME,     REFUSED,  REFUSED, IGNORED),
    (Restart,          SAME,     REFUSED,  REFUSED, IGNORED),
    (Scale,            SAME,     REFUSED,  REFUSED, IGNORED),
    (Upgrade,          SAME,     REFUSED,  REFUSED, IGNORED),
    # No worker is left.
    (Exit,             NEVER,    NEVER,    ENDED,   NEVER),
)  # fmt: skip


def follow(table: Table[K, S, S], what: K, state: S) -> S:
    """Return the state that follows; AssertionError where the table says that nothing does."""
    then = table[what][state]
    if then is SAME:
        return state
    assert not isinstance(then, Outcome), f"{what} while {state}: {then}"
    return then
