"""The supervisor's state, and the steps that several of its modules share.

`observe` writes what an event says; `operations`, `recycling`, `slots`, `rescue` and `shutdown`
write what follows from it.  No other module writes.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from greeterd.supervisor.actions import Action, Drain, Exit, Finished, Say, Spawn
from greeterd.supervisor.events import Command
from greeterd.supervisor.ids import (
    DISPATCHER,
    DrainMode,
    Generation,
    SlotIndex,
    Ticket,
    WorkerId,
    WorkerState,
)
from greeterd.supervisor.machine import OPERATIONS, STOPS, DaemonState, Outcome, Trigger, follow
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.records import Launch, Operation, Slot, Worker, state_of

QUICK_TIMEOUT: Final = 2.0
"""Seconds that a quick stop gives the workers."""
MAX_SLOTS: Final = 512
FIRST_GENERATION: Final = Generation(1)


@dataclass(slots=True, kw_only=True)
class State:
    """The slots, the workers, what was asked for, and how far the daemon is on its way out."""

    policy: Policy
    jitter: Callable[[], float]
    generation: Generation = FIRST_GENERATION
    slots: dict[SlotIndex, Slot] = field(default_factory=dict)
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    """Every worker that is not gone: the same records as in the slots."""
    highest_slot: SlotIndex = field(default=SlotIndex(0))
    """The highest number that a slot has had; slots that are gone have counters, too."""
    commands: deque[Command] = field(default_factory=deque)
    """The commands that wait for the end of the operation, in order."""
    operation: Operation | None = field(default_factory=Launch)
    exit_requests: list[SlotIndex] = field(default_factory=list)
    """Slots whose workers were sent `exit` by a client, once for each request."""
    daemon: DaemonState = DaemonState.RUNNING
    quick: bool = False
    """The stop is a quick one."""
    leave_at: float = 0.0
    """When the workers are to drain, once the daemon is STOPPING."""
    stop_tickets: list[Ticket] = field(default_factory=list)
    exit: Exit = field(default_factory=lambda: Exit(0, ""))
    gated: bool = False
    """No new connection reaches any listener."""
    last_worker: int = 0
    futile_rss_bytes: int = 0
    """The `max_rss_bytes` that new workers exceed, once the log has a warning of it."""
    actions: list[Action] = field(default_factory=list)
    """The actions asked for while the present event is handled."""

    @property
    def live_slots(self) -> list[Slot]:
        """The slots that greet and do not retire, by number; without the dispatcher's."""
        return [slot for slot in self.staffed_slots if slot.index != DISPATCHER]

    @property
    def staffed_slots(self) -> list[Slot]:
        """The slots that do not retire, the dispatcher's first."""
        return [self.slots[index] for index in sorted(self.slots) if not self.slots[index].retiring]

    def worker(self, ident: WorkerId | None) -> Worker | None:
        """Return the worker with this identifier, or None when it is gone."""
        return None if ident is None else self.workers.get(ident)

    @property
    def leaving(self) -> bool:
        """The workers are to leave, or have left."""
        return self.daemon in {DaemonState.LEAVING, DaemonState.ENDED}

    def end(self, what: Trigger, final: Exit, *, quick: bool = False) -> None:
        """Begin to leave for good, unless STOPS says that this comes too late."""
        if STOPS[what][self.daemon] is not Outcome.IGNORED:
            self.daemon = follow(STOPS, what, self.daemon)
            self.quick = quick
            self.exit = final

    def switch(self, what: Trigger, operation: Operation | None = None) -> None:
        """Go on with this operation; AssertionError for a change that OPERATIONS does not have."""
        expected = follow(OPERATIONS, what, state_of(self.operation))
        self.operation = operation
        assert state_of(operation) is expected, f"{operation} after {what}"

    @property
    def most_slots(self) -> int:
        """How many slots there can be, without the dispatcher's."""
        limits = (MAX_SLOTS, self.policy.most_slots, self.policy.most_by_files)
        return min(each for each in limits if each is not None)

    def add_slot(self, now: float) -> Slot:
        """Add the slot with the lowest number that is free."""
        free = (SlotIndex(n) for n in range(1, self.most_slots + 1) if n not in self.slots)
        return self.add(next(free), now)

    def add(self, index: SlotIndex, now: float) -> Slot:
        """Add this slot."""
        slot = Slot(index=index, generation=self.generation, retry_at=now, unserved_since=now)
        self.slots[index] = slot
        self.highest_slot = max(self.highest_slot, index)
        return slot

    def spawn(self, slot: Slot, generation: Generation, now: float) -> WorkerId:
        """Start a worker in this slot, which has a free row for it."""
        place = slot.free_place
        assert place is not None
        self.last_worker += 1
        worker = Worker(
            id=WorkerId(self.last_worker),
            slot=slot.index,
            place=place,
            generation=generation,
            since=now,
            deadline=now + self.policy.start_timeout,
        )
        slot.workers.append(worker)
        self.workers[worker.id] = worker
        self.do(Spawn(worker.id, slot.index, place, generation))
        return worker.id

    def drain(self, worker: Worker, how: DrainMode, now: float) -> None:
        """Have the worker drain before its deadline."""
        if worker.state is not WorkerState.DRAINING and worker.sent is None:
            worker.deadline = None  # it was the deadline of its start
        worker.move(Drain, now)
        worker.leaving = how
        worker.end_by(now + self.timeout(how))
        self.do(Drain(worker.id, how))

    def timeout(self, how: DrainMode) -> float:
        """Return the seconds that a worker gets to drain in this way."""
        return QUICK_TIMEOUT if how is DrainMode.QUICK else self.policy.graceful_timeout

    def finish(self, ticket: Ticket, command: str, reason: str) -> None:
        """Answer a command; the reason is empty if it has succeeded."""
        self.do(Finished(ticket, command, reason, self.generation, len(self.live_slots)))

    def say(self, level: str, event: str, **fields: object) -> None:
        """Write to the daemon log."""
        self.do(Say(level, event, tuple(fields.items())))

    def do(self, action: Action) -> None:
        """Ask for an action, after those already asked for."""
        self.actions.append(action)
