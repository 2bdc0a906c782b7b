"""What a worker is given when it is forked."""

import socket
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from greeterd.channel import Channel
from greeterd.config import Config
from greeterd.core.address import Address
from greeterd.logs import DaemonLog
from greeterd.privileges import Identity
from greeterd.scoreboard import Row
from greeterd.signals import SignalPipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """All that is the worker's own, and what it shares with its siblings."""

    slot: int
    generation: int
    config: Config
    addresses: list[Address]
    listeners: list[socket.socket] | None
    """None: it opens its own."""
    row: Row
    identity: Identity | None
    channel: Channel
    signals: SignalPipe
    daemon_log: DaemonLog
    log: FilteringBoundLogger
    passed: bool = False
    """The listeners are a socket unit's, which are never gated."""
    gated: bool = False
    """What waits at the listeners may be deaf by a gate that looked at TTLs."""
    rehearsal: bool = False
    """Only show that a start is possible: leave instead of serving."""
