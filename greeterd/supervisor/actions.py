"""What the supervisor asks for: actions, each a frozen value, performed in their order."""

from dataclasses import dataclass, field

from greeterd.supervisor.ids import DrainMode, Generation, Signal, SlotIndex, Ticket, WorkerId


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
