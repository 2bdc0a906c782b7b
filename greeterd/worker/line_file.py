"""Appends lines to a file that others follow: each once, whole before it is told, and none lost.

A slot's file has one writer, or two while one worker replaces the other. Invariants:
- What a follower may have read is never taken back. A write that stops short leaves what went out,
  `_head`, and its rest is the first that the next flush() writes. A file is only cut where a torn
  line's writer is dead, or leaves a file that was moved away.
- Who has not finished a batch keeps the lock until it has, so nobody writes behind a torn line. The
  lock is on a file without a name, which only the slot's workers are given: a lock on the log
  itself could be held by whoever may read it (flock(2) asks for no more).
- A writer that shares no lock with us, such as a worker whose master is dead, shows by a write lock
  on the log that its torn line is alive. Readers cannot hold one (fcntl(2)).
- Nothing is written to a file that has no name left. Its links are looked at before a write, at
  most every LOOK_AFTER, and what may have come after a removal since is carried over to the next
  file: what is older was removed with the file, and stays so.
Offsets are bytes.

SIGXFSZ must be ignored, as CPython leaves it: RLIMIT_FSIZE is then an error like a full disk.
"""

import errno
import os
import struct
import time
from contextlib import suppress
from fcntl import (
    F_GETFL,
    F_OFD_GETLK,
    F_OFD_SETLK,
    F_RDLCK,
    F_SETFL,
    F_UNLCK,
    F_WRLCK,
    LOCK_EX,
    LOCK_NB,
    LOCK_UN,
    fcntl,
    flock,
)
from pathlib import Path
from time import monotonic
from typing import Final

from greeterd.system.files import open_regular

LOOK_AFTER: Final = 0.001
"""Seconds: fstat(2) takes 1 us more than the lseek(2) in its place, so 0.1 % of a CPU at most."""

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT
_MODE = 0o640
_EXCLUSIVE = LOCK_EX | LOCK_NB
_LOCK_PATIENCE = 0.05  # seconds; a holder needs some microseconds, a descheduled one some ms
_BLOCK_BYTES = 65536
_UNKNOWN = -1  # no file ends here
_FLOCK = "hhqqi4x"  # struct flock of fcntl(2): l_type, l_whence, l_start, l_len, l_pid


