"""The workers' processes, from fork to exit: what they say and how they end become events.

`Workers` is their one owner: the supervisor's records say what is to become of a worker, the
scoreboard what it counts, and everything else that the master has of it is its `Child`.
"""

import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from greeterd.errors import GreeterdError
from greeterd.master.children import Child, ChildExit, reap_strangers
from greeterd.master.context import MasterContext
from greeterd.master.routes import Routes
from greeterd.sockets import rights
from greeterd.supervisor.events import (
    Closed,
    Exited,
    ExitRequested,
    Leaving,
    LoanRefused,
    Pulse,
    Ready,
    Returned,
)
from greeterd.supervisor.ids import Signal, SlotIndex, WorkerId, WorkerState, name_of
from greeterd.supervisor.records import Worker
from greeterd.worker.messages import (
    ClosedMessage,
    ExitMessage,
    FailedMessage,
    FromMaster,
    GoMessage,
    LeavingMessage,
    LendMessage,
    Message,
    ReadyMessage,
    RefusedMessage,
    ReopenedMessage,
    ReopenMessage,
    ReturnedMessage,
    RoutedMessage,
    TakeBackMessage,
)

SIGNALS: Final = {Signal.ABORT: signal.SIGABRT, Signal.KILL: signal.SIGKILL}
HANG_UP_GRACE: Final = 1.0
"""Seconds that a worker may live on after it has closed its channel, which only its end does."""


@dataclass(slots=True)
class _Reopening:
    """One request to reopen the logs, until every worker has answered or is gone."""

    waiting: set[WorkerId]
    done: Callable[[str], None]
    reasons: list[str]


