"""Counts what every worker does: the worker in a row of its own, the master in the books.

What a worker writes is a claim.  A row is one page of memory in a file of its own, all zero when
the worker is forked.  The worker maps that page writable and has no descriptor of it; nobody else
can write it, and the worker can write nothing else that the master relies on.  (Pages of one file
would not do: mremap(2) and remap_file_pages(2) lead from a mapped page to every other of its file,
without a descriptor.)  The file is sealed, so that no reader meets a page that is gone.

The master enters in the books what a row says more than at the last look, if that can be: counters
only grow, by less than LEAP a look, and no heartbeat is in the future.  A row that says otherwise
is not looked at again: the books keep what was believed before, and the worker is to be ended.
Sums wrap at 2**64, so nothing that stands anywhere can raise.

The books are one row of 64-bit cells per (slot, place), in a file that only the master has.  A slot
has at most two workers at a time, serving and leaving; each has its own place.  Books are never
cleared: a slot's total is the sum of its two rows, over all the workers that it has had.

What a reader may see. A cell is eight aligned bytes, written by one store and read by one load: it
is never torn, which read(2) would not promise. A row is not a snapshot: between two stores of a
writer, or while the reader copies, one cell can be newer than another, by what the worker does in
that moment (a burst at most). A worker counts a connection before its outcome, so `connections` is
ahead rather than behind, but a reader that copies `connections` first may still see the reverse.
Only a quiet row has to be `consistent`.

Cells are cumulative, but for the gauges `heartbeat_ns` (time.monotonic_ns()), `open`, `blocked`
and `log_errno`.

In the hot path index a row with this module's constants, and add a turn's sums once a turn:
`row[GREETINGS] += n` takes 0.1 us; an IntEnum for an index made it 0.13, a property 0.18.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final, TypeAlias

from greeterd.errors import ResourceError
from greeterd.system.files import open_memory

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
# Of the books.  Room for cells to come: an upgrade finds the books of the version before, so cells
# are only ever added at the end, and a row never grows.
_ROW_BYTES: Final = 256
_ROW_CELLS: Final = _ROW_BYTES // _CELL_BYTES

LEAP: Final = 2**32
"""What no counter can grow by, and no gauge can be, from one look to the next.  Looks are a second
apart, and even a master that was deaf for an hour is no excuse for a million a second."""
AHEAD_NS: Final = 10**9
"""A heartbeat that is no further ahead is taken for one of now: the worker's is rounded."""
_GAUGES: Final = frozenset({OPEN, BLOCKED, LOG_ERRNO})
"""What goes up and down, beside the heartbeat."""
_MOST_ERRNO: Final = 4096  # linux/err.h, MAX_ERRNO
_WRAP: Final = 2**64 - 1
_FAR_NS: Final = 3600 * 10**9
_F_SEAL_FUTURE_WRITE: Final = 0x10  # linux/fcntl.h, since Linux 5.1; not in CPython's fcntl

Row: TypeAlias = "memoryview[int]"
"""The live cells of one worker, indexed by the constants above."""


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
        pairs = zip(_cells(self), _cells(other), strict=True)
        cells = [(mine + theirs) & _WRAP for mine, theirs in pairs]
        cells[HEARTBEAT_NS] = max(self.heartbeat_ns, other.heartbeat_ns)
        cells[BLOCKED] = max(self.blocked, other.blocked)
        cells[LOG_ERRNO] = max(self.log_errno, other.log_errno)
        return Counters(*cells)


NAMES: Final = tuple(field.name for field in fields(Counters))
_cells: Final = attrgetter(*NAMES)


def doubt(before: Sequence[int], says: Sequence[int], now_ns: int) -> str:
    """Return why a row that said `before` cannot say this at `now_ns`; empty when it can."""
    for cell, (was, is_now) in enumerate(zip(before, says, strict=True)):
        if cell in _GAUGES:
            if is_now >= (_MOST_ERRNO if cell == LOG_ERRNO else LEAP):
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
    """Return a row that nobody looks at."""
    return memoryview(bytearray(CELLS * _CELL_BYTES)).cast("Q")


def adopt_view(fd: int) -> "Row | None":
    """Map a sibling's row for reading, and close the descriptor; None where that is refused."""
    try:
        page = mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
    return memoryview(page).cast("Q")[:CELLS]


