"""Performs the supervisor's actions, each by the part of the master that it concerns."""

from typing import assert_never

from greeterd.master.commands import CommandHandler
from greeterd.master.context import MasterContext
from greeterd.master.spawner import Spawner
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
from greeterd.supervisor.ids import DISPATCHER, DrainMode, SlotIndex, WorkerId
from greeterd.system.daemonize import Readiness
from greeterd.system.proctitle import title_master
from greeterd.worker.handshakes import Sweeps
from greeterd.worker.messages import DrainMessage


class ActionRunner:
    """Performs actions in the order in which they come."""

    def __init__(  # noqa: PLR0913 - the master's parts, each needed
        self,
        context: MasterContext,
        *,
        workers: Workers,
        spawner: Spawner,
        sweeps: Sweeps,
        commands: CommandHandler,
        upgrader: Upgrader,
        readiness: Readiness,
    ) -> None:
        self._context = context
        self._workers = workers
        self._spawner = spawner
        self._sweeps = sweeps
        self._commands = commands
        self._upgrader = upgrader
        self._readiness = readiness
        self.started = False
        """Every worker of the first generation has been ready."""
        self.exit: Exit | None = None
        """How the daemon ends, once no worker is left."""

    def perform(self, action: Action) -> None:  # noqa: C901, PLR0912 - a case an action
        """Perform it; what comes of it is fed to the supervisor as an event, now or later."""
        match action:
            case Spawn():
                self._spawner.ask(action)
            case Drain(ident, how):
                self._drain(ident, how)
            case Kill(ident, number, reason):
                if not self._spawner.renounce(ident):
                    self._workers.kill(ident, number, reason)
            case Lend(slot, ident):
                self._workers.lend(slot, ident)
            case TakeBack(slot, ident):
                self._workers.take_back(slot, ident)
            case SteerAway(slot):
                self._context.escrow.steer_away(slot)
            case CloseSlot(slot):
                self._close_slot(slot)
            case GateAll():
                self._gate_all()
            case StartPreflight():
                self._upgrader.start_preflight()
            case EndPreflight():
                self._upgrader.end_preflight()
            case Replace(ticket):
                self._upgrader.replace(ticket)
            case Started():
                self._start_serving()
            case Finished():
                self._commands.finish(action)
            case Exit():
                self.exit = action
            case Say(level, event, fields):
                getattr(self._context.logger, level)(event, **dict(fields))
            case _:
                assert_never(action)

    def _drain(self, ident: WorkerId, how: DrainMode) -> None:
        if self._spawner.renounce(ident):
            return
        if how is not DrainMode.SWEEP:
            self._workers.send(ident, DrainMessage(how.value))
            return
        # It sweeps when the handshakes in flight are over, which Sweeps finds out for all.
        self._workers.send(ident, DrainMessage(how.value, settled=False))
        self._sweeps.add(ident)
        if worker := self._context.supervisor.worker(ident):
            self._context.escrow.pairs.shut_unused(worker.slot)

    def _close_slot(self, slot: SlotIndex) -> None:
        self._context.escrow.close_slot(slot)
        self._context.service_manager.keep(self._context.escrow.holdings())
        if slot != DISPATCHER:
            self._context.logger.info("worker retired", worker=slot)

    def _gate_all(self) -> None:
        title_master(self._context.config.mode, self._addresses, "stopping")
        self._context.escrow.gate()

    def _start_serving(self) -> None:
        self.started = True
        config = self._context.config
        self._context.logger.info(
            "ready",
            addresses=self._addresses,
            mode=config.mode,
            workers=len(self._context.supervisor.live_slots),
        )
        self._readiness.ready()

    @property
    def _addresses(self) -> list[str]:
        return [str(address) for address in self._context.escrow.addresses]
