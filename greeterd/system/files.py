"""Opens files and makes directories where others may write: for whom they are, and by no link.

A name in such a directory leads wherever its owner likes, and elsewhere at the next look. So root
does not act by path there:
- a file is opened as who it is for (`acting_as`), and what came is looked at (`open_regular`);
- a directory is made out of everybody's reach, finished by descriptor, and then moved to its name
  (`make_directory`); below a directory of the user whom it is for it is made as that user.
Nothing that was there is given away or gets other permissions.

A link to a directory is followed where only root (or, not as root, anybody) could have made it.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = 0
# O_NONBLOCK and O_NOCTTY are for what is no regular file, and refused a moment later.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
# O_PATH: who may pass a directory need not be allowed to read it.
_PASS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHANGE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT_MODE = 0o755
_MAX_DETOURS = 40  # links, as in path_resolution(7); names that somebody else makes meanwhile
_NEW = "new"


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
    A PermissionError from inside says to whom.

    Raises:
        OSError: the kernel does not let us act as `identity`.

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
        if error.errno == errno.ENXIO:  # a FIFO that nobody reads, a socket
            raise OSError(errno.EINVAL, "not a regular file", str(path)) from None
        raise
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return fd
    os.close(fd)
    if stat.S_ISREG(status.st_mode):
        raise OSError(errno.EMLINK, "has other names (hard links)", str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def make_directory(path: Path, owner: Identity | None, mode: int) -> None:
    """Make a directory and its parents (0755) where they are missing.

    It gets `mode` and, from root, `owner`; parents that root makes stay root's. Below a directory
    of the owner's, all are made by him.

    Raises:
        OSError: naming what cannot be made, is no directory, or is a link that somebody else could
            have put there.

    """
    here, way = os.open("/", _PASS), Path("/")
    names = [*reversed(path.absolute().parts)]
    detours = 0
    try:
        while names:
            name = names.pop()
            try:
                there = _pass(here, name)
                if there is None:
                    each = _PARENT_MODE if names else mode
                    there = _make(here, name, owner, each, last=not names)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(way / name)) from error
            if isinstance(there, int):
                os.close(here)
                here, way = there, way / name
            elif detours < _MAX_DETOURS:
                detours += 1
                names += reversed(there)
            else:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    finally:
        os.close(here)


def _pass(place: int, name: str) -> int | tuple[str, ...] | None:
    """Open a directory in `place`; of a link return where it leads; None: nothing is there.

    Raises:
        OSError: it is something else, or we are root and somebody else could have put it there.

    """
    try:
        there = os.open(name, _PASS, dir_fd=place)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        found = os.lstat(name, dir_fd=place)
        if not stat.S_ISLNK(found.st_mode):
            raise
        _require_ours(place, found, "is a link that another user could have put there")
        return Path(os.readlink(name, dir_fd=place)).parts
    try:
        found = os.fstat(there)
        # Whoever has the place may have moved it here, to have something made in it.
        if found.st_uid == ROOT:
            _require_ours(place, found, "is root's, and another user could have put it there")
    except OSError:
        os.close(there)
        raise
    return there


def _require_ours(place: int, found: os.stat_result, reason: str) -> None:
    """Refuse, as root, what was found in a place where others could have put it.

    Not as root the kernel's own rules are enough: nobody can have us do there what he may not.
    """
    where = os.fstat(place)
    stays = where.st_mode & stat.S_ISVTX and found.st_uid == ROOT
    others = where.st_uid != ROOT or (_may_others_write(where) and not stays)
    if os.geteuid() == ROOT and others:
        raise OSError(errno.EPERM, reason)


def _may_others_write(found: os.stat_result) -> bool:
    return bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _make(
    place: int, name: str, owner: Identity | None, mode: int, *, last: bool
) -> int | tuple[str]:
    """Make a directory in `place`; return it open, or its name if somebody else was faster.

    Whoever may write in `place` can exchange what is new there for another directory of ours, to
    have that one given away. So it is made where only we can write, finished by descriptor, and
    moved to its name.
    """
    his = owner is not None and os.fstat(place).st_uid == owner.uid
    with acting_as(owner if his else None), _private_directory(place) as private:
        os.mkdir(_NEW, 0o700, dir_fd=private)
        made = -1
        try:
            made = os.open(_NEW, _CHANGE, dir_fd=private)
            if last and owner is not None and os.geteuid() == ROOT:
                os.fchown(made, owner.uid, owner.gid)
            os.fchmod(made, mode)
            os.rename(_NEW, name, src_dir_fd=private, dst_dir_fd=place)
        except OSError as error:
            if made >= 0:
                os.close(made)
            os.rmdir(_NEW, dir_fd=private)
            if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                return (name,)
            raise
    return made


@contextmanager
def _private_directory(place: int) -> Iterator[int]:
    """Give an empty directory in `place` that nobody else can write."""
    name = f".greeterd-{secrets.token_hex(8)}"
    os.mkdir(name, 0o700, dir_fd=place)
    try:
        fd = os.open(name, _PASS, dir_fd=place)
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or _may_others_write(found):
                raise OSError(errno.EPERM, "was exchanged while it was being made")
            yield fd
        finally:
            os.close(fd)
    finally:
        # By name: what is removed is empty, and whoever could put it there could remove it.
        with suppress(OSError):
            os.rmdir(name, dir_fd=place)


def open_memory(name: str, flags: int = 0) -> int:
    """Return a descriptor of an anonymous file in memory; it is close-on-exec.

    Raises:
        OSError: it cannot be had; the call stands where a path would.

    """
    try:
        return os.memfd_create(name, flags | os.MFD_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "memfd_create") from None
