"""Operations on a log file by its descriptor: open, find the end, rewrite what was not synced.

Offsets are bytes.
"""

import errno
import os
from fcntl import F_GETFL, F_SETFL, fcntl
from pathlib import Path
from typing import Final

from greeterd.system.files import open_regular

_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT
_MODE: Final = 0o640
_BLOCK_BYTES: Final = 65536


def open_log_file(path: Path, *, durable: bool) -> int:
    """Open the path for appending, or create it; if durable, sync its name, too.

    Raises:
        OSError: it cannot be opened, or is not a regular file.

    """
    fd = open_regular(path, _FLAGS, _MODE)
    try:
        if durable:
            _sync_directory(path.parent)  # a new file's name is data of its directory
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        raise with_path(error, path) from error
    finally:
        os.close(fd)


def with_path(error: OSError, path: Path) -> OSError:
    """Return an error that names its file; a call by descriptor raises one that does not."""
    if error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, str(path))


def is_at(fd: int, path: Path) -> bool:
    """Return whether the path leads to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except OSError:
        return False


def end_of_last_line(fd: int, end: int) -> int:
    """Return the offset after the last line feed before `end`; 0 if there is none."""
    if end and os.pread(fd, 1, end - 1) == b"\n":
        return end
    while end:
        start = max(0, end - _BLOCK_BYTES)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def cut(fd: int, end: int) -> None:
    """Cut the file off at `end`.

    Raises:
        OSError: it cannot be cut, such as an append-only file (chattr +a).

    """
    try:
        os.ftruncate(fd, end)
    except OSError as error:
        reason = f"a torn record cannot be cut off: {error.strerror}"
        raise OSError(error.errno, reason) from error


def sync_again(fd: int, lines: bytes, start: int) -> None:
    """Sync lines that were written at `start` and that an earlier fdatasync(2) could not sync.

    Linux marks pages clean even when writing them back has failed, so a second fdatasync alone
    would falsely report success. Writing the same bytes at the same place dirties them; writing
    them at the end would log the greetings twice.

    Raises:
        OSError: they cannot be written or synced.

    """
    if os.fstat(fd).st_size >= start + len(lines):  # else another process has truncated the file
        # With O_APPEND, pwrite appends whatever its offset is (pwrite(2), BUGS).
        flags = fcntl(fd, F_GETFL)
        fcntl(fd, F_SETFL, flags & ~os.O_APPEND)
        try:
            if os.pwrite(fd, lines, start) != len(lines):
                raise OSError(errno.EIO, "cannot be written again")
        finally:
            fcntl(fd, F_SETFL, flags)
    os.fdatasync(fd)
