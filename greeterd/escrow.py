"""Keeps the daemon's listeners, so that no worker's death closes one.

Mode inherit: one listener an address, opened here, shared by every worker.
Mode reuseport: a guard an address, and for each slot the duplicates of the listeners that its first
worker has bound.  They listen by a call from here, slot after slot, because the order of listen()
is the index order that steering counts in; when one closes, the last takes its index.
Only the master writes this; workers that are forked inherit what `for_slot` returns.
"""

import contextlib
import os
import socket
from pathlib import Path

from greeterd import listener, steering
from greeterd.config import Config
from greeterd.core.address import Address, parse_address
from greeterd.core.events import SlotIndex
from greeterd.cpus import cpu_of
from greeterd.errors import ListenError
from greeterd.sockdiag import queue_length
from greeterd.succession import InheritedListeners

BLOCKING_TIMEOUT = 0.1
"""Seconds that a blocking accept lasts at most: how late such a worker notices anything else."""


class Escrow:
    """The listeners, guards and steering of one daemon."""

    def __init__(self, config: Config, inherited: InheritedListeners | None = None) -> None:
        """Open what the configuration names, or take over what a predecessor had opened.

        Raises:
            ListenError: an address cannot be opened.

        """
        self._own = config.mode == "reuseport"
        self._backlog = config.backlog
        self._blocking = config.wait_strategy == "blocking"
        self._shared: list[socket.socket] = []
        self._guards: list[socket.socket] = []
        self._slots: dict[SlotIndex, list[socket.socket]] = {}
        self._order: list[SlotIndex] = []
        """The slots by the index of their listener, which is the same at every address."""
        self._avoided: SlotIndex | None = None
        self._unix_files: dict[Path, tuple[int, int]] = {}
        self._steering, self._cpus = config.steering, config.pinned_cpus
        if inherited is not None:
            self._adopt(inherited)
        else:
            try:
                for text in config.bind:
                    self._open(parse_address(text), config.unix_mode)
            except ListenError:
                self.close()
                raise
        self.addresses = [listener.local_address(sock) for sock in self._guards or self._shared]
        """As bound: port 0 is resolved."""

    def _adopt(self, inherited: InheritedListeners) -> None:
        self._shared = [socket.socket(fileno=fd) for fd in inherited.shared]
        self._guards = [socket.socket(fileno=fd) for fd in inherited.guards]
        self._slots = {
            SlotIndex(slot): [socket.socket(fileno=fd) for fd in fds]
            for slot, fds in inherited.slots.items()
        }
        self._order = [SlotIndex(slot) for slot in inherited.order]
        self._unix_files = {Path(name): inode for name, inode in inherited.unix_files.items()}

    def bequest(self) -> InheritedListeners:
        """Return what a successor needs to take all of this over."""
        return InheritedListeners(
            shared=[sock.fileno() for sock in self._shared],
            guards=[sock.fileno() for sock in self._guards],
            slots={
                int(slot): [sock.fileno() for sock in socks] for slot, socks in self._slots.items()
            },
            order=[int(slot) for slot in self._order],
            unix_files={str(path): inode for path, inode in self._unix_files.items()},
        )

    def _open(self, address: Address, unix_mode: int) -> None:
        if self._own:
            self._guards.append(listener.guard_address(address))
            return
        sock = listener.open_shared(address, backlog=self._backlog, unix_mode=unix_mode)
        self._shared.append(sock)
        if address.is_unix:
            path = Path(address.path).absolute()
            self._unix_files[path] = _inode(path)
        if self._blocking:
            listener.set_blocking_accept(sock, BLOCKING_TIMEOUT)

    def for_slot(self, slot: SlotIndex) -> list[socket.socket] | None:
        """Return the listeners that a worker of this slot serves; None: it opens its own."""
        return self._slots.get(slot) if self._own else self._shared

    def admit(self, slot: SlotIndex, fds: list[int]) -> None:
        """Take a slot's new listeners, one an address, and let them listen.

        Raises:
            ListenError: one of them cannot listen.

        """
        socks = [socket.socket(fileno=fd) for fd in fds]
        for sock in socks:
            try:
                sock.listen(self._backlog)
            except OSError as error:
                address = listener.local_address(sock)
                for each in socks:
                    each.close()
                raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
            if self._blocking:
                listener.set_blocking_accept(sock, BLOCKING_TIMEOUT)
        self._slots[slot] = socks
        self._order.append(slot)
        self._steer()

    def steer_as(self, config: Config) -> None:
        """Choose listeners as this configuration says, from the next connection on."""
        self._steering, self._cpus = config.steering, config.pinned_cpus
        self._steer()

    def steer_away(self, slot: SlotIndex) -> None:
        """Let new connections go to the other slots' listeners only."""
        self._avoided = slot
        self._steer()

    def close_slot(self, slot: SlotIndex) -> None:
        """Close a slot's listeners for every process that holds them."""
        socks = self._slots.pop(slot, [])
        if not socks:
            return
        for sock in socks:
            # close() alone would leave the group's order to whoever closes last; shutdown() takes
            # the listener out of it now.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        hole = self._order.index(slot)
        self._order[hole] = self._order[-1]
        self._order.pop()
        if self._avoided == slot:
            self._avoided = None
        self._steer()

    def gate(self) -> None:
        """Let no new connection in anywhere; what is under way arrives in the accept queues."""
        self._remove_unix_files()
        for sock in self.listeners():
            if sock.family != socket.AF_UNIX:
                steering.gate_syn(sock)

    def listeners(self) -> list[socket.socket]:
        """Return every listener."""
        return self._shared + [sock for socks in self._slots.values() for sock in socks]

    def by_slot(self) -> list[tuple[SlotIndex | None, socket.socket]]:
        """Return every listener with the slot that it belongs to; None: all share it."""
        own = [(slot, sock) for slot in sorted(self._slots) for sock in self._slots[slot]]
        return [*((None, sock) for sock in self._shared), *own]

    def queued(self, slot: SlotIndex) -> int:
        """Return how many connections wait in the slot's own listeners."""
        return sum(queue_length(sock).now for sock in self._slots.get(slot, []))

    def close(self) -> None:
        """Close everything here; workers that hold a listener keep it."""
        self._remove_unix_files()
        for sock in self.listeners() + self._guards:
            sock.close()

    def _steer(self) -> None:
        if not self._order:
            return
        cpus = [cpu_of(slot, self._cpus) for slot in self._order]
        avoided = self._order.index(self._avoided) if self._avoided in self._order else None
        selection = steering.choose(self._steering, cpus, avoided)
        for member in self._slots[self._order[0]]:
            steering.steer(member, selection)

    def _remove_unix_files(self) -> None:
        for path, inode in self._unix_files.items():
            with contextlib.suppress(OSError):
                if _inode(path) == inode:
                    path.unlink()
        self._unix_files.clear()


def _inode(path: Path) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
