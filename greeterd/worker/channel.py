"""The socketpair between the master and one worker: messages, with descriptors.

One message is one SOCK_SEQPACKET record, so nothing is ever half read.  Closing it is a message,
too: the worker that reads end-of-file knows that the master is gone, and drains.  Neither side
ever blocks: a worker that does not read its few, small messages is hung, and is ended by its
heartbeat; what the worker sends is looked at before it is taken, and closed in bounded time.
"""

import errno
import os
import socket
from dataclasses import dataclass, field

import msgspec

from greeterd.sockets import rights
from greeterd.system import signals
from greeterd.worker.messages import MAX_MESSAGE_BYTES, Breach, Message, decode


@dataclass(frozen=True, slots=True)
class Received:
    """What has come."""

    message: Message | Breach | None
    """None: end-of-file."""
    fds: list[int] = field(default_factory=list)
    """Are the receiver's to close."""
    lost: bool = False
    """It had descriptors that found no room in this process; none of them is open."""

    def take(self) -> list[int]:
        """Return the descriptors.  Raises: OSError when they were lost."""
        if self.lost:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.fds


class Channel:
    """One end of the socketpair; non-blocking."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple["Channel", "Channel"]:
        """Return the two ends; both are close-on-exec."""
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(left), cls(right)

    def fileno(self) -> int:
        """Return the descriptor to wait on; -1 once it is closed."""
        return self._socket.fileno()

    def send(self, message: Message, fds: list[int] | None = None) -> str:
        """Send a message; return why it cannot be sent, nothing if it was.

        The peer may be gone, not read, or have too many descriptors on their way.
        """
        try:
            rights.send(self._socket, msgspec.json.encode(message), fds or ())
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def receive(self, most_fds: int = rights.MAX_FDS) -> Received | None:
        """Return what has come, None for nothing; so many descriptors may come with it at most.

        A breach is left where it was, or was taken; whoever gets one reads no more.
        """
        try:
            if most_fds == 0:
                parcel = rights.peek(self._socket, MAX_MESSAGE_BYTES)
                if parcel.lost:
                    return Received(Breach("descriptors that are not due"))
            parcel = rights.receive(self._socket, MAX_MESSAGE_BYTES, most_fds)
        except BlockingIOError:
            return None
        except OSError:  # the peer has gone without reading all that we sent
            return Received(None)
        if not parcel.data:
            rights.close_all(parcel.fds)
            return Received(None)
        message = Breach("too long a message") if parcel.cut else decode(parcel.data)
        if isinstance(message, Breach):
            rights.close_all(parcel.fds)
            return Received(message)
        return Received(message, parcel.fds, parcel.lost)

    def close(self) -> None:
        """Close this end, and what waits in it unread."""
        with signals.prodded():
            self._socket.close()
