"""The supervisor's records: workers, the slots that they serve, and the operation under way.

Their states change through `move` and `move_loan` only, as the tables of `machine` say.
A slot holds at most two workers, one that serves or starts and one that leaves, or one that
serves and one that starts to replace it.  One operation is carried out at a time.
Only the supervisor writes these records.
"""

from dataclasses import dataclass, field
from typing import Final

from greeterd.supervisor.events import Reload
from greeterd.supervisor.ids import (
    NO_TICKET,
    DrainMode,
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
    SLOTS,
    WORKERS,
    LoanState,
    OperationState,
    SlotState,
    Trigger,
    follow,
)

BACKOFF_BASE: Final = 0.1
BACKOFF_CAP: Final = 30.0


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """A worker process, from the decision to fork it until it is reaped."""

    id: WorkerId
    slot: SlotIndex
    place: int
    generation: Generation
    since: float
    """When it entered its present state."""
    state: WorkerState = WorkerState.STARTING
    pid: Pid | None = None
    deadline: float | None = None
    """When it is sent the next signal; see machine.OVERDUE."""
    end_reason: str = ""
    """Why it was aborted or killed; empty while it was not."""
    sent: Signal | None = None
    """The strongest signal that it was sent."""
    leaving: DrainMode | None = None
    """How the supervisor has asked it to drain; None: not at all, also if it drains by itself."""
    accepts: bool = True
    """It may accept; False once it has answered a Drain with HAND_OVER."""
    borrows_from: float = 0.0
    """Not lent a listener before then, as it has refused one."""
    stalled_since: float | None = None
    """Since when connections have waited without a turn of its loop."""
    stuck: bool = False
    """Stalled for so long that its listener is lent."""
    overdue: bool = False
    """Its heartbeat was too old at the last tick.  Only the second tick in a row counts: after all
    processes were frozen, the master may be the first to run."""

    limit_share: float = 1.0
    """It is due at this share of the limits for recycling."""
    first_rss_bytes: int = 0
    """Its resident memory when it became ready."""
    due: str = ""
    """Why it is to be recycled; empty if it is not."""

    @property
    def able(self) -> bool:
        """It serves, as far as is known, and was not sent a signal."""
        return self.state is WorkerState.READY and not self.stuck and self.sent is None

    def move(self, what: Trigger, now: float) -> None:
        """Change the state as machine.WORKERS says; AssertionError for what it does not have."""
        state = follow(WORKERS, what, self.state)
        if state is self.state:
            return
        self.state = state
        self.since = now
        self.stalled_since = None
        self.stuck = False
        self.overdue = False

    def end_by(self, instant: float) -> None:
        """Bring the deadline forward to this instant; never put it off."""
        self.deadline = instant if self.deadline is None else min(self.deadline, instant)


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """A numbered place for one serving worker; it outlives its workers."""

    index: SlotIndex
    generation: Generation
    """Started here after a death: the last that was ready here, or the first."""
    workers: list[Worker] = field(default_factory=list)
    served: bool = False
    """A worker has been ready here, so the slot has a listener."""
    state: SlotState = SlotState.LIVE
    failures: int = 0
    """Deaths in a row, for the back-off; a whole `restart_window` of service clears them."""
    restarts: int = 0
    """Deaths since the slot exists."""
    deaths: list[float] = field(default_factory=list)
    """When its workers died, for the restart intensity; within a `restart_window`."""
    retry_at: float = 0.0
    """When the back-off is over."""
    served_since: float = 0.0
    """Since when there has always been a ready worker."""
    unserved_since: float = 0.0
    died: bool = False
    """Its worker has died, and that is not logged yet."""
    loan: LoanState = LoanState.KEPT
    borrower: WorkerId | None = None
    """The worker that serves its listener; None while it is KEPT."""
    close_by: float | None = None
    """When it is closed even if its listener is not emptied; set when its workers are gone."""
    recycle_failures: int = 0
    """Recyclings in a row whose new worker did not start."""
    recycle_at: float = 0.0
    """No recycling before then."""

    def move(self, what: Trigger) -> None:
        """Change the state as machine.SLOTS says; AssertionError for what it does not have."""
        self.state = follow(SLOTS, what, self.state)

    def move_loan(self, what: Trigger, borrower: WorkerId | None = None) -> None:
        """Change the loan as machine.LOANS says; AssertionError for what it does not have."""
        self.loan = follow(LOANS, what, self.loan)
        self.borrower = None if self.loan is LoanState.KEPT else borrower

    def loan_to(self, worker: WorkerId) -> LoanState:
        """Return the state of the loan to this worker: KEPT unless it is the borrower."""
        return self.loan if self.borrower == worker else LoanState.KEPT

    @property
    def retiring(self) -> bool:
        """It is to go."""
        return self.state is not SlotState.LIVE

    @property
    def steered(self) -> bool:
        """No new connection reaches its listener."""
        return self.state in {SlotState.STEERED, SlotState.SWEPT}

    @property
    def ready(self) -> Worker | None:
        """The worker that serves this slot; the older one if two do."""
        return next((worker for worker in self.workers if worker.state is WorkerState.READY), None)

    @property
    def starting(self) -> Worker | None:
        """The worker that is to serve this slot next."""
        return next(
            (worker for worker in self.workers if worker.state is WorkerState.STARTING), None
        )

    @property
    def replaced(self) -> list[Worker]:
        """The workers that serve although a newer one is ready, too."""
        return [worker for worker in self.workers if worker.state is WorkerState.READY][:-1]

    @property
    def handing_over(self) -> bool:
        """A worker that was replaced may still accept."""
        leaving = [worker for worker in self.workers if worker.leaving is DrainMode.HAND_OVER]
        return any(worker.accepts for worker in [*self.replaced, *leaving])

    @property
    def vacant(self) -> bool:
        """No worker serves this slot or starts; at most, some drain."""
        return self.ready is None and self.starting is None

    @property
    def unswept(self) -> bool:
        """Its listener is to be emptied, and no worker of its own does that."""
        sweeping = any(worker.leaving is DrainMode.SWEEP for worker in self.workers)
        return self.state is SlotState.STEERED and not sweeping

    @property
    def free_place(self) -> int | None:
        """The scoreboard row that no worker of this slot writes, or None."""
        taken = {worker.place for worker in self.workers}
        return next((place for place in (0, 1) if place not in taken), None)


