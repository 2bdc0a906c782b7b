"""Makes the log and the run directory, and refuses a path that another user could lead elsewhere.

Both paths are walked from "/" by descriptor, one name at a time, and links are followed by hand.
What may lie on the way differs:

    make_directory          for logs: the path may lie in a user's own place. As root, neither a
                            link nor a directory of root's is believed where another user could
                            have put it. What is missing is made out of everybody's reach, finished
                            by descriptor, and then moved to its name; below a directory of the
                            owner's it is made as that user. Nothing that was there is given away
                            or gets other permissions.
    make_private_directory  for the pid file and the control socket: as StrictModes of sshd(8) does,
                            a directory on the way that others own or can write is refused.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from greeterd.errors import ConfigError, refusal
from greeterd.system.files import ROOT, Identity, acting_as

# O_PATH: who may pass a directory need not be allowed to read it.
_PASS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHANGE: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT_MODE: Final = 0o755
_MAX_DETOURS: Final = 40  # links, as in path_resolution(7); names that another process makes first
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_NEW: Final = "new"


def prepare_directory(path: Path, identity: Identity | None, mode: int) -> None:
    """Make sure that `path` is a directory in which `identity` (None: we) may create files.

    A missing one is made with its parents, see `make_directory`. An existing one is left as it is:
    with `log_dir = "/var/log"` chowning it would give the whole system's logs away.

    Raises:
        ConfigError: it cannot be made or written.
        ResourceError: the same, for a reason that may pass.

    """
    try:
        if not path.is_dir():
            make_directory(path, identity, mode)
        writable = _may_write(path, identity)
    except OSError as error:
        raise refusal("directory", error, path) from error
    if not writable:
        raise ConfigError(f"directory {path}: is not writable by {identity or 'us'}")


def _may_write(path: Path, identity: Identity | None) -> bool:
    # The kernel is asked in the identity's place: it knows access lists and the directories above,
    # which mode bits alone do not tell.
    with acting_as(identity):
        writable = os.access(path, os.W_OK | os.X_OK, effective_ids=True)
        if writable or not os.access(path, os.X_OK, effective_ids=True):
            return writable
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
    return False


def make_directory(path: Path, owner: Identity | None, mode: int) -> None:
    """Make a directory and its parents (0755) where they are missing.

    It gets `mode` and, from root, `owner`; parents that root makes stay root's. Below a directory
    of the owner's, all are made as the owner.

    Raises:
        OSError: naming what cannot be made, is no directory, or is a link that another user could
            have put there.

    """
    _walk(path, _ForOwner(owner, mode))


def make_private_directory(path: Path, mode: int) -> None:
    """Make sure that `path` is a directory that only root and we can change or replace.

    What is missing is made, the last with `mode`, those above with 0755, less the umask. Of those
    above, others may write in one with the sticky bit (/tmp), where they can replace only theirs.

    Raises:
        ConfigError: others can change it; the message says who, where, and what to do about it.
        OSError: it is no directory, or cannot be made.

    """
    _walk(path, _Private(path, mode))


class _Rules(Protocol):
    """What a walk refuses, and how it makes what is missing; `place` is the directory above."""

    def check_link(self, place: int, step: Path, found: os.stat_result) -> None:
        """Raise unless this link may be followed."""

    def check_directory(self, place: int, step: Path, found: os.stat_result, *, last: bool) -> None:
        """Raise unless this directory may be passed or, as the last one, used."""

    def make(self, place: int, name: str, *, last: bool) -> int | None:
        """Make a directory; return it open, or None if another process was faster."""


def _walk(path: Path, rules: _Rules) -> None:
    try:
        here, way = os.open("/", _PASS), Path("/")
    except OSError as error:  # no descriptor is free; the caller names what it was for
        raise OSError(error.errno, error.strerror) from None
    names = [*reversed(path.absolute().parts)]
    detours = 0
    try:
        while names:
            name = names.pop()
            step = Path(os.path.normpath(way / name))
            try:
                there = _enter(here, name, step, rules, last=not names)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(step)) from error
            if isinstance(there, int):
                os.close(here)
                here, way = there, step
            elif detours < _MAX_DETOURS:
                detours += 1
                names += reversed(there)
            else:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    finally:
        os.close(here)


def _enter(
    place: int, name: str, step: Path, rules: _Rules, *, last: bool
) -> int | tuple[str, ...]:
    """Open a directory in `place`, made if it is missing; or return the names to go on with.

    Those are what a link leads to, or the same name, when another process has just made it.
    """
    try:
        there = os.open(name, _PASS, dir_fd=place)
    except FileNotFoundError:
        made = rules.make(place, name, last=last)
        return (name,) if made is None else made
    except NotADirectoryError:
        found = os.lstat(name, dir_fd=place)
        if not stat.S_ISLNK(found.st_mode):
            raise
        rules.check_link(place, step, found)
        return Path(os.readlink(name, dir_fd=place)).parts
    try:
        rules.check_directory(place, step, os.fstat(there), last=last)
    except (ConfigError, OSError):
        os.close(there)
        raise
    return there


@dataclass(frozen=True, slots=True)
class _ForOwner:
    """The rules of `make_directory`."""

    owner: Identity | None
    mode: int

    def check_link(self, place: int, _step: Path, found: os.stat_result) -> None:
        _require_root_s(place, found, "is a link that another user could have put there")

    def check_directory(
        self, place: int, _step: Path, found: os.stat_result, *, last: bool
    ) -> None:
        del last
        # Whoever owns the place may have moved it here, to have something made in it.
        if found.st_uid == ROOT:
            _require_root_s(place, found, "is root's, and another user could have put it there")

    def make(self, place: int, name: str, *, last: bool) -> int | None:
        # Whoever may write in `place` can exchange what is new there for another directory of ours,
        # to have that one given away. So it is made where only we can write, finished by
        # descriptor, and moved to its name.
        theirs = self.owner is not None and os.fstat(place).st_uid == self.owner.uid
        with acting_as(self.owner if theirs else None), _hidden_directory(place) as hidden:
            os.mkdir(_NEW, 0o700, dir_fd=hidden)
            made = -1
            try:
                made = os.open(_NEW, _CHANGE, dir_fd=hidden)
                if last and self.owner is not None and os.geteuid() == ROOT:
                    os.fchown(made, self.owner.uid, self.owner.gid)
                os.fchmod(made, self.mode if last else _PARENT_MODE)
                os.rename(_NEW, name, src_dir_fd=hidden, dst_dir_fd=place)
            except OSError as error:
                if made >= 0:
                    os.close(made)
                os.rmdir(_NEW, dir_fd=hidden)
                if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                    return None
                raise
        return made


def _require_root_s(place: int, found: os.stat_result, reason: str) -> None:
    """Refuse, as root, what was found in a place where others could have put it.

    Not as root the kernel's own rules are enough: others gain nothing by what we do there.
    """
    where = os.fstat(place)
    stays = where.st_mode & stat.S_ISVTX and found.st_uid == ROOT
    others = where.st_uid != ROOT or (_may_others_write(where) and not stays)
    if os.geteuid() == ROOT and others:
        raise OSError(errno.EPERM, reason)


def _may_others_write(found: os.stat_result) -> bool:
    return bool(found.st_mode & _OTHERS_WRITE)


@contextmanager
def _hidden_directory(place: int) -> Iterator[int]:
    """Give an empty directory in `place` that only we can write."""
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


def _trusted() -> frozenset[int]:
    # In a container of an ordinary user, who owns "/" is how the kernel shows the real root.
    return frozenset({os.geteuid(), ROOT, Path("/").stat().st_uid})


@dataclass(frozen=True, slots=True)
class _Private:
    """The rules of `make_private_directory`."""

    path: Path
    mode: int
    above: frozenset[int] = field(default_factory=_trusted)
    """Who may own the directories above."""

    def check_link(self, _place: int, step: Path, found: os.stat_result) -> None:
        if found.st_uid not in self.above:
            raise ConfigError(f"{self._where(step)} is a link of uid {found.st_uid}: remove it")

    def check_directory(
        self, _place: int, step: Path, found: os.stat_result, *, last: bool
    ) -> None:
        if found.st_uid not in ({os.geteuid(), ROOT} if last else self.above):
            advice = "choose another run_dir"
            if step == self.path:
                advice = (
                    f"chown it to uid {os.geteuid()}, also where a boot makes it (tmpfiles.d), or"
                    f" {advice}"
                )
            raise ConfigError(
                f"{self._where(step)} belongs to uid {found.st_uid},"
                f" who could replace what is in it: {advice}"
            )
        sticky = not last and found.st_mode & stat.S_ISVTX
        if _may_others_write(found) and not sticky:
            raise ConfigError(
                f"{self._where(step)} can be written by others (mode"
                f" {stat.S_IMODE(found.st_mode):04o}): chmod go-w, or choose another run_dir"
            )

    def make(self, place: int, name: str, *, last: bool) -> int | None:
        try:
            os.mkdir(name, self.mode if last else _PARENT_MODE, dir_fd=place)
        except FileExistsError:
            return None
        return os.open(name, _PASS, dir_fd=place)  # only we can replace it: `place` was checked

    def _where(self, step: Path) -> str:
        return f"run_dir {self.path}:" + ("" if step == self.path else f" {step}")
