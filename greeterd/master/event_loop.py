"""The master's event loop: waits for descriptors, and calls what is registered for them.

What is registered is a callable(mask).  A turn that has taken long leaves the rest of its events to
the next one, where the selector reports them again, so that deadlines are kept.
"""

import selectors
import time
from typing import Final

TURN: Final = 0.02
"""Seconds after which a turn of the loop leaves what is not urgent to the next: a fork of many, or
events that the selector will report again."""


class EventLoop:
    """One selector, and how late its turns have been."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.longest_stall = 0.0
        """Seconds by which a wait has begun later than it was due."""
        self._due = 0.0
        self._skipped: set[int] = set()
        """The descriptors whose events were left to the next turn."""

    def begin(self) -> None:
        """Count lateness from now on."""
        self._due = time.monotonic()

    @property
    def until(self) -> float:
        """When this turn is to leave to the next what is not urgent."""
        return self._due + TURN

    def turn(self, timeout: float) -> None:
        """Wait so long at most; call those whose descriptors are ready, as time allows."""
        waits = time.monotonic()
        self.longest_stall = max(self.longest_stall, waits - self._due)
        events = self.selector.select(timeout)
        self._due = min(time.monotonic(), waits + timeout)
        # Those that had to wait come first, or one that always takes long could starve the others.
        events.sort(key=lambda event: event[0].fd not in self._skipped)
        done = 0
        for key, mask in events:
            key.data(mask)
            done += 1
            if time.monotonic() > self.until:
                break
        self._skipped = {key.fd for key, _ in events[done:]}

    def close(self) -> None:
        """Close the selector."""
        self.selector.close()
