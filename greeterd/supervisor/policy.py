"""The settings that the supervisor depends on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that the supervisor depends on; durations in seconds."""

    own_listeners: bool = False
    """Each slot has a listener of its own (reuseport), or a socketpair on which it receives
    connections (handoff).  The master keeps it in escrow, so it outlives the slot's workers."""
    dispatcher: bool = False
    """There is the slot DISPATCHER, which accepts for the others (handoff)."""
    most_slots: int | None = None
    """The number of sockets that the service manager has passed; None without."""
    most_by_files: int | None = None
    """The number that the master's limit of descriptors allows; None without a limit."""
    rescue: bool = True
    graceful_timeout: float = 30.0
    start_timeout: float = 30.0
    worker_timeout: float = 30.0
    max_restarts: int = 8
    """How often one slot's worker may die within `restart_window`; more end the daemon."""
    restart_window: float = 60.0
    shutdown_delay: float = 0.0
    """How long the daemon still serves after a graceful Stop."""
    max_greetings: int = 0
    """A worker that has greeted so many is recycled; 0: never, as in the next two."""
    max_age: float = 0.0
    max_rss_bytes: int = 0
