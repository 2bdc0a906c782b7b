"""Looks after the listeners: what a worker has done to them is undone, told, and made good.

At each look listeners are inspected (`inspection`): all of them or, of many, some by turns.  What
was changed is set right; what was shut down listens again, and the workers that hold the old one
are replaced, as by `restart`, because they have let go of it.  What cannot be mended is tried again
at each look, and is in the status, in the answer to `ping` and to whatever would report success.
When nothing at all accepts for GIVE_UP_AFTER, the daemon ends, so that its service manager starts
it anew.
"""

import contextlib
import os
import socket
from dataclasses import replace
from time import monotonic
from typing import Final
from weakref import WeakKeyDictionary

from greeterd.errors import GreeterdError, reason_of
from greeterd.master.context import MasterContext
from greeterd.master.escrow import BLOCKING_TIMEOUT, Place
from greeterd.master.outdated import OutdatedWorkers
from greeterd.sockets import listener
from greeterd.sockets.inspection import Terms, listens, set_right, terms_of
from greeterd.sockets.sockdiag import spoiled_listeners
from greeterd.supervisor.events import Unreachable
from greeterd.supervisor.ids import SlotIndex
from greeterd.system.ratelimit import RateLimit

INSPECTED_AT_ONCE: Final = 64
"""Listeners in one look: some 3 ms."""
SPOILED_EVERY: Final = 1.0
"""Seconds between two questions of the kernel which listeners are spoiled."""
WARNING_PERIOD: Final = 10.0
"""Seconds in which the same is told once."""
GIVE_UP_AFTER: Final = 10.0
"""Seconds without any listener that accepts."""


class Mender:
    """What is wrong with the listeners, and who still holds one that is gone."""

    def __init__(self, context: MasterContext, outdated: OutdatedWorkers) -> None:
        config = context.config
        self._context = context
        self._outdated = outdated
        self._backlog = config.backlog
        self._blocking = config.wait_strategy == "blocking"
        self._terms: WeakKeyDictionary[socket.socket, Terms] = WeakKeyDictionary()
        self._turn = 0
        self._spoiled: set[int] = set()
        self._next_spoiled = 0.0
        self._warnings = RateLimit(WARNING_PERIOD)
        self._troubles: dict[tuple[SlotIndex | None, str], str] = {}
        self._unreachable_since: float | None = None

    @property
    def trouble(self) -> str:
        """Which addresses do not accept, and why; empty if all do."""
        whys = {address: why for (_, address), why in self._troubles.items()}
        return "; ".join(f"{address} does not accept: {why}" for address, why in whys.items())

    def look(self, *, everywhere: bool = True) -> None:
        """Look once, mend, and have done what follows from that.

        `everywhere`: not by turns, however many listeners there are.
        """
        now = monotonic()
        renewed = False
        places = self._context.escrow.accepting()
        first, self._turn = self._turn, self._turn + INSPECTED_AT_ONCE
        if self._turn >= len(places):
            self._turn = 0
            # Whether a worker has attached another selection to its group, no socket option tells.
            with contextlib.suppress(OSError):
                self._context.escrow.groups.steer()
        if now >= self._next_spoiled:
            self._next_spoiled = now + SPOILED_EVERY
            with contextlib.suppress(OSError):  # the kernel does not tell
                self._spoiled = spoiled_listeners()
        for place in places if everywhere else places[first : first + INSPECTED_AT_ONCE]:
            if place.sock.fileno() >= 0:  # else it was closed meanwhile, with another of its slot
                renewed |= self._inspect(place)
        for slot, how in self._context.escrow.pairs.renew().items():
            renewed = True
            self._renewed(slot, "socketpair", how)
        if renewed:
            self._context.service_manager.keep(self._context.escrow.holdings())
        slots = self._context.supervisor.slots
        for key in [key for key in self._troubles if key[0] and key[0] not in slots]:
            del self._troubles[key]
        self._give_up(now)

    # One listener ---------------------------------------------------------------------------

    def _inspect(self, place: Place) -> bool:
        """Look at a listener, and mend it; tell whether another one is in its place now."""
        slot, sock = place.slot, place.sock
        address = self._context.escrow.addresses[place.address]
        terms = self._terms_of(sock)
        what, anew = "shut down", False
        inode = os.fstat(sock.fileno()).st_ino
        try:
            if (
                listens(sock)
                and listener.local_address(sock) == address
                and inode not in self._spoiled
            ):
                if changed := set_right(sock, terms):
                    self._report(slot, str(address), f"changed: {', '.join(changed)}")
                self._troubles.pop((slot, str(address)), None)
                return False
        except OSError as error:
            what, anew = f"changed for good: {reason_of(error)}", True
        self._spoiled.discard(inode)
        try:
            self._context.escrow.renew(place, terms.backlog or self._backlog, anew=anew)
        except (GreeterdError, OSError) as error:
            why = reason_of(error) if isinstance(error, OSError) else str(error)
            if self._troubles.get((slot, str(address))) != why:
                self._troubles[slot, str(address)] = why
                self._report(slot, str(address), what, trouble=why)
            if slot is not None and self._context.escrow.for_slot(slot) is None:
                self._outdated.mark(slot)  # its next worker opens its listeners
                return True
            return False
        self._troubles.pop((slot, str(address)), None)
        self._renewed(slot, str(address), what)
        return True

    def _terms_of(self, sock: socket.socket) -> Terms:
        """Return how a listener is to be.

        That of a socket unit: as it was before a worker had it.  Ours: as one that nobody has had.
        """
        if sock not in self._terms:
            terms = terms_of(sock)
            if not self._context.escrow.passed:
                with socket.socket(sock.family, socket.SOCK_STREAM) as fresh:
                    fresh.setblocking(False)
                    if self._blocking:
                        listener.set_blocking_accept(fresh, BLOCKING_TIMEOUT)
                    ours = terms_of(fresh)
                known = terms.backlog is not None
                backlog = listener.effective_backlog(self._backlog) if known else None
                terms = replace(ours, backlog=backlog)
            self._terms[sock] = terms
        return self._terms[sock]

    def _renewed(self, slot: SlotIndex | None, address: str, what: str) -> None:
        self._report(slot, address, what)
        self._outdated.mark(slot)

    def _report(
        self, slot: SlotIndex | None, address: str, what: str, trouble: str | None = None
    ) -> None:
        """Tell what was done to a listener; `trouble` is why it could not be undone."""
        suppressed = self._warnings.admit(f"{slot} {address} {what} {trouble}", monotonic())
        if suppressed is None:
            return
        fields: dict[str, object] = {"suppressed": suppressed} if suppressed else {}
        if slot is not None:
            fields["worker"] = slot
        if trouble is not None:
            fields["trouble"] = trouble
        self._context.logger.warning("listener meddled with", address=address, what=what, **fields)
        self._context.log.last_error = f"{address} was {what}"

    # What follows ---------------------------------------------------------------------------

    def _give_up(self, now: float) -> None:
        reachable = any(
            (place.slot, str(self._context.escrow.addresses[place.address])) not in self._troubles
            for place in self._context.escrow.accepting()
        )
        if reachable or not self._troubles or self._stopping:
            self._unreachable_since = None
        elif self._unreachable_since is None:
            self._unreachable_since = now
        elif now - self._unreachable_since >= GIVE_UP_AFTER:
            self._context.feed(Unreachable(self.trouble))

    @property
    def _stopping(self) -> bool:
        return self._context.supervisor.stopping is not None
