"""Appends lines to a file that others follow: each line once, whole, and none lost.

A slot's file has one writer, or two while one worker replaces the other. Invariants:
- What a follower may have read is never taken back. After a short write what went out stays
  (`_head`), and the next flush() first writes the rest. A file is only cut where the writer of a
  torn line is dead, or leaves a file that was moved away.
- A writer keeps the lock until its batch is complete, so no other writes behind a torn line
  (`file_locks`). Its mark on the file holds off writers that do not share the lock.
- Nothing is written to a file that has no name left. Its link count is read before a write, at
  most every LOOK_AFTER. What was written since the last look is written again to the next file,
  unless it is known to be older than the removal: then it was removed with the file, and stays so.
Offsets are bytes.

SIGXFSZ must be ignored, as CPython leaves it: RLIMIT_FSIZE is then an error like a full disk.
"""

import errno
import os
import time
from fcntl import LOCK_UN, flock
from pathlib import Path
from time import monotonic
from typing import Final

from greeterd.worker.file_locks import (
    EXCLUSIVE,
    is_marked,
    mark,
    open_writer_lock,
    wait_for_writer_lock,
)
from greeterd.worker.log_files import (
    cut,
    end_of_last_line,
    is_at,
    open_log_file,
    sync_again,
    with_path,
)

LOOK_AFTER: Final = 0.001
"""Seconds: fstat(2) takes 1 us more than the lseek(2) in its place, so 0.1 % of a CPU at most."""
MARK_PATIENCE: Final = 10.0
"""Seconds that another process may take to complete its last line, in which this one blocks."""

_UNKNOWN: Final = -1  # no file ends here


