"""Keeps the daemon's listeners, so that no worker's death closes one.

Mode inherit: one listener an address, opened here, shared by every worker.
Mode reuseport: a guard an address, and for each slot the duplicates of the listeners that its first
worker has bound.  They listen by a call from here, slot after slot, because the order of listen()
is the index order that steering counts in; when one closes, the last takes its index.
Mode handoff: one listener an address, which is the dispatcher's, and for each other slot the pair
by which it is handed connections: what is said of a slot's listener holds for the pair's exit.
Only the master writes this; workers that are forked inherit what `for_slot` returns.
"""

import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from weakref import WeakKeyDictionary

from greeterd.config.schema import Config
from greeterd.errors import ListenError
from greeterd.master.systemd.fdstore import Stored, label_of
from greeterd.master.upgrade.state import InheritedListeners
from greeterd.sockets import bpf, listener, steering
from greeterd.sockets.address import Address, parse_address
from greeterd.sockets.fd_passing import QUEUE_LIMIT, HandoffPair, waiting
from greeterd.sockets.sockdiag import Queue, queue_length
from greeterd.supervisor.ids import DISPATCHER, SlotIndex
from greeterd.system import signals
from greeterd.system.cpus import cpu_of
from greeterd.system.socket_file import FileId, file_at, place_of

BLOCKING_TIMEOUT = 0.1
"""Seconds that a blocking accept lasts at most: how late such a worker notices anything else."""


class Place(NamedTuple):
    """Where a listener is."""

    slot: SlotIndex | None
    """None: all share it."""
    address: int
    """The index of its address."""
    sock: socket.socket


