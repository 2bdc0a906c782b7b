"""Refuses a directory that somebody else has made or could change, as StrictModes of sshd(8) does.

Trusted are root, this process's user, and for directories above also who owns "/": in a container
of an ordinary user that is how the kernel shows the real root. Where only they can change names, a
name that was looked at stays what it was, so paths are safe here.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from greeterd.errors import ConfigError

_MOST_LINKS: Final = 40  # as the kernel follows, path_resolution(7)
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def make_directory(path: Path, mode: int) -> None:
    """Make sure that `path` is a directory that only root and we can change or replace.

    What is missing is made, the last with `mode`, those above with 0755, less the umask. Of those
    above, others may write in one with the sticky bit (/tmp), where they can replace only theirs.

    Raises:
        ConfigError: somebody else can; the message says who, where, and what to do about it.
        OSError: it is no directory, or cannot be made.

    """
    above = {os.geteuid(), 0, Path("/").stat().st_uid}
    here, links = Path("/"), 0
    todo = [*reversed(path.absolute().parts)]
    while todo:
        # A name of "/" or ".." leads to what was looked at before.
        step = Path(os.path.normpath(here / todo.pop()))
        last = not todo
        found = _look(step, mode if last else 0o755)
        if stat.S_ISLNK(found.st_mode):
            if found.st_uid not in above:
                raise ConfigError(
                    f"{_where(path, step)} is a link of uid {found.st_uid}: remove it"
                )
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            todo.extend(reversed(step.readlink().parts))
            continue
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(step))
        here = step
        if not last:
            _check(path, step, found, above, sticky=True)
    _check(path, here, here.stat(), {os.geteuid(), 0}, sticky=False)


def _look(step: Path, mode: int) -> os.stat_result:
    with suppress(FileNotFoundError):
        return step.lstat()
    with suppress(FileExistsError):
        step.mkdir(mode)
    return step.lstat()


def _check(
    path: Path, step: Path, found: os.stat_result, owners: set[int], *, sticky: bool
) -> None:
    if found.st_uid not in owners:
        advice = "choose another run_dir"
        if step == path:
            mend = f"chown it to uid {os.geteuid()}, also where a boot makes it (tmpfiles.d)"
            advice = f"{mend}, or {advice}"
        raise ConfigError(
            f"{_where(path, step)} belongs to uid {found.st_uid},"
            f" who could replace what is in it: {advice}"
        )
    if found.st_mode & _OTHERS_WRITE and not (sticky and found.st_mode & stat.S_ISVTX):
        raise ConfigError(
            f"{_where(path, step)} can be written by others (mode"
            f" {stat.S_IMODE(found.st_mode):04o}): chmod go-w, or choose another run_dir"
        )


def _where(path: Path, step: Path) -> str:
    return f"run_dir {path}:" if step == path else f"run_dir {path}: {step}"
