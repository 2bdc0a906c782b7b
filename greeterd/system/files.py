"""Opens files where other users may write: as the user whom they are for, and never by a link.

A name in such a directory leads wherever its owner likes, and elsewhere at the next look. So root
does not trust a path there: a file is opened as the user whom it is for (`acting_as`), and what was
opened is checked (`open_regular`). Directories: `directories`.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = 0
# O_NONBLOCK and O_NOCTTY are for what is no regular file, and is refused a moment later.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and the one group that the user acts with, as numbers."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"uid {self.uid}, gid {self.gid}"


@contextmanager
def acting_as(identity: Identity | None) -> Iterator[None]:
    """Have the kernel check files as for `identity` (None, or not root: as for ourselves).

    The effective ids and the groups change, for the whole process: there are no threads. The real
    and the saved user stay root's, so the identity can neither signal nor trace this process.
    A PermissionError from inside names the identity.

    Raises:
        OSError: we may not act as `identity`.

    """
    if identity is None or os.geteuid() != ROOT:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    try:
        _put_on(identity)
        yield
    except PermissionError as error:
        reason = f"{error.strerror} to {identity}"
        raise PermissionError(error.errno, reason, error.filename) from error
    finally:
        os.seteuid(ROOT)
        os.setegid(gid)
        _set_groups(groups)


def _put_on(identity: Identity) -> None:
    try:
        _set_groups([])
        os.setegid(identity.gid)
        os.seteuid(identity.uid)
    except OSError as error:  # without CAP_SETUID; an id that this user namespace does not have
        reason = f"cannot act as {identity}: {error.strerror}"
        raise OSError(errno.EINVAL, reason) from error


def _set_groups(groups: list[int]) -> None:
    with suppress(PermissionError):  # a user namespace may deny it, user_namespaces(7)
        os.setgroups(groups)


def open_regular(path: Path, flags: int, mode: int = 0) -> int:
    """Open a regular file that has no other name; return a close-on-exec descriptor.

    Never blocks, neither for a FIFO nor for a terminal. O_NONBLOCK stays set: on a regular file it
    has no effect.

    Raises:
        OSError: it cannot be opened, is a link or no regular file, or has another name.

    """
    try:
        fd = os.open(path, flags | _FLAGS, mode)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "is a symbolic link", str(path)) from None
        if error.errno == errno.ENXIO:  # a FIFO without a reader, a socket
            raise OSError(errno.EINVAL, "not a regular file", str(path)) from None
        raise
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return fd
    os.close(fd)
    if stat.S_ISREG(status.st_mode):
        raise OSError(errno.EMLINK, "has other names (hard links)", str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def open_memory(name: str, flags: int = 0) -> int:
    """Return a close-on-exec descriptor of an anonymous file in memory.

    Raises:
        OSError: it cannot be made; the call is named in place of a path.

    """
    try:
        return os.memfd_create(name, flags | os.MFD_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "memfd_create") from None
