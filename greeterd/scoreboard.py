"""Counts what every worker does, in memory that the master shares with its workers.

One row of 64-bit cells per (slot, place), in one anonymous file mapped before the first fork.
A slot has at most two workers at a time, serving and leaving; each has its own place, so a row has
one writer at a time and needs no lock. Anyone may read any row. A row is never cleared: counters go
on from one worker of the place to the next, and a slot's total is the sum of its two rows.

What a reader may see. A cell is eight aligned bytes, written by one store: it is never torn. A row
is not a snapshot: between two stores of a writer, or while the reader copies, one cell can be newer
than another, by what the worker does in that moment (a burst at most). A worker counts a connection
before its outcome, so `connections` is ahead rather than behind, but a reader that copies
`connections` first may still see the reverse. Only a quiet row has to be `consistent`.

Cells are cumulative, but for the gauges `heartbeat_ns` (time.monotonic_ns()), `open`, `blocked`
and `log_errno`.

In the hot path index a row with this module's constants, and add a turn's sums once a turn:
`row[GREETINGS] += n` takes 0.1 us; an IntEnum for an index made it 0.13, a property 0.18.
"""

import mmap
import os
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final, TypeAlias

from greeterd.errors import StartError

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

PLACES: Final = 2
_CELL_BYTES: Final = 8
_CACHE_LINE_BYTES: Final = 64  # rows share no line, or writers on two CPUs would slow each other
# Room for cells to come: an upgrade finds the rows of the version before, so cells are only ever
# added at the end, and a row never grows.
_ROW_BYTES: Final = 4 * _CACHE_LINE_BYTES
_ROW_CELLS: Final = _ROW_BYTES // _CELL_BYTES

Row: TypeAlias = "memoryview[int]"
"""The live cells of one (slot, place), indexed by the constants above."""


@dataclass(frozen=True, slots=True)
class Counters:
    """A copy of a row, or a sum of rows; the fields are the cells, in their order."""

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
        """The connections that have had their outcome, or are others' to serve."""
        outcomes = self.greetings + self.empty + self.oversize + self.timeout + self.reset
        return outcomes + self.exit + self.handed_over

    @property
    def consistent(self) -> bool:
        """Whether every connection is accounted for: it is open, or it had one outcome."""
        return self.connections == self.finished + self.open

    def __add__(self, other: "Counters") -> "Counters":
        """Sum the cells; of the gauges but `open` the greatest is the sum."""
        cells = [mine + theirs for mine, theirs in zip(_cells(self), _cells(other), strict=True)]
        cells[HEARTBEAT_NS] = max(self.heartbeat_ns, other.heartbeat_ns)
        cells[BLOCKED] = max(self.blocked, other.blocked)
        cells[LOG_ERRNO] = max(self.log_errno, other.log_errno)
        return Counters(*cells)


_cells: Final = attrgetter(*(field.name for field in fields(Counters)))


class Scoreboard:
    """The shared rows of `slots` slots and of the dispatcher's, 0; make it before the first fork.

    Memory is taken only for rows that are used, so it may be made for all slots there can ever be.
    """

    __slots__ = ("_cells", "fd", "slots")

    def __init__(self, slots: int, fd: int | None = None) -> None:
        """Make the rows, or find them in the memory of a predecessor, `fd` of its scoreboard.

        Raises:
            StartError: there can be no such memory (RLIMIT_FSIZE holds for it, too).

        """
        if slots < 1:
            raise ValueError("a scoreboard has at least one slot")
        self.slots: Final = slots
        size = (slots + 1) * PLACES * _ROW_BYTES
        # A descriptor, so that the memory outlives the program that made it: see succession.
        self.fd: Final = os.memfd_create("greeterd-scoreboard") if fd is None else fd
        if fd is None:
            try:
                os.ftruncate(self.fd, size)
            except OSError as error:
                reason = f"{error.strerror} (RLIMIT_FSIZE?)"
                raise StartError(f"scoreboard of {size} bytes: {reason}") from error
        self._cells: Final = memoryview(mmap.mmap(self.fd, size)).cast("Q")

    def row(self, slot: int, place: int) -> Row:
        """Return the live row of (slot from 0, place 0 or 1), for its one writer.

        Raises: IndexError if there is no such row.
        """
        if not (0 <= slot <= self.slots and 0 <= place < PLACES):
            raise IndexError(f"no row for slot {slot}, place {place}")
        start = (slot * PLACES + place) * _ROW_CELLS
        return self._cells[start : start + CELLS]

    def read(self, slot: int, place: int) -> Counters:
        """Return a copy of one row. Raises: IndexError as `row`."""
        return Counters(*self.row(slot, place))

    def total(self, slot: int) -> Counters:
        """Return the sum of the slot's rows. Raises: IndexError as `row`."""
        return self.read(slot, 0) + self.read(slot, 1)

    def settle(self, slot: int, place: int) -> int:
        """Close the books of a worker that is gone; return how many connections it left open.

        The master calls it once the worker has been reaped, and before the place has a new one: the
        dead write nothing. The kernel has reset those connections, so they count as `reset`; that
        also mends a row whose worker was killed between two stores. Then the gauges are cleared.

        Raises: IndexError as `row`.
        """
        row = self.row(slot, place)
        unfinished = max(0, row[CONNECTIONS] - self.read(slot, place).finished)
        row[RESET] += unfinished
        row[OPEN] = row[BLOCKED] = row[LOG_ERRNO] = row[HEARTBEAT_NS] = 0
        return unfinished
