"""What a worker's loop needs of the part that takes connections, whichever that is.

A worker greets by a ConnectionHandler; the dispatcher of mode handoff passes connections on by a
Dispatcher.
"""

from typing import Protocol

from greeterd.worker.acceptor import Source


class Handler(Protocol):
    """Accepts connections in bursts and brings each to its outcome.

    A turn of the loop is: bursts and events in any order, then `end_turn`.
    """

    accept_error: int
    """The error number that the latest burst ended with, 0 for none."""

    @property
    def full_reason(self) -> int:
        """Value of the cell `blocked` while there is no room."""

    @property
    def room(self) -> int:
        """How many connections may be accepted now."""

    @property
    def idle(self) -> bool:
        """Every connection that was accepted has had its outcome."""

    def burst(self, source: Source, limit: int) -> int:
        """Accept up to `limit` connections; return their number, 0 if none waited.

        A blocking listener is waited for.  `room` must be at least `limit`.
        """

    def on_event(self, fd: int) -> bool:
        """Handle what epoll reports of this descriptor; False if the descriptor is not ours."""

    def end_turn(self) -> bool:
        """Complete what the turn has begun; False while the log cannot be written."""

    def abandon(self) -> None:
        """Reset every connection that is not finished."""

    def open_gates(self) -> None:
        """From now on open the gate of each connection (see steering.gate_syn).

        Also of those that are open: they may have been accepted after the gate was shut, and
        before this worker knew of it.
        """

    def stop_opening_gates(self) -> None:
        """Take connections as they are: no listener has a gate any more."""


class Warn(Protocol):
    """Logs a warning that clients can provoke at will: each event at most once a second."""

    def __call__(self, event: str, **fields: object) -> None:
        """Log the event, unless it was logged a moment ago."""
