"""What a worker gets from the master when it is forked."""

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
from greeterd.worker.messages import FromWorker


@dataclass(frozen=True, slots=True)
class DispatcherContext:
    """What only the dispatcher gets."""

    routes: dict[SlotIndex, HandoffPair]
    """The slots that connections are handed on to; more come by RouteMessage."""
    rows: Mapping[int, Row]
    """Read-only rows of the slots' newest workers; a later worker's comes by RouteMessage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """The worker's identity, settings, descriptors and logs."""

    slot: int
    generation: int
    config: Config
    addresses: list[Address]
    listeners: list[socket.socket] | None
    """None: the worker opens its own."""
    handoff: DispatcherContext | None = None
    """None: a worker that greets; otherwise it is the dispatcher."""
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
    """Connections in the listeners' queues may inherit a gate that looks at TTLs: see open_gate."""
    rehearsal: bool = False
    """Only prove that a start is possible: exit instead of serving."""

    def send(self, message: FromWorker) -> None:
        """Send a message to the master; log it if that fails."""
        if reason := self.channel.send(message):
            self.log.error(
                "the master does not listen", message=type(message).__name__, reason=reason
            )
