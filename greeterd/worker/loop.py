"""Serves one slot: accepts, greets or hands on, counts, and leaves when it is told to.

One thread, one epoll.  The worker takes orders from its channel and decides nothing about its own
life but this: on TERM, and when the master is gone (end-of-file on the channel), it drains.
It writes its own scoreboard row and its slot's log, and nothing else.
"""

import contextlib
import errno
import os
import select
import signal
import socket
from time import monotonic
from typing import Final

from greeterd.errors import reason_of
from greeterd.sockets import rights
from greeterd.sockets.fd_passing import HandoffPair
from greeterd.sockets.steering import gate_syn
from greeterd.supervisor.ids import DrainMode
from greeterd.system.ratelimit import RateLimit
from greeterd.system.rlimits import spare_files
from greeterd.worker import counters
from greeterd.worker.acceptor import Acceptor, Source
from greeterd.worker.channel import Received
from greeterd.worker.connections import EXHAUSTED, SHUT, ConnectionHandler
from greeterd.worker.context import DispatcherContext, WorkerContext
from greeterd.worker.conversation import MAX_EXITS
from greeterd.worker.dispatcher import Dispatcher
from greeterd.worker.drain import Drainer
from greeterd.worker.greeting_log import GreetingLog
from greeterd.worker.messages import (
    ClosedMessage,
    DrainMessage,
    ExitMessage,
    FromWorker,
    LeavingMessage,
    LendMessage,
    RefusedMessage,
    ReopenedMessage,
    ReopenMessage,
    ReturnedMessage,
    RoutedMessage,
    RouteMessage,
    TakeBackMessage,
)
from greeterd.worker.row import map_view

BURST: Final = 64
"""Connections accepted in one turn of the loop: enough for one large write, few enough that a
connection which is read in pieces does not wait."""
SPARE_FILES: Final = 16
"""Descriptors that are left for all but connections: logs that are reopened, loans."""
HEARTBEAT: Final = 1.0
"""Seconds that a turn of the loop waits at most."""
BEATS: Final = 4
"""Turns within `worker_timeout` at least, so that one that is late is not taken for a hang."""
RETRY_AFTER: Final = 0.1
"""Seconds until a paused worker tries again to write its log, or to accept without descriptors."""


