"""Does what the supervisor decides.

One loop, no threads: it waits, turns what happened into events, asks the supervisor, and performs
its actions.  Events are queued, never nested, so that the actions of one are all performed before
the next is handled.
"""

import os
import random
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

from greeterd import __version__, signals, succession, worker
from greeterd.activation import Allotment
from greeterd.channel import (
    Channel,
    DrainMessage,
    ExitMessage,
    FailedMessage,
    FromMaster,
    FromWorker,
    GoMessage,
    LeavingMessage,
    LendMessage,
    ReadyMessage,
    ReopenedMessage,
    ReopenMessage,
    ReturnedMessage,
    TakeBackMessage,
)
from greeterd.config import FIXED, Config, fixed_differences
from greeterd.control import ControlServer, Request
from greeterd.core.events import (
    NO_TICKET,
    Action,
    CloseSlot,
    Drain,
    EndTrial,
    Event,
    Exit,
    Exited,
    ExitRequested,
    Finished,
    GateAll,
    Generation,
    Kill,
    Leaving,
    Lend,
    Life,
    Policy,
    Pulse,
    Ready,
    Reload,
    Replace,
    Restart,
    Returned,
    Say,
    Scale,
    Signal,
    SlotIndex,
    Spawn,
    Spawned,
    SpawnFailed,
    Started,
    StartTrial,
    SteerAway,
    Stop,
    TakeBack,
    Tick,
    Ticket,
    TrialEnded,
    Upgrade,
    WorkerId,
)
from greeterd.core.status import ReloadResult
from greeterd.core.supervisor import MAX_SLOTS, Supervisor
from greeterd.daemon import Readiness, launch
from greeterd.errors import ConfigError, GreeterdError
from greeterd.escrow import Escrow
from greeterd.legacy import adopt_children, adopt_supervisor, bequeath
from greeterd.limits import allow_files, limit_core_dumps, limit_files
from greeterd.listener import effective_backlog
from greeterd.logs import DaemonLog, open_daemon_log
from greeterd.manager import Manager
from greeterd.nursery import Child, Death, Nursery
from greeterd.privileges import prepare_directory, resolve
from greeterd.reception import bind_by, receive
from greeterd.reopening import Reopening
from greeterd.runlock import RunLock
from greeterd.scoreboard import GREETINGS, HEARTBEAT_NS, TURNS, Scoreboard
from greeterd.seat import Seat
from greeterd.sockdiag import queue_length
from greeterd.succession import Estate, Trial
from greeterd.survey import Circumstances, describe, survey
from greeterd.titles import title_master
from greeterd.trial import rehearse

TICK: Final = 1.0
RESCUE_TICK: Final = 0.2
"""Seconds between two looks at the workers' pulses: a stuck one is found within three of them."""
TURN: Final = 0.02
"""Seconds after which a turn of the loop leaves what is not urgent to the next: a fork of many, or
events that the selector will report again."""
LOG_DIR_MODE: Final = 0o750
SIGNALS: Final = {Signal.ABORT: signal.SIGABRT, Signal.KILL: signal.SIGKILL}


def run(config: Config, *, reload: Callable[[], Config], config_file: Path | None = None) -> int:
    """Run the daemon with this configuration; return its exit code when it has ended.

    `reload` returns the configuration anew, and raises a GreeterdError when that is wrong.

    In a process that was a daemon's master already, go on as that daemon's new image.
    """
    directory = Path.cwd()
    estate = succession.inherited()
    sockets = receive(config) if estate is None else Allotment(listeners=estate.listeners)
    config, reload = bind_by(sockets.listeners, config, reload)
    if estate is not None:
        if config.daemonize:
            os.chdir("/")
        changed = succession.differences(estate, _fixed(config))
        if changed:
            raise ConfigError(f"only a restart changes {', '.join(changed)}")
        if succession.is_trial():
            RunLock.adopt(estate.lock_fd, config.run_dir).close()
            rehearse(config, estate)
            return 0
    source = Source(reload, config_file, directory, sockets)
    return launch(
        lambda readiness: _serve(config, source, readiness, estate),
        detach=config.daemonize and estate is None,
        umask=config.umask,
    )


