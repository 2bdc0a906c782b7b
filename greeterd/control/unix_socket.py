"""Opens the control socket, for one user only; finds the control sockets of this host."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from greeterd.errors import ListenError
from greeterd.system.socket_file import place_of, refuse_second, short_name

BACKLOG: Final = 64

_FIELDS = 8
_ACCEPTS = b"00010000"
"""The flags of a socket that is listened on: __SO_ACCEPTCON."""


def listeners() -> Iterator[Path]:
    """Yield the paths of all unix sockets of this host that are listened on, of any user.

    Any user may see them, though not connect. The paths are not verified: one may hold a newline,
    or be of another mount namespace (proc(5), /proc/net/unix).
    """
    with contextlib.suppress(OSError), Path("/proc/net/unix").open("rb") as table:
        for line in table:
            fields = line.rstrip(b"\n").split(maxsplit=7)
            if len(fields) == _FIELDS and fields[3] == _ACCEPTS:
                yield Path(os.fsdecode(fields[7]))


def listen_at(path: Path) -> socket.socket:
    """Return a non-blocking listening socket whose file only this user can use.

    A socket where no process listens is replaced.

    Raises:
        AlreadyRunningError: a process listens at `path`.
        ConfigError, ResourceError: as refuse_second.
        ListenError: the directory cannot be written, or the path is not a socket.

    """
    refuse_second(path)
    with contextlib.ExitStack() as undo:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        undo.callback(sock.close)
        try:
            with place_of(path) as place:
                place.clear()
            # bind() gives the file the mode of the socket's own inode less the umask (Linux,
            # unix_bind_bsd), so the file never has a wider mode, without changing the umask.
            os.fchmod(sock.fileno(), 0o600)
            with short_name(path) as name:
                sock.bind(name)
            sock.listen(BACKLOG)
        except FileExistsError as error:
            raise ListenError(f"{path} exists and is not a socket") from error
        except OSError as error:
            reason = "a process listens" if error.errno == errno.EADDRINUSE else error.strerror
            raise ListenError(f"cannot open the control socket {path}: {reason}") from error
        undo.pop_all()
    return sock