class Claim:
    """What one living worker says, and how much of that is believed."""

    __slots__ = ("_page", "believed", "cells", "doubt", "fd", "greetings_before", "offset", "own")

    def __init__(
        self,
        fd: int,
        believed: Sequence[int] = (),
        *,
        offset: int = 0,
        own: bool = True,
        greetings_before: int = 0,
    ) -> None:
        """Map the cells at `offset` of the file for reading, and for this process only.

        Raises: OSError, ValueError if they cannot be mapped.
        """
        self.fd: Final = fd
        self.offset: Final = offset
        self.own: Final = own
        """The file holds this row only.  That of an older build holds all rows, and every worker of
        that build can write it."""
        start = offset % mmap.ALLOCATIONGRANULARITY
        self._page: Final = mmap.mmap(
            fd, start + CELLS * _CELL_BYTES, prot=mmap.PROT_READ, offset=offset - start
        )
        self.cells: Final = memoryview(self._page).cast("Q")[start // _CELL_BYTES :]
        self.share(on=False)
        # A predecessor may have known fewer cells, or more.
        self.believed = [*believed, *[0] * CELLS][:CELLS]
        """As of the latest look."""
        self.greetings_before: Final = greetings_before
        self.doubt = ""
        """Why the row is not believed any more."""

    def share(self, *, on: bool) -> None:
        """Let the children that are forked from now on have this mapping, or not."""
        self._page.madvise(mmap.MADV_DOFORK if on else mmap.MADV_DONTFORK)

    def close(self) -> None:
        """Unmap the cells; the descriptor is left alone."""
        self.cells.release()
        self._page.close()


class Scoreboard:
    """The books of `slots` slots and of the dispatcher's, 0, and the rows of the living workers.

    Memory is taken only for rows that are used, so it may be made for all slots there can ever be.
    """

    __slots__ = ("_books", "_claims", "fd", "slots")

    def __init__(self, slots: int, fd: int | None = None) -> None:
        """Make the books, or find them in the memory of a predecessor, `fd` of its scoreboard.

        Raises:
            ResourceError: there can be no such memory (RLIMIT_FSIZE holds for it, too).

        """
        if slots < 1:
            raise ValueError("a scoreboard has at least one slot")
        self.slots: Final = slots
        size = (slots + 1) * PLACES * _ROW_BYTES
        # A descriptor, so that the memory outlives the program that made it: see succession.
        self.fd: Final = open_memory("greeterd-scoreboard") if fd is None else fd
        if fd is None:
            try:
                os.ftruncate(self.fd, size)
            except OSError as error:
                reason = f"{error.strerror} (RLIMIT_FSIZE?)"
                raise ResourceError(f"scoreboard of {size} bytes: {reason}") from error
        books = mmap.mmap(self.fd, size)
        books.madvise(mmap.MADV_DONTFORK)
        self._books: Final = memoryview(books).cast("Q")
        self._claims: Final[dict[tuple[int, int], Claim]] = {}
        """By slot and place; of a slot's two the newer comes last."""

    @classmethod
    def copy(cls, slots: int, fd: int, living: Collection[tuple[int, int]]) -> "Scoreboard":
        """Go on from the memory of an older build, all of whose workers can write all of it.

        What it says now is copied.  It is looked at only for the rows of its workers that live, and
        closed with the last of them.

        Raises: as `__init__`; OSError, ValueError if it is no such memory.
        """
        board = cls(slots)
        with (
            mmap.mmap(fd, len(board._books) * _CELL_BYTES, prot=mmap.PROT_READ) as old,
            memoryview(old) as view,
            view.cast("Q") as cells,
        ):
            board._books[:] = cells
        for slot, place in living:
            said = board._entry(slot, place).tolist()
            offset = (slot * PLACES + place) * _ROW_BYTES
            before = said[GREETINGS]
            claim = Claim(fd, said, offset=offset, own=False, greetings_before=before)
            board.adopt(slot, place, claim)
        if not living:
            os.close(fd)
        return board

    def adopt(self, slot: int, place: int, claim: Claim) -> None:
        """Go on with the row of a worker that a predecessor has forked."""
        self._claims[slot, place] = claim

    @contextmanager
    def open_row(self, slot: int, place: int) -> Iterator[Row]:
        """Give the worker that is forked meanwhile its row.

        In this process the row is closed afterwards, and so are its descriptors in the child.

        Raises:
            OSError: there can be no such memory.

        """
        self.settle(slot, place)  # of a worker that a predecessor has forked and not reaped
        fd = open_memory("greeterd-row", os.MFD_ALLOW_SEALING)
        try:
            # Not ftruncate(2): a page that is not there may be refused when it is touched.
            os.posix_fallocate(fd, 0, mmap.PAGESIZE)
            with (
                mmap.mmap(fd, mmap.PAGESIZE) as page,
                memoryview(page) as view,
                view.cast("Q") as cells,
                cells[:CELLS] as row,
            ):
                _seal(fd)
                claim = Claim(fd)  # now, since a worker that is forked cannot be refused any more
                try:
                    yield row
                except BaseException:
                    claim.close()
                    raise
            self._claims[slot, place] = claim
        except BaseException:
            os.close(fd)
            raise

    @contextmanager
    def views(self, slots: Collection[int]) -> Iterator[dict[int, Row]]:
        """Give the dispatcher that is forked meanwhile the rows of the slots' newest workers.

        It can read them only.  Those in the memory of an older build are left out.
        """
        newest = {slot: claim for (slot, _), claim in self._claims.items() if slot in slots}
        shared = {slot: claim for slot, claim in newest.items() if claim.own}
        for claim in shared.values():
            claim.share(on=True)
        try:
            yield {slot: claim.cells for slot, claim in shared.items()}
        finally:
            for claim in shared.values():
                claim.share(on=False)

    def row_fd(self, slot: int, place: int) -> int | None:
        """Return the file of a living worker's row, None if it is in the memory of an older build.

        Whoever is given it can read it only.
        """
        claim = self._claims.get((slot, place))
        return claim.fd if claim is not None and claim.own else None

    def look(self, slot: int, place: int) -> str:
        """Enter in the books what a worker says; return why it is not believed, empty if it is."""
        claim = self._claims.get((slot, place))
        if claim is None or claim.doubt:
            return "" if claim is None else claim.doubt
        says = claim.cells.tolist()
        claim.doubt = doubt(claim.believed, says, time.monotonic_ns())
        if not claim.doubt:
            entry = self._entry(slot, place)
            for cell, (was, is_now) in enumerate(zip(claim.believed, says, strict=True)):
                entry[cell] = (entry[cell] + is_now - was) & _WRAP
            for gauge in (HEARTBEAT_NS, *_GAUGES):
                entry[gauge] = says[gauge]
            claim.believed = says
        return claim.doubt

    def worker(self, slot: int, place: int) -> Counters:
        """Return what the worker itself has counted, as of the latest look; zeros without one."""
        claim = self._claims.get((slot, place))
        if claim is None:
            return Counters()
        own = claim.believed.copy()
        own[GREETINGS] -= claim.greetings_before
        return Counters(*own)

    def read(self, slot: int, place: int) -> Counters:
        """Return what the books say of one (slot, place), after a look.

        Raises: IndexError if there is no such row.
        """
        self.look(slot, place)
        return Counters(*self._entry(slot, place))

    def total(self, slot: int) -> Counters:
        """Return the sum of the slot's rows. Raises: IndexError as `read`."""
        return self.read(slot, 0) + self.read(slot, 1)

    def settle(self, slot: int, place: int) -> int:
        """Close the books of a worker that is gone; return how many connections it left open.

        The master calls it once the worker has been reaped, and before the place has a new one: the
        dead write nothing. The kernel has reset those connections, so they count as `reset`; that
        also mends a row whose worker was killed between two stores. Then the gauges are cleared.

        Raises: IndexError as `read`.
        """
        self.look(slot, place)
        entry = self._entry(slot, place)
        claim = self._claims.pop((slot, place), None)
        unfinished = 0
        if claim is not None:
            said = Counters(*claim.believed)
            unfinished = said.connections - said.finished
            unfinished = unfinished if 0 <= unfinished < LEAP else 0
            entry[RESET] = (entry[RESET] + unfinished) & _WRAP
            claim.close()
            if all(other.fd != claim.fd for other in self._claims.values()):
                os.close(claim.fd)
        entry[OPEN] = entry[BLOCKED] = entry[LOG_ERRNO] = entry[HEARTBEAT_NS] = 0
        return unfinished

    def hand_on(self) -> Mapping[tuple[int, int], Claim]:
        """Return the rows of the living workers for a successor, with books that are up to date.

        An older build looks at the books only, in which its predecessor's workers are silent from
        now on: their heartbeats there are of the future, so that it does not take them for hung
        before it has replaced them.
        """
        for slot, place in self._claims:
            self.look(slot, place)
            self._entry(slot, place)[HEARTBEAT_NS] = time.monotonic_ns() + _FAR_NS
        return self._claims

    def _entry(self, slot: int, place: int) -> Row:
        if not (0 <= slot <= self.slots and 0 <= place < PLACES):
            raise IndexError(f"no row for slot {slot}, place {place}")
        start = (slot * PLACES + place) * _ROW_CELLS
        return self._books[start : start + CELLS]


def _seal(fd: int) -> None:
    """Let the file keep its size, and let nobody map it writable who has not done so by now."""
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    with suppress(OSError):  # EINVAL before Linux 5.1
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
        return
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
