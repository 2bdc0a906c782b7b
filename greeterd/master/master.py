"""The master process: does what the supervisor decides.

One loop, no threads.  A turn waits for descriptors; what comes in (signals, requests, workers'
messages and ends) is fed to the supervisor as events; its actions are performed.  Events are
queued, never nested: all actions of one are performed before the next is handled.
"""

import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from greeterd import __version__
from greeterd.config.schema import Config
from greeterd.control import ControlServer
from greeterd.master.actions import ActionRunner
from greeterd.master.children import any_ended
from greeterd.master.commands import CommandHandler
from greeterd.master.context import MasterContext
from greeterd.master.escrow import Escrow
from greeterd.master.event_loop import EventLoop
from greeterd.master.generations import Generations, fixed_settings, policy_of, set_limits
from greeterd.master.log import MasterLog
from greeterd.master.mender import Mender
from greeterd.master.names import Names
from greeterd.master.outdated import OutdatedWorkers
from greeterd.master.reload import Reloader
from greeterd.master.signal_handler import SignalHandler
from greeterd.master.spawner import Spawner
from greeterd.master.status import StatusInputs, describe, survey
from greeterd.master.systemd.activation import SocketAssignment
from greeterd.master.systemd.receive import arrange
from greeterd.master.systemd.service_manager import ServiceManager
from greeterd.master.upgrade.serialize import (
    adopt_children,
    adopt_scoreboard,
    adopt_supervisor,
    dump_rows,
    dump_slots,
)
from greeterd.master.upgrade.state import UpgradeState
from greeterd.master.upgrade.upgrader import Upgrader
from greeterd.master.workers import Workers
from greeterd.sockets.address import Address
from greeterd.sockets.listener import effective_backlog
from greeterd.supervisor.actions import Exit
from greeterd.supervisor.events import Event, Scale, Tick
from greeterd.supervisor.ids import DrainMode, Ticket, WorkerId
from greeterd.supervisor.supervisor import MAX_SLOTS, Supervisor
from greeterd.system import signals
from greeterd.system.daemonize import Readiness
from greeterd.system.files import Identity
from greeterd.system.pidfile import PidLock
from greeterd.system.privileges import is_root
from greeterd.system.proctitle import title_master
from greeterd.system.socket_file import CONTROL_SOCKET
from greeterd.worker.handshakes import Sweeps
from greeterd.worker.messages import DrainMessage
from greeterd.worker.scoreboard import Scoreboard