class LineFile:
    """An append-only file of lines, with at most one other writer; a structlog sink (`info`)."""

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
        "_unsynced",
        "astray",
        "blocked",
        "fd",
        "path",
        "repaired_bytes",
    )

    def __init__(self, path: Path, *, durable: bool, lock: int, repair: bool = True) -> None:
        """Open the file, create it, and unless told otherwise cut off what a dead writer has torn.

        `lock` is a descriptor of the file that all writers lock. It is opened anew here: a flock
        belongs to the open file, and processes that share one share its lock.

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
        self._pending = b""  # rendered, not written
        self._head = b""  # written, up to `_end`, of a batch that is not; we keep the lock
        self._end = _UNKNOWN  # where our last write ended, so that nobody else's tail is there
        self._start = _UNKNOWN  # up to `_end`: ours, written since we last saw that it has a name
        self._look_at = 0.0  # monotonic; when to look at that again
        self._unsynced: tuple[int, bytes] | None = None  # offset, lines: written, perhaps not kept
        self._replaced = False  # by flush(), not told by look() yet
        self._synced_ns = 0  # wall clock; when our latest batch had been synced
        self._lock = _open_anew(lock)
        self.fd = _UNKNOWN
        try:
            self.fd = _open(path, durable=durable)
            if repair:
                self._repair()
        except BaseException:
            self.close()
            raise

    def info(self, lines: bytes) -> None:
        """Take rendered lines; flush() writes them."""
        self._pending = self._pending + lines if self._pending else lines

    def flush(self) -> bool:
        """Write all that was taken, by one write(2); tell whether it is written (and synced).

        False keeps everything for a later call; `blocked` says why. Blocks for the disk, and at
        most 50 ms for the lock.
        """
        try:
            if self.blocked is not None:
                self._replace_if_removed()
            if self._unsynced is not None:
                self._sync_again()
            if self._pending:
                self._append()
        except OSError as error:
            self.blocked = _named(error, self.path)
            return False
        self.blocked = None
        return True

    def _append(self) -> None:
        # At a burst of one a call is 1 % of a greeting, so the usual way through has few.
        fd = self.fd
        try:
            flock(self._lock, _EXCLUSIVE)
        except BlockingIOError:
            self._wait_for_lock()
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
        """Go on behind a short write; if that fails, note what went out, and raise the reason."""
        lines = self._pending
        try:
            while written < len(lines):
                written += os.write(self.fd, lines[written:])
        except OSError:
            self._claim(F_WRLCK)
            self._head += lines[:written]
            self._pending = lines[written:]
            self._end += written
            raise

    def _complete_head(self, rest: bytes) -> bytes:
        batch, self._head = self._head + rest, b""
        self._claim(F_UNLCK)
        return batch

    def _claim(self, kind: int) -> None:
        """Show those who do not share our lock that the torn line has a living writer, or no more.

        The flock is for workers of an older version, which look at nothing else. Where a reader's
        lock refuses us either, the line goes unguarded against those others.
        """
        with suppress(OSError):
            fcntl(self.fd, F_OFD_SETLK, _lock_of(kind))
        with suppress(OSError):
            flock(self.fd, LOCK_UN if kind == F_UNLCK else _EXCLUSIVE)

    def _replace_if_removed(self) -> None:
        status = os.fstat(self.fd)
        try:
            if not status.st_nlink:
                self._replace(status)
        finally:
            if not self._head:
                flock(self._lock, LOCK_UN)

    def _look_at_end(self) -> None:
        """Find the end of the file, once that has a name and no torn line of a dead writer.

        Needs the lock. Another file may have taken the place of one that was removed.
        """
        status = os.fstat(self.fd)
        while not status.st_nlink:
            self._replace(status)
            status = os.fstat(self.fd)
        end = status.st_size
        if end != self._end:
            if self._head:
                self._forget_head(end)
            self._end = self._cut(end)
        self._start = self._end
        self._look_at = monotonic() + LOOK_AFTER

    def _forget_head(self, end: int) -> None:
        # A stranger, who shares no lock with us, has truncated it, or written behind our torn line:
        # of what went out only whole lines are there.
        start = self._end - len(self._head)
        kept = self._head.rfind(b"\n", 0, max(0, end - start)) + 1
        self._pending = self._head[kept:] + self._pending
        self._complete_head(b"")

    def _cut(self, end: int) -> int:
        """Cut off what a dead writer has torn of a file of `end` bytes; return its new end."""
        whole = _end_of_last_line(self.fd, end)
        if whole != end:
            if _is_claimed(self.fd):
                raise BlockingIOError(errno.EWOULDBLOCK, "a stranger is at its last line")
            try:
                os.ftruncate(self.fd, whole)
            except OSError as error:  # such as an append-only file (chattr +a)
                reason = f"a torn record cannot be cut off: {error.strerror}"
                raise OSError(error.errno, reason) from error
            self.repaired_bytes += end - whole
        return whole

    def _sync_again(self) -> None:
        """Sync what an earlier fdatasync could not.

        Linux marks pages clean even when writing them back has failed, so a second fdatasync alone
        would report a success that is none. Writing the same bytes at the same place dirties them;
        writing them at the end would log the greetings twice.
        """
        assert self._unsynced is not None
        start, lines = self._unsynced
        if os.fstat(self.fd).st_size >= start + len(lines):  # else someone has truncated it
            # With O_APPEND, pwrite appends wherever it is told to write (pwrite(2), BUGS).
            flags = fcntl(self.fd, F_GETFL)
            fcntl(self.fd, F_SETFL, flags & ~os.O_APPEND)
            try:
                if os.pwrite(self.fd, lines, start) != len(lines):
                    raise OSError(errno.EIO, "cannot be written again")
            finally:
                fcntl(self.fd, F_SETFL, flags)
        os.fdatasync(self.fd)
        self._note_sync()

    def _note_sync(self) -> None:
        self._unsynced = None
        self._synced_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)

    def _repair(self) -> None:
        try:
            self._wait_for_lock()
            try:
                self._look_at_end()
            finally:
                flock(self._lock, LOCK_UN)
        except BlockingIOError:
            return  # the next write looks again
        except OSError as error:
            raise _named(error, self.path) from error

    def _wait_for_lock(self) -> None:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            with suppress(BlockingIOError):
                flock(self._lock, _EXCLUSIVE)
                return
            if time.monotonic() > deadline:
                raise BlockingIOError(errno.EWOULDBLOCK, "locked by the slot's other worker")
            os.sched_yield()  # the holder may be waiting for this very processor

    # Files that move ------------------------------------------------------------------------

    def look(self) -> bool:
        """Reopen if the path no longer leads to the open file; tell whether that was done.

        Also by a flush() since the last call. Where it cannot be, `astray` says why, and lines go
        on to the file that was moved away; or `blocked` does when that has no name left, and
        nothing is written. Writes what was carried over. To be called about once a second.
        """
        moved = not self._is_at_path()
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

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self.fd))
        except OSError:
            return False

    def reopen(self) -> None:
        """Open the path anew under the same descriptor; what is pending goes to the new file.

        Raises:
            OSError: the path cannot be opened, or the old file has a name and cannot be left whole
                (and, if durable, synced); it stays in use.

        """
        new = _open(self.path, durable=self._durable)
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
            raise _named(error, self.path) from error
        finally:
            os.close(new)
            if not self._head:
                flock(self._lock, LOCK_UN)

    def _use(self, new: int) -> None:
        os.dup2(new, self.fd, inheritable=False)
        self._start = self._end = _UNKNOWN  # the next write looks for a torn tail

    def _leave_whole(self) -> None:
        """Finish what is unfinished in a file that was moved away, or take its torn line along."""
        if self.flush():
            return
        assert self.blocked is not None
        if self._unsynced is not None or not self._head:
            raise self.blocked
        # There is no room, and here there may never be (RLIMIT_FSIZE). Who follows the path has
        # left this file, as we do.
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
        new = _open(self.path, durable=self._durable)
        try:
            self._use(new)
        finally:
            os.close(new)
        self._replaced = True

    def _carry_over(self, status: os.stat_result) -> None:
        """Make pending again what of a removed file has not been told, or came after the removal.

        That is at most what was written in LOOK_AFTER. A write sets ctime and mtime alike, and the
        removal only ctime, so a later ctime tells that all was written before it. In doubt, also
        that of a clock of some ms, it is carried over: a follower that was fast enough to see it
        sees it twice then, but nobody misses it.
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


