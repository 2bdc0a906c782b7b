"""The loop of a worker's process: wait, accept, handle, write; pause; do what is due.

One thread, one epoll.  The worker writes its own scoreboard row and its slot's log, and nothing
else.  It never blocks but in epoll_wait(2), in a blocking accept(2), and for the log's disk.

A turn first takes connections and events (`Handler`), then commands (`MessageHandler`), then ends
the turn: the greetings are written, the replies sent, the connections closed.  When there is no
room, or the log cannot be written, the loop pauses: the listeners leave the epoll set, what comes
waits in their queues, and every RETRY_AFTER the loop tries to resume.
"""

import os
import select
import socket
from time import monotonic
from typing import Final

from greeterd.system.rlimits import spare_files
from greeterd.worker import counters
from greeterd.worker.acceptor import Acceptor, Source
from greeterd.worker.commands import MessageHandler
from greeterd.worker.connections import EXHAUSTED, SHUT, ConnectionHandler
from greeterd.worker.context import DispatcherContext, WorkerContext
from greeterd.worker.conversation import MAX_EXITS
from greeterd.worker.dispatcher import Dispatcher
from greeterd.worker.drain import Drainer
from greeterd.worker.greeting_log import GreetingLog
from greeterd.worker.handler import Handler
from greeterd.worker.logs import Warnings, WorkerLogs
from greeterd.worker.messages import ExitMessage, ReturnedMessage

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
    """The loop, and the parts that it drives."""

    def __init__(
        self, context: WorkerContext, greetings: GreetingLog | None, listeners: list[socket.socket]
    ) -> None:
        """`greetings` is None for the dispatcher, which logs none."""
        config = context.config
        self._context = context
        self._row = context.row
        self._epoll = select.epoll()
        self._epoll.register(context.channel.fileno(), select.EPOLLIN)
        self._epoll.register(context.signals.fileno(), select.EPOLLIN)
        self._acceptor = Acceptor(self._epoll, config.wait_strategy)
        for sock in listeners:
            self._acceptor.add(sock)
        self._warn = Warnings(context.log)
        self._logs = WorkerLogs(
            context.daemon_log, greetings, log=context.log, warn=self._warn, row=self._row
        )
        # A worker has one of the two.
        self._connections = None if greetings is None else self._greeter(greetings)
        self._dispatcher = None if context.handoff is None else self._router(context.handoff)
        handler = self._connections or self._dispatcher
        assert handler is not None
        self._handler: Handler = handler
        self._drainer = Drainer(context, self._acceptor, self._handler, self._take)
        self._commands = MessageHandler(
            context,
            epoll=self._epoll,
            acceptor=self._acceptor,
            drainer=self._drainer,
            logs=self._logs,
            dispatcher=self._dispatcher,
        )
        self._gated = set(self._acceptor.sources) if context.gated else set()
        """The listeners whose queues may hold connections that have inherited a gate."""
        if self._gated:
            self._handler.open_gates()
        self._interval = min(HEARTBEAT, config.client_timeout, config.worker_timeout / BEATS)
        self._blocking = config.wait_strategy == "blocking"
        # A second accept on a blocking listener might wait for ever.
        self._burst_limit = 1 if self._blocking else BURST
        self._full_burst = False
        """The last burst was cut off by its limit: more connections may be waiting."""
        self._exits = 0
        self._now = 0.0
        self._paused_for = counters.NOT_BLOCKED
        self._paused_until = 0.0
        self._next_upkeep = 0.0
        self._next_check = 0.0

    def _greeter(self, greetings: GreetingLog) -> ConnectionHandler:
        config = self._context.config
        limit = config.max_connections
        if any(source.ends for source in self._acceptor.sources.values()):
            # A connection that is handed over while no descriptor is free is lost: the kernel
            # drops it, where one at a listener would stay in the queue.
            limit = min(limit, max(1, spare_files() - SPARE_FILES))
        return ConnectionHandler(
            max_connections=limit,
            max_name_bytes=config.max_name_bytes,
            client_timeout=config.client_timeout,
            allow_exit=config.allow_exit,
            reply=config.reply,
            epoll=self._epoll,
            greetings=greetings,
            row=self._row,
            warn=self._warn,
            on_exit=self._on_exit,
        )

    def _router(self, handoff: DispatcherContext) -> Dispatcher:
        dispatcher = Dispatcher(
            policy=self._context.config.handoff_policy,
            epoll=self._epoll,
            row=self._row,
            on_room=self._resume,
        )
        for slot, pair in handoff.routes.items():
            dispatcher.add_route(slot, pair, handoff.rows.get(slot))
        return dispatcher

    def run(self) -> None:
        """Turn until the worker has drained; close the log."""
        self._watch()
        while not self._drained:
            self.turn()
        self._logs.check(paused=bool(self._paused_for))
        self._logs.close()

    @property
    def _drained(self) -> bool:
        return self._drainer.mode is not None and not self._acceptor.sources and self._handler.idle

    def turn(self) -> None:
        """Wait for events, one interval at most, and handle them."""
        row = self._row
        row[counters.TURNS] += 1
        sources = self._acceptor.sources
        woken, commands = [], []
        for fd, _ in self._wait():
            if fd in sources:
                woken.append(fd)
            elif not self._handler.on_event(fd):
                commands.append(fd)
        if woken:
            self._accept(woken)
        # Only now: of the workers that wait exclusively the kernel wakes one, so a command to
        # drain must not come before this one has accepted what it was woken for.
        for fd in commands:
            self._commands.on_readable(fd)
            self._next_upkeep = 0.0
        if self._end_turn() and self._handler.room <= 0 and not self._paused_for:
            self._pause(self._handler.full_reason)
        self._now = now = monotonic()
        row[counters.HEARTBEAT_NS] = int(now * 1e9)
        if now >= self._next_upkeep:
            self._do_upkeep(now)

    def _wait(self) -> list[tuple[int, int]]:
        """Wait for events, one interval at most; return what epoll reports."""
        if self._blocking and (source := self._blocking_source()) is not None:
            self._burst(source.sock.fileno(), source, 1)
            return self._epoll.poll(0)
        # The clock of the previous turn saves a call; it is late by what that turn has taken.
        return self._epoll.poll(max(0.0, self._next_upkeep - self._now))

    def _blocking_source(self) -> Source | None:
        """Return the listener to block on in accept(2), or None if epoll has to be waited for."""
        source = self._acceptor.blocking_source
        draining = self._drainer.mode is not None
        if source is None or self._paused_for or draining or not self._handler.idle:
            self._watch()
            return None
        self._acceptor.watch(on=False)
        return source

    # Accepting ------------------------------------------------------------------------------

    def _accept(self, woken: list[int]) -> None:
        """Accept one burst from each of these listeners."""
        # Where a CPU is wanted by others, let them run first: a client that is about to connect is
        # part of this burst then, and not of a turn of its own, which halves the CPU time of a
        # greeting with 4 busy workers on 2 CPUs.  On an idle CPU it returns at once.  When the last
        # burst was full there is enough to do already.
        if not self._full_burst:
            os.sched_yield()
        self._full_burst = False
        for fd in woken:
            source = self._acceptor.sources.get(fd)
            if source is not None:
                self._row[counters.WAKEUPS] += 1
                taken = self._burst(fd, source, self._burst_limit)
                if not taken:
                    self._row[counters.WASTED_WAKEUPS] += 1
                self._full_burst |= taken == BURST

    def _burst(self, fd: int, source: Source, limit: int) -> int:
        """Accept up to `limit` connections, as room allows; return their number."""
        handler = self._handler
        room = handler.room
        if room <= 0:
            # Another listener has had its burst in this turn: what that took may be closed first.
            if not self._end_turn():
                return 0
            room = handler.room
        if room <= 0:
            self._pause(handler.full_reason)
            return 0
        limit = min(limit, room)
        taken = handler.burst(source, limit)
        if self._gated and taken < limit and not handler.accept_error and handler.room > 0:
            self._note_empty(fd)
        if taken:
            self._acceptor.note(fd, source, taken)
            if source.lender is not None:
                self._row[counters.RESCUED] += taken
        if handler.accept_error in EXHAUSTED:
            self._warn("cannot accept", reason=os.strerror(handler.accept_error))
            self._pause(counters.BLOCKED_BY_DESCRIPTORS)
        elif handler.accept_error in SHUT:
            self._acceptor.close([fd])
        return taken

    def _note_empty(self, fd: int) -> None:
        """Note that a queue was found empty: what comes from now on never met the gate."""
        self._gated.discard(fd)
        if not self._gated and self._drainer.mode is None:
            self._handler.stop_opening_gates()

    def _take(self, fd: int, source: Source) -> int | None:
        """Serve one burst to its end, for the drainer; None if the loop had to pause."""
        taken = self._burst(fd, source, self._burst_limit)
        self._end_turn()
        return None if self._paused_for else taken

    def _end_turn(self) -> bool:
        """Write, reply and close; pause and return False if the log cannot be written."""
        if self._handler.end_turn():
            return True
        self._pause(counters.BLOCKED_BY_LOG)
        return False

    # Pausing --------------------------------------------------------------------------------

    def _pause(self, reason: int) -> None:
        """Stop accepting for RETRY_AFTER at least; what comes waits in the listeners' queues."""
        if not self._paused_for:
            self._row[counters.ACCEPTS_PAUSED] += 1
        self._paused_for = self._row[counters.BLOCKED] = reason
        self._paused_until = monotonic() + RETRY_AFTER
        self._next_upkeep = min(self._next_upkeep, self._paused_until)
        self._acceptor.watch(on=False)
        if reason == counters.BLOCKED_BY_LOG:
            self._logs.report_blocked()

    def _resume(self) -> None:
        """Accept again if the cause has gone, else pause anew."""
        # While draining there may be nothing left to write, and then an unwritable log must not
        # hold the worker back.
        if self._drainer.mode is None and not self._logs.retry():
            self._pause(counters.BLOCKED_BY_LOG)
            return
        if not self._end_turn():
            return
        if self._handler.room <= 0:
            self._pause(self._handler.full_reason)
            return
        if self._paused_for == counters.BLOCKED_BY_LOG:
            self._logs.report_written()
        self._paused_for = self._row[counters.BLOCKED] = counters.NOT_BLOCKED
        self._watch()

    def _watch(self) -> None:
        if not self._paused_for:
            self._acceptor.watch(on=True)

    # Upkeep ---------------------------------------------------------------------------------

    def _do_upkeep(self, now: float) -> None:
        """Do what is due, and compute when the next upkeep is."""
        if self._connections is not None:
            self._connections.expire(now)
        if self._paused_for and now >= self._paused_until:
            self._resume()
        if now >= self._next_check:
            self._next_check = now + HEARTBEAT
            self._check_logs()
            if overlooked := self._acceptor.overlooked():
                self._accept(overlooked)
        self._commands.hurry_orphan(now)
        # A paused worker cannot empty a queue: what it took would have no room.
        if not self._paused_for:
            for slot in self._drainer.do_due(now):
                self._context.send(ReturnedMessage(slot))
        self._end_turn()
        self._next_upkeep = self._next_deadline(now)

    def _check_logs(self) -> None:
        self._logs.check(paused=bool(self._paused_for))
        if self._logs.blocked and self._drainer.mode is None:
            self._pause(counters.BLOCKED_BY_LOG)

    def _next_deadline(self, now: float) -> float:
        # At most one interval: a connection that is accepted until then times out after that.
        deadlines = [now + self._interval]
        if self._paused_for:
            deadlines.append(self._paused_until)
        else:
            deadlines += self._drainer.deadlines()
        if self._connections is not None:
            deadlines += self._connections.deadlines()
        return min(deadlines)

    def _on_exit(self) -> None:
        """Report that a client has sent `exit`; the master ends a worker that says so too often."""
        if self._exits < MAX_EXITS:
            self._exits += 1
            self._context.send(ExitMessage())