class Workers:
    """The processes by worker; the supervisor's records of them are only read."""

    def __init__(self, context: MasterContext) -> None:
        self._context = context
        self._children: dict[WorkerId, Child] = {}
        self._reopenings: list[_Reopening] = []
        """Each worker answers them in their order."""
        self._routes = Routes(context, self, self._note_ready)

    def enter(self, child: Child) -> None:
        """Take a process over, also one that a predecessor in this process has forked."""
        self._children[child.spawn.worker] = child
        child.listen(self._context.selector, self._on_message)

    def get(self, ident: WorkerId) -> Child | None:
        """Return the process of a worker, None when it is reaped."""
        return self._children.get(ident)

    def log_lock_of(self, slot: SlotIndex) -> int | None:
        """Return a descriptor of the log lock that a slot's workers share, None for none."""
        return next(
            (
                child.log_lock_fd
                for child in self._children.values()
                if child.spawn.slot == slot and child.log_lock_fd is not None
            ),
            None,
        )

    # To the workers -------------------------------------------------------------------------

    def send(self, ident: WorkerId, message: FromMaster, fds: list[int] | None = None) -> str:
        """Send a message; return why the worker cannot have it, which the log tells, or nothing.

        A worker that is gone needs none: that is no failure.
        """
        child = self._children.get(ident)
        if child is None or not (reason := child.send(message, fds)):
            return ""
        self._context.logger.warning(
            "worker does not listen",
            worker=child.spawn.slot,
            message=type(message).__name__,
            reason=reason,
        )
        return reason

    def lend(self, slot: SlotIndex, ident: WorkerId) -> None:
        """Lend a slot's listeners to a worker of another one; it answers only if it refuses."""
        fds = [sock.fileno() for sock in self._context.escrow.for_slot(slot) or []]
        if self.send(ident, LendMessage(slot), fds):
            self._context.feed(LoanRefused(slot, ident))
            return
        self._context.logger.warning("listener lent", worker=slot, to=self._slot_of(ident))

    def take_back(self, slot: SlotIndex, ident: WorkerId) -> None:
        """Have the borrower empty and close them; it answers by ReturnedMessage."""
        self.send(ident, TakeBackMessage(slot))
        self._context.logger.info("listener taken back", worker=slot, to=self._slot_of(ident))

    def kill(self, ident: WorkerId, number: Signal, reason: str) -> None:
        """Send a signal; harmless when the worker is reaped."""
        if child := self._children.get(ident):
            self._log_kill(child, SIGNALS[number], reason)
            child.kill(SIGNALS[number])

    def reopen(self, reason: str, done: Callable[[str], None]) -> None:
        """Have every worker open its logs anew; then call `done` with all failures, or nothing.

        `reason` is why the master itself has failed to, or nothing.
        """
        asked = {
            ident
            for ident, child in self._children.items()
            if child.hung_up is None and not child.send(ReopenMessage())
        }
        self._reopenings.append(_Reopening(asked, done, [reason] if reason else []))
        self._finish_reopenings()

    def _slot_of(self, ident: WorkerId) -> SlotIndex | None:
        child = self._children.get(ident)
        return child.spawn.slot if child else None

    def _log_kill(self, child: Child, number: signal.Signals, reason: str) -> None:
        fields = {"signal": number.name, "reason": reason} | child.facts
        self._context.logger.warning("worker is ended", **fields)

    # From the workers -----------------------------------------------------------------------

    def _on_message(self, child: Child, message: Message, fds: list[int]) -> None:
        ident = child.spawn.worker
        match message:
            case ReadyMessage():
                self._admit(child, fds)
            case FailedMessage():
                child.failure = message
            case LeavingMessage():
                self._context.feed(Leaving(ident))
            case ClosedMessage():
                self._context.feed(Closed(ident))
            case ReopenedMessage(reason):
                self._note_reopened(ident, reason)
            case ExitMessage():
                self._context.feed(ExitRequested(ident))
            case ReturnedMessage(slot):
                self._context.feed(Returned(SlotIndex(slot), ident))
            case RefusedMessage(slot, reason):
                to = child.spawn.slot
                self._context.logger.warning("loan refused", worker=slot, to=to, reason=reason)
                self._context.feed(LoanRefused(SlotIndex(slot), ident))
            case RoutedMessage(slot, reason):
                self._routes.note_answer(SlotIndex(slot), ident, reason)
            case _:
                raise AssertionError("its conversation lets no other in")

    def _admit(self, child: Child, fds: list[int]) -> None:
        """Let the listeners that a worker has opened listen: it serves."""
        escrow = self._context.escrow
        record = self._context.supervisor.worker(child.spawn.worker)
        if record is None or record.state is not WorkerState.STARTING:
            # Ready came too late: it was told to leave, or is being killed, meanwhile.
            rights.close_all(fds)
            return
        if fds:
            if flaw := escrow.groups.flaw_of(fds):
                rights.close_all(fds)
                child.end_breach(flaw)
                return
            try:
                escrow.groups.admit(child.spawn.slot, fds)
            except GreeterdError as error:
                child.end(error.exit_code, str(error))
                return
            self._context.service_manager.keep(escrow.holdings())
            child.send(GoMessage())
        if self._routes.open(child):
            self._note_ready(child)

    def _note_ready(self, child: Child) -> None:
        if child.failure is not None:
            return
        self._context.logger.info("worker ready", **child.facts)
        wants_rss = self._context.generations[child.spawn.generation].max_rss
        self._context.feed(Ready(child.spawn.worker, child.rss_bytes() if wants_rss else 0))

    def _note_reopened(self, ident: WorkerId, reason: str) -> None:
        """Take a worker's answer to the earliest request that waits for it."""
        for each in self._reopenings:
            if ident in each.waiting:
                each.waiting.remove(ident)
                if reason:
                    each.reasons.append(reason)
                break
        self._finish_reopenings()

    def _finish_reopenings(self) -> None:
        complete = [each for each in self._reopenings if not each.waiting]
        self._reopenings = [each for each in self._reopenings if each.waiting]
        for each in complete:
            each.done("; ".join(dict.fromkeys(each.reasons)))

    # How they fare --------------------------------------------------------------------------

    def pulses(self, now: float) -> tuple[Pulse, ...]:
        """Return how each ready worker fares, by its own row; end those whose row cannot be true.

        `turned` is since the last call.  A worker that turns, names no reason not to accept and
        leaves what waits at its listener counts as one that has not turned: a heartbeat alone is no
        service.
        """
        found = []
        queued = self._context.escrow.queues.by_owner()
        for each in self._context.supervisor.workers:
            child = self._children.get(each.id)
            if child is None:
                continue
            if doubt := self._context.scoreboard.look(each.slot, each.place):
                self._distrust(child, doubt)
            if each.state is WorkerState.READY:
                found.append(self._pulse(each, child, queued[each.slot], now))
        return tuple(found)

    def _pulse(self, worker: Worker, child: Child, waiting: int, now: float) -> Pulse:
        row = self._context.scoreboard.worker(worker.slot, worker.place)
        idle = row.connections == child.connections and not row.blocked
        turned = row.turns != child.turns and not (waiting and idle)
        age = now - max(worker.since, row.heartbeat_ns / 1e9)
        rss_bytes = child.rss_bytes() if self._context.supervisor.policy.max_rss_bytes else 0
        child.turns, child.connections = row.turns, row.connections
        return Pulse(worker.id, age, turned, waiting, row.greetings, rss_bytes)

    def _distrust(self, child: Child, doubt: str) -> None:
        if child.hung_up is None:
            reason = f"its counters cannot be: {doubt}"
            self._log_kill(child, signal.SIGKILL, reason)
            child.end(70, reason)

    # Their ends -----------------------------------------------------------------------------

    def end_silent(self, now: float) -> None:
        """End the workers that have closed their channel and live on: no message reaches them."""
        for child in self._children.values():
            if child.hung_up is not None and now - child.hung_up >= HANG_UP_GRACE:
                child.end_breach("it has closed its channel")

    def reap(self, others: Collection[int]) -> None:
        """Reap the workers that have ended; `others` are pids of children that are no workers."""
        for ident, child in list(self._children.items()):
            if ended := child.reap():
                del self._children[ident]
                self._note_exit(child, ended)
        reap_strangers({*(child.pid for child in self._children.values()), *others})

    def _note_exit(self, child: Child, ended: ChildExit) -> None:
        ident, slot = child.spawn.worker, child.spawn.slot
        for each in self._reopenings:
            each.waiting.discard(ident)  # its successor opens the files anyway
        self._finish_reopenings()
        self._routes.note_exit(ident)
        lost = self._context.scoreboard.settle(slot, child.spawn.place)
        reason, code = ended.reason, 70 if ended.exitcode else 0
        if child.failure is not None:
            reason, code = child.failure.reason, child.failure.code
        fields = child.facts
        if lost:
            fields["connections_lost"] = lost
        if ended.stack:
            fields["stack"] = ended.stack
        log = self._context.logger.warning if code or lost else self._context.logger.info
        log("worker exited", reason=reason, **fields)
        if code:
            self._context.log.last_error = f"{name_of(slot)}: {reason}"
        self._context.feed(Exited(ident, reason, code))
