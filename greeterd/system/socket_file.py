"""Looks at the files of unix sockets, and removes them: what is ours, or what nobody answers at.

The directory of a path is looked up once and held by descriptor. Whoever may write in it, or in one
above, can lead a later look elsewhere, but what is removed is in the directory that was looked at.
"""

import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from greeterd.errors import AlreadyRunningError, refusal

CONTROL_SOCKET: Final = "control.sock"
"""The name in the run directory."""

_LONGEST_NAME: Final = 107
"""Bytes in sockaddr_un.sun_path less its zero byte, unix(7)."""

FileId = tuple[int, int]
"""Device and inode: what tells a file from a later one of the same name."""


class Peer(NamedTuple):
    """Who is at the other end: as of its connect() for a client, of its listen() for a server."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> Peer:
    """Return who the kernel says is at the other end of a unix socket."""
    return Peer(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Give a name for `path` that bind() and connect() take, however deep the directory is."""
    if len(os.fsencode(path)) <= _LONGEST_NAME:
        yield str(path)
        return
    with _directory_of(path) as directory:
        yield f"/proc/self/fd/{directory}/{path.name}"


def file_at(path: Path) -> FileId | None:
    """Return which file has the name, itself and not where it leads; None when there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def answerer(path: Path) -> Peer | None:
    """Return who listens at `path`, None when nobody does; at once.

    Of a socket of another type, or with a full queue, only that somebody has it is known: pid 0.

    Raises:
        OSError: it cannot be found out.

    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            with short_name(path) as name:
                probe.connect(name)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EPROTOTYPE}:
                return Peer(0, -1, -1)
            raise
        return peer_of(probe)


def refuse_second(path: Path) -> None:
    """Do nothing when nobody answers at a control socket.

    Raises:
        AlreadyRunningError: a daemon does, whatever became of its run lock.
        ConfigError, ResourceError: it cannot be found out.

    """
    try:
        peer = answerer(path)
    except OSError as error:
        raise refusal("control socket", error, path) from error
    if peer is not None:
        who = f" as pid {peer.pid}" if peer.pid else ""
        raise AlreadyRunningError(f"already running{who} (it answers at {path})")


class Place:
    """Where a socket's file is, or is to be: a name in a directory that is held open."""

    def __init__(self, directory: int, path: Path) -> None:
        self._directory = directory
        self._path = path

    def look(self) -> os.stat_result | None:
        """Return what has the name; None for nothing."""
        with suppress(FileNotFoundError):
            return os.stat(self._path.name, dir_fd=self._directory, follow_symlinks=False)
        return None

    def clear(self) -> None:
        """Remove a socket that nobody answers at.

        Two that start at one path in the same instant can remove each other's: between bind() and
        listen() nobody answers yet. A lock of theirs has to keep them apart.

        Raises:
            OSError: it is something else (EEXIST), or somebody answers (EADDRINUSE).

        """
        found = self.look()
        if found is None:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if answerer(self._path) is not None:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._unlink()

    def remove(self, file: FileId) -> None:
        """Remove this very file; whatever else has its name stays."""
        found = self.look()
        if found is not None and (found.st_dev, found.st_ino) == file:
            self._unlink()

    def refresh(self, file: FileId, age: float) -> None:
        """Set the times of this very file to now, if they are older than `age` seconds."""
        found = self.look()
        if found is None or (found.st_dev, found.st_ino) != file:
            return
        if abs(time.clock_gettime(time.CLOCK_REALTIME) - found.st_mtime) > age:
            os.utime(self._path.name, dir_fd=self._directory, follow_symlinks=False)

    def _unlink(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path.name, dir_fd=self._directory)


@contextmanager
def place_of(path: Path) -> Iterator[Place]:
    """Give the place that a path names now; OSError when there is no such directory."""
    with _directory_of(path) as directory:
        yield Place(directory, path)


@contextmanager
def _directory_of(path: Path) -> Iterator[int]:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)
