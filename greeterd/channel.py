"""The socketpair between the master and one worker: typed messages, with descriptors.

One message is one SOCK_SEQPACKET record, so nothing is ever half read.  Closing it is a message,
too: the worker that reads end-of-file knows that the master is gone, and drains.  Neither side
ever blocks on a send: a worker that does not read its few, small messages is hung, and is ended
by its heartbeat.
"""

import array
import socket
from typing import Final

import msgspec

MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_FDS: Final = 253
"""SCM_MAX_FD of the kernel: descriptors in one message."""


class ReadyMessage(msgspec.Struct, frozen=True, tag="ready"):
    """Worker: serves now; the descriptors are the listeners it has opened, one an address."""


class FailedMessage(msgspec.Struct, frozen=True, tag="failed"):
    """Worker: cannot start, for this reason."""

    code: int
    reason: str


class ExitMessage(msgspec.Struct, frozen=True, tag="exit"):
    """Worker: a client has sent `exit`."""


class LeavingMessage(msgspec.Struct, frozen=True, tag="leaving"):
    """Worker: was sent TERM, and leaves without having been told by the master."""


class ClosedMessage(msgspec.Struct, frozen=True, tag="closed"):
    """Worker: accepts no more, as it was told to hand over; what it has accepted it serves."""


class ReopenedMessage(msgspec.Struct, frozen=True, tag="reopened"):
    """Worker: has opened its log files anew; `reason` tells why not, if it could not."""

    reason: str


class ReturnedMessage(msgspec.Struct, frozen=True, tag="returned"):
    """Worker: the lent listener of this slot is emptied and closed here."""

    slot: int


class GoMessage(msgspec.Struct, frozen=True, tag="go"):
    """Master: your listeners listen."""


class DrainMessage(msgspec.Struct, frozen=True, tag="drain"):
    """Master: leave; `how` is the value of a `core.events.How`.

    `settled` is of a sweep: whether no handshake is in flight any more.  After False the same
    message comes with True; None, by an earlier version: find that out yourself.
    """

    how: str
    settled: bool | None = None


class LendMessage(msgspec.Struct, frozen=True, tag="lend"):
    """Master: serve this slot's listeners, too; the descriptors are duplicates."""

    slot: int


class TakeBackMessage(msgspec.Struct, frozen=True, tag="take-back"):
    """Master: empty and close the listeners that were lent from this slot."""

    slot: int


class RouteMessage(msgspec.Struct, frozen=True, tag="route"):
    """Master to the dispatcher: hand on to this slot, too.

    The descriptors are its pair's ends, and its newest worker's row unless an older build has it.
    """

    slot: int


class ReopenMessage(msgspec.Struct, frozen=True, tag="reopen"):
    """Master: open the log file anew."""


FromWorker = (
    ReadyMessage
    | FailedMessage
    | ExitMessage
    | LeavingMessage
    | ClosedMessage
    | ReopenedMessage
    | ReturnedMessage
)
FromMaster = GoMessage | DrainMessage | LendMessage | TakeBackMessage | RouteMessage | ReopenMessage

_DECODER: Final = msgspec.json.Decoder(FromWorker | FromMaster)


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
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def send(self, message: FromWorker | FromMaster, fds: list[int] | None = None) -> bool:
        """Send one record; False when the peer is gone or does not read."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([msgspec.json.encode(message)], rights, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def receive(self) -> tuple[FromWorker | FromMaster | None, list[int]]:
        """Return one message and its descriptors (close-on-exec); None at end-of-file.

        Raises:
            BlockingIOError: nothing waits.

        """
        # socket.recv_fds of CPython 3.11 ignores its flags, so that the descriptors would leak
        # into every program that is executed.
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                MAX_MESSAGE_BYTES,
                socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize),
                socket.MSG_CMSG_CLOEXEC,
            )
        except ConnectionResetError:
            return None, []  # the peer has gone without reading all that we sent
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if not data:
            return None, []
        return _DECODER.decode(data), list(fds)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