@dataclass(frozen=True, slots=True)
class Source:
    """Where the configuration comes from, and listeners that are there already."""

    load: Callable[[], Config]
    file: Path | None
    directory: Path
    """In which the daemon was started, and relative names are looked up."""
    sockets: Allotment


def _serve(config: Config, source: Source, readiness: Readiness, estate: Estate | None) -> int:
    identity = resolve(config.user, config.group)
    prepare_directory(config.log_dir, identity, LOG_DIR_MODE)
    owners = {identity.uid} if identity else set()
    if estate is None:
        lock = RunLock.acquire(config.run_dir, owners=owners)
    else:
        lock = RunLock.adopt(estate.lock_fd, config.run_dir)
    try:
        master = Master(config, source, readiness, lock, estate)
        try:
            return master.run()
        finally:
            master.close()
    finally:
        lock.release()


class Master:
    """The daemon's one process that is not a worker."""

    def __init__(
        self,
        config: Config,
        source: Source,
        readiness: Readiness,
        lock: RunLock,
        estate: Estate | None,
    ) -> None:
        self._config = config
        self._configs = {Generation(1): config}
        self._source = source
        self._lock = lock
        self._readiness = readiness
        self._identity = resolve(config.user, config.group)
        self._since, self._started = _wall_clock(), time.monotonic()
        self._daemon_log = self._open_log(config)
        self._log = self._daemon_log.logger.bind(process="master", pid=os.getpid())
        _set_limits(config)
        self._manager = Manager(upgraded=estate is not None)
        self._escrow = Escrow(config, inherited=source.sockets.listeners)
        self._keep_listeners()
        self._addresses = [str(address) for address in self._escrow.addresses]
        self._board = Scoreboard(MAX_SLOTS, estate.board_fd if estate else None)
        self._supervisor = (
            adopt_supervisor(estate, self._policy(config), random.random)
            if estate
            else Supervisor(
                # What waits at a slot that is one too many is served before the slot retires.
                workers=max(config.worker_count, self._escrow.highest_slot),
                policy=self._policy(config),
                jitter=random.random,
            )
        )
        self._events: deque[Event] = deque()
        self._reopening = Reopening()
        self._handling = False
        self._requests: dict[Ticket, Request] = {}
        self._last_ticket = 0
        self._last_generation = estate.last_generation if estate else 1
        self._trial: Trial | None = None
        self._given_up: list[Trial] = []
        """Trials that were killed and are not reaped."""
        self._last_error: str | None = None
        self._last_reload: ReloadResult | None = None
        self._reload_began = 0.0
        self._exit: Exit | None = None
        self._interrupted = False
        self._was_ready = False
        self._next_tick = 0.0
        self._to_fork: deque[Spawn] = deque()
        self._reload_asked = False
        """By a signal, which says no more when it comes again."""
        self._skipped: set[int] = set()
        """The descriptors whose events were left to the next turn."""
        self._longest_stall = 0.0
        self._signals = signals.SignalPipe(signals.MASTER_SIGNALS)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        self._nursery = Nursery(self._selector, self._on_message)
        self._control = ControlServer(
            config.run_dir / "control.sock",
            self._selector,
            self._on_request,
            allowed_uids=frozenset({os.geteuid()}),
            log=self._log,
            listener=socket.socket(fileno=estate.control_fd) if estate else None,
        )
        if estate is not None:
            self._succeed(estate)

    def _succeed(self, estate: Estate) -> None:
        """Go on where the predecessor in this process has stopped: its workers serve meanwhile."""
        self._since, self._started, self._was_ready = estate.since, estate.started, True
        adopt_children(estate, self._nursery)
        for heir in self._supervisor.workers:
            if (child := self._nursery.get(heir.id)) is not None:
                child.greetings_before = self._board.row(heir.slot, heir.place)[GREETINGS]
        for slot in estate.slots:
            for each in [slot.generation, *(one.generation for one in slot.workers)]:
                # What the old generation was told is not known here.
                self._configs[Generation(each)] = self._config
        for fd in estate.idle_fds:
            self._control.adopt(fd)
        ticket = NO_TICKET
        if estate.client_fd is not None:
            ticket = self._ticket(self._control.adopt_request(estate.client_fd, "upgrade"))
        self._escrow.steer_as(self._config)
        deaf = None if estate.left is None else round(time.monotonic() - estate.left, 3)
        self._log.info("new image", version=__version__, before=estate.program, deaf=deaf)
        self._manager.begin()
        self._begin_reload(self._config, ticket, "upgrade")
        # A child may have died while nobody waited for it.
        self._reap()
        signals.release()

    def run(self) -> int:
        """Turn the loop until the last worker is gone; return the exit code."""
        title_master(self._config.mode, self._addresses)
        if not self._was_ready:
            self._log.info(
                "starting",
                mode=self._config.mode,
                wait=self._config.wait_strategy,
                addresses=self._addresses,
                workers=len(self._supervisor.slots),
            )
            self._take_up_sockets()
        backlog = effective_backlog(self._config.backlog)
        if backlog < self._config.backlog:
            self._log.warning("backlog is capped", backlog=self._config.backlog, somaxconn=backlog)
        due = time.monotonic()
        while self._exit is None:
            self._tick()
            self._fork(due + TURN)
            timeout = self._timeout()
            waits = time.monotonic()
            self._longest_stall = max(self._longest_stall, waits - due)
            events = self._selector.select(timeout)
            due = min(time.monotonic(), waits + timeout)
            self._handle(events, due + TURN)
        return self._end(self._exit)

    def _handle(self, events: list[tuple[selectors.SelectorKey, int]], until: float) -> None:
        # Those that had to wait come first, or one that always takes long could starve the others.
        events.sort(key=lambda event: event[0].fd not in self._skipped)
        done = 0
        for key, mask in events:
            key.data(mask)
            done += 1
            if time.monotonic() > until:
                break
        self._skipped = {key.fd for key, _ in events[done:]}

    def close(self) -> None:
        """Release everything, without waiting for anyone."""
        self._control.close()
        self._escrow.close()
        self._signals.close()
        self._selector.close()

    def _end(self, final: Exit) -> int:
        if final.code:
            self._log.error("stopped", code=final.code, reason=final.reason)
        else:
            self._log.info("stopped", code=0)
        if final.code and not self._was_ready:
            self._readiness.failed(final.code, final.reason)
        return final.code

    # Time -----------------------------------------------------------------------------------

    def _timeout(self) -> float:
        if self._to_fork:
            return 0.0
        deadlines = [
            self._next_tick,
            self._supervisor.next_deadline(),
            self._control.deadline(),
            self._manager.next_deadline(),
        ]
        soonest = min(each for each in deadlines if each is not None)
        return max(0.0, soonest - time.monotonic())

    def _tick(self) -> None:
        now = time.monotonic()
        self._control.expire(now)
        deadline = self._supervisor.next_deadline()
        if now >= self._next_tick:
            policy = self._supervisor.policy
            self._next_tick = now + (RESCUE_TICK if policy.own_listeners else TICK)
            self._escrow.look()
            self._feed(Tick(self._pulses(now)))
        elif deadline is not None and now >= deadline:
            self._feed(Tick())
        if self._reload_asked and (
            self._supervisor.operation is None or self._supervisor.stopping is not None
        ):
            self._reload_asked = False
            self._reload(NO_TICKET)
        self._manager.attend(
            self._supervisor, started=self._was_ready, figures=self._figures, now=now
        )

    def _figures(self) -> str:
        return describe(self._supervisor, self._board, self._escrow)

    def _pulses(self, now: float) -> tuple[Pulse, ...]:
        found = []
        for each in self._supervisor.workers:
            child = self._nursery.get(each.id)
            if each.life is not Life.READY or child is None:
                continue
            row = self._board.row(each.slot, each.place)
            turns = row[TURNS]
            alive = max(each.since, row[HEARTBEAT_NS] / 1e9)
            queued = self._escrow.queued(each.slot)
            greetings = row[GREETINGS] - child.greetings_before
            rss_bytes = child.rss_bytes() if self._supervisor.policy.max_rss_bytes else 0
            turned = turns != child.turns
            found.append(Pulse(each.id, now - alive, turned, queued, greetings, rss_bytes))
            child.turns = turns
        return tuple(found)

    # Events ---------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        while self._events:
            now = time.monotonic()
            for action in self._supervisor.handle(self._events.popleft(), now):
                self._perform(action)
        self._handling = False

    def _on_signals(self, _mask: int) -> None:  # noqa: C901 - a case a signal
        for number in self._signals.read():
            if number is not signal.SIGCHLD:
                self._log.info("signal", signal=number.name)
            match number:
                case signal.SIGTERM:
                    self._feed(Stop())
                case signal.SIGINT:
                    self._feed(Stop(quick=self._interrupted))
                    self._interrupted = True
                case signal.SIGQUIT:
                    self._feed(Stop(quick=True))
                case signal.SIGHUP:
                    self._reload_asked = True
                case signal.SIGUSR1:
                    self._reopen()
                case signal.SIGTTIN:
                    self._feed(Scale(change=1))
                case signal.SIGTTOU:
                    self._feed(Scale(change=-1))
                case signal.SIGUSR2:
                    self._upgrade(NO_TICKET)
                case signal.SIGCHLD:
                    self._reap()
                case _:
                    self._log.warning("signal is not handled", signal=number.name)

    def _on_request(self, request: Request) -> None:
        match request.command:
            case "ping":
                stops = self._supervisor.stopping is not None
                failure = {"error": "the daemon is stopping"} if stops else {}
                request.answer(not stops, pid=os.getpid(), **failure)
            case "status":
                request.answer(True, status=self._status())
            case "reload":
                self._reload(self._ticket(request))
            case "scale":
                workers = request.arguments["workers"]
                self._feed(Scale(workers=workers, ticket=self._ticket(request)))
            case "restart":
                slot = request.arguments.get("slot")
                which = None if slot is None else SlotIndex(slot)
                self._feed(Restart(which, ticket=self._ticket(request)))
            case "reopen":
                self._reopen(request)
            case "upgrade":
                self._upgrade(self._ticket(request))
            case "stop":
                quick = request.arguments.get("now", False)
                self._feed(Stop(quick=quick, ticket=self._ticket(request)))
            case _:
                request.answer(False, error=f"{request.command} is not available")

    def _on_message(self, child: Child, message: FromWorker | FromMaster, fds: list[int]) -> None:
        match message:
            case ReadyMessage():
                self._admit(child, fds)
            case FailedMessage():
                child.failure = message
            case LeavingMessage():
                self._feed(Leaving(child.spawn.worker))
            case ReopenedMessage(reason):
                self._reopening.heard(child.spawn.worker, reason)
            case ExitMessage():
                self._feed(ExitRequested(child.spawn.worker))
            case ReturnedMessage(slot):
                self._feed(Returned(SlotIndex(slot), child.spawn.worker))
            case _:
                self._log.error("unexpected message", worker=child.spawn.slot)

    def _admit(self, child: Child, fds: list[int]) -> None:
        """Let the listeners that a worker has opened listen: it serves."""
        ident = child.spawn.worker
        record = self._supervisor.worker(ident)
        if record is None or record.life is not Life.STARTING:
            for fd in fds:
                os.close(fd)
            return
        if fds:
            try:
                self._escrow.admit(child.spawn.slot, fds)
            except GreeterdError as error:
                child.failure = FailedMessage(error.exit_code, str(error))
                self._nursery.kill(child, signal.SIGKILL)
                return
            self._keep_listeners()
            self._nursery.send(ident, GoMessage())
        self._escrow.use(child.spawn.slot)
        self._log.info("worker ready", **_facts(child))
        wants_rss = self._configs[child.spawn.generation].max_rss
        self._feed(Ready(ident, child.rss_bytes() if wants_rss else 0))

    def _reap(self) -> None:
        trials = [*self._given_up, *([self._trial] if self._trial else [])]
        for death in self._nursery.reap(others=[trial.pid for trial in trials]):
            self._bury(death)
        self._given_up = [trial for trial in self._given_up if trial.verdict() is None]
        if self._trial is not None and (verdict := self._trial.verdict()) is not None:
            if verdict:
                self._log.warning("new image refused", said=self._trial.said)
            self._trial = None
            self._feed(TrialEnded(verdict))

    def _bury(self, death: Death) -> None:
        child = death.child
        self._reopening.gone(child.spawn.worker)
        lost = self._board.settle(child.spawn.slot, child.spawn.place)
        reason, code = death.reason, 70 if death.exitcode else 0
        if child.failure is not None:
            reason, code = child.failure.reason, child.failure.code
        fields = _facts(child)
        if lost:
            fields["connections_lost"] = lost
        if death.stack:
            fields["stack"] = death.stack
        log = self._log.warning if code or lost else self._log.info
        log("worker exited", reason=reason, **fields)
        if code:
            self._last_error = f"worker {child.spawn.slot}: {reason}"
        self._feed(Exited(child.spawn.worker, reason, code))

    # Listeners ------------------------------------------------------------------------------

    def _take_up_sockets(self) -> None:
        """Arrange listeners that were there before this daemon, and tell of them."""
        for stale in self._source.sockets.stale:
            self._log.warning("stored descriptor dropped", name=stale.name, reason=stale.reason)
        given = self._source.sockets.listeners
        if given is not None:
            self._escrow.arrange()
            queued = sum(queue_length(sock).now for sock in self._escrow.listeners())
            what = "sockets passed" if given.passed else "listeners restored"
            sockets = len(given.listening())
            self._log.info(what, addresses=self._addresses, sockets=sockets, queued=queued)

    def _keep_listeners(self) -> None:
        self._manager.keep(self._escrow.holdings())

    def _policy(self, config: Config) -> Policy:
        return Policy(
            own_listeners=config.mode == "reuseport",
            most_slots=self._escrow.most_slots,
            rescue=config.rescue,
            graceful_timeout=config.graceful_timeout,
            start_timeout=config.start_timeout,
            worker_timeout=config.worker_timeout,
            max_restarts=config.max_restarts,
            restart_window=config.restart_window,
            shutdown_delay=config.shutdown_delay,
            max_greetings=config.max_greetings,
            max_age=config.max_age,
            max_rss_bytes=config.max_rss * 2**20,
        )

    # Commands -------------------------------------------------------------------------------

    def _ticket(self, request: Request) -> Ticket:
        self._last_ticket += 1
        ticket = Ticket(self._last_ticket)
        self._requests[ticket] = request
        return ticket

    def _reload(self, ticket: Ticket) -> None:
        """Read the configuration anew; a bad one is refused, and the old one goes on."""
        self._manager.begin()
        try:
            config = self._source.load()
            prepare_directory(config.log_dir, self._identity, LOG_DIR_MODE)
            allow_files(config.max_files)
            self._open_log(config).close()
        except GreeterdError as error:
            self._refuse_reload(ticket, str(error))
            return
        if fixed := fixed_differences(self._config, config):
            self._refuse_reload(ticket, f"only a restart changes {', '.join(fixed)}")
            return
        self._begin_reload(config, ticket, "reload")

    def _refuse_reload(self, ticket: Ticket, reason: str) -> None:
        supervisor = self._supervisor
        workers = len(supervisor.live_slots)
        self._perform(Finished(ticket, "reload", reason, supervisor.generation, workers))

    def _upgrade(self, ticket: Ticket) -> None:
        self._manager.begin()
        self._feed(Upgrade(ticket=ticket))

    def _begin_reload(self, config: Config, ticket: Ticket, name: str) -> None:
        self._reload_began = time.monotonic()
        self._last_generation += 1
        generation = Generation(self._last_generation)
        self._configs[generation] = config
        self._feed(Reload(generation, config.worker_count, self._policy(config), ticket, name))

    def _reopen(self, request: Request | None = None) -> None:
        """Open every log file anew; it is answered when every worker has done so, too."""
        reason = ""
        try:
            self._daemon_log.reopen()
            self._own_log(self._daemon_log)
        except OSError as error:
            reason = str(error)
            self._log.warning("cannot reopen the daemon log", reason=reason)

        def done(reasons: str) -> None:
            if not reasons:
                self._log.info("logs reopened")
            if request is not None:
                request.answer(not reasons, **({"error": reasons} if reasons else {}))

        self._reopening.begin(self._nursery.broadcast(ReopenMessage()), reason, done)

    def _status(self) -> object:
        return survey(
            self._supervisor,
            self._board,
            self._escrow,
            Circumstances(
                pid=os.getpid(),
                since=self._since,
                started=self._started,
                now=time.monotonic(),
                longest_stall=self._longest_stall,
                config=self._config,
                config_file=self._source.file,
                last_error=self._last_error,
                reload=self._last_reload,
            ),
        )

    # Actions --------------------------------------------------------------------------------

    def _perform(self, action: Action) -> None:  # noqa: C901, PLR0912 - a case an action
        match action:
            case Spawn():
                self._to_fork.append(action)
            case Drain(ident, how):
                if not self._renounce(ident):
                    self._send(ident, DrainMessage(how.value))
            case Kill(ident, number, reason):
                if not self._renounce(ident):
                    self._kill(ident, number, reason)
            case SteerAway(slot):
                self._escrow.steer_away(slot)
            case CloseSlot(slot):
                self._escrow.close_slot(slot)
                self._keep_listeners()
                self._log.info("worker retired", worker=slot)
            case GateAll():
                title_master(self._config.mode, self._addresses, "stopping")
                self._escrow.gate()
            case Lend(slot, ident):
                fds = [sock.fileno() for sock in self._escrow.for_slot(slot) or []]
                self._send(ident, LendMessage(slot), fds)
                self._log.warning("listener lent", worker=slot, to=self._slot_of(ident))
            case TakeBack(slot, ident):
                self._send(ident, TakeBackMessage(slot))
                self._log.info("listener taken back", worker=slot, to=self._slot_of(ident))
            case StartTrial():
                self._start_trial()
            case EndTrial():
                if self._trial is not None:
                    self._trial.kill()
                    self._given_up.append(self._trial)
                    self._trial = None
            case Replace(ticket):
                self._replace(ticket)
            case Started():
                self._started_serving()
            case Finished():
                self._finish(action)
            case Exit():
                self._exit = action
            case Say(level, event, fields):
                getattr(self._log, level)(event, **dict(fields))
            case _:
                assert_never(action)

    def _start_trial(self) -> None:
        try:
            self._trial = Trial(self._estate(NO_TICKET), self._source.directory)
        except OSError as error:
            self._feed(TrialEnded(f"the new image cannot be executed: {error.strerror}"))
            return
        self._log.info("trying the new image", trial_pid=self._trial.pid)

    def _replace(self, ticket: Ticket) -> None:
        """Become the new image; only a failure comes back."""
        self._log.info("becoming the new image")
        signals.hold()
        self._signals.put_back()
        try:
            succession.become(self._estate(ticket), self._source.directory)
        except OSError as error:
            signals.release()
            self._feed(TrialEnded(f"the new image cannot be executed: {error.strerror}"))

    def _estate(self, ticket: Ticket) -> Estate:
        request = self._requests.get(ticket)
        return Estate(
            program=__version__,
            fixed=dict(_fixed(self._config)),
            listeners=self._escrow.bequest(),
            slots=bequeath(self._supervisor, self._nursery),
            board_fd=self._board.fd,
            lock_fd=self._lock.fd,
            control_fd=self._control.listener_fd,
            client_fd=None if request is None or request.gone else request.fd,
            idle_fds=self._control.idle_fds(),
            generation=self._supervisor.generation,
            last_generation=self._last_generation,
            last_worker=self._supervisor.last_worker,
            highest_slot=self._supervisor.highest_slot,
            left=time.monotonic(),
            since=self._since,
            started=self._started,
        )

    def _started_serving(self) -> None:
        self._was_ready = True
        self._log.info(
            "ready",
            addresses=self._addresses,
            mode=self._config.mode,
            workers=len(self._nursery),
        )
        self._readiness.ready()
        if len(self._supervisor.live_slots) > self._config.worker_count:
            self._feed(Scale(workers=self._config.worker_count))

    def _finish(self, action: Finished) -> None:
        if action.command == "reload" or (action.command == "upgrade" and not action.reason):
            self._conclude_reload(action.reason)
        if action.reason:
            self._last_error = f"{action.command}: {action.reason}"
            self._log.error(f"{action.command} failed", reason=action.reason)
        else:
            self._log.info(
                f"{action.command} done", generation=action.generation, workers=action.workers
            )
        if action.command in {"reload", "upgrade"}:
            self._manager.end(f"{action.command} failed: {action.reason}" if action.reason else "")
        request = self._requests.pop(action.ticket, None)
        if request is not None:
            failure = {"error": action.reason} if action.reason else {}
            request.answer(
                not action.reason,
                generation=action.generation,
                workers=action.workers,
                **failure,
            )

    def _conclude_reload(self, reason: str) -> None:
        generation = self._supervisor.generation
        config = self._configs[generation]
        self._last_reload = ReloadResult(
            ok=not reason,
            generation=generation,
            at=_wall_clock(),
            took=time.monotonic() - self._reload_began,
            error=reason or None,
        )
        if not reason:
            self._forget_configs()
        if config is not self._config:
            self._config = config
            _set_limits(config)
            self._escrow.steer_as(config)
            self._change_log(config)

    def _forget_configs(self) -> None:
        """Forget those of which no slot or worker is, when no reload may go back to them."""
        supervisor = self._supervisor
        used = {slot.generation for slot in supervisor.slots.values()}
        used.update(worker.generation for worker in supervisor.workers)
        first = supervisor.generation
        self._configs = {
            each: config for each, config in self._configs.items() if each in used or each >= first
        }

    def _kill(self, ident: WorkerId, number: Signal, reason: str) -> None:
        child = self._nursery.get(ident)
        if child is not None:
            name = SIGNALS[number].name
            self._log.warning("worker is ended", signal=name, reason=reason, **_facts(child))
            self._nursery.kill(child, SIGNALS[number])

    def _send(self, ident: WorkerId, message: FromMaster, fds: list[int] | None = None) -> None:
        if not self._nursery.send(ident, message, fds):
            self._log.warning(
                "worker does not listen",
                worker=self._slot_of(ident),
                message=type(message).__name__,
            )

    def _slot_of(self, ident: WorkerId) -> SlotIndex | None:
        child = self._nursery.get(ident)
        return child.spawn.slot if child else None

    def _fork(self, until: float) -> None:
        """Fork the workers that were asked for, one at least, others as time allows."""
        while self._to_fork:
            self._spawn(self._to_fork.popleft())
            if time.monotonic() > until:
                return

    def _renounce(self, ident: WorkerId) -> bool:
        """Take back the order to fork this worker, if it is not carried out yet."""
        for spawn in self._to_fork:
            if spawn.worker == ident:
                self._to_fork.remove(spawn)
                self._feed(SpawnFailed(ident, "not needed any more"))
                return True
        return False

    def _spawn(self, spawn: Spawn) -> None:
        listeners = self._escrow.for_slot(spawn.slot)
        log = self._daemon_log.logger.bind(worker=spawn.slot, generation=spawn.generation)

        def live(channel: Channel, pipe: signals.SignalPipe) -> int:
            config = self._configs[spawn.generation]
            # Of a reload that is under way: the master goes over to it when it has succeeded.
            daemon_log = self._daemon_log
            if _log_settings(config) != _log_settings(self._config):
                daemon_log = self._open_log(config)
            log = daemon_log.logger.bind(worker=spawn.slot, generation=spawn.generation)
            seat = Seat(
                slot=spawn.slot,
                generation=spawn.generation,
                config=config,
                addresses=self._escrow.addresses,
                listeners=listeners,
                row=self._board.row(spawn.slot, spawn.place),
                identity=self._identity,
                channel=channel,
                signals=pipe,
                daemon_log=daemon_log,
                log=log.bind(pid=os.getpid()),
                passed=self._escrow.passed,
                gated=self._escrow.gated,
            )
            return worker.main(seat)

        greetings = self._board.row(spawn.slot, spawn.place)[GREETINGS]
        keep = [self._daemon_log.fd, *(sock.fileno() for sock in listeners or [])]
        try:
            child = self._nursery.fork(spawn, live, keep=keep, log=log)
        except OSError as error:
            self._log.warning("cannot fork", worker=spawn.slot, reason=error.strerror)
            self._feed(SpawnFailed(spawn.worker, f"fork: {error.strerror}"))
            return
        child.greetings_before = greetings
        self._feed(Spawned(spawn.worker, child.pid))

    # Logs -----------------------------------------------------------------------------------

    def _open_log(self, config: Config) -> DaemonLog:
        path = config.log_dir / "greeterd.log" if config.daemonize else None
        try:
            log = open_daemon_log(path=path, format=config.log_format, level=config.log_level)
        except OSError as error:
            raise ConfigError(f"daemon log {path}: {error.strerror}") from error
        self._own_log(log)
        return log

    def _change_log(self, config: Config) -> None:
        """Write where and what a reload says; go on as before where that cannot be had any more."""
        before = self._daemon_log
        try:
            self._daemon_log = self._open_log(config)
        except ConfigError as error:
            self._log.warning("cannot change the daemon log", reason=str(error))
            return
        self._log = self._daemon_log.logger.bind(process="master", pid=os.getpid())
        self._control.log = self._log
        before.close()

    def _own_log(self, log: DaemonLog) -> None:
        """Give a log file to the user that workers become, who reopen it, too."""
        if self._identity is not None and self._config.daemonize:
            os.fchown(log.fd, self._identity.uid, self._identity.gid)


def _log_settings(config: Config) -> tuple[object, ...]:
    return config.log_dir, config.log_format, config.log_level


def _fixed(config: Config) -> list[tuple[str, str]]:
    return [(name, str(getattr(config, name))) for name in sorted(FIXED)]


def _facts(child: Child) -> dict[str, object]:
    return {
        "worker": child.spawn.slot,
        "worker_pid": child.pid,
        "generation": child.spawn.generation,
    }


def _set_limits(config: Config) -> None:
    limit_files(config.max_files)
    limit_core_dumps(allowed=config.core_dumps)


def _wall_clock() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)
