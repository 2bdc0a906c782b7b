"""Decides when to send which notification: READY, RELOADING, STOPPING, STATUS, WATCHDOG.

Pure: the instants come in with each call.  `look` is level-triggered like the supervisor: it
compares the daemon with what was sent last.  `begin` and `end` stand around each reload and
upgrade, also one that is refused at once: `systemctl reload` waits for both.

Order, as systemd wants it (sd_notify(3), Type=notify-reload of systemd.service(5)):
RELOADING=1 with a MONOTONIC_USEC after the request, then READY=1 when every reload and upgrade
that has begun has ended and every worker accepts; neither of them after STOPPING=1.  A later
variable overrides an earlier one in the same message, so each has a message of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

STATUS_INTERVAL: Final = 5.0
"""Seconds between two STATUS= while the phase stays the same."""
EXTENSION: Final = 15.0
"""Seconds that the manager waits after each EXTEND_TIMEOUT_USEC= while a start, a stop or a reload
goes on. The supervisor bounds those; a master that hangs sends nothing, and is ended."""
EXTENSION_INTERVAL: Final = 5.0
RETRY: Final = 0.2
"""Seconds until a daemon that was not healthy is looked at again."""

Message = tuple[str, ...]
"""The assignments (NAME=VALUE) of one datagram."""


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
    """Of these, those whose worker has a recent heartbeat."""


class Phase(Enum):
    """The state that the manager was last notified of."""

    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"


class Notifications:
    """What was sent, and what is due; instants and durations are seconds."""

    def __init__(self, *, watchdog: float | None, upgraded: Message = ()) -> None:
        """`watchdog`: the manager ends the daemon after so many seconds without WATCHDOG=1.

        `upgraded`: assignments to send with the first READY=1 of a new image, whose predecessor
        has sent RELOADING=1; empty at a start.
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
        """Note that one of those has ended; `failure` is empty when it has succeeded."""
        self._under_way = max(0, self._under_way - 1)
        self._failure = failure
        self._next_status = 0.0

    def look(self, view: View, figures: Callable[[], str], now: float) -> list[Message]:
        """Return the messages that are due; `figures` is called only for a STATUS=."""
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
        if now >= self._next_extension and self._has_timeout:
            self._next_extension = now + EXTENSION_INTERVAL
            messages.append((f"EXTEND_TIMEOUT_USEC={int(EXTENSION * 1e6)}",))
        if self._watchdog is not None and now >= self._next_watchdog:
            healthy = self._is_healthy(view)
            self._next_watchdog = now + (self._watchdog / 2 if healthy else RETRY)
            messages += [("WATCHDOG=1",)] * healthy
        return messages

    def next_deadline(self) -> float:
        """Return when `look` may return messages though nothing has happened."""
        deadlines = [self._next_status]
        if self._watchdog is not None:
            deadlines.append(self._next_watchdog)
        if self._has_timeout:
            deadlines.append(self._next_extension)
        return min(deadlines)

    @property
    def _has_timeout(self) -> bool:
        """Whether something is under way for which the manager has a timeout."""
        return self._phase in {Phase.STARTING, Phase.STOPPING} or self._under_way > 0

    def _is_ready(self, view: View) -> bool:
        if not view.started or view.ready < view.slots:
            return False
        return self._phase is Phase.STARTING or self._under_way == 0

    def _is_healthy(self, view: View) -> bool:
        """Return whether most slots are served; always True while starting or stopping."""
        if self._phase in {Phase.STARTING, Phase.STOPPING}:
            return True
        return 2 * view.healthy > view.slots

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._next_status = 0.0
        # The manager's timeout has just begun, and may be shorter than EXTENSION_INTERVAL.
        self._next_extension = 0.0

    def _describe(self, figures: str) -> str:
        failure = f"; {self._failure}" if self._failure else ""
        return f"{self._phase.value}: {figures}{failure}"
