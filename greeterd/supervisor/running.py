"""The commands that take time, as the supervisor carries them out: one at a time, in order.

`Launch` starts the first generation, `Roll` replaces workers slot by slot, `Resize` changes the
number of slots.  Only the supervisor writes these records.
"""

from dataclasses import dataclass, field

from greeterd.supervisor.events import Reload
from greeterd.supervisor.ids import NO_TICKET, Generation, SlotIndex, Ticket, WorkerId


@dataclass(slots=True, kw_only=True)
class Launch:
    """Every slot gets its first worker; one that fails ends the daemon."""


@dataclass(slots=True, kw_only=True)
class Roll:
    """Slots get a new worker each, one after the other; the old one leaves when it is ready.

    It has succeeded when none of the old ones accepts any longer.
    """

    command: str
    targets: dict[SlotIndex, Generation]
    """The slots that are still to be done, in order, and the generation to start in each."""
    ticket: Ticket = NO_TICKET
    replacement: WorkerId | None = None
    replaced: dict[SlotIndex, Generation] = field(default_factory=dict)
    """What served before in the slots that are done, or being done: the way back."""
    failure: str = ""
    undoing: str = ""
    """Why a reload is being undone; empty when none is."""
    reload: Reload | None = None
    """The reload that is in force once this has succeeded."""


@dataclass(slots=True, kw_only=True)
class Resize:
    """The slots become `want` in number; new ones must serve before it has succeeded."""

    command: str
    want: int
    ticket: Ticket = NO_TICKET
    begun: bool = False
    added: list[SlotIndex] = field(default_factory=list)
    removing: list[SlotIndex] = field(default_factory=list)
    failure: str = ""


@dataclass(slots=True, kw_only=True)
class Preflight:
    """A new image of the program is tried, and takes this one's place when it can start."""

    command: str
    deadline: float
    ticket: Ticket = NO_TICKET
    ended: bool = False
    """It has started, or failed, or was killed."""
    failure: str = ""
    replaced: bool = False
    """The new image was asked to take the place; there is no way back but a failure."""


Operation = Launch | Roll | Resize | Preflight
