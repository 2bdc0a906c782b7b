"""The cells of a worker's row: what each counts, a copy of them by name, and which values can be.

A row is CELLS unsigned 64-bit integers, indexed by the constants of this module.  Cells count
upwards from zero, except the gauges: `heartbeat_ns` (time.monotonic_ns()), `open`, `blocked` and
`log_errno`.  An upgraded master reads the rows of older workers: cells are only added at the end.

In the hot path index a row with these constants, and add a turn's sums once a turn:
`row[GREETINGS] += n` takes 0.1 us; an IntEnum for an index made it 0.13, a property 0.18.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final, TypeAlias

CONNECTIONS: Final = 0
GREETINGS: Final = 1
EMPTY: Final = 2
OVERSIZE: Final = 3
TIMEOUT: Final = 4
RESET: Final = 5
EXIT: Final = 6
REPLIES: Final = 7
ACCEPT_ERRORS: Final = 8
ACCEPTS_PAUSED: Final = 9
LOG_ERRORS: Final = 10
WAKEUPS: Final = 11
WASTED_WAKEUPS: Final = 12
TURNS: Final = 13
HEARTBEAT_NS: Final = 14
OPEN: Final = 15
RESCUED: Final = 16
BLOCKED: Final = 17
HANDED_OVER: Final = 18
LOG_ERRNO: Final = 19
CELLS: Final = 20

# Values of the cell `blocked`: why a worker takes no connections.
NOT_BLOCKED: Final = 0
BLOCKED_BY_LOG: Final = 1
BLOCKED_BY_DESCRIPTORS: Final = 2
BLOCKED_BY_LIMIT: Final = 3
BLOCKED_BY_WORKERS: Final = 4

CELL_BYTES: Final = 8
WRAP: Final = 2**64 - 1
"""Mask for sums of cells: they wrap, so no value in a row can make a sum raise."""

LEAP: Final = 2**32
"""What no counter can grow by, and no gauge can be, from one look to the next.  Looks are a second
apart; even a master that did not look for an hour would have to miss a million events a second."""
AHEAD_NS: Final = 10**9
"""How far a heartbeat may be ahead of the reader's clock: the worker rounds it."""
GAUGES: Final = frozenset({OPEN, BLOCKED, LOG_ERRNO})
"""Cells that go up and down, beside the heartbeat."""
_MAX_ERRNO: Final = 4096  # linux/err.h

Row: TypeAlias = "memoryview[int]"
"""The live cells of one worker, indexed by the constants above."""


@dataclass(frozen=True, slots=True)
class Counters:
    """A copy of a row, or a sum of rows; one field for each cell, in the same order."""

    connections: int = 0
    greetings: int = 0
    empty: int = 0
    oversize: int = 0
    timeout: int = 0
    reset: int = 0
    exit: int = 0
    replies: int = 0
    accept_errors: int = 0
    accepts_paused: int = 0
    log_errors: int = 0
    wakeups: int = 0
    wasted_wakeups: int = 0
    turns: int = 0
    heartbeat_ns: int = 0
    open: int = 0
    rescued: int = 0
    blocked: int = 0
    handed_over: int = 0
    log_errno: int = 0

    @property
    def finished(self) -> int:
        """The connections that had an outcome, or were handed over to another worker."""
        outcomes = self.greetings + self.empty + self.oversize + self.timeout + self.reset
        return outcomes + self.exit + self.handed_over

    def __add__(self, other: "Counters") -> "Counters":
        """Add the counters and `open`; of the other gauges take the greater value."""
        pairs = zip(cells_of(self), cells_of(other), strict=True)
        cells = [(mine + theirs) & WRAP for mine, theirs in pairs]
        cells[HEARTBEAT_NS] = max(self.heartbeat_ns, other.heartbeat_ns)
        cells[BLOCKED] = max(self.blocked, other.blocked)
        cells[LOG_ERRNO] = max(self.log_errno, other.log_errno)
        return Counters(*cells)


NAMES: Final = tuple(field.name for field in fields(Counters))
cells_of: Final = attrgetter(*NAMES)


def implausible(before: Sequence[int], after: Sequence[int], now_ns: int) -> str:
    """Return why a row with the cells `before` cannot have these `after`; empty when it can."""
    for cell, (was, is_now) in enumerate(zip(before, after, strict=True)):
        if cell in GAUGES:
            if is_now >= (_MAX_ERRNO if cell == LOG_ERRNO else LEAP):
                return f"{NAMES[cell]} is {is_now}"
        elif is_now < was:
            return f"{NAMES[cell]} went back from {was} to {is_now}"
        elif cell == HEARTBEAT_NS:
            if is_now > now_ns + AHEAD_NS:
                return f"heartbeat_ns is {(is_now - now_ns) / 1e9:.1f} s ahead"
        elif is_now - was >= LEAP:
            return f"{NAMES[cell]} leapt from {was} to {is_now}"
    return ""


def spare_row() -> Row:
    """Return a row in private memory, for a worker whose counters no process reads."""
    return memoryview(bytearray(CELLS * CELL_BYTES)).cast("Q")
