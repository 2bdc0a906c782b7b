"""Events and commands that the supervisor handles, each a frozen value."""

from dataclasses import dataclass
from typing import ClassVar

from greeterd.supervisor.ids import NO_TICKET, Generation, Pid, SlotIndex, Ticket, WorkerId
from greeterd.supervisor.policy import Policy

MENDING = Ticket(-1)
"""The ticket of a restart by the master itself, after it has renewed a listener."""


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
    rss_bytes: int
    """Its resident memory; 0 when no limit needs it."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker's process has ended and was reaped."""

    worker: WorkerId
    reason: str
    code: int
    """The daemon's own exit code if this ends its first start."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """One ready worker at a tick, read from the scoreboard and its listener."""

    worker: WorkerId
    age: float
    """Seconds since the last turn of its loop."""
    turned: bool
    """Its loop has turned since the tick before."""
    queued: int
    """Connections in its own listener's accept queue; 0 without a listener of its own."""
    greetings: int
    """Since its start."""
    rss_bytes: int
    """Its resident memory; 0 when no limit needs it."""


@dataclass(frozen=True, slots=True)
class ExitRequested:
    """A client has sent `exit` to this worker, and `allow_exit` is set."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Leaving:
    """The worker drains, and not because of the supervisor: it got a signal."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Closed:
    """The worker has closed its listener after a Drain with HAND_OVER."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Returned:
    """The borrower has emptied and closed its duplicate of this slot's listener."""

    slot: SlotIndex
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class LoanRefused:
    """The worker cannot serve this slot's listener, which it was lent."""

    slot: SlotIndex
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Reload:
    """Replace every worker by one of a new generation; its configuration is valid."""

    generation: Generation
    workers: int
    policy: Policy
    ticket: Ticket
    name: str
    """The command in answers and in the log; an upgrade ends with a reload."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Replace this process's program image, once a preflight shows that the new one can start."""

    ticket: Ticket = NO_TICKET
    name: ClassVar[str] = "upgrade"


@dataclass(frozen=True, slots=True)
class PreflightEnded:
    """The new image can start if `reason` is empty."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Restart:
    """Replace the worker of one slot, or of all, by one of the same generation."""

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
    """No listener works any longer, and none can be opened."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End the daemon."""

    quick: bool = False
    ticket: Ticket = NO_TICKET


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; `pulses` has an entry for each ready worker, or none."""

    pulses: tuple[Pulse, ...] = ()


Command = Reload | Restart | Scale | Upgrade
WorkerEvent = Spawned | SpawnFailed | Ready | Exited | ExitRequested | Leaving | Closed
Event = WorkerEvent | Returned | LoanRefused | PreflightEnded | Command | Unreachable | Stop | Tick
