"""Does what the supervisor decides.

One loop, no threads: it waits, turns what happened into events, asks the supervisor, and performs
its actions.  Events are queued, never nested, so that the actions of one are all performed before
the next is handled.
"""

import os
import random
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from greeterd import __version__
from greeterd.config.schema import Config
from greeterd.master.actions import ActionRunner
from greeterd.master.commands import CommandHandler
from greeterd.master.escrow import Escrow
from greeterd.master.event_loop import EventLoop
from greeterd.master.generations import Generations, fixed_settings, policy_of, set_limits
from greeterd.master.log import MasterLog
from greeterd.master.mender import Mender
from greeterd.master.names import Names
from greeterd.master.spawner import Spawner
from greeterd.master.status import StatusInputs, describe, survey
from greeterd.master.systemd.activation import SocketAssignment
from greeterd.master.systemd.receive import take_up
from greeterd.master.systemd.service_manager import ServiceManager
from greeterd.master.upgrade.serialize import (
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
from greeterd.supervisor.events import Event, Scale, Stop, Tick
from greeterd.supervisor.ids import DrainMode, Ticket
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
    """Where the configuration comes from, and listeners that are there already."""

    load: Callable[[], Config]
    file: Path | None
    directory: Path
    """In which the daemon was started, and relative names are looked up."""
    sockets: SocketAssignment
    resolved: Mapping[str, Address]
    """The addresses that names in `bind` stand for, of those that are to be opened."""


class Master:
    """The daemon's one process that is not a worker: its parts, its events, and its time."""

    def __init__(  # noqa: PLR0913 - what a start has got, each needed
        self,
        config: Config,
        source: ConfigSource,
        readiness: Readiness,
        *,
        lock: PidLock,
        identity: Identity | None,
        estate: UpgradeState | None,
    ) -> None:
        self._source = source
        self._lock = lock
        self._readiness = readiness
        self._identity = identity
        self._since, self._began = time.clock_gettime(time.CLOCK_REALTIME), time.monotonic()
        self._log = MasterLog(config, identity, estate.log_fd if estate else None)
        set_limits(config)
        self._manager = ServiceManager(upgraded=estate is not None)
        self._escrow = Escrow(config, inherited=source.sockets.listeners, resolved=source.resolved)
        self._manager.keep(self._escrow.holdings())
        self._addresses = [str(address) for address in self._escrow.addresses]
        self._board = adopt_scoreboard(estate) if estate else Scoreboard(MAX_SLOTS)
        last = estate.last_generation if estate else 1
        self._generations = Generations(config, source.load, identity, last)
        self._supervisor = _supervisor(config, self._escrow, estate)
        self._events: deque[Event] = deque()
        self._handling = False
        self._interrupted = False
        self._next_tick = 0.0
        self._signals = signals.SignalPipe(signals.MASTER_SIGNALS)
        self._loop = EventLoop()
        self._loop.selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        self._crew = Workers(
            self._loop.selector,
            supervisor=self._supervisor,
            generations=self._generations,
            board=self._board,
            escrow=self._escrow,
            manager=self._manager,
            log=self._log,
            feed=self._feed,
        )
        settled = DrainMessage(DrainMode.SWEEP.value, settled=True)
        self._sweeps = Sweeps(
            self._escrow.addresses, lambda worker: self._crew.send(worker, settled)
        )
        self._forks = Spawner(
            self._crew.nursery,
            generations=self._generations,
            board=self._board,
            escrow=self._escrow,
            identity=identity,
            log=self._log,
            feed=self._feed,
        )
        self._mender = Mender(
            config,
            escrow=self._escrow,
            supervisor=self._supervisor,
            manager=self._manager,
            log=self._log,
            feed=self._feed,
        )
        self._orders = CommandHandler(
            self._loop.selector,
            config.run_dir / CONTROL_SOCKET,
            estate,
            supervisor=self._supervisor,
            generations=self._generations,
            crew=self._crew,
            escrow=self._escrow,
            mender=self._mender,
            manager=self._manager,
            status=self._status,
            require_listeners=self._require_listeners,
            log=self._log,
            feed=self._feed,
        )
        self._names = Names(
            lock=self._lock,
            control=self._orders.control,
            escrow=self._escrow,
            generations=self._generations,
            supervisor=self._supervisor,
            manager=self._manager,
            log=self._log,
            feed=self._feed,
        )
        self._upgrading = Upgrader(
            source.directory,
            state=self._estate,
            pipe=self._signals,
            log=self._log,
            feed=self._feed,
        )
        self._performer = ActionRunner(
            supervisor=self._supervisor,
            generations=self._generations,
            crew=self._crew,
            forks=self._forks,
            escrow=self._escrow,
            sweeps=self._sweeps,
            manager=self._manager,
            orders=self._orders,
            upgrading=self._upgrading,
            readiness=readiness,
            log=self._log,
            feed=self._feed,
        )
        if estate is not None:
            self._succeed(estate)

    def run(self) -> int:
        """Turn the loop until the last worker is gone; return the exit code."""
        config = self._generations.current
        title_master(config.mode, self._addresses)
        if not self._performer.started:
            self._log.logger.info(
                "starting",
                mode=config.mode,
                wait=config.wait_strategy,
                addresses=self._addresses,
                workers=len(self._supervisor.live_slots),
            )
            take_up(self._source.sockets, self._escrow, self._log.logger)
            if self._escrow.highest_slot > config.worker_count:
                # Restored slots beyond those serve what waits there first. Before any signal that
                # asks for another number.
                self._feed(Scale(workers=config.worker_count))
            if is_root(self._identity):
                self._log.logger.warning("workers are root", reason="user is not set")
        backlog = effective_backlog(config.backlog)
        if backlog < config.backlog:
            self._log.logger.warning("backlog is capped", backlog=config.backlog, somaxconn=backlog)
        self._loop.begin()
        # What was sent since our pid is known, or to our predecessor, is handled now.
        signals.release()
        while self._performer.exit is None:
            self._tick()
            if self._forks:
                self._names.look()  # a worker is to find the log directory
                self._forks.carry_out(self._loop.until)
            self._loop.turn(self._timeout())
        return self._end(self._performer.exit)

    def log_crash(self, error: Exception) -> None:
        """Tell of an error that nobody foresaw: detached, there is nobody else to be told."""
        self._log.logger.error("master crashed", exc_info=error)

    def close(self) -> None:
        """Release everything, without waiting for anyone."""
        self._orders.control.close()
        self._escrow.close()
        self._signals.close()
        self._loop.close()

    def _end(self, final: Exit) -> int:
        if left := self._escrow.left_over:
            self._log.logger.warning("connections dropped", connections_lost=left)
        if final.code:
            self._log.logger.error("stopped", code=final.code, reason=final.reason)
        else:
            self._log.logger.info("stopped", code=0)
        if final.code and not self._performer.started:
            self._readiness.failed(final.code, final.reason)
        return final.code

    # Time -----------------------------------------------------------------------------------

    def _timeout(self) -> float:
        if self._forks:
            return 0.0
        deadlines = [
            self._next_tick,
            self._supervisor.next_deadline(),
            self._sweeps.next_deadline(),
            self._orders.control.deadline(),
            self._manager.next_deadline(),
        ]
        soonest = min(each for each in deadlines if each is not None)
        return max(0.0, soonest - time.monotonic())

    def _tick(self) -> None:
        now = time.monotonic()
        self._orders.control.expire(now)
        self._names.attend(now)
        self._crew.attend(self._upgrading.pids(), now)
        deadline = self._supervisor.next_deadline()
        if now >= self._next_tick:
            policy = self._supervisor.policy
            self._next_tick = now + (RESCUE_TICK if policy.own_listeners else TICK)
            self._log.look()
            if self._crew.nursery.any_ended():  # and nobody has told: see signals
                self._reap()
            self._mender.look(everywhere=False)
            self._feed(Tick(self._crew.pulses(now)))
        elif deadline is not None and now >= deadline:
            self._feed(Tick())
        self._sweeps.attend(self._generations.current, now)
        self._orders.attend()
        self._manager.attend(
            self._supervisor, started=self._performer.started, figures=self._figures, now=now
        )

    # Events ---------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        while self._events:
            now = time.monotonic()
            for action in self._supervisor.handle(self._events.popleft(), now):
                self._performer.perform(action)
        self._handling = False

    def _on_signals(self, _mask: int) -> None:  # noqa: C901 - a case a signal
        for number in self._signals.read():
            if number is not signal.SIGCHLD:
                self._log.logger.info("signal", signal=number.name)
            match number:
                case signal.SIGTERM:
                    self._feed(Stop())
                case signal.SIGINT:
                    self._feed(Stop(quick=self._interrupted))
                    self._interrupted = True
                case signal.SIGQUIT:
                    self._feed(Stop(quick=True))
                case signal.SIGHUP:
                    self._orders.reload_soon()
                case signal.SIGUSR1:
                    self._orders.reopen()
                case signal.SIGTTIN:
                    self._feed(Scale(change=1))
                case signal.SIGTTOU:
                    self._feed(Scale(change=-1))
                case signal.SIGUSR2:
                    self._orders.upgrade()
                case signal.SIGCHLD:
                    self._reap()
                case _:
                    self._log.logger.warning("signal is not handled", signal=number.name)

    def _reap(self) -> None:
        self._crew.reap(others=self._upgrading.pids())
        self._upgrading.reap()

    def _require_listeners(self) -> None:
        self._names.require_listeners()

    # The whole ------------------------------------------------------------------------------

    def _figures(self) -> str:
        figures = describe(self._supervisor, self._board, self._escrow)
        trouble = self._mender.trouble
        return f"{figures}; {trouble}" if trouble else figures

    def _status(self) -> object:
        return survey(
            self._supervisor,
            self._board,
            self._escrow,
            StatusInputs(
                pid=os.getpid(),
                since=self._since,
                started=self._began,
                now=time.monotonic(),
                longest_stall=self._loop.longest_stall,
                config=self._generations.current,
                config_file=self._source.file,
                trouble=self._mender.trouble or None,
                last_error=self._log.last_error,
                warnings=self._names.lost,
                reload=self._generations.result,
            ),
        )

    def _estate(self, ticket: Ticket) -> UpgradeState:
        """Return all that a new image takes over; `ticket` is of who waits for that."""
        return UpgradeState(
            program=__version__,
            fixed=dict(fixed_settings(self._generations.current)),
            listeners=self._escrow.bequest(),
            slots=dump_slots(self._supervisor, self._crew.nursery),
            board_fd=self._board.fd,
            rows=dump_rows(self._board),
            lock_fd=self._lock.fd,
            control_fd=self._orders.control.listener_fd,
            control_file=self._orders.control.file,
            client_fd=self._orders.client_fd(ticket),
            log_fd=self._log.file.fd if self._generations.current.daemonize else None,
            idle_fds=self._orders.control.idle_fds(),
            generation=self._supervisor.generation,
            last_generation=self._generations.last,
            last_worker=self._supervisor.last_worker,
            highest_slot=self._supervisor.highest_slot,
            left=time.monotonic(),
            since=self._since,
            started=self._began,
        )

    def _succeed(self, estate: UpgradeState) -> None:
        """Go on where the predecessor in this process has stopped: its workers serve meanwhile."""
        self._since, self._began, self._performer.started = estate.since, estate.started, True
        for slot in estate.slots:
            self._generations.adopt(
                [slot.generation, *(worker.generation for worker in slot.workers)]
            )
        self._crew.adopt(estate)
        ticket = self._orders.adopt(estate)
        config = self._generations.current
        self._escrow.steer_as(config)
        deaf = None if estate.left is None else round(time.monotonic() - estate.left, 3)
        self._log.logger.info("new image", version=__version__, before=estate.program, deaf=deaf)
        self._manager.begin()
        self._names.look()  # before workers are started that serve the listeners
        self._orders.begin_reload(config, ticket, "upgrade")
        # A child may have died while nobody waited for it.
        self._reap()


def _supervisor(config: Config, escrow: Escrow, estate: UpgradeState | None) -> Supervisor:
    policy = policy_of(config, escrow.most_slots)
    if estate is not None:
        return adopt_supervisor(estate, policy, random.random)
    # What waits at a slot that is one too many is served before the slot retires.
    workers = max(config.worker_count, escrow.highest_slot)
    return Supervisor(workers=workers, policy=policy, jitter=random.random)