class WorkerLoop:
    """The loop."""

    def __init__(
        self, seat: WorkerContext, greetings: GreetingLog | None, listeners: list[socket.socket]
    ) -> None:
        """`greetings` is None where none are logged: for the dispatcher."""
        config = seat.config
        self._seat = seat
        self._row = seat.row
        self._greetings = greetings
        self._epoll = select.epoll()
        self._epoll.register(seat.channel.fileno(), select.EPOLLIN)
        self._epoll.register(seat.signals.fileno(), select.EPOLLIN)
        self._intake = Acceptor(self._epoll, config.wait_strategy)
        for sock in listeners:
            self._intake.add(sock)
        self._warnings = RateLimit(1.0)
        self._service = (
            self._dispatch(seat.handoff) if greetings is None else self._serve(greetings)
        )
        self._deaf = set(self._intake.sources) if seat.gated else set()
        """The listeners in whose queues connections wait that a gate has made deaf."""
        if self._deaf:
            self._service.open_gates()
        self._interval = min(HEARTBEAT, config.client_timeout, config.worker_timeout / BEATS)
        self._blocking = config.wait_strategy == "blocking"
        # A second accept on a blocking listener would wait for what may never come.
        self._burst_limit = 1 if self._blocking else BURST
        self._full = False
        self._exits = 0
        self._orphaned_since: float | None = None
        """When the master was found to be gone; None while it is there."""
        self._now = 0.0
        self._paused_until = 0.0
        self._paused_for = counters.NOT_BLOCKED
        self._next_upkeep = 0.0
        self._next_look = 0.0
        self._leaving = Drainer(seat, self._intake, self._service, self._take)

    def _serve(self, greetings: GreetingLog) -> ConnectionHandler:
        config = self._seat.config
        return ConnectionHandler(
            max_connections=self._most_connections(),
            max_name_bytes=config.max_name_bytes,
            client_timeout=config.client_timeout,
            allow_exit=config.allow_exit,
            reply=config.reply,
            epoll=self._epoll,
            greetings=greetings,
            row=self._row,
            warn=self._warn,
            on_exit=self._tell_exit,
        )

    def _most_connections(self) -> int:
        most = self._seat.config.max_connections
        if any(source.ends for source in self._intake.sources.values()):
            # Of a connection that is handed over and finds no descriptor free nothing is left.
            most = min(most, max(1, spare_files() - SPARE_FILES))
        return most

    def _dispatch(self, handoff: DispatcherContext | None) -> Dispatcher:
        assert handoff is not None
        dispatcher = Dispatcher(
            policy=self._seat.config.handoff_policy,
            epoll=self._epoll,
            row=self._row,
            on_room=self._resume,
        )
        for slot, pair in handoff.routes.items():
            dispatcher.add_route(slot, pair, handoff.rows.get(slot))
        return dispatcher

    def run(self) -> None:
        """Turn the loop until everything that was taken is served."""
        self._watch()
        while not self._finished:
            self._turn()
        self._look_after_log()
        if self._greetings is not None:
            self._greetings.close()

    @property
    def _finished(self) -> bool:
        return self._leaving.how is not None and not self._intake.sources and self._service.idle

    def _turn(self) -> None:
        row = self._row
        row[counters.TURNS] += 1
        sources = self._intake.sources
        woken, orders = [], []
        for fd, _ in self._wait():
            if fd in sources:
                woken.append(fd)
            elif not self._service.handle(fd):
                orders.append(fd)
        if woken:
            self._accept(woken)
        # Only now: an exclusive waiter that was woken is the only one, so an order to leave must
        # not come before it has taken what it was woken for.
        for fd in orders:
            self._take_orders(fd)
        if not self._service.end_turn():
            self._pause(counters.BLOCKED_BY_LOG)
        elif self._service.room <= 0 and not self._paused_for:
            self._pause(self._service.full)
        self._now = now = monotonic()
        row[counters.HEARTBEAT_NS] = int(now * 1e9)
        if now >= self._next_upkeep:
            self._keep_up(now)

    def _accept(self, woken: list[int]) -> None:
        # Where a CPU is wanted by others, let them run first: a client that is about to connect is
        # part of this burst then, and not of a turn of its own, which halves the CPU time of a
        # greeting with 4 busy workers on 2 CPUs.  On an idle CPU it returns at once.  When the last
        # burst was full there is enough to do already.
        if not self._full:
            os.sched_yield()
        self._full = False
        for fd in woken:
            source = self._intake.sources.get(fd)
            if source is not None:
                self._row[counters.WAKEUPS] += 1
                taken = self._burst(fd, source, self._burst_limit)
                if not taken:
                    self._row[counters.WASTED_WAKEUPS] += 1
                self._full |= taken == BURST

    def _wait(self) -> list[tuple[int, int]]:
        """Wait for something to happen, one interval at most; return what epoll reports."""
        if self._blocking and (source := self._blocking_source()) is not None:
            self._burst(source.sock.fileno(), source, 1)
            return self._epoll.poll(0)
        # The clock of the turn before: it differs by what that turn has taken.
        return self._epoll.poll(max(0.0, self._next_upkeep - self._now))

    def _burst(self, fd: int, source: Source, limit: int) -> int:
        room = self._service.room
        if room <= 0:
            # What is served may be closed first: another listener has had its burst in this turn.
            if not self._service.end_turn():
                self._pause(counters.BLOCKED_BY_LOG)
                return 0
            room = self._service.room
        if room <= 0:
            self._pause(self._service.full)
            return 0
        limit = min(limit, room)
        taken = self._service.burst(source, limit)
        if self._deaf and taken < limit and not self._service.trouble and self._service.room > 0:
            self._hear(fd)
        if taken:
            self._intake.note(fd, source, taken)
            if source.lender is not None:
                self._row[counters.RESCUED] += taken
        if self._service.trouble in EXHAUSTED:
            self._warn("cannot accept", reason=os.strerror(self._service.trouble))
            self._pause(counters.BLOCKED_BY_DESCRIPTORS)
        elif self._service.trouble in SHUT:
            self._intake.close([fd])
        return taken

    def _take(self, fd: int, source: Source) -> int | None:
        """Serve one burst to its end; None when that had to pause."""
        taken = self._burst(fd, source, self._burst_limit)
        if not self._service.end_turn():
            self._pause(counters.BLOCKED_BY_LOG)
        return None if self._paused_for else taken

    def _hear(self, fd: int) -> None:
        """Note that a listener was found empty: what comes from now on was never gated."""
        self._deaf.discard(fd)
        if not self._deaf and self._leaving.how is None:
            self._service.leave_gates()

    def _blocking_source(self) -> Source | None:
        """Return the listener to block on in accept(2); None when epoll has to be waited for."""
        source = self._intake.blocking_source
        leaves = self._leaving.how is not None
        if source is None or self._paused_for or leaves or not self._service.idle:
            self._watch()
            return None
        self._intake.watch(on=False)
        return source

    # Time -----------------------------------------------------------------------------------

    def _keep_up(self, now: float) -> None:
        """Do what is due, and find out when the loop has to turn next at the latest."""
        self._service.expire(now)
        if self._paused_for and now >= self._paused_until:
            self._resume()
        if now >= self._next_look:
            self._next_look = now + HEARTBEAT
            self._look_after_log()
            if overlooked := self._intake.overlooked():
                self._accept(overlooked)
        if self._orphaned_since is not None:
            self._hurry_orphan(now)
        if not self._paused_for:
            for slot in self._leaving.go_on(now):
                self._tell(ReturnedMessage(slot))
        if not self._service.end_turn():
            self._pause(counters.BLOCKED_BY_LOG)
        # A connection that comes before the next look has its deadline after it.
        deadlines = [now + self._interval]
        if self._paused_for:
            deadlines.append(self._paused_until)
        else:
            deadlines += self._leaving.deadlines()
        if (deadline := self._service.next_deadline()) is not None:
            deadlines.append(deadline)
        self._next_upkeep = min(deadlines)

    def _pause(self, reason: int) -> None:
        """Accept nothing for a while; what waits stays in the listener's queue."""
        if not self._paused_for:
            self._row[counters.ACCEPTS_PAUSED] += 1
        self._paused_for = self._row[counters.BLOCKED] = reason
        self._paused_until = monotonic() + RETRY_AFTER
        self._next_upkeep = min(self._next_upkeep, self._paused_until)
        self._intake.watch(on=False)
        if reason == counters.BLOCKED_BY_LOG and self._greetings is not None:
            error = self._greetings.blocked
            self._row[counters.LOG_ERRNO] = _errno(error)
            why = error and error.strerror
            self._warn("cannot write greetings", path=str(self._greetings.path), reason=why)

    def _resume(self) -> None:
        """Accept again, if the cause has gone."""
        log = self._greetings
        # Without a log there is nothing to accept for; who leaves may have nothing to write.
        if log is not None and log.blocked and self._leaving.how is None and not log.commit():
            self._pause(counters.BLOCKED_BY_LOG)
            return
        if not self._service.end_turn():
            self._pause(counters.BLOCKED_BY_LOG)
            return
        if self._service.room <= 0:
            self._pause(self._service.full)
            return
        if self._paused_for == counters.BLOCKED_BY_LOG:
            self._seat.log.info("greetings are written again")
            self._row[counters.LOG_ERRNO] = 0
        self._paused_for = self._row[counters.BLOCKED] = counters.NOT_BLOCKED
        self._watch()

    def _watch(self) -> None:
        if not self._paused_for:
            self._intake.watch(on=True)

    def _look_after_log(self) -> None:
        # Of the daemon log the master tells, where it is moved to or why it cannot be opened.
        with contextlib.suppress(OSError):
            self._seat.daemon_log.reopen_if_moved()
        log = self._greetings
        if log is None:
            return
        before = log.repaired_bytes
        if log.look():
            self._seat.log.info("log reopened", reason="its file was moved or removed")
        if log.repaired_bytes > before:
            self._seat.log.warning("torn record removed", bytes=log.repaired_bytes - before)
        if log.astray:
            self._warn("cannot reopen a log", reason=reason_of(log.astray))
        if not self._paused_for:
            self._row[counters.LOG_ERRNO] = _errno(log.astray)
        if log.blocked and self._leaving.how is None:
            self._pause(counters.BLOCKED_BY_LOG)

    # Orders ---------------------------------------------------------------------------------

    def _take_orders(self, fd: int) -> None:
        if fd == self._seat.signals.fileno():
            # Not a hand-over: TERM may have been sent to the whole process group, and then nobody
            # else would take what is queued.
            if signal.SIGTERM in self._seat.signals.read() and self._leaving.how is None:
                self._tell(LeavingMessage())
                # What is handed over from now on is the next worker's.
                self._drain(DrainMode.SWEEP, to_the_end=False)
            return
        if fd != self._seat.channel.fileno() or self._orphaned_since is not None:
            return  # it was reported in the same turn in which its matter was settled
        while (received := self._seat.channel.receive()) is not None:
            if received.message is None:
                self._orphaned()
                return
            self._obey(received)

    def _obey(self, received: Received) -> None:
        match received.message:
            case DrainMessage(how, True):
                if self._leaving.how is DrainMode(how):
                    self._leaving.settle()
                    self._next_upkeep = 0.0
            case DrainMessage(how, settled):
                self._drain(DrainMode(how), settled=settled)
            case ReopenMessage():
                self._reopen()
            case LendMessage(slot):
                self._borrow(slot, received)
            case TakeBackMessage(slot):
                self._leaving.give_back(slot)
                self._next_upkeep = 0.0
            case RouteMessage(slot) if isinstance(self._service, Dispatcher):
                self._tell(RoutedMessage(slot, self._add_route(self._service, slot, received)))
            case other:
                rights.close_all(received.fds)
                self._seat.log.error("unexpected message", message=type(other).__name__)

    def _borrow(self, slot: int, received: Received) -> None:
        """Serve what is lent, all of it or nothing."""
        try:
            for fd in received.take():
                self._intake.add(socket.socket(fileno=fd), slot)
        except OSError as error:
            taken = self._intake.lent_from(slot)
            self._intake.close(taken)
            rights.close_all(set(received.fds).difference(taken))
            self._tell(RefusedMessage(slot, error.strerror or str(error)))

    def _add_route(self, dispatcher: Dispatcher, slot: int, received: Received) -> str:
        """Hand on to a slot; return why that cannot be, or nothing."""
        try:
            ends, rest = (
                received.take()[: len(HandoffPair.ENDS)],
                received.fds[len(HandoffPair.ENDS) :],
            )
            row = map_view(rest[0]) if rest else None
            dispatcher.add_route(slot, HandoffPair.adopt(*ends), row)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _drain(
        self, how: DrainMode, *, to_the_end: bool = True, settled: bool | None = None
    ) -> None:
        self._leaving.begin(how, to_the_end=to_the_end, settled=settled)
        if how is DrainMode.HAND_OVER:
            self._tell(ClosedMessage())
        self._next_upkeep = 0.0

    def _reopen(self) -> None:
        reasons = []
        for log in (self._seat.daemon_log, self._greetings):
            try:
                if log is not None:
                    log.reopen()
            except OSError as error:
                reasons.append(reason_of(error))
                self._seat.log.warning("cannot reopen a log", reason=reasons[-1])
        self._tell(ReopenedMessage("; ".join(reasons)))

    def _orphaned(self) -> None:
        """Serve what is there and leave: the master has died."""
        self._epoll.unregister(self._seat.channel.fileno())
        self._orphaned_since = monotonic()
        if self._leaving.how is None:
            self._seat.log.error("the master is gone, draining")
            for source in self._intake.sources.values():
                if source.sock.family != socket.AF_UNIX and not self._seat.passed:
                    gate_syn(source.sock)
            self._drain(DrainMode.SWEEP)

    def _hurry_orphan(self, now: float) -> None:
        """Leave quickly when a master would have ended this worker."""
        assert self._orphaned_since is not None
        late = now - self._orphaned_since >= self._seat.config.graceful_timeout
        if late and self._leaving.how is not DrainMode.QUICK:
            self._drain(DrainMode.QUICK)

    def _tell_exit(self) -> None:
        # More would say nothing, and the master ends who says it.
        if self._exits < MAX_EXITS:
            self._exits += 1
            self._tell(ExitMessage())

    def _tell(self, message: FromWorker) -> None:
        if reason := self._seat.channel.send(message):
            self._seat.log.error(
                "the master does not listen", message=type(message).__name__, reason=reason
            )

    def _warn(self, event: str, **fields: object) -> None:
        suppressed = self._warnings.admit(event, monotonic())
        if suppressed is not None:
            if suppressed:
                fields["suppressed"] = suppressed
            self._seat.log.warning(event, **fields)


def _errno(error: OSError | None) -> int:
    return 0 if error is None else error.errno or errno.EIO
