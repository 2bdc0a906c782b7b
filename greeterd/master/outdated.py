"""Replaces workers that hold a listener which the master has opened anew: they accept from the old.

Two parts mark them: `mender`, when a worker has shut a listener down, and `names`, when a unix
listener has lost its path.  They are replaced as by `restart`, a slot at a time, or all in one
command when all are to be; a replacement that has failed is tried again.
"""

import time
from typing import Final

from greeterd.master.context import MasterContext
from greeterd.supervisor.events import MENDING, Restart
from greeterd.supervisor.ids import DISPATCHER, SlotIndex, WorkerId, WorkerState
from greeterd.supervisor.records import Preflight, Roll

RETRY_AFTER: Final = 5.0
"""Seconds until a replacement that has failed is tried again."""


class OutdatedWorkers:
    """The slots whose workers are to be replaced."""

    def __init__(self, context: MasterContext) -> None:
        self._context = context
        self._marked: dict[SlotIndex, tuple[WorkerId, str]] = {}
        """By slot: the last worker that was forked before, and the warning to show meanwhile."""
        self._replacing = False
        self._retry_at = 0.0

    def mark(self, slot: SlotIndex | None, warning: str = "") -> None:
        """Have the workers replaced that a slot has by now; None: all that share the listeners.

        `warning` is shown in the status until that is done; empty for none.
        """
        supervisor = self._context.supervisor
        if slot is None and not supervisor.policy.dispatcher:
            slots = [each.index for each in supervisor.live_slots]
        else:
            slots = [DISPATCHER if slot is None else slot]
        for index in slots:
            _, before = self._marked.get(index, (0, ""))
            self._marked[index] = supervisor.last_worker, warning or before

    def attend(self, now: float) -> None:
        """Ask the supervisor for a replacement that is due."""
        due = self._due()
        supervisor = self._context.supervisor
        if not due or self._replacing or now < self._retry_at or supervisor.stopping is not None:
            return
        if isinstance(supervisor.operation, Preflight | Roll):
            return  # it may replace them itself
        self._replacing = True
        everyone = len(due) == len(supervisor.live_slots) > 1
        self._context.feed(Restart(None if everyone else due[0], MENDING))

    def finished(self, reason: str) -> None:
        """Note how a replacement has ended; `reason` is empty when it has done what was asked."""
        self._replacing = False
        self._retry_at = time.monotonic() + RETRY_AFTER if reason else 0.0

    def warnings(self) -> list[str]:
        """Return what the status is to show, a line for each warning."""
        slots: dict[str, list[str]] = {}
        for slot in sorted(self._due()):
            if warning := self._marked[slot][1]:
                slots.setdefault(warning, []).append(str(slot))
        return [f"{warning}: worker {', '.join(found)}" for warning, found in slots.items()]

    def _due(self) -> list[SlotIndex]:
        """Return the slots in which an old worker accepts; forget those that have none any more."""
        due = []
        for index, (last, _) in list(self._marked.items()):
            slot = self._context.supervisor.slots.get(index)
            old = [each for each in slot.workers if each.id <= last] if slot else []
            states = {each.state for each in old} - {WorkerState.DRAINING}
            if not states:
                del self._marked[index]
            elif WorkerState.READY in states and slot and not slot.retiring:
                due.append(index)
        return due
