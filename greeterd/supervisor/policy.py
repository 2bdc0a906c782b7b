"""The settings that the supervisor's decisions depend on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that decisions depend on; durations in seconds."""

    own_listeners: bool = False
    """Each slot has a listener of its own (reuseport), or a socketpair through which it is handed
    connections (handoff); it outlives the slot's workers in escrow."""
    dispatcher: bool = False
    """The slot DISPATCHER accepts, and hands on to the others."""
    most_slots: int | None = None
    """As many sockets were passed for them; None: as many as there can be."""
    most_by_files: int | None = None
    """The descriptors that the master may have are enough for so many; None: no limit is known."""
    rescue: bool = True
    graceful_timeout: float = 30.0
    start_timeout: float = 30.0
    worker_timeout: float = 30.0
    max_restarts: int = 8
    """So often the worker of one slot may die within `restart_window`."""
    restart_window: float = 60.0
    shutdown_delay: float = 0.0
    """For how long the daemon goes on serving when it was told to stop."""
    max_greetings: int = 0
    """After so many a worker is replaced; 0 for never, as in the next two."""
    max_age: float = 0.0
    max_rss_bytes: int = 0
