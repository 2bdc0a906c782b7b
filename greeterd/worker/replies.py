"""Sends the replies of a turn, and goes on with those that do not fit into a socket's buffer.

A reply is sent only after its greeting is written.  A client that does not read has
`client_timeout` to do so, and delays no other.
"""

import os
import select
from dataclasses import dataclass
from time import monotonic
from typing import Final

from greeterd.protocol import encode_reply
from greeterd.sockets.listener import close_with_reset
from greeterd.worker import counters
from greeterd.worker.counters import Row
from greeterd.worker.handler import Warn


@dataclass(slots=True)
class Unsent:
    """The rest of a reply that did not fit into the socket's buffer."""

    data: bytes
    deadline: float


class Replies:
    """The replies that are due at the end of the turn, and those that are partly sent."""

    def __init__(
        self,
        finished: list[int],
        *,
        client_timeout: float,
        epoll: select.epoll,
        row: Row,
        warn: Warn,
    ) -> None:
        """`finished` takes the descriptors that are to be closed at the end of the turn."""
        self.due: Final[list[tuple[int, str]]] = []
        """Descriptors in `finished`, and the names to greet; sent by `send`."""
        self._finished: Final = finished
        self._client_timeout: Final = client_timeout
        self._epoll: Final = epoll
        self._row: Final = row
        self._warn: Final = warn
        self.unsent: Final[dict[int, Unsent]] = {}
        """The connections that wait for their client to read, the oldest first."""

    def send(self) -> None:
        """Send what is due; a connection whose reply does not fit is finished later."""
        for fd, name in self.due:
            data = encode_reply(name)
            try:
                sent = os.write(fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:  # the client is gone; its greeting counts all the same
                continue
            if sent == len(data):
                self._row[counters.REPLIES] += 1
                continue
            self._finished.remove(fd)
            if watch_or_reset(self._epoll, fd, select.EPOLLOUT, self._warn):
                self.unsent[fd] = Unsent(data[sent:], monotonic() + self._client_timeout)
        self.due.clear()

    def on_event(self, fd: int) -> bool:
        """Send more to a client that has read; False if the descriptor is not ours."""
        unsent = self.unsent.get(fd)
        if unsent is None:
            return False
        try:
            sent = os.write(fd, unsent.data)
        except BlockingIOError:
            return True
        except OSError:
            self._finish(fd)
            return True
        unsent.data = unsent.data[sent:]
        if not unsent.data:
            self._row[counters.REPLIES] += 1
            self._finish(fd)
        return True

    def next_deadline(self) -> float | None:
        """Return when the oldest unsent reply times out; None if there is none."""
        return next((unsent.deadline for unsent in self.unsent.values()), None)

    def expire(self, now: float) -> None:
        """Give up the clients that have not read in time."""
        for fd, unsent in list(self.unsent.items()):
            if unsent.deadline > now:
                break
            self._finish(fd)

    def abandon(self) -> None:
        """Reset every connection that waits for its client to read."""
        for fd in list(self.unsent):
            self._forget(fd)
            close_with_reset(fd)

    def _finish(self, fd: int) -> None:
        self._forget(fd)
        self._finished.append(fd)

    def _forget(self, fd: int) -> None:
        del self.unsent[fd]
        self._epoll.unregister(fd)


def watch_or_reset(epoll: select.epoll, fd: int, events: int, warn: Warn) -> bool:
    """Have epoll report a connection; reset it and return False where the kernel refuses."""
    try:
        epoll.register(fd, events)
    except OSError as error:  # such as fs.epoll.max_user_watches
        warn("cannot wait for a client", reason=error.strerror)
        close_with_reset(fd)
        return False
    return True