def backoff_delay(failures: int, jitter: float) -> float:
    """Return the seconds to wait before the restart after this many deaths in a row.

    The first restart is immediate.  Then the delay doubles from BACKOFF_BASE to BACKOFF_CAP, and
    `jitter` (0 <= jitter < 1) takes off up to a half, so that slots which die together do not
    return together ("equal jitter", M. Brooker, Exponential Backoff And Jitter, 2015).
    """
    if failures <= 1:
        return 0.0
    # The exponent is bounded so that a slot that has failed for weeks cannot overflow a float.
    full = min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** min(failures - 2, 16))
    return full * (1.0 - jitter / 2.0)


@dataclass(slots=True, kw_only=True)
class Launch:
    """Every slot gets its first worker; one that fails ends the daemon."""


@dataclass(slots=True, kw_only=True)
class Roll:
    """Slots get a new worker each, one after the other; the old one drains when that is ready.

    It has succeeded when no old worker accepts any longer.
    """

    command: str
    targets: dict[SlotIndex, Generation]
    """The slots still to do, in order, and the generation to start in each."""
    ticket: Ticket = NO_TICKET
    replacement: WorkerId | None = None
    """The worker that is starting in the first of them."""
    replaced: dict[SlotIndex, Generation] = field(default_factory=dict)
    """The generation before, of the slots done or being done: what an undo restores."""
    failure: str = ""
    undoing: str = ""
    """Why a reload is being undone; empty if this is no undo."""
    reload: Reload | None = None
    """Whose generation and policy are in force once this has succeeded."""


@dataclass(slots=True, kw_only=True)
class Resize:
    """The slots become `want` in number; it has succeeded when new ones serve and old are gone."""

    command: str
    want: int
    ticket: Ticket = NO_TICKET
    begun: bool = False
    added: list[SlotIndex] = field(default_factory=list)
    removing: list[SlotIndex] = field(default_factory=list)
    failure: str = ""


@dataclass(slots=True, kw_only=True)
class Preflight:
    """A new image of the program is started on trial, and executed if that goes well."""

    command: str
    deadline: float
    ticket: Ticket = NO_TICKET
    state: OperationState = OperationState.PREFLIGHT
    failure: str = ""


Operation = Launch | Roll | Resize | Preflight


def state_of(operation: Operation | None) -> OperationState:
    """Return the state of the machine of operations."""
    match operation:
        case None:
            return OperationState.IDLE
        case Launch():
            return OperationState.LAUNCH
        case Roll():
            return OperationState.UNDO if operation.undoing else OperationState.ROLL
        case Resize():
            return OperationState.RESIZE
        case Preflight():
            return operation.state
