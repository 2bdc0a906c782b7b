"""What the supervisor is told (events) and what it asks for (actions).

Every value is frozen.  Instants are seconds of one monotonic clock, durations are seconds.
A worker is named by its `WorkerId`, which is never used twice; a pid is only an attribute of it.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, NewType

SlotIndex = NewType("SlotIndex", int)
"""A numbered place from 1 (0: DISPATCHER); it names the worker, its log file and its rows."""
WorkerId = NewType("WorkerId", int)
Generation = NewType("Generation", int)
Pid = NewType("Pid", int)
Ticket = NewType("Ticket", int)
"""Names the command that an answer belongs to; 0 when nobody waits for one."""

NO_TICKET = Ticket(0)
MENDING = Ticket(-1)
"""Of a restart that nobody has asked for but the master: a listener was renewed."""

DISPATCHER = SlotIndex(0)
"""The slot of mode handoff whose worker accepts for all, and hands on what it has accepted."""


def name_of(slot: int) -> str:
    """Return what a slot's worker is called in a sentence."""
    return "the dispatcher" if slot == DISPATCHER else f"worker {slot}"


class WorkerState(Enum):
    """What is awaited of a worker; the transition table is `workers.TRANSITIONS`."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


class Signal(Enum):
    """How a worker is ended that does not end by itself."""

    ABORT = "abort"
    """It is hung: let it write its stack first."""
    KILL = "kill"


class DrainMode(Enum):
    """How a worker leaves."""

    HAND_OVER = "hand over"
    """Others accept from its listener: stop accepting at once, finish what was accepted."""
    SWEEP = "sweep"
    """Its listener closes afterwards, and nothing new reaches it: take all that is queued."""
    QUICK = "quick"
    """Drop unfinished connections; write what was greeted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that decisions depend on; durations in seconds."""

    own_listeners: bool = False
    """Each slot has a listener of its own (reuseport), or a socketpair through which it is handed
    connections (handoff); it outlives the slot's workers in escrow."""
    dispatcher: bool = False
    """The slot DISPATCHER accepts, and hands on to the others."""
    most_slots: int | None = None
    """As many sockets were passed for them; None: as many as there can be."""
    most_by_files: int | None = None
    """The descriptors that the master may have are enough for so many; None: no limit is known."""
    rescue: bool = True
    graceful_timeout: float = 30.0
    start_timeout: float = 30.0
    worker_timeout: float = 30.0
    max_restarts: int = 8
    """So often the worker of one slot may die within `restart_window`."""
    restart_window: float = 60.0
    shutdown_delay: float = 0.0
    """For how long the daemon goes on serving when it was told to stop."""
    max_greetings: int = 0
    """After so many a worker is replaced; 0 for never, as in the next two."""
    max_age: float = 0.0
    max_rss_bytes: int = 0


# Events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawned:
    """The fork succeeded."""

    worker: WorkerId
    pid: Pid


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The fork failed; no process exists."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker accepts connections."""

    worker: WorkerId
    rss_bytes: int = 0
    """Its resident memory; 0 when nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker's process has ended and was reaped."""

    worker: WorkerId
    reason: str
    code: int = 70
    """The exit code that the daemon takes over if this ends its start."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the scoreboard and the listener tell of one ready worker at a tick."""

    worker: WorkerId
    age: float
    """Seconds since the worker last turned its loop."""
    turned: bool
    """It has turned its loop since the tick before."""
    queued: int
    """Connections that wait in its own listener's accept queue (reuseport only)."""
    greetings: int = 0
    """Since its start."""
    rss_bytes: int = 0
    """Its resident memory; 0 when nobody wants to know."""


