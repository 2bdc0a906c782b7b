"""Opens files in directories that others may write: as who they are for, and never by a link.

A name in such a directory leads wherever its owner likes, and elsewhere at the next look. So root
does not act by path there: it becomes, for that moment, who the file is for (`acting_as`), and
what it got is looked at by descriptor (`open_regular`). Nothing that was there is given away.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = 0
# O_NONBLOCK and O_NOCTTY are for what is no regular file, and refused a moment later.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and his one group, as the kernel knows them."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"uid {self.uid}, gid {self.gid}"


@contextmanager
def acting_as(identity: Identity | None) -> Iterator[None]:
    """Have the kernel check files as for `identity` (None, or not root: as for ourselves).

    The effective ids and the groups change, for the whole process: there are no threads. The real
    and the saved user stay root's, so the identity can neither signal nor trace this process.
    """
    if identity is None or os.geteuid() != ROOT:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    try:
        os.setgroups([])
        os.setegid(identity.gid)
        os.seteuid(identity.uid)
        yield
    finally:
        os.seteuid(ROOT)
        os.setegid(gid)
        os.setgroups(groups)


def open_regular(path: Path, flags: int, mode: int = 0) -> int:
    """Open a regular file that has this one name; return a descriptor that is close-on-exec.

    It never blocks, neither for a FIFO nor for a terminal. O_NONBLOCK is set, and means nothing.

    Raises:
        OSError: it cannot be opened, is a link or no regular file, or has other names, too.

    """
    try:
        fd = os.open(path, flags | _FLAGS, mode)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "is a symbolic link", str(path)) from None
        raise
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return fd
    os.close(fd)
    if stat.S_ISREG(status.st_mode):
        raise OSError(errno.EMLINK, "has other names (hard links)", str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def open_memory(name: str) -> int:
    """Return a descriptor of an anonymous file in memory; it is close-on-exec.

    Raises:
        OSError: it cannot be had; the call stands where a path would.

    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "memfd_create") from None
