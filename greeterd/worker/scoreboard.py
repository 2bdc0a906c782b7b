"""The master's totals of what all workers, past and present, have counted.

What a worker writes in its row is a claim.  At each look the master adds to the totals what a row
has grown by, if that can be true: counters only grow, by less than LEAP a look, and no heartbeat is
in the future.  A row that says otherwise is never read again: the totals keep what was believed
before, and the supervisor ends the worker.  Sums wrap at 2**64, so no value of a row can raise.

The totals are one row of 64-bit cells per (slot, place), in a file that only the master has.  A
slot has at most two workers at a time, serving and leaving; each has its own place.  Totals are
never cleared: a slot's is the sum of its two places, over all the workers that it has had.
"""

import mmap
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from greeterd.errors import ResourceError
from greeterd.system.files import open_memory
from greeterd.worker.counters import (
    BLOCKED,
    CELL_BYTES,
    CELLS,
    GAUGES,
    GREETINGS,
    HEARTBEAT_NS,
    LEAP,
    LOG_ERRNO,
    OPEN,
    RESET,
    WRAP,
    Counters,
    Row,
    implausible,
)
from greeterd.worker.row import Claim, open_row

PLACES: Final = 2
# Of the totals, with room for cells to come: an upgrade finds those of the version before, so
# cells are only ever added at the end, and a row never grows.
_ROW_BYTES: Final = 256
_ROW_CELLS: Final = _ROW_BYTES // CELL_BYTES
_FAR_NS: Final = 3600 * 10**9


class Scoreboard:
    """The totals of `slots` slots and of slot 0, the dispatcher's, and the living workers' rows.

    The kernel gives memory only to totals in use: make it for all slots that there can ever be.
    """

    __slots__ = ("_claims", "_totals", "fd", "slots")

    def __init__(self, slots: int, fd: int | None = None) -> None:
        """Make the totals, or adopt those of a predecessor: `fd` of its scoreboard.

        Raises:
            ResourceError: there is no memory for it (RLIMIT_FSIZE applies, too).

        """
        if slots < 1:
            raise ValueError("a scoreboard has at least one slot")
        self.slots: Final = slots
        size = (slots + 1) * PLACES * _ROW_BYTES
        # A descriptor, so that the memory survives the exec of an upgrade: see master.upgrade.
        self.fd: Final = open_memory("greeterd-scoreboard") if fd is None else fd
        if fd is None:
            try:
                os.ftruncate(self.fd, size)
            except OSError as error:
                reason = f"{error.strerror} (RLIMIT_FSIZE?)"
                raise ResourceError(f"scoreboard of {size} bytes: {reason}") from error
        totals = mmap.mmap(self.fd, size)
        totals.madvise(mmap.MADV_DONTFORK)
        self._totals: Final = memoryview(totals).cast("Q")
        self._claims: Final[dict[tuple[int, int], Claim]] = {}
        """By slot and place; of a slot's two workers the newer comes last."""

    @classmethod
    def copy(cls, slots: int, fd: int, living: Collection[tuple[int, int]]) -> "Scoreboard":
        """Start from the memory of an older build, all of whose workers can write all of it.

        Its cells become the totals.  Of the memory itself only the rows of living workers are read
        from then on; it is closed with the last of them.

        Raises: as `__init__`; OSError, ValueError if the memory is no scoreboard.
        """
        board = cls(slots)
        with (
            mmap.mmap(fd, len(board._totals) * CELL_BYTES, prot=mmap.PROT_READ) as old,
            memoryview(old) as view,
            view.cast("Q") as cells,
        ):
            board._totals[:] = cells
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
        """Read the row of a worker that a predecessor has forked."""
        self._claims[slot, place] = claim

    @contextmanager
    def open_row(self, slot: int, place: int) -> Iterator[Row]:
        """Yield the row of the worker that is forked meanwhile; as `row.open_row`.

        Raises:
            OSError: there is no memory for it.

        """
        self.settle(slot, place)  # the last worker here may be a predecessor's, never reaped by us
        with open_row() as (row, claim):
            yield row
        self._claims[slot, place] = claim

    @contextmanager
    def views(self, slots: Collection[int]) -> Iterator[dict[int, Row]]:
        """Yield the rows of the slots' newest workers, for the dispatcher that is forked meanwhile.

        It can only read them.  Rows in the memory of an older build are left out.
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
        """Return the file of a living worker's row, or None if an older build's memory holds it.

        A process that receives the descriptor can only read it.
        """
        claim = self._claims.get((slot, place))
        return claim.fd if claim is not None and claim.own else None

    def look(self, slot: int, place: int) -> str:
        """Add to the totals what a row has grown by; return why it is not believed, or nothing."""
        claim = self._claims.get((slot, place))
        if claim is None or claim.doubt:
            return "" if claim is None else claim.doubt
        found = claim.cells.tolist()
        claim.doubt = implausible(claim.believed, found, time.monotonic_ns())
        if not claim.doubt:
            entry = self._entry(slot, place)
            for cell, (was, is_now) in enumerate(zip(claim.believed, found, strict=True)):
                entry[cell] = (entry[cell] + is_now - was) & WRAP
            for gauge in (HEARTBEAT_NS, *GAUGES):
                entry[gauge] = found[gauge]
            claim.believed = found
        return claim.doubt

    def worker(self, slot: int, place: int) -> Counters:
        """Return what this worker alone has counted, at the latest look; zeros without a worker."""
        claim = self._claims.get((slot, place))
        if claim is None:
            return Counters()
        own = claim.believed.copy()
        own[GREETINGS] -= claim.greetings_before
        return Counters(*own)

    def read(self, slot: int, place: int) -> Counters:
        """Return the totals of one (slot, place), after a look.

        Raises: IndexError if there is no such row.
        """
        self.look(slot, place)
        return Counters(*self._entry(slot, place))

    def total(self, slot: int) -> Counters:
        """Return the sum of the slot's rows. Raises: IndexError as `read`."""
        return self.read(slot, 0) + self.read(slot, 1)

    def settle(self, slot: int, place: int) -> int:
        """Account for a worker that has exited; return how many connections it left open.

        To be called once the worker is reaped, before its place has a new one.  The kernel has
        reset those connections, so they count as `reset`; that also corrects a row whose worker was
        killed between two stores.  The gauges are cleared.

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
            entry[RESET] = (entry[RESET] + unfinished) & WRAP
            claim.close()
            if all(other.fd != claim.fd for other in self._claims.values()):
                os.close(claim.fd)
        entry[OPEN] = entry[BLOCKED] = entry[LOG_ERRNO] = entry[HEARTBEAT_NS] = 0
        return unfinished

    def hand_on(self) -> Mapping[tuple[int, int], Claim]:
        """Bring the totals up to date, and return the rows of the living workers for a successor.

        An older build reads the totals only, where the heartbeats of our workers do not move any
        more.  They are set in the future, so that it does not take these workers for hung before it
        has replaced them.
        """
        for slot, place in self._claims:
            self.look(slot, place)
            self._entry(slot, place)[HEARTBEAT_NS] = time.monotonic_ns() + _FAR_NS
        return self._claims

    def _entry(self, slot: int, place: int) -> Row:
        if not (0 <= slot <= self.slots and 0 <= place < PLACES):
            raise IndexError(f"no row for slot {slot}, place {place}")
        start = (slot * PLACES + place) * _ROW_CELLS
        return self._totals[start : start + CELLS]