@dataclass(frozen=True, slots=True)
class ExitRequested:
    """A client sent `exit` to this worker, and that is allowed."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Leaving:
    """The worker leaves because somebody has told it to who is not the supervisor."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Closed:
    """The worker was told to hand over, and accepts no more."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Returned:
    """The borrower has emptied and closed its duplicate of this slot's listener."""

    slot: SlotIndex
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class LoanRefused:
    """The worker cannot serve this slot's listener, which was to be lent to it."""

    slot: SlotIndex
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Reload:
    """Replace every worker by one of a new generation; the configuration is already validated."""

    generation: Generation
    workers: int
    policy: Policy
    ticket: Ticket = NO_TICKET
    name: str = "reload"
    """What it is called in answers: the last step of an upgrade is a reload, too."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Put a new image of the program in this one's place, once it has proved that it can start."""

    ticket: Ticket = NO_TICKET
    name: ClassVar[str] = "upgrade"


@dataclass(frozen=True, slots=True)
class PreflightEnded:
    """The new image has started, or `reason` tells why not."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Restart:
    """Replace the worker of one slot, or of all, by one of the slot's own generation."""

    slot: SlotIndex | None
    ticket: Ticket = NO_TICKET
    name: ClassVar[str] = "restart"


@dataclass(frozen=True, slots=True)
class Scale:
    """Have this many slots, or this many more or fewer."""

    workers: int | None = None
    change: int = 0
    ticket: Ticket = NO_TICKET
    name: ClassVar[str] = "scale"


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No listener accepts any longer, and none can be had."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End the daemon."""

    quick: bool = False
    ticket: Ticket = NO_TICKET


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; `pulses` has one entry for each ready worker, or is empty."""

    pulses: tuple[Pulse, ...] = ()


Command = Reload | Restart | Scale | Upgrade
Event = (
    Spawned
    | SpawnFailed
    | Ready
    | Exited
    | ExitRequested
    | Leaving
    | Closed
    | Returned
    | LoanRefused
    | PreflightEnded
    | Command
    | Unreachable
    | Stop
    | Tick
)

# Actions ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker; answered by Spawned or SpawnFailed, then by Ready or Exited."""

    worker: WorkerId
    slot: SlotIndex
    place: int
    """Which of the slot's two scoreboard rows is the worker's: 0 or 1."""
    generation: Generation


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell the worker to leave."""

    worker: WorkerId
    how: DrainMode


@dataclass(frozen=True, slots=True)
class Kill:
    """Send the worker a signal."""

    worker: WorkerId
    signal: Signal
    reason: str


@dataclass(frozen=True, slots=True)
class SteerAway:
    """Let no new connection reach this slot's listener; it stays open."""

    slot: SlotIndex


@dataclass(frozen=True, slots=True)
class CloseSlot:
    """The slot is no more: close its listener, which is empty, and end its steering."""

    slot: SlotIndex


@dataclass(frozen=True, slots=True)
class GateAll:
    """Let no new connection reach any listener; those under way finish."""


@dataclass(frozen=True, slots=True)
class Lend:
    """Lend the slot's listener to this worker of another slot; LoanRefused if it cannot have it."""

    slot: SlotIndex
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Let the borrower empty and close its duplicate; answered by Returned."""

    slot: SlotIndex
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class StartPreflight:
    """Start the new image beside this one, without clients; answered by TrialEnded."""


@dataclass(frozen=True, slots=True)
class EndPreflight:
    """Kill the new image that is being tried, if there is one."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Become the new image; TrialEnded if that fails, and nothing after it if not."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Started:
    """Every worker of the first generation is ready."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command has ended; `reason` is empty when it did what was asked."""

    ticket: Ticket
    command: str
    reason: str = ""
    generation: Generation = field(default=Generation(0), compare=False)
    """In force, as of the command's end: the next may have begun by now."""
    workers: int = field(default=0, compare=False)
    """How many there are to be, likewise."""


@dataclass(frozen=True, slots=True)
class Exit:
    """No worker is left: end the daemon with this exit code; `reason` is empty for 0."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Say:
    """Write a record to the daemon log."""

    level: str
    event: str
    fields: tuple[tuple[str, object], ...] = ()


Action = (
    Spawn
    | Drain
    | Kill
    | SteerAway
    | CloseSlot
    | GateAll
    | Lend
    | TakeBack
    | StartPreflight
    | EndPreflight
    | Replace
    | Started
    | Finished
    | Exit
    | Say
)
