"""The files of unix sockets: who listens at one, and removing our own or a dead one.

The directory of a path is opened once and kept open. A user who may write in it, or in one above,
can lead a later look elsewhere, but what is removed is in the directory that was looked at.
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
"""Device and inode: they identify a file when a later one has its name."""


class Peer(NamedTuple):
    """The process at the other end: as of its connect() for a client, its listen() for a server."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> Peer:
    """Return the process at the other end of a unix socket, as the kernel knows it."""
    return Peer(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Give a name for `path` that is short enough for bind() and connect()."""
    if len(os.fsencode(path)) <= _LONGEST_NAME:
        yield str(path)
        return
    with _directory_of(path) as directory:
        yield f"/proc/self/fd/{directory}/{path.name}"


def file_at(path: Path) -> FileId | None:
    """Return the file of this name, a link itself and not its target; None when there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def answerer(path: Path) -> Peer | None:
    """Return the process that listens at `path`, or None; never blocks.

    pid 0 is an unknown process: the socket is of another type, or its queue is full.

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
    """Make sure that no daemon listens at a control socket.

    Raises:
        AlreadyRunningError: one does, although its run lock is not held.
        ConfigError, ResourceError: it cannot be found out.

    """
    try:
        peer = answerer(path)
    except OSError as error:
        raise refusal("control socket", error, path) from error
    if peer is not None:
        who = f" as pid {peer.pid}" if peer.pid else ""
        raise AlreadyRunningError(f"already running{who} (it answers at {path})")


class SocketFile:
    """The place of a socket's file: a name in a directory that is kept open."""

    def __init__(self, directory: int, path: Path) -> None:
        self._directory = directory
        self._path = path

    def look(self) -> os.stat_result | None:
        """Return the status of the file of this name, or None."""
        with suppress(FileNotFoundError):
            return os.stat(self._path.name, dir_fd=self._directory, follow_symlinks=False)
        return None

    def clear(self) -> None:
        """Remove a socket that no process listens at.

        Two processes that start at one path in the same instant can remove each other's socket:
        between bind() and listen() it looks dead. They need a lock against that.

        Raises:
            OSError: it is no socket (EEXIST), or a process listens at it (EADDRINUSE).

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
        """Remove this file; another file of its name stays."""
        found = self.look()
        if found is not None and (found.st_dev, found.st_ino) == file:
            self._unlink()

    def refresh(self, file: FileId, age: float) -> None:
        """Set the times of this file to now if they are older than `age` seconds."""
        found = self.look()
        if found is None or (found.st_dev, found.st_ino) != file:
            return
        if abs(time.clock_gettime(time.CLOCK_REALTIME) - found.st_mtime) > age:
            os.utime(self._path.name, dir_fd=self._directory, follow_symlinks=False)

    def _unlink(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path.name, dir_fd=self._directory)


@contextmanager
def place_of(path: Path) -> Iterator[SocketFile]:
    """Give the place that a path names now.  Raises: OSError: there is no such directory."""
    with _directory_of(path) as directory:
        yield SocketFile(directory, path)


@contextmanager
def _directory_of(path: Path) -> Iterator[int]:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)
