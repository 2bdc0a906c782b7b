"""Servers for what is a client of greeterd: each does the same with every connection."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from greeterd.sockets.address import Address

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # socket(7): struct linger
ANY_PORT = ("127.0.0.1", 0)


@dataclass
class Server:
    """Serves in a thread, one connection after the other, and remembers who came."""

    listener: socket.socket
    behave: Callable[["Server", socket.socket], None]
    names: list[bytes] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    destinations: list[str] = field(default_factory=list)
    senders: list[int] = field(default_factory=list)
    held: list[socket.socket] = field(default_factory=list)

    @property
    def address(self) -> Address:
        """Where it listens; on every interface, the first of loopback."""
        where = self.listener.getsockname()
        if isinstance(where, str):
            return Address(path=where)
        return Address("127.0.0.1" if where[0] == "0.0.0.0" else where[0], where[1])

    def run(self) -> None:
        """Serve until the listener is shut down."""
        while True:
            try:
                connection, peer = self.listener.accept()
            except OSError:
                return
            if self.listener.family == socket.AF_UNIX:
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                self.senders.append(struct.unpack("3i", credentials)[0])
            else:
                self.sources.append(peer[0])
                self.destinations.append(connection.getsockname()[0])
            with suppress(ConnectionError):
                self.behave(self, connection)


Behaviour = Callable[[Server, socket.socket], None]


@contextmanager
def serving(
    behave: Behaviour, where: tuple[str, int] | str = ANY_PORT, *, backlog: int = 1024
) -> Iterator[Server]:
    """Run a server until the end of the block."""
    if isinstance(where, str):
        family = socket.AF_UNIX
    else:
        family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind(where)
        listener.listen(backlog)
        server = Server(listener, behave)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            with suppress(OSError):  # it was the server's end that was tested
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert not thread.is_alive()
            for connection in server.held:
                connection.close()


def read(connection: socket.socket) -> bytes:
    """Return the whole stream."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def take(server: Server, connection: socket.socket) -> None:
    """Read to end-of-stream, note the name, close."""
    with connection:
        server.names.append(read(connection))


def reply(server: Server, connection: socket.socket) -> None:
    """Take, and answer."""
    with connection:
        server.names.append(read(connection))
        connection.sendall(b"Hello, " + server.names[-1] + b"\n")


def reset(_server: Server, connection: socket.socket) -> None:
    """Read a part of the name and reset the connection."""
    with connection:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def hold(server: Server, connection: socket.socket) -> None:
    """Do nothing at all with it."""
    server.held.append(connection)
