"""What stands in a log's way: a directory in its place, and a disk that fills.

A directory is put there at once: else a worker that looks would make a new log.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.harness import Daemon

LITTLE = 320 * 1024  # bytes of room; the scoreboard is a file, too, and has to fit

_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h
_LIBC = ctypes.CDLL(None, use_errno=True)


def obstruct(log: Path) -> None:
    """Put an empty directory in the log's place."""
    away = log.with_suffix(".away")
    away.mkdir()
    exchange(log, away)


def clear(log: Path) -> None:
    """Put the log back that was there before."""
    away = log.with_suffix(".away")
    exchange(log, away)
    away.rmdir()


def exchange(one: Path, other: Path) -> None:
    """Let each have the other's name."""
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if _LIBC.renameat2(*names, _RENAME_EXCHANGE) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


class SmallDisk:
    """A file system of its own that only the daemon has mounted."""

    workers = 2
    reason = "No space left on device"

    def __init__(self, log_dir: Path) -> None:
        self.log_dir = log_dir
        if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("nsenter")):
            pytest.skip("a mount of the daemon's own needs root, unshare and nsenter")
        mount = f'mount -t tmpfs -o size={LITTLE} greetings {self.log_dir} && exec "$@"'
        self.prefix = ["unshare", "--mount", "--propagation=private", "sh", "-c", mount, "sh"]

    def seen(self, daemon: Daemon) -> Path:
        """Return it as the daemon sees it."""
        return Path(f"/proc/{daemon.pid}/root{self.log_dir}")

    def give(self, daemon: Daemon) -> None:
        """Make the disk larger."""
        remount = ["mount", "-o", f"remount,size={LITTLE * 16}", str(self.log_dir)]
        subprocess.run([*self.inside(daemon), *remount], check=True)

    def fill(self, daemon: Daemon) -> None:
        """Fill the disk with a file that is none of the daemon's."""
        ballast = self.seen(daemon) / "ballast"
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def clear(self, daemon: Daemon) -> None:
        """Remove that file."""
        (self.seen(daemon) / "ballast").unlink()

    def inside(self, daemon: Daemon) -> list[str]:
        """Return what is put before a command that is to see the disk."""
        return ["nsenter", f"--target={daemon.pid}", "--mount"]
