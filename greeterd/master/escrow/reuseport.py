"""Mode reuseport: listeners of each slot's own, in one SO_REUSEPORT group an address.

A slot's first worker binds them and sends duplicates, which stay here.  They listen by a call from
here, slot after slot: the order of listen() is the index order that steering counts in, the same at
every address.  When one closes, the last takes its index.  A guard an address, bound and not
listening, keeps the address while no slot has a listener.
"""

import contextlib
import errno
import socket
from collections.abc import Collection, Sequence

from msgspec import structs

from greeterd.config.schema import Config
from greeterd.errors import ListenError
from greeterd.master.escrow.listeners import Place, set_accept
from greeterd.master.systemd.fdstore import Stored
from greeterd.master.upgrade.state import InheritedListeners
from greeterd.sockets import bpf, listener, steering
from greeterd.sockets.address import Address
from greeterd.supervisor.ids import SlotIndex
from greeterd.system import signals
from greeterd.system.cpus import cpu_of


class ReuseportGroups:
    """Implements Listeners; empty in the other modes."""

    def __init__(self, config: Config, inherited: InheritedListeners) -> None:
        self._backlog = config.backlog
        self._blocking = config.wait_strategy == "blocking"
        self._steering, self._cpus = config.steering, config.pinned_cpus
        self._passed = inherited.passed
        self._guards = [socket.socket(fileno=fd) for fd in inherited.guards]
        self._slots = {
            SlotIndex(slot): [socket.socket(fileno=fd) for fd in fds]
            for slot, fds in inherited.slots.items()
        }
        self._order = [SlotIndex(slot) for slot in inherited.order]
        """The slots by the index of their listeners."""
        self._avoided = {SlotIndex(slot) for slot in inherited.avoided}
        """The slots that retire, and of passed listeners those that have."""
        self.addresses: list[Address] = []

    def open(self, addresses: Sequence[Address]) -> None:
        """Guard each address, unless that is taken over."""
        if not self._guards and not self._passed:
            for address in addresses:
                self._guards.append(listener.guard_address(address))
        bound = self._guards or self._first
        self.addresses = [listener.local_address(sock) for sock in bound]

    @property
    def _first(self) -> Sequence[socket.socket]:
        """One member of each address's group; empty while no slot has any."""
        return self._slots[self._order[0]] if self._order else ()

    def get(self, slot: SlotIndex) -> list[socket.socket] | None:
        """Return a slot's listeners; None: its next worker opens them."""
        return self._slots.get(slot)

    def places(self) -> list[Place]:
        """Return every listener."""
        return [
            Place(slot, index, sock)
            for slot in sorted(self._slots)
            for index, sock in enumerate(self._slots[slot])
        ]

    def accepting(self) -> list[Place]:
        """Return the listeners of slots that do not retire."""
        return [place for place in self.places() if place.slot not in self._avoided]

    @property
    def most_slots(self) -> int | None:
        """How many slots there can be; None where their number is ours to decide."""
        return len(self._slots) if self._slots and self._passed else None

    @property
    def highest_slot(self) -> int:
        """The highest number of a slot with listeners, 0 for none."""
        return max(self._slots, default=0)

    # Members --------------------------------------------------------------------------------

    def flaw_of(self, fds: Sequence[int]) -> str:
        """Return what is wrong with descriptors that a worker has opened, one an address."""
        if len(fds) != len(self.addresses):
            return f"{len(fds)} listeners for {len(self.addresses)} addresses"
        for address, fd in zip(self.addresses, fds, strict=True):
            if not listener.is_member(fd, address):
                return f"a descriptor that is no listener to be of {address}"
        return ""

    def admit(self, slot: SlotIndex, fds: Sequence[int]) -> None:
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
            set_accept(sock, blocking=self._blocking)
        self._slots[slot] = socks
        self._order.append(slot)
        self.steer()

    def close_slot(self, slot: SlotIndex) -> None:
        """Close a slot's listeners for every process that holds them.

        Those of a socket unit are not ours to close, so connections are steered away for good.
        """
        if slot in self._slots and not self._passed:
            self._close_members(slot)

    def _close_members(self, slot: SlotIndex) -> None:
        # When this one leaves, the last takes its index. Until steering follows, the kernel would
        # look for the last where nothing is, and choose by its hash: also slots that retire, and
        # close a moment later. So nothing is sent to either of the two meanwhile, if there are
        # others.
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

    def renew(self, place: Place, backlog: int, *, anew: bool) -> None:
        """Have a listener listen again; ours are opened anew at each address.

        So their order stays the same everywhere.  When that fails, the slot has none.
        """
        slot, index, sock = place
        assert slot is not None
        if not self._passed:
            self._close_members(slot)
            with contextlib.ExitStack() as undo:
                fresh = [undo.enter_context(listener.open_member(each)) for each in self.addresses]
                fds = [member.detach() for member in fresh]
            self.admit(slot, fds)
            return
        if not anew:
            with contextlib.suppress(OSError):
                listener.listen_again(sock, self.addresses[index], backlog=backlog)
                self._move_last(slot)
                return
        raise OSError(errno.EPERM, "only the socket unit can open it again")

    def _move_last(self, slot: SlotIndex) -> None:
        """Follow the kernel, for which a listener that listens again is a new one."""
        hole = self._order.index(slot)
        self._order[hole] = self._order[-1]
        self._order[-1] = slot
        self.steer()

    # Steering -------------------------------------------------------------------------------

    def steer_as(self, config: Config) -> None:
        """Choose listeners as this configuration says, from the next connection on."""
        self._steering, self._cpus = config.steering, config.pinned_cpus
        self.steer()

    def steer_away(self, slot: SlotIndex) -> None:
        """Send new connections to the listeners of the other slots only."""
        self._avoided.add(slot)
        self.steer()

    def steer_back(self, slot: SlotIndex) -> None:
        """Send new connections to this slot's listeners, too."""
        if slot in self._avoided:
            self._avoided.discard(slot)
            self.steer()

    def steer(self, unsettled: Collection[int] = ()) -> None:
        """Have the kernel choose; `unsettled` are indexes to avoid, too, if others are left."""
        if not self._order:
            return
        cpus = [cpu_of(slot, self._cpus) for slot in self._order]
        avoided = {n for n, slot in enumerate(self._order) if slot in self._avoided}
        more = avoided.union(unsettled)
        selection = bpf.choose(self._steering, cpus, avoided if len(more) == len(cpus) else more)
        for member in self._first:
            steering.steer(member, selection)

    # The end --------------------------------------------------------------------------------

    def holdings(self, labels: Sequence[str]) -> dict[str, int]:
        """Return guards and listeners by their names in the descriptor store."""
        found = {
            Stored(label=label, guard=True).name: sock.fileno()
            for label, sock in zip(labels, self._guards, strict=True)
        }
        for index, slot in enumerate(self._order):
            for label, sock in zip(labels, self._slots[slot], strict=True):
                found[Stored(label=label, slot=slot, index=index).name] = sock.fileno()
        return found

    def dump_into(self, state: InheritedListeners) -> InheritedListeners:
        """Return the state with these guards and listeners, for a new image."""
        return structs.replace(
            state,
            guards=[sock.fileno() for sock in self._guards],
            slots={
                int(slot): [sock.fileno() for sock in socks] for slot, socks in self._slots.items()
            },
            order=[int(slot) for slot in self._order],
            avoided=[int(slot) for slot in self._avoided],
        )

    def close(self) -> None:
        """Close everything; on passed listeners no steering stays."""
        if self._passed:
            for member in self._first:
                with contextlib.suppress(OSError):  # also when this was closed before
                    steering.steer(member, None)
        for _, _, sock in self.places():
            sock.close()
        for sock in self._guards:
            sock.close()
