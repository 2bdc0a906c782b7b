"""Repairs listeners: a worker shares its listener with the master, and can change or shut it.

Each look inspects listeners (`inspection`): all of them or, if there are many, some by turns.
Options that were changed are set again.  A listener that was shut down listens again, or is opened
anew, and the workers that hold the old one are replaced (`outdated`).  A repair that fails is tried
again at the next look; until it succeeds the status, `ping` and every command that starts workers
report the address.  When no listener has accepted for GIVE_UP_AFTER, the daemon ends, so that its
service manager starts it again.
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
from greeterd.sockets.inspection import ListenerTerms, listens, set_right, terms_of
from greeterd.sockets.sockdiag import spoiled_listeners
from greeterd.supervisor.events import Unreachable
from greeterd.supervisor.ids import SlotIndex
from greeterd.system.ratelimit import RateLimit

INSPECTED_AT_ONCE: Final = 64
"""Listeners in one look: some 3 ms."""
SPOILED_EVERY: Final = 1.0
"""Seconds between two questions to the kernel which listeners are spoiled."""
WARNING_PERIOD: Final = 10.0
"""Seconds in which the same warning is logged once."""
GIVE_UP_AFTER: Final = 10.0
"""Seconds without any listener that accepts."""


class Mender:
    """The listeners as they should be, and what could not be repaired."""

    def __init__(self, context: MasterContext, outdated: OutdatedWorkers) -> None:
        config = context.config
        self._context = context
        self._outdated = outdated
        self._backlog = config.backlog
        self._blocking = config.wait_strategy == "blocking"
        self._terms: WeakKeyDictionary[socket.socket, ListenerTerms] = WeakKeyDictionary()
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
        """Inspect listeners and repair them; end the daemon when nothing accepts any more.

        `everywhere`: inspect all now, not some by turns.
        """
        now = monotonic()
        renewed = False
        places = self._context.escrow.accepting()
        first, self._turn = self._turn, self._turn + INSPECTED_AT_ONCE
        if self._turn >= len(places):
            self._turn = 0
            # No socket option shows whether a worker has attached another selection to its group,
            # so attach ours again.
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
        """Inspect a listener and repair it; return whether another socket is in its place now."""
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

    def _terms_of(self, sock: socket.socket) -> ListenerTerms:
        """Return the options that a listener is to have.

        For that of a socket unit: those that it had before a worker got it.  For ours: those of a
        fresh socket.
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
        """Log what was done to a listener; `trouble` is why it could not be repaired."""
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
