"""The escrow: the master's descriptors of every listener and handoff pair, whatever the mode.

Each mode's part is a class of its own: SharedListeners (inherit, and the dispatcher's in handoff),
ReuseportGroups, HandoffPairs.  Those of another mode are empty.  Only the master changes any of it;
a worker that is forked inherits what `for_slot` returns.
"""

import socket
from collections.abc import Mapping
from types import MappingProxyType

from greeterd.config.schema import Config
from greeterd.errors import ListenError
from greeterd.master.escrow.handoff import HandoffPairs
from greeterd.master.escrow.inherit import SharedListeners
from greeterd.master.escrow.listeners import Listeners, Owner, Place, Queues, set_accept
from greeterd.master.escrow.reuseport import ReuseportGroups
from greeterd.master.systemd.fdstore import label_of
from greeterd.master.upgrade.state import InheritedListeners
from greeterd.sockets import steering
from greeterd.sockets.address import Address, parse_address
from greeterd.sockets.fd_passing import HandoffPair
from greeterd.supervisor.ids import DISPATCHER, SlotIndex
from greeterd.system import signals


class Escrow:
    """The listeners, pairs and steering of one daemon."""

    def __init__(
        self,
        config: Config,
        inherited: InheritedListeners | None = None,
        resolved: Mapping[str, Address] = MappingProxyType({}),
    ) -> None:
        """Take over what a predecessor or a socket unit has opened, and open what is missing.

        `resolved` has the addresses of names that were looked up before, by their entry in `bind`.
        What is taken over is not changed, since workers may serve it meanwhile.

        Raises:
            ListenError: an address cannot be opened.

        """
        inherited = inherited or InheritedListeners()
        self._config = config
        self.passed = inherited.passed
        """A socket unit has opened them.  Nothing is done that would keep clients from its sockets
        when this daemon is gone: no gate, no shutdown, no steering that stays."""
        self.gated = inherited.gated
        """Connections in the queues may have inherited a gate by TTL: open it after accept."""
        self._accepts = True
        """False once this process has gated everything, for good."""
        self.shared = SharedListeners(config, inherited)
        self.groups = ReuseportGroups(config, inherited)
        self.pairs = HandoffPairs(inherited)
        self._parts = (self.shared, self.groups, self.pairs)
        reuseport = config.mode == "reuseport"
        self._listeners: Listeners = self.groups if reuseport else self.shared
        addresses = [resolved.get(text) or parse_address(text) for text in config.bind]
        try:
            self._listeners.open(addresses)
        except ListenError:
            self.close()
            raise
        self.addresses = self._listeners.addresses
        """As bound: port 0 is resolved."""
        self.queues = Queues(self._queued)

    def arrange(self) -> None:
        """Set what was taken over as the configuration says: at a start, when no worker serves."""
        for sock in self.listeners():
            set_accept(sock, blocking=self._config.wait_strategy == "blocking")
            if not self.passed:
                # It listens already: this changes the length of its queue only.
                sock.listen(self._config.backlog)
        self.groups.steer()

    # A slot ---------------------------------------------------------------------------------

    def for_slot(self, slot: SlotIndex) -> list[socket.socket] | None:
        """Return the listeners that a worker of this slot serves; None: it opens its own."""
        if self._config.mode == "reuseport":
            return self.groups.get(slot)
        if self._config.mode == "handoff" and slot != DISPATCHER:
            return [self.pairs.exit_for(slot)]
        return [place.sock for place in self.shared.places()]

    def use(self, slot: SlotIndex) -> HandoffPair | None:
        """Let new connections go to a slot that is served.

        Return the pair that running dispatchers are to be sent, or None.
        """
        self.groups.steer_back(slot)
        return self.pairs.route(slot)

    def steer_away(self, slot: SlotIndex) -> None:
        """Let new connections go to the other slots only."""
        if self._config.mode == "handoff":
            self.pairs.shut(slot)
        else:
            self.groups.steer_away(slot)

    def close_slot(self, slot: SlotIndex) -> None:
        """Close what is a slot's own, for every process that holds it."""
        self.pairs.close_slot(slot)
        self.groups.close_slot(slot)

    # All of them ----------------------------------------------------------------------------

    def listeners(self) -> list[socket.socket]:
        """Return every listener."""
        return [place.sock for place in self._listeners.places()]

    def accepting(self) -> list[Place]:
        """Return every listener that new connections are to reach."""
        return self._listeners.accepting() if self._accepts else []

    def _queued(self) -> list[tuple[Owner, socket.socket]]:
        listeners = [(place.slot, place.sock) for place in self._listeners.places()]
        return [*listeners, *self.pairs.exits()]

    def renew(self, place: Place, backlog: int, *, anew: bool) -> None:
        """Have an address listened on again, by another socket if `anew`; its queue is lost.

        Raises:
            GreeterdError: the address cannot be had. A slot with listeners of its own has none now.
            OSError: as that, or only the socket unit can open it.

        """
        self._listeners.renew(place, backlog, anew=anew)

    def gate(self) -> None:
        """Let no new connection in anywhere; those under way still arrive in the accept queues.

        The listeners of a socket unit stay open: a client that is not served wakes the service.
        """
        self._accepts = False
        if self.passed:
            return
        self.shared.remove_unix_files()
        for sock in self.listeners():
            if sock.family != socket.AF_UNIX:
                steering.gate_syn(sock)

    def close(self) -> None:
        """Close everything here; workers that hold a listener keep it."""
        self.shared.remove_unix_files()
        with signals.prodded():
            for part in self._parts:
                part.close()

    # Those who take them over ---------------------------------------------------------------

    def dump(self) -> InheritedListeners:
        """Return what a new image needs to take all of this over."""
        state = InheritedListeners(passed=self.passed, gated=self.gated)
        for part in self._parts:
            state = part.dump_into(state)
        return state

    def holdings(self) -> Mapping[str, int]:
        """Return what the service manager is to keep, by name, for the process after this one.

        What a socket unit has passed it keeps by itself.
        """
        labels = [label_of(text) for text in self._config.bind]
        return {} if self.passed else self._listeners.holdings(labels)
