"""The memory of one worker's row: made by the master, written by the worker, read with suspicion.

A row is one page in a file of its own, all zero when the worker is forked.  The worker maps that
page writable and has no descriptor of it; no other process can write it, and the worker can write
nothing else that the master relies on.  (Pages of one file would not do: mremap(2) and
remap_file_pages(2) lead from a mapped page to every other of its file, without a descriptor.)  The
file is sealed, so that a reader never meets a page that is gone.

What a reader may see. A cell is eight aligned bytes, written by one store and read by one load: it
is never torn, which read(2) would not promise. A row is not a snapshot: between two stores of a
writer, or while the reader copies, one cell can be newer than another, by what the worker does in
that moment (a burst at most). A worker counts a connection before its outcome, so `connections` is
ahead rather than behind, but a reader that copies `connections` first may still see the reverse.
Only in a quiet row `connections` equals `finished` + `open`.
"""

import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from greeterd.system.files import open_memory
from greeterd.worker.counters import CELL_BYTES, CELLS, Row

_F_SEAL_FUTURE_WRITE: Final = 0x10  # linux/fcntl.h, since Linux 5.1; not in CPython's fcntl


class Claim:
    """The master's read-only view of one living worker's row, and what it believes of it."""

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
        """The file holds this row only.  An older build's file holds all rows, and every worker of
        that build can write all of it."""
        start = offset % mmap.ALLOCATIONGRANULARITY
        self._page: Final = mmap.mmap(
            fd, start + CELLS * CELL_BYTES, prot=mmap.PROT_READ, offset=offset - start
        )
        self.cells: Final = memoryview(self._page).cast("Q")[start // CELL_BYTES :]
        self.share(on=False)
        # A predecessor may have known fewer cells, or more.
        self.believed = [*believed, *[0] * CELLS][:CELLS]
        """The cells at the latest look that was plausible."""
        self.greetings_before: Final = greetings_before
        self.doubt = ""
        """Why the row is no longer read; empty while it is believed."""

    def share(self, *, on: bool) -> None:
        """Let children that are forked from now on inherit this mapping, or not."""
        self._page.madvise(mmap.MADV_DOFORK if on else mmap.MADV_DONTFORK)

    def close(self) -> None:
        """Unmap the cells; the descriptor stays open."""
        self.cells.release()
        self._page.close()


@contextmanager
def open_row() -> Iterator[tuple[Row, Claim]]:
    """Yield a new row, to be inherited by the child that is forked meanwhile, and our view of it.

    Afterwards the writable mapping is closed in this process; after an error the claim and its
    descriptor are closed, too.

    Raises:
        OSError: there is no memory for it.

    """
    fd = open_memory("greeterd-row", os.MFD_ALLOW_SEALING)
    try:
        # Not ftruncate(2): a page that does not exist yet may be refused when it is touched.
        os.posix_fallocate(fd, 0, mmap.PAGESIZE)
        with (
            mmap.mmap(fd, mmap.PAGESIZE) as page,
            memoryview(page) as view,
            view.cast("Q") as cells,
            cells[:CELLS] as row,
        ):
            _seal(fd)
            claim = Claim(fd)  # before the fork: once the worker lives, mapping must not fail
            try:
                yield row, claim
            except BaseException:
                claim.close()
                raise
    except BaseException:
        os.close(fd)
        raise


def map_view(fd: int) -> "Row | None":
    """Map another worker's row for reading, and close the descriptor; None if that is refused."""
    try:
        page = mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
    return memoryview(page).cast("Q")[:CELLS]


def _seal(fd: int) -> None:
    """Fix the file's size, and forbid writing to it except by the mappings that exist already."""
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    with suppress(OSError):  # EINVAL before Linux 5.1
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
        return
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
