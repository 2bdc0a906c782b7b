"""Identifiers of slots, workers, generations and tickets, and how a worker leaves or is ended.

Instants are seconds of one monotonic clock, durations are seconds.
A `WorkerId` is never used twice; a pid is only an attribute of a worker.
"""

from enum import Enum, auto
from typing import NewType

SlotIndex = NewType("SlotIndex", int)
"""A numbered place from 1 (0: DISPATCHER); it names the worker, its log file and its rows."""
WorkerId = NewType("WorkerId", int)
Generation = NewType("Generation", int)
Pid = NewType("Pid", int)
Ticket = NewType("Ticket", int)
"""The command that an answer belongs to; NO_TICKET when no client waits for one."""

NO_TICKET = Ticket(0)
DISPATCHER = SlotIndex(0)
"""The slot of mode handoff whose worker accepts, and hands the connections to the others."""


def name_of(slot: int) -> str:
    """Return what a slot's worker is called in a message."""
    return "the dispatcher" if slot == DISPATCHER else f"worker {slot}"


class WorkerState(Enum):
    """What is awaited of a worker; the table is `machine.WORKERS`."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


class Signal(Enum):
    """Ends a worker that does not end by itself."""

    ABORT = auto()
    """It hangs: let it write its stack first."""
    KILL = auto()


class DrainMode(Enum):
    """How a worker leaves."""

    HAND_OVER = "hand over"
    """Others accept from its listener: stop accepting at once, finish accepted connections."""
    SWEEP = "sweep"
    """Nothing new reaches its listener, which will be closed: serve all that is queued, too."""
    QUICK = "quick"
    """Drop unfinished connections; write the records of finished ones."""
