"""Puts a directory where a log is, at once: else a worker that looks would make a new log."""

import ctypes
import os
from pathlib import Path

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
