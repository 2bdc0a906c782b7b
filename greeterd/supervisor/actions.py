"""Actions that the supervisor asks for, each a frozen value; the master performs them in order."""

from dataclasses import dataclass, field

from greeterd.supervisor.ids import DrainMode, Generation, Signal, SlotIndex, Ticket, WorkerId


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker; answered by Spawned or SpawnFailed, then by Ready or Exited."""

    worker: WorkerId
    slot: SlotIndex
    place: int
    """The worker's scoreboard row, of the slot's two: 0 or 1."""
    generation: Generation


@dataclass(frozen=True, slots=True)
class Drain:
    """Send the worker the order to drain and end."""

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
    """Keep new connections from this slot's listener, which stays open."""

    slot: SlotIndex


@dataclass(frozen=True, slots=True)
class CloseSlot:
    """Close the slot's listener, and end its steering: the slot is gone."""

    slot: SlotIndex


@dataclass(frozen=True, slots=True)
class GateAll:
    """Keep new connections from every listener; handshakes under way finish."""


@dataclass(frozen=True, slots=True)
class Lend:
    """Lend the slot's listener to this worker of another slot; LoanRefused if that fails."""

    slot: SlotIndex
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Have the borrower empty and close its duplicate; answered by Returned."""

    slot: SlotIndex
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class StartPreflight:
    """Start the new image beside this one, without clients; answered by PreflightEnded."""


@dataclass(frozen=True, slots=True)
class EndPreflight:
    """Kill the preflight's process, if it still runs; not answered."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Execute the new image in this process; PreflightEnded only if that fails."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Started:
    """Every worker of the first generation is ready."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command has ended; `reason` is empty if it has succeeded."""

    ticket: Ticket
    command: str
    reason: str
    generation: Generation = field(compare=False)
    """The one in force at the command's end: the next command may have begun since."""
    workers: int = field(compare=False)
    """The number of live slots, likewise."""


@dataclass(frozen=True, slots=True)
class Exit:
    """End the daemon with this exit code, as no worker is left; `reason` is empty for 0."""

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
