"""The socketpair by which the dispatcher hands connections to one slot.

A connection is one SOCK_SEQPACKET record: its client's name in RECORD_BYTES, and its descriptor as
SCM_RIGHTS (unix(7)). Records queue like connections at a listener, so a pair is kept in escrow as
a listener is: it outlives the slot's worker and the dispatcher, and it can be lent. `close_entry`
ends it without loss: the worker can still take what was handed over, and then reads end-of-file;
the dispatcher sees a broken pipe at once.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import termios
from collections.abc import Callable
from typing import Final

from greeterd.sockets import rights
from greeterd.sockets.steering import SO_ATTACH_FILTER

RECORD_BYTES: Final = 64
"""All records have one length, so that the number of waiting bytes gives their number."""
QUEUE_LIMIT: Final = 128
"""Roughly the most connections that wait in a pair. No more, because a connection that waits at the
listener can still go to any slot, and one in a pair cannot."""
_RECORD_COST: Final = 768
"""Bytes that the kernel counts for a record, sk_buff included."""
_INT_BYTES: Final = array.array("i").itemsize
_libc: Final = ctypes.CDLL(None, use_errno=True)


class HandoffPair:
    """Both ends: `entry` is the dispatcher's, `exit` is the slot's."""

    def __init__(self, entry: socket.socket, exit_: socket.socket) -> None:
        self.entry: Final = entry
        self.exit: Final = exit_

    @classmethod
    def make(cls) -> "HandoffPair":
        """Return a new pair; both ends are non-blocking and close-on-exec."""
        entry, exit_ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pair = cls(entry, exit_)
        pair.set_right()
        return pair

    @classmethod
    def adopt(cls, entry: int, exit_: int) -> "HandoffPair":
        """Take over descriptors of the two ends."""
        return cls(socket.socket(fileno=entry), socket.socket(fileno=exit_))

    @property
    def fds(self) -> tuple[int, int]:
        """The descriptors of entry and exit."""
        return self.entry.fileno(), self.exit.fileno()

    def close_entry(self) -> None:
        """End the entry: for every process that holds it, sending fails and POLLHUP is reported."""
        self.entry.shutdown(socket.SHUT_RDWR)

    @property
    def spoiled(self) -> str:
        """What a worker has changed so that fewer connections arrive; empty if nothing."""
        if receives_no_more(self.exit):
            return "shut down"
        changed = {
            "O_NONBLOCK": any(map(os.get_blocking, self.fds)),
            "SO_PASSCRED": self.exit.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED),
            "SO_PASSSEC": self.exit.getsockopt(socket.SOL_SOCKET, socket.SO_PASSSEC),
            "SO_ATTACH_FILTER": has_filter(self.exit),
        }
        names = ", ".join(name for name, is_so in changed.items() if is_so)
        return names and f"changed: {names}"

    def set_right(self) -> None:
        """Undo what a worker has changed of both ends; a filter stays."""
        self.entry.setblocking(False)
        self.exit.setblocking(False)
        self.entry.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_LIMIT * _RECORD_COST // 2)
        # Credentials would come with each record, and there is no room for them.
        self.exit.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        self.exit.setsockopt(socket.SOL_SOCKET, socket.SO_PASSSEC, 0)

    def pour_into(self, other: "HandoffPair") -> None:
        """Move the connections that wait here to another pair, as far as that has room."""
        take = taker(self.exit)
        with contextlib.suppress(OSError):
            while True:
                fd, client = take()
                try:
                    hand_over(other.entry, fd, client)
                finally:
                    os.close(fd)

    @property
    def closed(self) -> bool:
        """Whether nothing more can be handed over."""
        poll = select.poll()
        poll.register(self.entry, 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close this process's copies."""
        self.entry.close()
        self.exit.close()


def hand_over(entry: socket.socket, fd: int, client: str) -> None:
    """Put a connection into the pair; the caller still has to close its own descriptor.

    Raises:
        BlockingIOError: the pair is full, or too many descriptors are in flight.
        BrokenPipeError: the pair takes no more.

    """
    record = client.encode("ascii", "replace")[:RECORD_BYTES].ljust(RECORD_BYTES, b"\0")
    right = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(_INT_BYTES, "little"))
    try:
        entry.sendmsg((record,), (right,), socket.MSG_NOSIGNAL)
    except OSError as error:
        # ETOOMANYREFS: this user has more descriptors on their way than RLIMIT_NOFILE.
        if error.errno in {errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}:
            raise BlockingIOError(error.errno, error.strerror) from error
        raise


def taker(exit_: socket.socket) -> Callable[[], tuple[int, str]]:
    """Return a function that takes the next connection: its descriptor, and its client's name.

    It is called in place of accept(2) of a listener, and raises the same errors: BlockingIOError
    when nothing waits, OSError with EINVAL when the pair has ended, with EMFILE when a connection
    came and no descriptor was free: that connection is lost.
    """
    receive = rights.receiver_of_one(exit_, RECORD_BYTES)

    def take() -> tuple[int, str]:
        record, fd = receive()
        if fd is None:
            if record:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            raise OSError(errno.EINVAL, "the pair has ended")
        return fd, record.rstrip(b"\0").decode("latin-1")  # ASCII; and whatever it is, no error

    return take


def has_filter(sock: socket.socket) -> bool:
    """Return whether a filter may drop what arrives: packets, or records of a socketpair."""
    # Not sock.getsockopt(): the kernel counts this buffer in instructions, and would write beyond
    # its end. Without a buffer it returns their number; for an eBPF filter, an error.
    count = ctypes.c_uint(0)
    failed = _libc.getsockopt(
        sock.fileno(), socket.SOL_SOCKET, SO_ATTACH_FILTER, None, ctypes.byref(count)
    )
    return bool(failed) or count.value > 0


def receives_no_more(sock: socket.socket) -> bool:
    """Return whether a unix socket can receive no more: it or its peer was shut down."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def waiting(exit_: socket.socket) -> int:
    """Return how many connections wait in the pair."""
    count = array.array("i", [0])
    fcntl.ioctl(exit_, termios.FIONREAD, count)
    return count[0] // RECORD_BYTES


def is_exit(sock: socket.socket) -> bool:
    """Return whether this is the exit of a pair, and not a listener."""
    return sock.type == socket.SOCK_SEQPACKET
