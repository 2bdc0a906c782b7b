"""The pid file, and the lock on it: one daemon per run directory, whatever a dead one left there.

The run lock is a flock(2) on `run_dir/greeterd.pid`. Only the lock counts; the pid in the file is
for people, scripts and messages. Whenever the lock is held, the pid is its holder's, since a lock
ends with its process. (An earlier version wrote its start time after the pid.)
A lock whose file has lost its name stops no second daemon, so `master.names` renews it.
flock belongs to the open file description: it survives fork and exec, and ends when the last
descriptor is closed. Hence a worker closes `PidLock.fd` first of all: the lock must end with the
master, not with its slowest worker. The master writes the file; its group may read it.
"""

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self

from greeterd.errors import AlreadyRunningError, ConfigError, GreeterdError, refusal
from greeterd.system.directories import make_private_directory
from greeterd.system.files import open_regular
from greeterd.system.socket_file import CONTROL_SOCKET, FileId, file_at, refuse_second

FILE_NAME = "greeterd.pid"
# flock needs no write permission: any user who may read the file could hold the lock.
FILE_MODE = 0o640
DIR_MODE = 0o750


class PidLock:
    """The run lock of a run directory; workers close `fd`, an upgrade passes it on."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def acquire(cls, run_dir: Path) -> Self:
        """Take the lock and write our pid; creates `run_dir` (0750) if it is missing.

        A daemon whose lock has lost its name is found by its control socket.

        Raises: AlreadyRunningError naming the pid that holds it; ConfigError if `run_dir` cannot be
        used, or others could change what is in it; ResourceError for a reason that may pass.
        """
        lock = cls._take(run_dir)
        try:
            refuse_second(run_dir / CONTROL_SOCKET)
            lock.publish()
        except GreeterdError:
            lock.release()
            raise
        return lock

    @classmethod
    def _take(cls, run_dir: Path) -> Self:
        path = run_dir / FILE_NAME
        try:
            return cls(_lock(path), path)
        except OSError as error:
            raise refusal("run lock", error, path) from error

    @classmethod
    def adopt(cls, fd: int, run_dir: Path) -> Self:
        """Take over the descriptor of a lock that our predecessor holds and goes on holding.

        A predecessor of another version may have written more than the pid: `publish` again.

        Raises: GreeterdError if `fd` is not the lock of `run_dir`.
        """
        lock = cls(fd, run_dir / FILE_NAME)
        what = f"descriptor {fd} is not the run lock {lock.path}"
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ours by the same description
            found = os.fstat(fd)
            # A file without a name is still the lock; it is renewed once we run.
            unnamed = stat.S_ISREG(found.st_mode) and found.st_nlink == 0
            if not unnamed and lock.file != file_at(lock.path):
                raise GreeterdError(what)
        except OSError as error:
            raise GreeterdError(f"{what}: {error.strerror}") from error
        os.set_inheritable(fd, False)
        return lock

    @property
    def file(self) -> FileId:
        """The file that is locked, whichever file has its name now."""
        found = os.fstat(self.fd)
        return found.st_dev, found.st_ino

    def publish(self) -> None:
        """Write our pid into the file.

        Raises: ConfigError, ResourceError if it cannot be written (a full disk).
        """
        try:
            _write_pid(self.fd)
        except OSError as error:
            raise refusal("run lock", error, self.path) from error

    def renew(self) -> None:
        """Lock the file that has the name now, created if there is none, instead of the old one.

        Raises: as `acquire`; the old lock is kept then.
        """
        fresh = self._take(self.path.parent)
        try:
            fresh.publish()
        except GreeterdError:
            fresh.release()
            raise
        self.close()
        self.fd = fresh.fd

    def release(self) -> None:
        """End the lock for every process that shares it, and remove the file; idempotent."""
        if self.fd < 0:
            return
        with suppress(OSError):
            os.ftruncate(self.fd, 0)  # first: unlinking may not be permitted any more
            if self.file == file_at(self.path):
                self.path.unlink()
        # Unlinked before it is unlocked: a daemon that starts meanwhile, and has opened the old
        # file, sees that the path is gone and tries again (_lock). The other way round it could
        # lock a file that we remove.
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.close()

    def close(self) -> None:
        """Close this process's descriptor only: in workers, and in the old master of an upgrade.

        The lock lasts while another process has it open.
        """
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def prepare_run_dir(run_dir: Path) -> None:
    """Make sure that `run_dir` exists, and that no other user can change what is in it.

    Raises: ConfigError, ResourceError as PidLock.acquire.
    """
    try:
        make_private_directory(run_dir, DIR_MODE)
    except OSError as error:
        raise refusal("run_dir", error, run_dir) from error


def running_pid(run_dir: Path) -> int | None:
    """Return the pid in the pid file if such a process lives, else None.

    It is the pid of the lock's holder; where the lock is not held, one that a dead daemon left.
    """
    try:
        fd = open_regular(run_dir / FILE_NAME, os.O_RDONLY)
    except OSError:
        return None
    pid = 0
    try:
        word = os.pread(fd, 64, 0).partition(b"\n")[0].partition(b" ")[0]
        pid = int(word) if word.isdigit() else 0
        if pid:
            os.kill(pid, 0)
    except PermissionError:
        return pid  # it lives, and is another user's
    except (OSError, OverflowError):
        return None
    finally:
        os.close(fd)
    return pid or None


def _lock(path: Path) -> int:
    """Return a locked descriptor of the file that has the name now.

    Raises: OSError; AlreadyRunningError; ConfigError.
    """
    make_private_directory(path.parent, DIR_MODE)
    while True:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            found = os.fstat(fd)
            if found.st_uid not in {os.geteuid(), 0}:
                # The file may be older than the directory's present owner.
                raise ConfigError(f"run lock {path}: it belongs to uid {found.st_uid}: remove it")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (found.st_dev, found.st_ino) == file_at(path):
                return fd
            # The holder has ended between our open and our lock, and removed the file.
        except BlockingIOError:
            os.close(fd)
            pid = running_pid(path.parent)
            who = "by a process that its file does not name" if pid is None else f"as pid {pid}"
            raise AlreadyRunningError(f"already running {who} (run lock {path})") from None
        except (OSError, GreeterdError):
            os.close(fd)
            raise
        os.close(fd)


def _write_pid(fd: int) -> None:
    content = b"%d\n" % os.getpid()
    # Overwritten, then truncated: a reader sees a whole first line at any moment.
    os.pwrite(fd, content, 0)
    os.ftruncate(fd, len(content))
