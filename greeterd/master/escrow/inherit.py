"""Mode inherit: one listener an address, which every worker inherits.

Mode handoff has the same listeners, which only its dispatcher inherits.
"""

import contextlib
import errno
import socket
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from greeterd.config.schema import Config
from greeterd.master.escrow.listeners import Owner, Place, set_accept
from greeterd.master.systemd.fdstore import Stored
from greeterd.master.upgrade.state import InheritedListeners
from greeterd.sockets import listener
from greeterd.sockets.address import Address
from greeterd.supervisor.ids import DISPATCHER
from greeterd.system import signals
from greeterd.system.socket_file import FileId, file_at, place_of


class SharedListeners:
    """Implements Listeners; empty in mode reuseport."""

    def __init__(self, config: Config, inherited: InheritedListeners) -> None:
        self._config = config
        self._inherited = inherited
        self._passed = inherited.passed
        self._owner: Owner = DISPATCHER if config.mode == "handoff" else None
        self._socks: list[socket.socket] = []
        self.unix_files = {Path(name): file for name, file in inherited.unix_files.items()}
        """The files of unix listeners that this daemon looks after, by the path they are to have;
        none of a socket unit."""
        self.addresses: list[Address] = []

    def open(self, addresses: Sequence[Address]) -> None:
        """Open one an address, unless it is taken over."""
        fds = self._inherited.shared or [None] * len(addresses)
        for address, fd in zip(addresses, fds, strict=True):
            sock = self._open(address) if fd is None else socket.socket(fileno=fd)
            self._socks.append(sock)
        self.addresses = [listener.local_address(sock) for sock in self._socks]

    def _open(self, address: Address) -> socket.socket:
        config = self._config
        sock = listener.open_shared(address, backlog=config.backlog, unix_mode=config.unix_mode)
        if address.is_unix:
            path = Path(address.path).absolute()
            self.unix_files[path] = file_at(path) or (0, 0)
        set_accept(sock, blocking=config.wait_strategy == "blocking")
        return sock

    def places(self) -> list[Place]:
        """Return every listener."""
        return [Place(self._owner, index, sock) for index, sock in enumerate(self._socks)]

    accepting = places

    def reopen(self, path: Path) -> None:
        """Open a unix listener anew that has lost its path; running workers keep the old one.

        Raises:
            ListenError: it cannot be had. The old one stays in use.

        """
        [index] = [
            index
            for index, sock in enumerate(self._socks)
            if sock.family == socket.AF_UNIX and Path(listener.local_address(sock).path) == path
        ]
        fresh = self._open(listener.local_address(self._socks[index]))
        self._socks[index].close()
        self._socks[index] = fresh

    def renew(self, place: Place, backlog: int, *, anew: bool) -> None:
        """Have a listener listen again, or by another socket."""
        _, index, sock = place
        address = self.addresses[index]
        if not address.is_unix and not anew:
            with contextlib.suppress(OSError):
                listener.listen_again(sock, address, backlog=backlog)
                return
        if self._passed:
            raise OSError(errno.EPERM, "only the socket unit can open it again")
        # A worker still has the old one: it has to let go of the address.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.shutdown(socket.SHUT_RDWR)
        self._socks[index] = self._open(address)
        with signals.prodded():
            sock.close()

    def holdings(self, labels: Sequence[str]) -> dict[str, int]:
        """Return the listeners by their names in the descriptor store."""
        return {
            Stored(label=label, file=self._file_of(sock)).name: sock.fileno()
            for label, sock in zip(labels, self._socks, strict=True)
        }

    def _file_of(self, sock: socket.socket) -> FileId | None:
        if sock.family != socket.AF_UNIX:
            return None
        return self.unix_files.get(Path(listener.local_address(sock).path))

    def remove_unix_files(self) -> None:
        """Remove those that are still ours."""
        for path, file in self.unix_files.items():
            with contextlib.suppress(OSError), place_of(path) as place:
                place.remove(file)
        self.unix_files.clear()

    def dump_into(self, state: InheritedListeners) -> InheritedListeners:
        """Return the state with these listeners, for a new image."""
        return structs.replace(
            state,
            shared=[sock.fileno() for sock in self._socks],
            unix_files={str(path): file for path, file in self.unix_files.items()},
        )

    def close(self) -> None:
        """Close the listeners."""
        for sock in self._socks:
            sock.close()
