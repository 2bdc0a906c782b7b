"""Unix sockets: who is at the other end, a name that fits, and listening for one user only."""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from greeterd.errors import ListenError

BACKLOG: Final = 64

_LONGEST_NAME: Final = 107
"""Bytes in sockaddr_un.sun_path less its zero byte, unix(7)."""

_FIELDS = 8
_ACCEPTS = b"00010000"
"""The flags of a socket that is listened on: __SO_ACCEPTCON."""


class Peer(NamedTuple):
    """Who is at the other end: as of its connect() for a client, of its listen() for a server."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> Peer:
    """Return who the kernel says is at the other end of a unix socket."""
    return Peer(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Give a name for `path` that bind() and connect() take, however deep the directory is."""
    if len(os.fsencode(path)) <= _LONGEST_NAME:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listeners() -> Iterator[Path]:
    """Yield the paths of this host's unix sockets that are listened on, whosever they are.

    Any user may see them, though not reach them.  Nothing is verified: a path may hold a newline,
    and be one of another mount namespace (proc(5), /proc/net/unix).
    """
    with contextlib.suppress(OSError), Path("/proc/net/unix").open("rb") as table:
        for line in table:
            fields = line.rstrip(b"\n").split(maxsplit=7)
            if len(fields) == _FIELDS and fields[3] == _ACCEPTS:
                yield Path(os.fsdecode(fields[7]))


def inode_of(path: Path) -> tuple[int, int]:
    """Return what tells this file from a later one of the same name; OSError without a file."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def listen_at(path: Path) -> socket.socket:
    """Return a non-blocking listening socket whose file only this user can use.

    A socket that is there already is replaced: the caller knows that its daemon is dead.

    Raises:
        ListenError: the directory cannot be written, or the path is something else than a socket.

    """
    with contextlib.ExitStack() as undo:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        undo.callback(sock.close)
        try:
            _remove_stale(path)
            # bind() gives the file the mode of the socket's own inode less the umask (Linux,
            # unix_bind_bsd): it never has a wider one, and the process's umask is left alone.
            os.fchmod(sock.fileno(), 0o600)
            with short_name(path) as name:
                sock.bind(name)
            sock.listen(BACKLOG)
        except OSError as error:
            reason = f"cannot open the control socket {path}: {error.strerror}"
            raise ListenError(reason) from error
        undo.pop_all()
    return sock


def _remove_stale(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ListenError(f"{path} exists and is not a socket")
        path.unlink()
