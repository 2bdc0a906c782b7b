"""What a worker is given when it is forked."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from greeterd.config.schema import Config
from greeterd.sockets.address import Address
from greeterd.sockets.fd_passing import HandoffPair
from greeterd.supervisor.ids import SlotIndex
from greeterd.system.daemon_log import DaemonLog
from greeterd.system.files import Identity
from greeterd.system.signals import SignalPipe
from greeterd.worker.channel import Channel
from greeterd.worker.counters import Row


@dataclass(frozen=True, slots=True)
class DispatcherContext:
    """What the dispatcher is given besides."""

    routes: dict[SlotIndex, HandoffPair]
    """The slots that connections are handed on to; more come by RouteMessage."""
    rows: Mapping[int, Row]
    """Of the slots' newest workers, to read; those of later ones come by RouteMessage, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """All that is the worker's own, and what it shares with its siblings."""

    slot: int
    generation: int
    config: Config
    addresses: list[Address]
    listeners: list[socket.socket] | None
    """None: it opens its own."""
    handoff: DispatcherContext | None = None
    """None: it greets, and is not the dispatcher."""
    row: Row
    log_lock: int
    """A descriptor of the file that the slot's workers lock while they write its log."""
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
