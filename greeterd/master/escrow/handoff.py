"""Mode handoff: for each slot the socketpair by which the dispatcher hands connections to it.

A pair queues connections as a listener does, so it outlives the slot's workers and can be lent.
"""

import socket

from msgspec import structs

from greeterd.master.upgrade.state import InheritedListeners
from greeterd.sockets.fd_passing import HandoffPair, waiting
from greeterd.supervisor.ids import DISPATCHER, SlotIndex
from greeterd.system import signals


class HandoffPairs:
    """The pairs by slot; none in the other modes."""

    def __init__(self, inherited: InheritedListeners) -> None:
        self._pairs = {
            SlotIndex(slot): HandoffPair.adopt(*ends) for slot, ends in inherited.pairs.items()
        }
        self._routed = {SlotIndex(slot) for slot in inherited.routed}
        """The slots that the dispatcher hands connections to, or will when there is one."""

    def exit_for(self, slot: SlotIndex) -> socket.socket:
        """Return the end that a worker of the slot takes connections from."""
        if slot not in self._pairs:
            self._pairs[slot] = HandoffPair.make()
        return self._pairs[slot].exit

    def exits(self) -> list[tuple[SlotIndex, socket.socket]]:
        """Return every such end, by slot."""
        return [(slot, pair.exit) for slot, pair in sorted(self._pairs.items())]

    @property
    def routes(self) -> dict[SlotIndex, HandoffPair]:
        """The pairs that a dispatcher which is forked now has to know."""
        return {slot: self._pairs[slot] for slot in self._routed}

    def route(self, slot: SlotIndex) -> HandoffPair | None:
        """Have connections handed to a slot from now on.

        Return the pair, which running dispatchers are to be sent; None: they have it, or there is
        none.
        """
        if slot not in self._pairs or slot in self._routed:
            return None
        self._routed.add(slot)
        return self._pairs[slot]

    def unroute(self, slot: SlotIndex) -> None:
        """Let no dispatcher that is forked from now on hand connections to a slot."""
        self._routed.discard(slot)

    def shut(self, slot: SlotIndex) -> None:
        """Let nothing more into a slot's pair; its worker takes what waits there, then leaves."""
        self.unroute(slot)
        self._pairs[slot].close_entry()

    def shut_unused(self, slot: SlotIndex) -> None:
        """Shut a slot's pair if no dispatcher knows it: its worker was started in vain."""
        if slot in self._pairs and slot not in self._routed:
            self.shut(slot)

    def close_slot(self, slot: SlotIndex) -> None:
        """Close a slot's pair; with the dispatcher's slot, nothing is handed to any other either.

        What waits in the pairs of the other slots is still served.
        """
        self.unroute(slot)
        if slot == DISPATCHER:
            # Not routed any more: `renew` must not take the shut pairs for ones to be mended.
            for each in [*self._pairs]:
                self.shut(each)
        if slot in self._pairs:
            with signals.prodded():
                self._pairs.pop(slot).close()

    def renew(self) -> dict[SlotIndex, str]:
        """Replace the pairs that a worker has spoiled, and move what waits in them.

        Return how, by the slots whose workers need the new ones.
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
        self._routed.difference_update(spoiled)  # until their workers have the new ones
        return spoiled

    @property
    def left_over(self) -> int:
        """How many connections wait in pairs: at the end, those that are lost."""
        return sum(waiting(exit_) for _, exit_ in self.exits())

    def dump_into(self, state: InheritedListeners) -> InheritedListeners:
        """Return the state with these pairs, for a new image."""
        return structs.replace(
            state,
            pairs={int(slot): pair.fds for slot, pair in self._pairs.items()},
            routed=[int(slot) for slot in self._routed],
        )

    def close(self) -> None:
        """Close every pair."""
        for pair in self._pairs.values():
            pair.close()
