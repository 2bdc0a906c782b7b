"""What the master's parts share: made once, when the daemon starts or goes on in a new image."""

import selectors
from collections.abc import Callable
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from greeterd.config.schema import Config
from greeterd.master.escrow import Escrow
from greeterd.master.generations import Generations
from greeterd.master.log import MasterLog
from greeterd.master.systemd.service_manager import ServiceManager
from greeterd.supervisor.events import Event
from greeterd.supervisor.supervisor import Supervisor
from greeterd.system.files import Identity
from greeterd.worker.scoreboard import Scoreboard


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterContext:
    """The master's state and its ways out; `worker.context` has the same for a worker."""

    supervisor: Supervisor
    """Only read: what is to change it goes through `feed`."""
    generations: Generations
    scoreboard: Scoreboard
    escrow: Escrow
    service_manager: ServiceManager
    log: MasterLog
    identity: Identity | None
    """The user that workers become; None: they stay who the master is."""
    selector: selectors.BaseSelector
    """The event loop's; each descriptor is registered with a callable(mask)."""
    feed: Callable[[Event], None]
    """Hand an event to the supervisor, and perform the actions that follow."""

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.generations.current

    @property
    def logger(self) -> FilteringBoundLogger:
        """The daemon log, as it is configured now: a reload may change it."""
        return self.log.logger