class Escrow:
    """The listeners, guards and steering of one daemon."""

    def __init__(
        self,
        config: Config,
        inherited: InheritedListeners | None = None,
        resolved: Mapping[str, Address] = MappingProxyType({}),
    ) -> None:
        """Take over what a predecessor or a socket unit has opened, and open what is missing.

        `resolved` has the addresses of names that were looked up before, as `bind` has those.
        Nothing is done to what is taken over, since it may serve meanwhile.

        Raises:
            ListenError: an address cannot be opened.

        """
        given = inherited or InheritedListeners()
        self._own = config.mode == "reuseport"
        self._handoff = config.mode == "handoff"
        self._backlog = config.backlog
        self._blocking = config.wait_strategy == "blocking"
        self._unix_mode = config.unix_mode
        self._shared: list[socket.socket] = []
        self._guards: list[socket.socket] = []
        self._slots: dict[SlotIndex, list[socket.socket]] = {}
        self._pairs: dict[SlotIndex, HandoffPair] = {}
        self._routed: set[SlotIndex] = set()
        """The slots that the dispatcher hands connections on to, or will when there is one."""
        self._order: list[SlotIndex] = []
        """The slots by the index of their listener, which is the same at every address."""
        self._avoided: set[SlotIndex] = set()
        """The slots that retire, and of passed listeners those that have."""
        self._unix_files: dict[Path, FileId] = {}
        self._longest: WeakKeyDictionary[socket.socket, int] = WeakKeyDictionary()
        self._gated = False
        """By this process, for good."""
        self._steering, self._cpus = config.steering, config.pinned_cpus
        self._bind = config.bind
        self.passed = given.passed
        """A socket unit has opened them.  Nothing is done that would keep clients from its sockets
        when this daemon is gone: no gate, no shutdown, no steering that stays."""
        self.gated = given.gated
        """What waits in the queues may be deaf by a gate that looked at TTLs."""
        self._adopt(given)
        try:
            self._open(config, given, resolved)
        except ListenError:
            self.close()
            raise
        by_address = self._guards or self._shared or self._slots[self._order[0]]
        self.addresses = [listener.local_address(sock) for sock in by_address]
        """As bound: port 0 is resolved."""

    def _adopt(self, inherited: InheritedListeners) -> None:
        self._guards = [socket.socket(fileno=fd) for fd in inherited.guards]
        self._slots = {
            SlotIndex(slot): [socket.socket(fileno=fd) for fd in fds]
            for slot, fds in inherited.slots.items()
        }
        self._pairs = {
            SlotIndex(n): HandoffPair.adopt(*ends) for n, ends in inherited.pairs.items()
        }
        self._routed = {SlotIndex(slot) for slot in inherited.routed}
        self._order = [SlotIndex(slot) for slot in inherited.order]
        self._avoided = {SlotIndex(slot) for slot in inherited.avoided}
        self._unix_files = {Path(name): inode for name, inode in inherited.unix_files.items()}

    def _open(
        self, config: Config, given: InheritedListeners, resolved: Mapping[str, Address]
    ) -> None:
        addresses = [resolved.get(text) or parse_address(text) for text in config.bind]
        if not self._own:
            fds = given.shared or [None] * len(addresses)
            for address, fd in zip(addresses, fds, strict=True):
                self._shared.append(
                    self._open_shared(address) if fd is None else socket.socket(fileno=fd)
                )
        elif not (self._guards or self.passed):
            for address in addresses:
                self._guards.append(listener.guard_address(address))

    def _open_shared(self, address: Address) -> socket.socket:
        sock = listener.open_shared(address, backlog=self._backlog, unix_mode=self._unix_mode)
        if address.is_unix:
            path = Path(address.path).absolute()
            self._unix_files[path] = file_at(path) or (0, 0)
        if self._blocking:
            listener.set_blocking_accept(sock, BLOCKING_TIMEOUT)
        return sock

    @property
    def unix_files(self) -> Mapping[Path, FileId]:
        """The files of unix listeners that are ours to look after, by the path they are to have."""
        return self._unix_files

    def reopen(self, path: Path) -> None:
        """Open a unix listener anew that has lost its path; workers that are there keep the old.

        Raises:
            ListenError: it cannot be had. The old one stays in use.

        """
        [index] = [
            index
            for index, sock in enumerate(self._shared)
            if sock.family == socket.AF_UNIX and Path(listener.local_address(sock).path) == path
        ]
        fresh = self._open_shared(listener.local_address(self._shared[index]))
        self._shared[index].close()
        self._shared[index] = fresh

    def arrange(self) -> None:
        """Have what was taken over as the configuration says: at a start, when nobody serves it."""
        for sock in self.listeners():
            if self._blocking:
                listener.set_blocking_accept(sock, BLOCKING_TIMEOUT)
            else:
                sock.setblocking(False)
            if not self.passed:
                sock.listen(self._backlog)  # it listens already: this changes the length only
        self.steer()

    def bequest(self) -> InheritedListeners:
        """Return what a successor needs to take all of this over."""
        return InheritedListeners(
            shared=[sock.fileno() for sock in self._shared],
            guards=[sock.fileno() for sock in self._guards],
            slots={
                int(slot): [sock.fileno() for sock in socks] for slot, socks in self._slots.items()
            },
            pairs={int(slot): pair.fds for slot, pair in self._pairs.items()},
            routed=[int(slot) for slot in self._routed],
            order=[int(slot) for slot in self._order],
            unix_files={str(path): inode for path, inode in self._unix_files.items()},
            avoided=[int(slot) for slot in self._avoided],
            passed=self.passed,
            gated=self.gated,
        )

    def holdings(self) -> dict[str, int]:
        """Return the descriptors that outlive this process with the service manager, by name.

        What a socket unit has passed it has itself.
        """
        if self.passed:
            return {}
        labels = [label_of(text) for text in self._bind]
        found = {
            Stored(label=label, file=self._file_of(sock)).name: sock.fileno()
            for label, sock in zip(labels, self._shared, strict=False)
        }
        for label, sock in zip(labels, self._guards, strict=False):
            found[Stored(label=label, guard=True).name] = sock.fileno()
        for index, slot in enumerate(self._order):
            for label, sock in zip(labels, self._slots[slot], strict=True):
                found[Stored(label=label, slot=slot, index=index).name] = sock.fileno()
        return found

    def _file_of(self, sock: socket.socket) -> FileId | None:
        if sock.family != socket.AF_UNIX:
            return None
        return self._unix_files.get(Path(listener.local_address(sock).path))

    def for_slot(self, slot: SlotIndex) -> list[socket.socket] | None:
        """Return the listeners that a worker of this slot serves; None: it opens its own."""
        if self._own:
            return self._slots.get(slot)
        if not self._handoff or slot == DISPATCHER:
            return self._shared
        if slot not in self._pairs:
            self._pairs[slot] = HandoffPair.make()
        return [self._pairs[slot].exit]

    @property
    def routes(self) -> dict[SlotIndex, HandoffPair]:
        """The pairs that a dispatcher which is forked now has to know."""
        return {slot: self._pairs[slot] for slot in self._routed}

    def flaw_of(self, fds: list[int]) -> str:
        """Return what is wrong with descriptors that a worker has opened, one an address."""
        if len(fds) != len(self.addresses):
            return f"{len(fds)} listeners for {len(self.addresses)} addresses"
        for address, fd in zip(self.addresses, fds, strict=True):
            if not listener.is_member(fd, address):
                return f"a descriptor that is no listener to be of {address}"
        return ""

    def admit(self, slot: SlotIndex, fds: list[int]) -> None:
        """Take a slot's new listeners, which have no flaw, and let them listen.

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
        self.steer()

    def steer_as(self, config: Config) -> None:
        """Choose listeners as this configuration says, from the next connection on."""
        self._steering, self._cpus = config.steering, config.pinned_cpus
        self.steer()

    def steer_away(self, slot: SlotIndex) -> None:
        """Let new connections go to the other slots' listeners only."""
        if self._handoff:
            self._routed.discard(slot)
            self._pairs[slot].close_entry()
            return
        self._avoided.add(slot)
        self.steer()

    @property
    def most_slots(self) -> int | None:
        """How many slots there can be; None where their number is ours to decide."""
        return len(self._slots) if self.passed and self._own else None

    @property
    def highest_slot(self) -> int:
        """The highest number of a slot with listeners of its own, 0 for none."""
        return max(self._slots, default=0)

    def use(self, slot: SlotIndex) -> HandoffPair | None:
        """Let new connections go to a slot that is served.

        Return the pair that the dispatcher has to be told of, None for none.
        """
        if slot in self._pairs and slot not in self._routed:
            self._routed.add(slot)
            return self._pairs[slot]
        if slot in self._avoided:
            self._avoided.discard(slot)
            self.steer()
        return None

    def end_unused(self, slot: SlotIndex) -> None:
        """Let the worker of a slot that nothing was ever handed to find the end of its pair.

        It leaves, since what asked for it has failed, and nobody steers away from it.
        """
        if slot in self._pairs and slot not in self._routed:
            self._pairs[slot].close_entry()

    def do_not_use(self, slot: SlotIndex) -> None:
        """Let no dispatcher that is forked from now on hand connections on to a slot."""
        self._routed.discard(slot)

    def close_slot(self, slot: SlotIndex) -> None:
        """Close a slot's listeners for every process that holds them.

        Listeners of a socket unit cannot be closed, so nothing is sent there any more.  Without the
        dispatcher nothing more is handed to anybody.
        """
        self._routed.discard(slot)
        if slot == DISPATCHER:
            # On purpose: workers read to the end. Pairs are not to be mended any more.
            self._routed.clear()
            for pair in self._pairs.values():
                pair.close_entry()
        if slot in self._pairs:
            with signals.prodded():
                self._pairs.pop(slot).close()
        if slot in self._slots and not self.passed:
            self._close_members(slot)

    def _close_members(self, slot: SlotIndex) -> None:
        # When this one leaves, the last takes its index. Until the kernel is told that, it would
        # look for the last where nobody is, and choose by its hash, also who retires and closes a
        # moment later. So to neither of the two is anybody sent meanwhile, if there are others.
        hole, last = self._order.index(slot), len(self._order) - 1
        self.steer(unsettled={hole, last})
        socks = self._slots.pop(slot)
        with signals.prodded():  # a worker may have made anything of them
            for sock in socks:
                # close() alone would leave the group's order to whoever closes last; shutdown()
                # takes the listener out of it now.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
        self._order[hole] = self._order[last]
        self._order.pop()
        self._avoided.discard(slot)
        self.steer()

    def gate(self) -> None:
        """Let no new connection in anywhere; what is under way arrives in the accept queues.

        Into the listeners of a socket unit they are let: whoever is not served wakes the service.
        """
        self._gated = True
        if self.passed:
            return
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
        return [*((DISPATCHER if self._handoff else None, sock) for sock in self._shared), *own]

    def queued(self) -> Counter[SlotIndex | None]:
        """Look; return how many connections wait in each slot's own listeners, None: in shared."""
        found: Counter[SlotIndex | None] = Counter()
        for slot, _, queue in self.look():
            found[slot] += queue.now
        return found

    @property
    def left_over(self) -> int:
        """How many connections were handed to slots that have nobody to take them, at the end."""
        return sum(waiting(pair.exit) for pair in self._pairs.values())

    def look(self) -> list[tuple[SlotIndex | None, socket.socket, Queue]]:
        """Return how full every listener's queue is, and keep its longest length in mind.

        Those of which this kernel does not tell are left out. It costs about 1 us a listener.
        """
        found: list[tuple[SlotIndex | None, socket.socket, Queue]] = []
        for slot, sock in self.by_slot():
            with contextlib.suppress(OSError):
                found.append((slot, sock, queue_length(sock)))
        for slot, pair in sorted(self._pairs.items()):
            found.append((slot, pair.exit, Queue(waiting(pair.exit), QUEUE_LIMIT)))
        for _, sock, queue in found:
            self._longest[sock] = max(queue.now, self.longest(sock))
        return found

    def longest(self, sock: socket.socket) -> int:
        """Return the longest queue of a listener that `look` has seen in this process."""
        return self._longest.get(sock, 0)

    def places(self) -> list[Place]:
        """Return every listener that is to accept; none when all are gated."""
        if self._gated:
            return []
        everyone = DISPATCHER if self._handoff else None
        shared = [Place(everyone, n, sock) for n, sock in enumerate(self._shared)]
        own = [
            Place(slot, n, sock)
            for slot, socks in self._slots.items()
            if slot not in self._avoided
            for n, sock in enumerate(socks)
        ]
        return [*shared, *own]

    def renew(self, place: Place, backlog: int, *, anew: bool) -> None:
        """Have an address listened on again, by another socket if `anew`; its queue is lost.

        A slot's own listeners are opened anew at each address, so that their order stays the same
        everywhere; when that fails the slot has none, and its next worker opens them.

        Raises:
            GreeterdError: the address cannot be had.
            OSError: as that, or only the socket unit can open it.

        """
        slot, n, sock = place
        address = self.addresses[n]
        if slot in self._slots and not self.passed:
            self._close_members(slot)
            with contextlib.ExitStack() as undo:
                fresh = [undo.enter_context(listener.open_member(each)) for each in self.addresses]
                fds = [member.detach() for member in fresh]
            self.admit(slot, fds)
            return
        if not address.is_unix and not anew:
            with contextlib.suppress(OSError):
                listener.listen_again(sock, address, backlog=backlog)
                if slot in self._slots:
                    self._move_last(slot)
                return
        if self.passed:
            raise OSError(errno.EPERM, "only the socket unit can open it again")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.shutdown(socket.SHUT_RDWR)
        self._shared[n] = self._open_shared(address)
        with signals.prodded():
            sock.close()

    def _move_last(self, slot: SlotIndex) -> None:
        """Follow the kernel, for whom a listener that listens again is a new one."""
        hole = self._order.index(slot)
        self._order[hole] = self._order[-1]
        self._order[-1] = slot
        self.steer()

    def renew_pairs(self) -> dict[SlotIndex, str]:
        """Replace the pairs that a worker has spoiled; return by slot, whose worker needs it, how.

        What waits in them is moved.
        """
        spoiled = {}
        for slot in sorted(self._routed):
            old = self._pairs[slot]
            how = old.spoiled
            old.set_right()
            if how:
                self._pairs[slot] = HandoffPair.make()
                with signals.prodded():  # what a worker has put in is closed here
                    old.pour_into(self._pairs[slot])
                    old.close_entry()
                    old.close()
                spoiled[slot] = how
        self._routed.difference_update(spoiled)  # until their workers have them
        return spoiled

    def close(self) -> None:
        """Close everything here; workers that hold a listener keep it."""
        self._remove_unix_files()
        if self.passed and self._order:
            for member in self._slots[self._order[0]]:
                with contextlib.suppress(OSError):  # also when this was closed before
                    steering.steer(member, None)
        with signals.prodded():
            for sock in self.listeners() + self._guards:
                sock.close()
            for pair in self._pairs.values():
                pair.close()

    def steer(self, unsettled: Collection[int] = ()) -> None:
        """Have the kernel choose; `unsettled` are indexes to avoid, too, if others are left."""
        if not self._order:
            return
        cpus = [cpu_of(slot, self._cpus) for slot in self._order]
        avoided = {n for n, slot in enumerate(self._order) if slot in self._avoided}
        more = avoided.union(unsettled)
        selection = bpf.choose(self._steering, cpus, avoided if len(more) == len(cpus) else more)
        for member in self._slots[self._order[0]]:
            steering.steer(member, selection)

    def _remove_unix_files(self) -> None:
        for path, inode in self._unix_files.items():
            with contextlib.suppress(OSError), place_of(path) as place:
                place.remove(inode)
        self._unix_files.clear()