def _open(path: Path, *, durable: bool) -> int:
    fd = open_regular(path, _FLAGS, _MODE)
    try:
        if durable:
            _sync_directory(path.parent)  # a new file's name is data of its directory
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        raise _named(error, path) from error
    finally:
        os.close(fd)


def _named(error: OSError, path: Path) -> OSError:
    """Return an error that names its file: calls by descriptor do not."""
    if error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, str(path))


def _open_anew(lock: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{lock}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # There is no /proc. A duplicate keeps the slot's other worker from nothing; that one still
        # sees by the mark on a torn line that its writer lives.
        return os.dup(lock)


def _lock_of(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _is_claimed(fd: int) -> bool:
    """Tell whether another open file has a write lock: its holder may write, and lives."""
    try:
        found = fcntl(fd, F_OFD_GETLK, _lock_of(F_RDLCK))  # conflicts with write locks only
    except OSError:  # a file system without such locks
        return False
    return bool(struct.unpack_from("h", found)[0] != F_UNLCK)


def _end_of_last_line(fd: int, end: int) -> int:
    """Return the offset after the last line feed before `end`; 0 if there is none."""
    if end and os.pread(fd, 1, end - 1) == b"\n":
        return end
    while end:
        start = max(0, end - _BLOCK_BYTES)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
