"""Decides which workers live: events in, actions out.

`handle` first records the event (`observe`), then compares what is with what should be
(`reconcile`, the only place that asks for actions, but for lines in the log).  It is
level-triggered: an event that comes late or twice leads to the same state.  Instants come in with
each call, and randomness through `jitter`, so a history can be replayed.

The states and what moves them stand in `machine`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from greeterd.supervisor import observe, operations, rescue, shutdown, slots
from greeterd.supervisor.actions import Action
from greeterd.supervisor.events import Event, Stop
from greeterd.supervisor.ids import DISPATCHER, Generation, Signal, SlotIndex, WorkerId
from greeterd.supervisor.machine import STOPS, Cause, DaemonState, OperationState, follow
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.records import Operation, Preflight, Slot, Worker
from greeterd.supervisor.state import MAX_SLOTS, State

__all__ = ["MAX_SLOTS", "Supervisor"]


class Supervisor:
    """The daemon's slots and workers; touches no process, socket or clock."""

    def __init__(self, *, workers: int, policy: Policy, jitter: Callable[[], float]) -> None:
        self._state = State(policy=policy, jitter=jitter)
        if policy.dispatcher:
            self._state.add(DISPATCHER, 0.0)
        for _ in range(workers):
            self._state.add_slot(0.0)

    @classmethod
    def adopt(  # noqa: PLR0913 - each is a part of what the predecessor leaves
        cls,
        *,
        policy: Policy,
        jitter: Callable[[], float],
        generation: Generation,
        slots: Iterable[Slot],
        last_worker: WorkerId,
        highest_slot: int = 0,
    ) -> "Supervisor":
        """Return the supervisor of slots and workers that another image of the program started."""
        adopted = cls(workers=0, policy=policy, jitter=jitter)
        adopted._state.operation = None
        adopted._state.generation = generation
        adopted._state.last_worker = last_worker
        for slot in slots:
            adopted._state.slots[slot.index] = slot
            adopted._state.workers.update({worker.id: worker for worker in slot.workers})
        adopted._state.highest_slot = max(SlotIndex(highest_slot), *adopted._state.slots)
        return adopted

    def handle(self, event: Event, now: float) -> list[Action]:
        """Record the event; return what is to be done now, in this order."""
        self._state.actions = []
        observe.apply(self._state, event, now)
        return reconcile(self._state, now)

    def next_deadline(self) -> float | None:
        """Return when `handle` needs a Tick at the latest, or None."""
        return min(self._deadlines(), default=None)

    def _deadlines(self) -> Iterator[float]:
        for worker in self._state.workers.values():
            if worker.deadline is not None and worker.sent is not Signal.KILL:
                yield worker.deadline
        operation = self._state.operation
        if isinstance(operation, Preflight) and operation.state is OperationState.PREFLIGHT:
            yield operation.deadline
        if self._state.daemon is DaemonState.STOPPING:
            yield self._state.leave_at
        if not self._state.leaving:
            for slot in self._state.slots.values():
                if slot.close_by is not None:
                    yield slot.close_by
                elif slot.vacant and slot.free_place is not None and not slot.retiring:
                    yield slot.retry_at

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._state.policy

    @property
    def generation(self) -> Generation:
        """The generation of the last reload that has succeeded."""
        return self._state.generation

    @property
    def slots(self) -> Mapping[SlotIndex, Slot]:
        """Every slot, including those that retire."""
        return self._state.slots

    @property
    def live_slots(self) -> list[Slot]:
        """The slots that greet and do not retire, by number; without the dispatcher's."""
        return self._state.live_slots

    @property
    def highest_slot(self) -> SlotIndex:
        """The highest number that a slot has had; slots that are gone have counters, too."""
        return self._state.highest_slot

    @property
    def last_worker(self) -> WorkerId:
        """The identifier that was given last."""
        return WorkerId(self._state.last_worker)

    @property
    def workers(self) -> Iterable[Worker]:
        """Every worker whose process may live."""
        return self._state.workers.values()

    def worker(self, ident: WorkerId | None) -> Worker | None:
        """Return the worker with this identifier, or None when it is gone."""
        return self._state.worker(ident)

    def recent_restarts(self, now: float) -> int:
        """Return how many workers of all slots died within the last `restart_window`."""
        horizon = now - self.policy.restart_window
        return sum(when > horizon for slot in self.slots.values() for when in slot.deaths)

    @property
    def stopping(self) -> Stop | None:
        """How the daemon stops, or None while it is to run."""
        running = self._state.daemon is DaemonState.RUNNING
        return None if running else Stop(quick=self._state.quick)

    @property
    def operation(self) -> Operation | None:
        """The first start or the command that is being carried out."""
        return self._state.operation


def reconcile(state: State, now: float) -> list[Action]:
    """Return the actions that follow from the state.

    One consequence may be what another waits for, so go round until none adds an action.
    """
    if state.daemon is DaemonState.STOPPING and now >= state.leave_at:
        state.daemon = follow(STOPS, Cause.DELAY_OVER, state.daemon)
    progress = -1
    while progress < len(state.actions) and state.daemon is not DaemonState.ENDED:
        progress = len(state.actions)
        slots.end_overdue(state, now)
        rescue.settle(state)
        # An exit request may be what ends the daemon, so that nothing else is begun.
        if state.daemon is DaemonState.RUNNING:
            slots.grant_exits(state)
        if state.daemon is DaemonState.RUNNING:
            operations.operate(state, now)
        else:
            shutdown.refuse(state)
        # While the daemon is STOPPING, it serves on: dead workers are restarted.
        if not state.leaving:
            slots.drain_replaced(state, now)
            slots.retire(state, now)
            slots.respawn(state, now)
        rescue.lend(state, now)
        if state.leaving:
            shutdown.leave(state, now)
    return state.actions
