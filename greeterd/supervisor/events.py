"""What the supervisor is told: events and commands, each a frozen value."""

from dataclasses import dataclass
from typing import ClassVar

from greeterd.supervisor.ids import NO_TICKET, Generation, Pid, SlotIndex, Ticket, WorkerId
from greeterd.supervisor.policy import Policy

MENDING = Ticket(-1)
"""Of a restart that nobody has asked for but the master: a listener was renewed."""


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
WorkerEvent = Spawned | SpawnFailed | Ready | Exited | ExitRequested | Leaving | Closed
Event = WorkerEvent | Returned | LoanRefused | PreflightEnded | Command | Unreachable | Stop | Tick