TICK: Final = 1.0
RESCUE_TICK: Final = 0.2
"""Seconds between two looks at the workers' pulses: a stuck one is found within three of them."""


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Where the configuration comes from, and the listeners that are open already."""

    load: Callable[[], Config]
    file: Path | None
    directory: Path
    """Where the daemon was started: relative names begin there."""
    sockets: SocketAssignment
    resolved: Mapping[str, Address]
    """The addresses behind the names in `bind` that are to be opened."""


class Master:
    """The parts of the master, the events between them, and their deadlines."""

    def __init__(  # noqa: PLR0913 - what a start has got, each needed
        self,
        config: Config,
        source: ConfigSource,
        readiness: Readiness,
        *,
        lock: PidLock,
        identity: Identity | None,
        predecessor: UpgradeState | None,
    ) -> None:
        self._source = source
        self._lock = lock
        self._readiness = readiness
        self._since, self._began = time.clock_gettime(time.CLOCK_REALTIME), time.monotonic()
        self._events: deque[Event] = deque()
        self._handling = False
        self._next_tick = 0.0
        self._loop = EventLoop()
        self._context = context = self._open_context(config, identity, predecessor)
        self._pipe = signals.SignalPipe(signals.MASTER_SIGNALS)
        self._workers = Workers(context)
        self._spawner = Spawner(context, self._workers)
        self._sweeps = Sweeps(context.escrow.addresses, self._end_sweep)
        self._outdated = OutdatedWorkers(context)
        self._mender = Mender(context, self._outdated)
        self._reloader = Reloader(context, self._mender)
        self._control = self._open_control(config.run_dir / CONTROL_SOCKET, predecessor)
        self._names = Names(context, lock, self._control, self._outdated)
        self._commands = CommandHandler(
            context,
            self._control,
            workers=self._workers,
            mender=self._mender,
            names=self._names,
            outdated=self._outdated,
            reloader=self._reloader,
            status=self._status,
        )
        SignalHandler(context, self._pipe, self._commands)
        self._upgrader = Upgrader(
            source.directory,
            state=self._upgrade_state,
            pipe=self._pipe,
            log=context.log,
            feed=self._feed,
        )
        self._actions = ActionRunner(
            context,
            workers=self._workers,
            spawner=self._spawner,
            sweeps=self._sweeps,
            commands=self._commands,
            upgrader=self._upgrader,
            readiness=readiness,
        )
        if predecessor is not None:
            self._succeed(predecessor)

    def _open_context(
        self, config: Config, identity: Identity | None, predecessor: UpgradeState | None
    ) -> MasterContext:
        log = MasterLog(config, identity, predecessor.log_fd if predecessor else None)
        set_limits(config)
        service_manager = ServiceManager(upgraded=predecessor is not None)
        escrow = Escrow(
            config, inherited=self._source.sockets.listeners, resolved=self._source.resolved
        )
        service_manager.keep(escrow.holdings())
        last = predecessor.last_generation if predecessor else 1
        return MasterContext(
            supervisor=_supervisor(config, escrow, predecessor),
            generations=Generations(config, self._source.load, identity, last),
            scoreboard=adopt_scoreboard(predecessor) if predecessor else Scoreboard(MAX_SLOTS),
            escrow=escrow,
            service_manager=service_manager,
            log=log,
            identity=identity,
            selector=self._loop.selector,
            feed=self._feed,
        )

    def _open_control(self, path: Path, predecessor: UpgradeState | None) -> ControlServer:
        return ControlServer(
            path,
            self._loop.selector,
            lambda request: self._commands.handle(request),  # noqa: PLW0108 - made later
            allowed_uids=frozenset({os.geteuid()}),
            log=self._context.logger,
            listener=socket.socket(fileno=predecessor.control_fd) if predecessor else None,
            file=predecessor.control_file if predecessor else None,
        )

    def run(self) -> int:
        """Turn the loop until the last worker is gone; return the exit code."""
        config = self._context.config
        title_master(config.mode, self._addresses)
        if not self._actions.started:
            self._context.logger.info(
                "starting",
                mode=config.mode,
                wait=config.wait_strategy,
                addresses=self._addresses,
                workers=len(self._context.supervisor.live_slots),
            )
            arrange(self._source.sockets, self._context.escrow, self._context.logger)
            if self._context.escrow.groups.highest_slot > config.worker_count:
                # Restored slots beyond those serve what waits there first. Before any signal that
                # asks for another number.
                self._feed(Scale(workers=config.worker_count))
            if is_root(self._context.identity):
                self._context.logger.warning("workers are root", reason="user is not set")
        backlog = effective_backlog(config.backlog)
        if backlog < config.backlog:
            self._context.logger.warning(
                "backlog is capped", backlog=config.backlog, somaxconn=backlog
            )
        self._loop.begin()
        # Signals that came since others know our pid, or came to our predecessor, are handled now.
        signals.release()
        while self._actions.exit is None:
            self._tick()
            if self._spawner:
                self._names.look()  # a worker needs the log directory
                self._spawner.fork_pending(self._loop.until)
            self._loop.turn(self._timeout())
        return self._end(self._actions.exit)

    def log_crash(self, error: Exception) -> None:
        """Log an exception that ends the master: detached, it has no other way to show it."""
        self._context.logger.error("master crashed", exc_info=error)

    def close(self) -> None:
        """Release everything, without waiting."""
        self._control.close()
        self._context.escrow.close()
        self._pipe.close()
        self._loop.close()

    def _end(self, final: Exit) -> int:
        if left := self._context.escrow.pairs.left_over:
            self._context.logger.warning("connections dropped", connections_lost=left)
        if final.code:
            self._context.logger.error("stopped", code=final.code, reason=final.reason)
        else:
            self._context.logger.info("stopped", code=0)
        if final.code and not self._actions.started:
            self._readiness.failed(final.code, final.reason)
        return final.code

    @property
    def _addresses(self) -> list[str]:
        return [str(address) for address in self._context.escrow.addresses]

    # Time -----------------------------------------------------------------------------------

    def _timeout(self) -> float:
        if self._spawner:
            return 0.0
        deadlines = [
            self._next_tick,
            self._context.supervisor.next_deadline(),
            self._sweeps.next_deadline(),
            self._control.deadline(),
            self._context.service_manager.next_deadline(),
        ]
        soonest = min(each for each in deadlines if each is not None)
        return max(0.0, soonest - time.monotonic())

    def _tick(self) -> None:
        now = time.monotonic()
        self._control.expire(now)
        self._names.attend(now)
        if any_ended():  # asked in each turn, because a SIGCHLD can be missed: as one of many
            self._workers.reap(others=self._upgrader.pids())
            self._upgrader.reap()
        self._workers.end_silent(now)
        deadline = self._context.supervisor.next_deadline()
        if now >= self._next_tick:
            policy = self._context.supervisor.policy
            self._next_tick = now + (RESCUE_TICK if policy.own_listeners else TICK)
            self._context.log.look()
            self._mender.look(everywhere=False)
            self._feed(Tick(self._workers.pulses(now)))
        elif deadline is not None and now >= deadline:
            self._feed(Tick())
        self._outdated.attend(now)
        self._sweeps.attend(self._context.config, now)
        self._commands.attend()
        self._context.service_manager.attend(
            self._context.supervisor, started=self._actions.started, figures=self._figures, now=now
        )

    # Events ---------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                now = time.monotonic()
                for action in self._context.supervisor.handle(self._events.popleft(), now):
                    self._actions.perform(action)
        finally:
            self._handling = False

    def _end_sweep(self, worker: WorkerId) -> None:
        """Have a worker close its listeners: the handshakes that began before are over."""
        self._workers.send(worker, DrainMessage(DrainMode.SWEEP.value, settled=True))

    # The whole ------------------------------------------------------------------------------

    def _figures(self) -> str:
        figures = describe(self._context.supervisor, self._context.scoreboard, self._context.escrow)
        trouble = self._mender.trouble
        return f"{figures}; {trouble}" if trouble else figures

    def _status(self) -> object:
        return survey(
            self._context.supervisor,
            self._context.scoreboard,
            self._context.escrow,
            StatusInputs(
                pid=os.getpid(),
                since=self._since,
                started=self._began,
                now=time.monotonic(),
                longest_stall=self._loop.longest_stall,
                config=self._context.config,
                config_file=self._source.file,
                trouble=self._mender.trouble or None,
                last_error=self._context.log.last_error,
                warnings=[*self._names.lost, *self._outdated.warnings()],
                reload=self._context.generations.result,
            ),
        )

    def _upgrade_state(self, ticket: Ticket) -> UpgradeState:
        """Return all that a new image takes over; `ticket` is that of the request for it."""
        return UpgradeState(
            program=__version__,
            fixed=dict(fixed_settings(self._context.config)),
            listeners=self._context.escrow.dump(),
            slots=dump_slots(self._context.supervisor, self._workers),
            board_fd=self._context.scoreboard.fd,
            rows=dump_rows(self._context.scoreboard),
            lock_fd=self._lock.fd,
            control_fd=self._control.listener_fd,
            control_file=self._control.file,
            client_fd=self._commands.client_fd(ticket),
            log_fd=self._context.log.file.fd if self._context.config.daemonize else None,
            idle_fds=self._control.idle_fds(),
            generation=self._context.supervisor.generation,
            last_generation=self._context.generations.last,
            last_worker=self._context.supervisor.last_worker,
            highest_slot=self._context.supervisor.highest_slot,
            left=time.monotonic(),
            since=self._since,
            started=self._began,
        )

    def _succeed(self, predecessor: UpgradeState) -> None:
        """Go on where the predecessor in this process has stopped: its workers serve meanwhile."""
        self._since, self._began, self._actions.started = (
            predecessor.since,
            predecessor.started,
            True,
        )
        for slot in predecessor.slots:
            self._context.generations.adopt(
                [slot.generation, *(worker.generation for worker in slot.workers)]
            )
        for child in adopt_children(predecessor, self._context.generations):
            self._workers.enter(child)
        ticket = self._commands.adopt(predecessor)
        config = self._context.config
        self._context.escrow.groups.steer_as(config)
        deaf = None if predecessor.left is None else round(time.monotonic() - predecessor.left, 3)
        self._context.logger.info(
            "new image", version=__version__, before=predecessor.program, deaf=deaf
        )
        self._context.service_manager.begin()
        self._names.look()  # before workers are started that serve the listeners
        self._reloader.replace_workers(config, ticket, "upgrade")


def _supervisor(config: Config, escrow: Escrow, predecessor: UpgradeState | None) -> Supervisor:
    policy = policy_of(config, escrow.groups.most_slots)
    if predecessor is not None:
        return adopt_supervisor(predecessor, policy, random.random)
    # What waits at a slot that is one too many is served before the slot retires.
    workers = max(config.worker_count, escrow.groups.highest_slot)
    return Supervisor(workers=workers, policy=policy, jitter=random.random)
