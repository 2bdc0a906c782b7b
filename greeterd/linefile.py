"""Appends lines to a file that others append to as well: whole or not at all, and none forgotten.

Each writer opens the path itself, after the fork: a flock belongs to the open file, and processes
that share one share its lock. Invariants, kept under that lock, which every writer takes:
- the file ends in a line feed whenever the lock is free, unless its last holder was killed;
- so whoever finds a tail that it did not write itself looks, and cuts a torn line off: its write
  never returned, so nobody has been told that it is there;
- a write that stops short is cut off again, and the same bytes wait for the next flush().
Offsets are bytes.

The lock is waited for, but not for ever: anyone who may read the file can lock it (flock(2) asks
for no write access), and a stopped process keeps its locks.

SIGXFSZ must be ignored, as CPython leaves it: RLIMIT_FSIZE is then an error like a full disk.
"""

import errno
import os
import stat
import time
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path

# O_NONBLOCK and O_NOCTTY are for what is no regular file, and refused a moment later.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MODE = 0o640
_LOCK_PATIENCE = 0.05  # seconds; a holder needs some microseconds, a descheduled one some ms
_BLOCK_BYTES = 65536
_UNKNOWN = -1  # no file ends here


class LineFile:
    """An append-only file of lines, written by several processes; a structlog sink (`info`).

    Raises:
        OSError: the path cannot be opened, locked at all or repaired, or is not a regular file.

    """

    __slots__ = (
        "_durable",
        "_end",
        "_pending",
        "_torn",
        "_unsynced",
        "blocked",
        "fd",
        "path",
        "repaired_bytes",
    )

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        self.blocked: OSError | None = None
        self.repaired_bytes = 0
        self._durable = durable
        self._pending = b""  # rendered, not written
        self._unsynced: tuple[int, bytes] | None = None  # offset, lines: written, perhaps not kept
        self._end = _UNKNOWN  # where our last write ended, so that nobody else's tail is there
        self._torn = False  # our own torn lines lie behind `_end`; we keep the lock until cut
        self.fd = _open(path, durable=durable)
        try:
            self._repair()
        except BaseException:
            os.close(self.fd)
            raise

    def info(self, lines: bytes) -> None:
        """Take rendered lines; flush() writes them."""
        self._pending = self._pending + lines if self._pending else lines

    def flush(self) -> bool:
        """Write all that was taken, by one write(2); tell whether it is written (and synced).

        False keeps everything for a later call; `blocked` says why. Blocks for the disk, and at
        most 50 ms for another process's lock.
        """
        try:
            if self._unsynced is not None:
                self._sync_again()
            if self._pending:
                self._append()
        except OSError as error:
            self.blocked = error
            return False
        self.blocked = None
        return True

    def _append(self) -> None:
        # At a burst of one a call is 1 % of a greeting, so the usual way through has few.
        fd, lines = self.fd, self._pending
        try:
            flock(fd, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            self._wait_for_lock()
        try:
            start = os.lseek(fd, 0, os.SEEK_END)
            if start != self._end:
                start = self._cut(start)
            written = os.write(fd, lines)
            if written != len(lines):
                self._finish(start, written)
            self._end, self._torn = start + len(lines), False
        finally:
            if not self._torn:
                flock(fd, LOCK_UN)
        self._pending = b""
        if self._durable:
            # Without the lock: syncing takes milliseconds, and needs no order among writers.
            self._unsynced = start, lines
            os.fdatasync(fd)
            self._unsynced = None

    def _finish(self, start: int, written: int) -> None:
        """Write the rest, or cut off again what was written, and raise the reason."""
        try:
            while written < len(self._pending):
                written += os.write(self.fd, self._pending[written:])
        except OSError:
            self._end, self._torn = start, True
            with suppress(OSError):  # the reason for the short write is the one to tell
                self._cut(start + written)
            raise

    def _cut(self, end: int) -> int:
        """Cut off what is torn of a file of `end` bytes; return its new end. Needs the lock."""
        if self._torn and end > self._end:  # by ourselves: whole lines too, they are still pending
            os.ftruncate(self.fd, self._end)
            self._torn = False
            return self._end
        self._torn = False
        whole = _end_of_last_line(self.fd, end)
        if whole != end:
            os.ftruncate(self.fd, whole)
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
        # Not by our own descriptor: with O_APPEND, pwrite appends wherever it is told to write
        # (pwrite(2), BUGS).
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            there = os.fstat(fd).st_size >= start + len(lines)  # else someone has truncated it
            if there and os.pwrite(fd, lines, start) != len(lines):
                raise OSError(errno.EIO, "cannot be written again", str(self.path))
            os.fdatasync(fd)
        finally:
            os.close(fd)
        self._unsynced = None

    def _repair(self) -> None:
        try:
            self._wait_for_lock()
        except BlockingIOError:
            return  # the next write looks again
        try:
            self._end = self._cut(os.lseek(self.fd, 0, os.SEEK_END))
        finally:
            flock(self.fd, LOCK_UN)

    def _wait_for_lock(self) -> None:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            with suppress(BlockingIOError):
                flock(self.fd, LOCK_EX | LOCK_NB)
                return
            if time.monotonic() > deadline:
                raise BlockingIOError(
                    errno.EWOULDBLOCK, "locked by another process", str(self.path)
                )
            os.sched_yield()  # the holder may be waiting for this very processor

    def reopen_if_moved(self) -> bool:
        """Reopen if the path no longer leads to the open file; tell whether it was so.

        Raises:
            OSError: as reopen.

        """
        try:
            if os.path.samestat(self.path.stat(), os.fstat(self.fd)):
                return False
        except FileNotFoundError:
            pass
        self.reopen()
        return True

    def reopen(self) -> None:
        """Open the path anew under the same descriptor; what is pending goes to the new file.

        Raises:
            OSError: the path cannot be opened, or (if durable) the old file cannot be synced; the
                old file stays in use.

        """
        new = _open(self.path, durable=self._durable)
        try:
            if self._unsynced is not None:
                self._sync_again()
            os.dup2(new, self.fd, inheritable=False)  # and the old file's lock is gone
        finally:
            os.close(new)
        self._end, self._torn = _UNKNOWN, False  # the next write looks for a torn tail

    def close(self) -> None:
        """Close the file; what is still pending is lost, so flush() first."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open(path: Path, *, durable: bool) -> int:
    fd = os.open(path, _FLAGS, _MODE)
    try:
        _require_regular(fd, path)
        if durable:
            _sync_directory(path.parent)  # a new file's name is data of its directory
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_regular(fd: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
