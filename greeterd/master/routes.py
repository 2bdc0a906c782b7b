"""Mode handoff: has the dispatchers hand connections on to the slots whose workers are ready.

A worker whose slot is served for the first time is not ready until every dispatcher has answered
that it hands on to it.  A dispatcher that is forked later knows the slot from its start.
"""

from collections.abc import Callable
from typing import Protocol

from greeterd.master.children import Child
from greeterd.master.context import MasterContext
from greeterd.sockets.fd_passing import HandoffPair
from greeterd.supervisor.ids import DISPATCHER, SlotIndex, WorkerId, WorkerState
from greeterd.supervisor.records import Worker
from greeterd.worker.messages import FromMaster, RouteMessage


class Processes(Protocol):
    """What routes need of the workers' processes."""

    def get(self, ident: WorkerId) -> Child | None:
        """Return the process of a worker, None when it is reaped."""

    def send(self, ident: WorkerId, message: FromMaster, fds: list[int] | None = None) -> str:
        """Send a message; return why the worker cannot have it, or nothing."""


class Routes:
    """The workers that wait for a dispatcher's answer."""

    def __init__(
        self, context: MasterContext, processes: Processes, on_ready: Callable[[Child], None]
    ) -> None:
        """`on_ready` is called once the last answer that a worker waited for has come."""
        self._context = context
        self._processes = processes
        self._on_ready = on_ready
        self._waiting: dict[SlotIndex, tuple[Child, set[WorkerId]]] = {}
        """By slot: its worker, and the dispatchers that have not answered."""

    def open(self, child: Child) -> bool:
        """Have connections handed on to a worker that can serve; tell whether that is so by now.

        If not, `on_ready` is called later, or the worker is ended.
        """
        escrow, slot = self._context.escrow, child.spawn.slot
        pair = escrow.use(slot)
        if pair is not None:
            self._ask_dispatchers(child, pair)
        elif slot in escrow.pairs.routes:
            self._show_row(child, escrow.pairs.routes[slot])
        return slot not in self._waiting

    def _ask_dispatchers(self, child: Child, pair: HandoffPair) -> None:
        slot = child.spawn.slot
        row_fd = self._context.scoreboard.row_fd(slot, child.spawn.place)
        asked = set()
        for dispatcher in self._context.supervisor.slots[DISPATCHER].workers:
            knows_rows = self._knows_rows(dispatcher)
            fds = [*pair.fds, *([row_fd] if knows_rows and row_fd is not None else [])]
            reason = self._processes.send(dispatcher.id, RouteMessage(slot), fds)
            living = self._processes.get(dispatcher.id)
            if dispatcher.state is WorkerState.DRAINING or living is None:
                continue  # it accepts nothing that it could hand on
            if reason:
                self._give_up(child, reason)
                return
            if living.conversation.answers_routes and living.hung_up is None:
                asked.add(dispatcher.id)
        if asked:
            self._waiting[slot] = child, asked

    def _show_row(self, child: Child, pair: HandoffPair) -> None:
        """Have the dispatchers look at the row of a slot's newest worker; no answer is awaited."""
        row_fd = self._context.scoreboard.row_fd(child.spawn.slot, child.spawn.place)
        for dispatcher in self._context.supervisor.slots[DISPATCHER].workers:
            if row_fd is not None and self._knows_rows(dispatcher):
                fds = [*pair.fds, row_fd]
                self._processes.send(dispatcher.id, RouteMessage(child.spawn.slot), fds)

    def _knows_rows(self, dispatcher: Worker) -> bool:
        """Tell a dispatcher from one of an older build, which takes the pair only."""
        return self._context.scoreboard.row_fd(DISPATCHER, dispatcher.place) is not None

    def note_answer(self, slot: SlotIndex, dispatcher: WorkerId, reason: str) -> None:
        """Note that a dispatcher hands on to a slot, or why not."""
        child, asked = self._waiting.get(slot, (None, set[WorkerId]()))
        if child is None:
            return
        asked.discard(dispatcher)
        if reason:
            self._give_up(child, reason)
        elif not asked:
            del self._waiting[slot]
            self._on_ready(child)

    def note_exit(self, ident: WorkerId) -> None:
        """Wait for no answer of a worker that has ended, nor for any on its behalf."""
        for slot, (child, _) in list(self._waiting.items()):
            if child.spawn.worker == ident:
                self._forget(child)
            else:
                self.note_answer(slot, ident, "")

    def _give_up(self, child: Child, reason: str) -> None:
        """End a worker that no connection would ever be handed to."""
        self._forget(child)
        child.end(71, f"the dispatcher cannot hand on to it: {reason}")

    def _forget(self, child: Child) -> None:
        """Let the slot's next worker ask again."""
        self._waiting.pop(child.spawn.slot, None)
        self._context.escrow.pairs.unroute(child.spawn.slot)
