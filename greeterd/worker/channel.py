"""The socketpair between the master and one worker: messages, with descriptors.

One message is one SOCK_SEQPACKET record, so no message is ever half read.  The end of the stream is
a message, too: a worker that reads it knows that the master has gone, and drains.  Neither side
ever blocks: a worker that does not read its few, small messages is hung, and the supervisor ends it
for its heartbeat; descriptors that a worker sends are closed in bounded time.
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
    """One record that was received."""

    message: Message | Breach | None
    """None: the end of the stream."""
    fds: list[int] = field(default_factory=list)
    """Open descriptors, for the receiver to close."""
    lost: bool = False
    """It had more descriptors than this process could open; none of them is open."""

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
        """Send a message; return why that failed, or nothing.

        The peer may be gone or not reading, or too many descriptors may be in flight.
        """
        try:
            rights.send(self._socket, msgspec.json.encode(message), fds or ())
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def receive(self, most_fds: int = rights.MAX_FDS) -> Received | None:
        """Return the next record, or None; with it come `most_fds` descriptors at most.

        After a Breach read no more: the record may still be in the queue.
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
        """Close this end, with the descriptors that wait in it unread."""
        with signals.prodded():
            self._socket.close()
