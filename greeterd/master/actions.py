"""Performs the supervisor's actions, each by the part of the master that it concerns."""

from collections.abc import Callable
from typing import assert_never

from greeterd.master.commands import CommandHandler
from greeterd.master.escrow import Escrow
from greeterd.master.generations import Generations
from greeterd.master.log import MasterLog
from greeterd.master.spawner import Spawner
from greeterd.master.systemd.service_manager import ServiceManager
from greeterd.master.upgrade.upgrader import Upgrader
from greeterd.master.workers import Workers
from greeterd.supervisor.actions import (
    Action,
    CloseSlot,
    Drain,
    EndPreflight,
    Exit,
    Finished,
    GateAll,
    Kill,
    Lend,
    Replace,
    Say,
    Spawn,
    Started,
    StartPreflight,
    SteerAway,
    TakeBack,
)
from greeterd.supervisor.events import Event
from greeterd.supervisor.ids import DISPATCHER, DrainMode
from greeterd.supervisor.supervisor import Supervisor
from greeterd.system.daemonize import Readiness
from greeterd.system.proctitle import title_master
from greeterd.worker.handshakes import Sweeps
from greeterd.worker.messages import DrainMessage


class ActionRunner:
    """Who does it, and how far the daemon has come by it."""

    def __init__(  # noqa: PLR0913 - the master's parts, each needed
        self,
        *,
        supervisor: Supervisor,
        generations: Generations,
        crew: Workers,
        forks: Spawner,
        escrow: Escrow,
        sweeps: Sweeps,
        manager: ServiceManager,
        orders: CommandHandler,
        upgrading: Upgrader,
        readiness: Readiness,
        log: MasterLog,
        feed: Callable[[Event], None],
    ) -> None:
        self._supervisor = supervisor
        self._generations = generations
        self._crew = crew
        self._forks = forks
        self._escrow = escrow
        self._sweeps = sweeps
        self._manager = manager
        self._orders = orders
        self._upgrading = upgrading
        self._readiness = readiness
        self._log = log
        self._feed = feed
        self.started = False
        """Every worker of the first generation has been ready."""
        self.exit: Exit | None = None
        """How the daemon ends, once no worker is left."""

    def perform(self, action: Action) -> None:  # noqa: C901, PLR0912 - a case an action
        """Perform it; what comes of it is fed to the supervisor as an event, now or later."""
        match action:
            case Spawn():
                self._forks.order(action)
            case Drain(ident, DrainMode.SWEEP as how):
                if not self._forks.renounce(ident):
                    self._crew.send(ident, DrainMessage(how.value, settled=False))
                    self._sweeps.add(ident)
                    if worker := self._supervisor.worker(ident):
                        self._escrow.end_unused(worker.slot)
            case Drain(ident, how):
                if not self._forks.renounce(ident):
                    self._crew.send(ident, DrainMessage(how.value))
            case Kill(ident, number, reason):
                if not self._forks.renounce(ident):
                    self._crew.kill(ident, number, reason)
            case Lend(slot, ident):
                self._crew.lend(slot, ident)
            case TakeBack(slot, ident):
                self._crew.take_back(slot, ident)
            case SteerAway(slot):
                self._escrow.steer_away(slot)
            case CloseSlot(slot):
                self._escrow.close_slot(slot)
                self._manager.keep(self._escrow.holdings())
                if slot != DISPATCHER:
                    self._log.logger.info("worker retired", worker=slot)
            case GateAll():
                title_master(self._generations.current.mode, self._addresses, "stopping")
                self._escrow.gate()
            case StartPreflight():
                self._upgrading.start_preflight()
            case EndPreflight():
                self._upgrading.end_preflight()
            case Replace(ticket):
                self._upgrading.replace(ticket)
            case Started():
                self._start_serving()
            case Finished():
                self._orders.finish(action)
            case Exit():
                self.exit = action
            case Say(level, event, fields):
                getattr(self._log.logger, level)(event, **dict(fields))
            case _:
                assert_never(action)

    def _start_serving(self) -> None:
        self.started = True
        config = self._generations.current
        self._log.logger.info(
            "ready",
            addresses=self._addresses,
            mode=config.mode,
            workers=len(self._supervisor.live_slots),
        )
        self._readiness.ready()

    @property
    def _addresses(self) -> list[str]:
        return [str(address) for address in self._escrow.addresses]
