"""Lets one daemon run per run directory, whatever a dead one left there.

The run lock is a flock(2) on `run_dir/greeterd.pid`. The lock alone decides who runs; the line in
it, "PID STARTTIME" (field 22 of proc_pid_stat(5), clock ticks after boot), is only for people and
messages, and is believed only if a process with that pid and that start time lives. So neither a
stale file nor a recycled pid can stop a start.
flock belongs to the open file description: it survives fork and exec, and ends when the last
descriptor is closed. Hence a worker closes `RunLock.fd` first of all: the lock must end with the
master, not with its slowest worker. The master writes the file; anyone in its group reads it.
"""

import fcntl
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Self

from greeterd.errors import AlreadyRunningError, ConfigError, GreeterdError

FILE_NAME = "greeterd.pid"
# flock needs no write permission: who may read the file could hold the lock against us.
FILE_MODE = 0o640
DIR_MODE = 0o750


class RunLock:
    """The right to run in `run_dir`; `fd` is for workers to close and for an upgrade to pass on."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def acquire(cls, run_dir: Path, *, owners: Collection[int] = ()) -> Self:
        """Take the lock and write our pid; creates `run_dir` (0750) if it is missing.

        In a directory that everybody may write (/tmp), `run_dir` must belong to us, root or
        one of the uids `owners`, and be writable by no other: anyone could have made it, to
        have us follow a link or to hold the lock against us.

        Raises: AlreadyRunningError naming the pid that holds it; ConfigError if `run_dir`
        cannot be used.
        """
        path = run_dir / FILE_NAME
        try:
            directory = _open_run_dir(run_dir, {os.geteuid(), 0, *owners})
            try:
                lock = cls(_lock(directory, path), path)
            finally:
                os.close(directory)
            try:
                lock.update(os.getpid())
            except OSError:
                lock.release()
                raise
        except OSError as error:
            raise ConfigError(f"run lock {path}: {error.strerror}") from error
        return lock

    @classmethod
    def adopt(cls, fd: int, run_dir: Path) -> Self:
        """Take over the descriptor of a lock that our predecessor holds and goes on holding.

        The content stays the predecessor's until `update`.

        Raises: GreeterdError if `fd` is not the lock of `run_dir`.
        """
        path = run_dir / FILE_NAME
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ours by the same description
            if not _is_same_file(fd, path):
                raise GreeterdError(f"descriptor {fd} is not the run lock {path}")
        except OSError as error:
            raise GreeterdError(
                f"descriptor {fd} is not the run lock {path}: {error.strerror}"
            ) from error
        os.set_inheritable(fd, False)
        return cls(fd, path)

    def update(self, pid: int) -> None:
        """Write `pid`, a living process, as the holder. The lock itself does not move.

        Raises: OSError if the file cannot be written (a full disk).
        """
        content = b"%d %d\n" % (pid, _start_time(pid) or 0)
        # Written over, then cut: a reader sees a whole first line at any moment.
        os.pwrite(self.fd, content, 0)
        os.ftruncate(self.fd, len(content))

    def release(self) -> None:
        """End the lock for every holder of the description, and remove the file; idempotent."""
        if self.fd < 0:
            return
        with suppress(OSError):
            os.ftruncate(self.fd, 0)  # also where unlinking is not permitted any more
            if _is_same_file(self.fd, self.path):
                self.path.unlink()
        # Unlinked before unlocked: a starter that waits at the old file sees that its path is
        # gone, and tries again (_lock). The other way round it could lock a file that we remove.
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.close()

    def close(self) -> None:
        """Give up this process's descriptor only: in workers, and in the old master of an upgrade.

        The lock lives on while another process holds the description.
        """
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def running_pid(run_dir: Path) -> int | None:
    """Return the pid in the run lock's file if that very process lives."""
    try:
        with (run_dir / FILE_NAME).open("rb") as file:
            words = file.readline(64).split()
    except OSError:
        return None
    if len(words) != 2 or not all(word.isdigit() for word in words):  # noqa: PLR2004
        return None
    pid, started = map(int, words)
    return pid if _start_time(pid) == started else None


def _open_run_dir(run_dir: Path, owners: Collection[int]) -> int:
    """Open the directory, so that what was checked is what is used.

    Raises: ConfigError if somebody else may have made it; OSError.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        run_dir.mkdir(mode=DIR_MODE)
    shared = run_dir.parent.stat().st_mode & stat.S_IWOTH
    flags = os.O_RDONLY | os.O_DIRECTORY
    if not shared:
        return os.open(run_dir, flags)
    if run_dir.is_symlink():
        raise ConfigError(f"run_dir {run_dir} is a link in a directory that everybody may write")
    directory = os.open(run_dir, flags | os.O_NOFOLLOW)
    found = os.fstat(directory)
    if found.st_uid in owners and not found.st_mode & stat.S_IWOTH:
        return directory
    os.close(directory)
    raise ConfigError(
        f"run_dir {run_dir} is in a directory that everybody may write, and is"
        f" owned by uid {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}: remove it"
    )


def _lock(directory: int, path: Path) -> int:
    """Return a locked descriptor of the file that has the name now. Raises: OSError."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(FILE_NAME, flags, FILE_MODE, dir_fd=directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(fd, FILE_NAME, directory):
                return fd
            # The holder left between our open and our lock, and took the file away.
        except BlockingIOError:
            os.close(fd)
            pid = running_pid(path.parent)
            who = "by a process that its file does not name" if pid is None else f"as pid {pid}"
            raise AlreadyRunningError(f"already running {who} (run lock {path})") from None
        except OSError:
            os.close(fd)
            raise
        os.close(fd)


def _is_same_file(fd: int, path: Path | str, directory: int | None = None) -> bool:
    try:
        named = os.stat(path, dir_fd=directory, follow_symlinks=False)
        return os.path.samestat(os.fstat(fd), named)
    except FileNotFoundError:
        return False


def _start_time(pid: int) -> int | None:
    """Return when a living process started, in clock ticks after boot; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # Field 2 is the command in parentheses and may contain any byte: count from its end.
    return int(text.rpartition(b")")[2].split()[19])
