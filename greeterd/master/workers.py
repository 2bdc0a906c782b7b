"""Speaks with the workers, and buries them: what they say and their deaths become events."""

import signal
from collections.abc import Callable, Collection
from typing import Final

from greeterd.errors import GreeterdError
from greeterd.master.children import HANG_UP_GRACE, Child, ChildExit, Children
from greeterd.master.context import MasterContext
from greeterd.master.reopening import Reopening
from greeterd.master.upgrade.serialize import adopt_children
from greeterd.master.upgrade.state import UpgradeState
from greeterd.sockets import rights
from greeterd.sockets.fd_passing import HandoffPair
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
from greeterd.supervisor.ids import DISPATCHER, Signal, SlotIndex, WorkerId, WorkerState, name_of
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
    RouteMessage,
    TakeBackMessage,
)

SIGNALS: Final = {Signal.ABORT: signal.SIGABRT, Signal.KILL: signal.SIGKILL}


class Workers:
    """The workers' processes; the supervisor's records of them are only read."""

    def __init__(self, context: MasterContext) -> None:
        self._context = context
        self._reopening = Reopening()
        self._unrouted: dict[SlotIndex, tuple[Child, set[WorkerId]]] = {}
        """The workers that are ready but for these dispatchers, which do not hand on to them yet.
        """
        self.children = Children(context.selector, self._hear)

    def adopt(self, estate: UpgradeState) -> None:
        """Go on with the workers that a predecessor in this process has forked."""
        adopt_children(estate, self.children, self._context.generations)

    # To the workers -------------------------------------------------------------------------

    def send(self, ident: WorkerId, message: FromMaster, fds: list[int] | None = None) -> str:
        """Send a message; return why the worker cannot have it, which the log tells, or nothing."""
        if reason := self.children.send(ident, message, fds):
            self._context.logger.warning(
                "worker does not listen",
                worker=self._slot_of(ident),
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
        child = self.children.get(ident)
        if child is not None:
            name = SIGNALS[number].name
            self._context.logger.warning(
                "worker is ended", signal=name, reason=reason, **_facts(child)
            )
            self.children.kill(child, SIGNALS[number])

    def reopen(self, reason: str, done: Callable[[str], None]) -> None:
        """Have every worker open its logs anew; see Reopening.begin."""
        self._reopening.begin(self.children.broadcast(ReopenMessage()), reason, done)

    def _slot_of(self, ident: WorkerId) -> SlotIndex | None:
        child = self.children.get(ident)
        return child.spawn.slot if child else None

    # From the workers -----------------------------------------------------------------------

    def _hear(self, child: Child, message: Message, fds: list[int]) -> None:
        match message:
            case ReadyMessage():
                self._admit(child, fds)
            case FailedMessage():
                child.failure = message
            case LeavingMessage():
                self._context.feed(Leaving(child.spawn.worker))
            case ClosedMessage():
                self._context.feed(Closed(child.spawn.worker))
            case ReopenedMessage(reason):
                self._reopening.heard(child.spawn.worker, reason)
            case ExitMessage():
                self._context.feed(ExitRequested(child.spawn.worker))
            case ReturnedMessage(slot):
                self._context.feed(Returned(SlotIndex(slot), child.spawn.worker))
            case RefusedMessage(slot, reason):
                to = child.spawn.slot
                self._context.logger.warning("loan refused", worker=slot, to=to, reason=reason)
                self._context.feed(LoanRefused(SlotIndex(slot), child.spawn.worker))
            case RoutedMessage(slot, reason):
                self._note_route(SlotIndex(slot), child.spawn.worker, reason)
            case _:
                raise AssertionError("the conversation lets no other in")

    def _admit(self, child: Child, fds: list[int]) -> None:
        """Let the listeners that a worker has opened listen: it serves."""
        ident = child.spawn.worker
        record = self._context.supervisor.worker(ident)
        if record is None or record.state is not WorkerState.STARTING:
            rights.close_all(fds)
            return
        if fds:
            if flaw := self._context.escrow.groups.flaw_of(fds):
                rights.close_all(fds)
                self.children.end_breach(child, flaw)
                return
            try:
                self._context.escrow.groups.admit(child.spawn.slot, fds)
            except GreeterdError as error:
                self.children.end(child, error.exit_code, str(error))
                return
            self._context.service_manager.keep(self._context.escrow.holdings())
            self.children.send(ident, GoMessage())
        pair = self._context.escrow.use(child.spawn.slot)
        if pair is not None:
            self._route(child, pair)
        elif child.spawn.slot in self._context.escrow.pairs.routes:
            self._show_row(child, self._context.escrow.pairs.routes[child.spawn.slot])
        if child.spawn.slot not in self._unrouted:
            self._note_ready(child)

    def _note_ready(self, child: Child) -> None:
        if child.failure is not None:
            return
        self._context.logger.info("worker ready", **_facts(child))
        wants_rss = self._context.generations[child.spawn.generation].max_rss
        self._context.feed(Ready(child.spawn.worker, child.rss_bytes() if wants_rss else 0))

    # Routes ---------------------------------------------------------------------------------

    def _route(self, child: Child, pair: HandoffPair) -> None:
        """Have the dispatchers hand on to a slot that is served for the first time.

        Those that are forked from now on know of it.
        """
        slot = child.spawn.slot
        row_fd = self._context.scoreboard.row_fd(slot, child.spawn.place)
        asked = set()
        for dispatcher in self._context.supervisor.slots[DISPATCHER].workers:
            knows_rows = self._knows_rows(dispatcher)
            fds = [*pair.fds, *([row_fd] if knows_rows and row_fd is not None else [])]
            reason = self.send(dispatcher.id, RouteMessage(slot), fds)
            living = self.children.get(dispatcher.id)
            if dispatcher.state is WorkerState.DRAINING or living is None:
                continue  # it has nothing to hand on
            if reason:
                self._give_up_route(child, reason)
                return
            if living.conversation.answers_routes and living.hung_up is None:
                asked.add(dispatcher.id)
        if asked:
            self._unrouted[slot] = child, asked

    def _show_row(self, child: Child, pair: HandoffPair) -> None:
        """Have the dispatchers look at the row of a slot's newest worker; no answer is awaited."""
        row_fd = self._context.scoreboard.row_fd(child.spawn.slot, child.spawn.place)
        for dispatcher in self._context.supervisor.slots[DISPATCHER].workers:
            if row_fd is not None and self._knows_rows(dispatcher):
                fds = [*pair.fds, row_fd]
                self.send(dispatcher.id, RouteMessage(child.spawn.slot), fds)

    def _knows_rows(self, dispatcher: Worker) -> bool:
        """Tell a dispatcher from one of an older build, which takes the pair only."""
        return self._context.scoreboard.row_fd(DISPATCHER, dispatcher.place) is not None

    def _note_route(self, slot: SlotIndex, dispatcher: WorkerId, reason: str) -> None:
        """Note that a dispatcher hands on to a slot, or why not."""
        child, asked = self._unrouted.get(slot, (None, set[WorkerId]()))
        if child is None:
            return
        asked.discard(dispatcher)
        if reason:
            self._give_up_route(child, reason)
        elif not asked:
            del self._unrouted[slot]
            self._note_ready(child)

    def _give_up_route(self, child: Child, reason: str) -> None:
        """End a worker that nothing would ever be handed to."""
        self._forget_route(child)
        self.children.end(child, 71, f"the dispatcher cannot hand on to it: {reason}")

    def _forget_route(self, child: Child) -> None:
        """Let the slot's next worker ask again."""
        self._unrouted.pop(child.spawn.slot, None)
        self._context.escrow.pairs.unroute(child.spawn.slot)

    def _note_end(self, ident: WorkerId) -> None:
        """Wait for no answer of a worker that is dead, and for no other's to one that is."""
        for slot, (child, _) in list(self._unrouted.items()):
            if child.spawn.worker == ident:
                self._forget_route(child)
            else:
                self._note_route(slot, ident, "")

    # Their ends -----------------------------------------------------------------------------

    def pulses(self, now: float) -> tuple[Pulse, ...]:
        """Return how each ready worker fares, by what it says; end those who say what cannot be.

        Whether it has turned is since the last call.  One that turns, names no reason not to accept
        and leaves what waits at its listener has not turned: a beating heart is no service.
        """
        found = []
        queued = self._context.escrow.queues.by_owner()
        for each in self._context.supervisor.workers:
            child = self.children.get(each.id)
            if child is None:
                continue
            if doubt := self._context.scoreboard.look(each.slot, each.place):
                self._distrust(child, doubt)
            if each.state is not WorkerState.READY:
                continue
            said = self._context.scoreboard.worker(each.slot, each.place)
            waiting = queued[each.slot]
            idle = said.connections == child.connections and not said.blocked
            turned = said.turns != child.turns and not (waiting and idle)
            age = now - max(each.since, said.heartbeat_ns / 1e9)
            rss_bytes = child.rss_bytes() if self._context.supervisor.policy.max_rss_bytes else 0
            found.append(Pulse(each.id, age, turned, waiting, said.greetings, rss_bytes))
            child.turns, child.connections = said.turns, said.connections
        return tuple(found)

    def _distrust(self, child: Child, doubt: str) -> None:
        """End a worker whose row says what cannot be."""
        if child.hung_up is None:
            reason = f"its counters cannot be: {doubt}"
            name = signal.SIGKILL.name
            self._context.logger.warning(
                "worker is ended", signal=name, reason=reason, **_facts(child)
            )
            self.children.end(child, 70, reason)

    def attend(self, others: Collection[int], now: float) -> None:
        """End those who have closed their channel and live on: they would hear no order.

        Those who have closed it by their end are found, too, when no signal told of that.
        """
        if self.children.mute():
            self.reap(others)
        for child in self.children.mute():
            if child.hung_up is not None and now - child.hung_up >= HANG_UP_GRACE:
                self.children.end_breach(child, "it has closed its channel")

    def reap(self, others: Collection[int]) -> None:
        """Bury the workers that have ended; `others` are children that somebody else waits for."""
        for death in self.children.reap(others):
            self._bury(death)

    def _bury(self, death: ChildExit) -> None:
        child = death.child
        self._reopening.gone(child.spawn.worker)
        self._note_end(child.spawn.worker)
        lost = self._context.scoreboard.settle(child.spawn.slot, child.spawn.place)
        reason, code = death.reason, 70 if death.exitcode else 0
        if child.failure is not None:
            reason, code = child.failure.reason, child.failure.code
        fields = _facts(child)
        if lost:
            fields["connections_lost"] = lost
        if death.stack:
            fields["stack"] = death.stack
        log = self._context.logger.warning if code or lost else self._context.logger.info
        log("worker exited", reason=reason, **fields)
        if code:
            self._context.log.last_error = f"{name_of(child.spawn.slot)}: {reason}"
        self._context.feed(Exited(child.spawn.worker, reason, code))


def _facts(child: Child) -> dict[str, object]:
    return {
        "worker": child.spawn.slot,
        "worker_pid": child.pid,
        "generation": child.spawn.generation,
    }