class LineFile:
    """An append-only file of lines, with at most one other writer; a structlog logger (`info`)."""

    __slots__ = (
        "_durable",
        "_end",
        "_head",
        "_lock",
        "_look_at",
        "_pending",
        "_replaced",
        "_start",
        "_synced_ns",
        "_torn",
        "_unsynced",
        "astray",
        "blocked",
        "fd",
        "path",
        "repaired_bytes",
    )

    def __init__(self, path: Path, *, durable: bool, lock: int, repair: bool = True) -> None:
        """Open the file, or create it; with `repair` cut off the torn line of a dead writer.

        `lock` is a descriptor of the file that all writers lock; the caller keeps it.

        Raises:
            OSError: the path cannot be opened or repaired, or is not a regular file.

        """
        self.path = path
        self.blocked: OSError | None = None
        """Why the latest flush() was not completed."""
        self.astray: OSError | None = None
        """Why lines go to a file that is not at the path any more, at the latest look()."""
        self.repaired_bytes = 0
        self._durable = durable
        self._pending = b""
        """Lines that are to be written."""
        self._head = b""
        """The written part of a batch, up to `_end`, whose rest is pending; we keep the lock."""
        self._end = _UNKNOWN
        """Where our last write ended. If the file ends there, no other process has written."""
        self._start = _UNKNOWN
        """From here to `_end` is ours, written since we last saw that the file has a name."""
        self._look_at = 0.0
        self._torn: tuple[int, float] | None = None  # offset, monotonic: met first
        """When to see that again."""
        self._unsynced: tuple[int, bytes] | None = None
        """Offset and lines that are written, and may not be on the disk."""
        self._synced_ns = 0
        """Wall clock: when our latest batch was on the disk."""
        self._replaced = False
        """flush() has opened another file; the next look() reports it."""
        self._lock = open_writer_lock(lock)
        self.fd = _UNKNOWN
        try:
            self.fd = open_log_file(path, durable=durable)
            if repair:
                self._repair()
        except BaseException:
            self.close()
            raise

    def info(self, lines: bytes) -> None:
        """Make rendered lines pending; flush() writes them."""
        self._pending = self._pending + lines if self._pending else lines

    def flush(self) -> bool:
        """Write all that is pending, by one write(2); return whether it is written (and synced).

        After False it stays pending, and `blocked` says why. Blocks for the disk, and at most 50 ms
        for the lock.
        """
        try:
            if self.blocked is not None:
                self._replace_if_removed()
            if self._unsynced is not None:
                start, lines = self._unsynced
                sync_again(self.fd, lines, start)
                self._note_sync()
            if self._pending:
                self._append()
        except OSError as error:
            self.blocked = with_path(error, self.path)
            return False
        self.blocked = None
        return True

    def _append(self) -> None:
        # At a burst of one a call is 1 % of a greeting, so the usual path makes few.
        fd = self.fd
        try:
            flock(self._lock, EXCLUSIVE)
        except BlockingIOError:
            wait_for_writer_lock(self._lock)
        try:
            if monotonic() > self._look_at or os.lseek(fd, 0, os.SEEK_END) != self._end:
                self._look_at_end()
            lines = self._pending
            written = os.write(fd, lines)
            if written != len(lines):
                self._write_rest(written)
            self._end += len(lines)
            if self._head:
                lines = self._complete_head(lines)
        finally:
            if not self._head:
                flock(self._lock, LOCK_UN)
        self._pending = b""
        if self._durable:
            # Without the lock: syncing takes milliseconds, and needs no order among writers.
            self._unsynced = self._end - len(lines), lines
            os.fdatasync(fd)
            self._note_sync()

    def _write_rest(self, written: int) -> None:
        """Write the rest after a short write; if that fails, keep both parts, and raise."""
        lines = self._pending
        try:
            while written < len(lines):
                written += os.write(self.fd, lines[written:])
        except OSError:
            mark(self.fd, on=True)
            self._head += lines[:written]
            self._pending = lines[written:]
            self._end += written
            raise

    def _complete_head(self, rest: bytes) -> bytes:
        """Note that the batch of `_head` is written; return the whole batch."""
        batch, self._head = self._head + rest, b""
        mark(self.fd, on=False)
        return batch

    def _replace_if_removed(self) -> None:
        status = os.fstat(self.fd)
        try:
            if not status.st_nlink:
                self._replace(status)
        finally:
            if not self._head:
                flock(self._lock, LOCK_UN)

    def _look_at_end(self) -> None:
        """Make sure that the file has a name and ends with a whole line; note where it ends.

        Needs the lock. A file that was removed is replaced by what is at the path now.
        """
        status = os.fstat(self.fd)
        while not status.st_nlink:
            self._replace(status)
            status = os.fstat(self.fd)
        end = status.st_size
        if end != self._end:
            if self._head:
                self._forget_head(end)
            self._end = self._cut_torn_line(end)
        self._start = self._end
        self._look_at = monotonic() + LOOK_AFTER

    def _forget_head(self, end: int) -> None:
        """Make the torn part of `_head` pending again: it cannot be completed where it is.

        A process that shares no lock with us has truncated the file to `end`, or has written behind
        our torn line. Of `_head` the whole lines are in the file, as far as it reaches.
        """
        start = self._end - len(self._head)
        kept = self._head.rfind(b"\n", 0, max(0, end - start)) + 1
        self._pending = self._head[kept:] + self._pending
        self._complete_head(b"")

    def _cut_torn_line(self, end: int) -> int:
        """Cut off the torn line of a dead writer from a file of `end` bytes; return its new end."""
        whole = end_of_last_line(self.fd, end)
        if whole == end:
            self._torn = None
            return end
        # Not kept for ever: who holds the mark may want that nothing is logged.  A writer in good
        # faith finds its torn line gone, and writes it again.
        if self._torn is None or self._torn[0] != whole:
            self._torn = whole, monotonic()
        if is_marked(self.fd) and monotonic() - self._torn[1] < MARK_PATIENCE:
            raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing its last line")
        self._torn = None
        cut(self.fd, whole)
        self.repaired_bytes += end - whole
        return whole

    def _note_sync(self) -> None:
        self._unsynced = None
        self._synced_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)

    def _repair(self) -> None:
        try:
            wait_for_writer_lock(self._lock)
            try:
                self._look_at_end()
            finally:
                flock(self._lock, LOCK_UN)
        except BlockingIOError:
            return  # the next write looks at the end again
        except OSError as error:
            raise with_path(error, self.path) from error

    # Files that move ------------------------------------------------------------------------

    def look(self) -> bool:
        """Reopen if the path no longer leads to the open file; return whether that was done.

        Or whether a flush() since the last call did it. If reopening fails, `astray` says why, and
        lines go on to the file that was moved away; if that has no name left, `blocked` says why,
        and nothing is written. Writes what is pending. To be called about once a second.
        """
        moved = not is_at(self.fd, self.path)
        try:
            if moved:
                self.reopen()
        except OSError as error:
            if os.fstat(self.fd).st_nlink:
                self.astray = error
            else:
                self.astray, self.blocked = None, error
            return False
        self.astray = None
        self.flush()
        moved, self._replaced = moved or self._replaced, False
        return moved

    def reopen(self) -> None:
        """Open the path anew under the same descriptor; what is pending goes to the new file.

        Raises:
            OSError: the path cannot be opened, or the old file has a name and cannot be left whole
                (and, if durable, synced); it stays in use.

        """
        new = open_log_file(self.path, durable=self._durable)
        try:
            status = os.fstat(self.fd)
            if os.path.samestat(os.fstat(new), status):
                return
            if not status.st_nlink:
                self._carry_over(status)
            elif self._head or self._unsynced is not None:
                self._leave_whole()
            self._use(new)
        except OSError as error:
            raise with_path(error, self.path) from error
        finally:
            os.close(new)
            if not self._head:
                flock(self._lock, LOCK_UN)

    def _use(self, new: int) -> None:
        os.dup2(new, self.fd, inheritable=False)
        self._start = self._end = _UNKNOWN  # the next write looks at the end
        self._torn = None

    def _leave_whole(self) -> None:
        """Complete the batch in a file that was moved away, or take its torn line along."""
        if self.flush():
            return
        assert self.blocked is not None
        if self._unsynced is not None or not self._head:
            raise self.blocked
        # There is no room, and here there may never be (RLIMIT_FSIZE). To cut the torn line off is
        # no harm now: those who follow the path have left this file.
        whole = self._head.rfind(b"\n") + 1
        start = self._end - len(self._head)
        if os.fstat(self.fd).st_size == self._end:
            os.ftruncate(self.fd, start + whole)
        lines, torn = self._head[:whole], self._head[whole:]
        self._complete_head(b"")
        self._pending = torn + self._pending
        if self._durable and lines:
            self._unsynced = start, lines
            os.fdatasync(self.fd)
            self._unsynced = None

    def _replace(self, status: os.stat_result) -> None:
        """Open the path anew in place of a file that was removed."""
        self._carry_over(status)
        new = open_log_file(self.path, durable=self._durable)
        try:
            self._use(new)
        finally:
            os.close(new)
        self._replaced = True

    def _carry_over(self, status: os.stat_result) -> None:
        """Make pending again what was incomplete in a removed file, or written after its removal.

        That is at most what was written in LOOK_AFTER. A write sets ctime and mtime alike, and the
        removal only ctime, so a later ctime shows that all was written before the removal. In doubt
        (the file system's clock has steps of some ms) it is written again: a fast follower may then
        see a line twice, but none is missed.
        """
        if self._unsynced is not None:
            self._pending = self._unsynced[1] + self._pending
            self._unsynced = None
        elif self._head:
            self._pending = self._head + self._pending
            self._head = b""
        elif self._start < self._end <= status.st_size and status.st_ctime_ns <= max(
            status.st_mtime_ns, self._synced_ns
        ):
            lines = os.pread(self.fd, self._end - self._start, self._start)
            self._pending = lines + self._pending
        self._start = self._end

    def close(self) -> None:
        """Close the file; what is still pending is lost, so flush() first."""
        for fd in (self.fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self.fd = self._lock = _UNKNOWN
