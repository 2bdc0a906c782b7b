"""Passes descriptors between processes (SCM_RIGHTS, unix(7)); the only module that receives any.

Neither the peer nor completeness is trusted: the peer may attach any descriptors, and the kernel
drops those for which none is free here (MSG_CTRUNC), or cuts off bytes (MSG_TRUNC). So a record has
all of its descriptors or none, each close-on-exec. Close what an untrusted process has sent with
`close_all`: close(2) may block for as long as its sender likes.
"""

import array
import contextlib
import os
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from greeterd.system import signals

MAX_FDS: Final = 253
"""SCM_MAX_FD of the kernel: descriptors in one message."""
_INT_BYTES: Final = array.array("i").itemsize
_FLAGS: Final = socket.MSG_CMSG_CLOEXEC


@dataclass(frozen=True, slots=True)
class Parcel:
    """A record."""

    data: bytes
    """Empty at the end of the stream."""
    fds: list[int]
    cut: bool
    """It was longer than expected; the rest is lost."""
    lost: bool
    """It has more descriptors than were taken; none of them is open here."""


def send(sock: socket.socket, data: bytes, fds: Collection[int] = ()) -> None:
    """Send a record with duplicates of descriptors.

    Raises:
        OSError: it cannot be sent; ETOOMANYREFS: too many are on their way already.

    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def peek(sock: socket.socket, size: int) -> Parcel:
    """Look at the next record and leave it queued; `lost` means that it carries descriptors.

    None is opened or closed: to take a record closes those that are not taken, and that may block
    (see signals.prodded). Raises: as `receive`.
    """
    data, _, flags, _ = sock.recvmsg(size, 0, socket.MSG_PEEK)
    return Parcel(data, [], bool(flags & socket.MSG_TRUNC), bool(flags & socket.MSG_CTRUNC))


def receive(sock: socket.socket, size: int, most_fds: int = MAX_FDS) -> Parcel:
    """Take the next record, with at most `most_fds` descriptors.

    Raises:
        BlockingIOError: nothing waits.
        OSError: the socket cannot be used any more.

    """
    # Not CMSG_SPACE: its padding has room for one more. Not socket.recv_fds: in CPython 3.11 it
    # ignores its flags, so that the descriptors would leak into every program that is executed.
    data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_LEN(most_fds * _INT_BYTES), _FLAGS)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % _INT_BYTES])
    lost = bool(flags & socket.MSG_CTRUNC)
    if lost:
        close_all(fds)
        del fds[:]
    return Parcel(data, list(fds), bool(flags & socket.MSG_TRUNC), lost)


def receiver_of_one(sock: socket.socket, size: int) -> Callable[[], tuple[bytes, int | None]]:
    """Return a function that takes the next record and its one descriptor, or None without one.

    It is for the hot path. Raises: as `receive`.
    """
    recvmsg, space = sock.recvmsg, socket.CMSG_LEN(_INT_BYTES)

    def take() -> tuple[bytes, int | None]:
        data, ancillary, _, _ = recvmsg(size, space, _FLAGS)
        # There is room for one descriptor, and for nothing else that a peer could attach.
        return data, int.from_bytes(ancillary[0][2], "little") if ancillary else None

    return take


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors from an untrusted process, in bounded time."""
    with signals.prodded():
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)
