"""Names what the supervisor speaks of: slots, workers, generations, tickets and their states.

Instants are seconds of one monotonic clock, durations are seconds.
A worker is named by its `WorkerId`, which is never used twice; a pid is only an attribute of it.
"""

from enum import Enum
from typing import NewType

SlotIndex = NewType("SlotIndex", int)
"""A numbered place from 1 (0: DISPATCHER); it names the worker, its log file and its rows."""
WorkerId = NewType("WorkerId", int)
Generation = NewType("Generation", int)
Pid = NewType("Pid", int)
Ticket = NewType("Ticket", int)
"""Names the command that an answer belongs to; 0 when nobody waits for one."""

NO_TICKET = Ticket(0)
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
