"""Locks among the writers of one slot's log file.

The writer lock is a flock(2) on a file without a name, which only the slot's workers have.  Not on
the log itself: flock(2) asks for no more than permission to read, so a reader could hold it.

The mark is a write lock on the log.  It tells processes that do not have the writer lock's file,
such as the next daemon beside a worker whose master has died, that the writer of a torn line still
lives.  A reader cannot hold one (fcntl(2)).
"""

import errno
import os
import struct
from contextlib import suppress
from fcntl import (
    F_OFD_GETLK,
    F_OFD_SETLK,
    F_RDLCK,
    F_UNLCK,
    F_WRLCK,
    LOCK_EX,
    LOCK_NB,
    LOCK_UN,
    fcntl,
    flock,
)
from time import monotonic
from typing import Final

PATIENCE: Final = 0.05
"""Seconds; a holder needs some microseconds, one that is descheduled some milliseconds."""
EXCLUSIVE: Final = LOCK_EX | LOCK_NB

_FLOCK: Final = "hhqqi4x"  # struct flock of fcntl(2): l_type, l_whence, l_start, l_len, l_pid


def open_writer_lock(fd: int) -> int:
    """Return a new descriptor of the writer lock's file, with a lock of its own.

    A flock belongs to the open file: processes that share one share its lock.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # There is no /proc.  The slot's other worker is not excluded then, but still sees by the
        # mark that the writer of a torn line lives.
        return os.dup(fd)


def wait_for_writer_lock(fd: int) -> None:
    """Take the writer lock.

    Raises:
        BlockingIOError: another writer held it for PATIENCE.

    """
    deadline = monotonic() + PATIENCE
    while True:
        with suppress(BlockingIOError):
            flock(fd, EXCLUSIVE)
            return
        if monotonic() > deadline:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked by the slot's other worker")
        os.sched_yield()  # the holder may be waiting for this very processor


def mark(log: int, *, on: bool) -> None:
    """Mark the log as having a torn line whose writer lives, or remove the mark.

    The flock is for workers of an older version, which look at nothing else. Where another
    process's lock refuses us either, the line is not protected from those others.
    """
    with suppress(OSError):
        fcntl(log, F_OFD_SETLK, _flock(F_WRLCK if on else F_UNLCK))
    with suppress(OSError):
        flock(log, EXCLUSIVE if on else LOCK_UN)


def is_marked(log: int) -> bool:
    """Return whether another open file has a mark on the log."""
    try:
        found = fcntl(log, F_OFD_GETLK, _flock(F_RDLCK))  # conflicts with write locks only
    except OSError:  # a file system without such locks
        return False
    return bool(struct.unpack_from("h", found)[0] != F_UNLCK)


def _flock(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)
