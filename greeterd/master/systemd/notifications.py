"""Decides what the service manager is told, and when: READY, RELOADING, STOPPING and the rest.

Pure: the instants come in with each call.  `look` is level-triggered like the supervisor: it
compares what the daemon is with what was told.  `begin` and `end` stand around each reload and
upgrade, also one that is refused at once: whoever waits for it hears of its beginning and its end.

Order, as systemd wants it (sd_notify(3), Type=notify-reload of systemd.service(5)):
RELOADING=1 with MONOTONIC_USEC not before what asked for it, then READY=1 when all that was begun
has ended and every worker accepts; nothing of both after STOPPING=1.  A later word overrides an
earlier one in the same message, so each stands in a message of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

STATUS_INTERVAL: Final = 5.0
"""Seconds between two figures of the same state."""
EXTENSION: Final = 15.0
"""Seconds by which the manager's patience reaches beyond the latest word while something lasts; the
supervisor bounds how long it lasts, and a master that hangs says nothing."""
EXTENSION_INTERVAL: Final = 5.0
RETRY: Final = 0.2
"""Seconds until a daemon that was not well is looked at again."""

Message = tuple[str, ...]
"""The assignments of one datagram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The daemon at one instant."""

    started: bool
    """Every worker of the first generation has been ready."""
    stopping: bool
    slots: int
    """Those that are to be served."""
    ready: int
    """Of these, those with a worker that accepts."""
    healthy: int
    """Of these, those whose worker turns its loop in time."""


class Phase(Enum):
    """What the manager believes."""

    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"


class Notifications:
    """What was told, and what is due; instants and durations are seconds."""

    def __init__(self, *, watchdog: float | None, upgraded: Message = ()) -> None:
        """`watchdog`: how long silence may last.

        `upgraded`: what is told with the first READY by an image that has taken another's place;
        that one has told RELOADING.
        """
        self._watchdog = watchdog
        self._upgraded = upgraded
        self._phase = Phase.RELOADING if upgraded else Phase.STARTING
        self._under_way = 0
        self._failure = ""
        self._status = ""
        self._next_status = 0.0
        self._next_watchdog = 0.0
        self._next_extension = 0.0

    def begin(self, now_usec: int) -> list[Message]:
        """Note that a reload or an upgrade begins; `now_usec` is of CLOCK_MONOTONIC."""
        self._under_way += 1
        if self._phase not in {Phase.READY, Phase.RELOADING}:
            return []
        self._enter(Phase.RELOADING)
        return [("RELOADING=1", f"MONOTONIC_USEC={now_usec}")]

    def end(self, failure: str) -> None:
        """Note that one of those has ended; `failure` is empty when it did what was asked."""
        self._under_way = max(0, self._under_way - 1)
        self._failure = failure
        self._next_status = 0.0

    def look(self, view: View, figures: Callable[[], str], now: float) -> list[Message]:
        """Return what is to be told now; `figures` is asked for only where they are told."""
        messages: list[Message] = []
        if view.stopping:
            if self._phase is not Phase.STOPPING:
                messages.append(("STOPPING=1",))
                self._enter(Phase.STOPPING)
        elif self._phase is not Phase.READY and self._is_ready(view):
            messages.append(("READY=1", *self._upgraded))
            self._upgraded = ()
            self._enter(Phase.READY)
        if now >= self._next_status:
            self._next_status = now + STATUS_INTERVAL
            status = self._describe(figures())
            if status != self._status:
                self._status = status
                messages.append((f"STATUS={status}",))
        if now >= self._next_extension and self._lasts:
            self._next_extension = now + EXTENSION_INTERVAL
            messages.append((f"EXTEND_TIMEOUT_USEC={int(EXTENSION * 1e6)}",))
        if self._watchdog is not None and now >= self._next_watchdog:
            well = self._is_well(view)
            self._next_watchdog = now + (self._watchdog / 2 if well else RETRY)
            messages += [("WATCHDOG=1",)] * well
        return messages

    def next_deadline(self) -> float:
        """Return when `look` may have something to tell though nothing has happened."""
        deadlines = [self._next_status]
        if self._watchdog is not None:
            deadlines.append(self._next_watchdog)
        if self._lasts:
            deadlines.append(self._next_extension)
        return min(deadlines)

    @property
    def _lasts(self) -> bool:
        """Something is under way that the manager bounds, and the supervisor, too."""
        return self._phase in {Phase.STARTING, Phase.STOPPING} or self._under_way > 0

    def _is_ready(self, view: View) -> bool:
        if not view.started or view.ready < view.slots:
            return False
        return self._phase is Phase.STARTING or self._under_way == 0

    def _is_well(self, view: View) -> bool:
        """More than half of the slots are served, or it is not the time for that."""
        if self._phase in {Phase.STARTING, Phase.STOPPING}:
            return True
        return 2 * view.healthy > view.slots

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._next_status = 0.0
        # The manager has just begun to count, and the unit may give it less than an interval.
        self._next_extension = 0.0

    def _describe(self, figures: str) -> str:
        failure = f"; {self._failure}" if self._failure else ""
        return f"{self._phase.value}: {figures}{failure}"
