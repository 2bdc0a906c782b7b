"""Decides which workers live: events in, actions out.

`handle` first records the fact (`_apply`), then compares what is with what should be
(`_reconcile`, the only place that asks for actions).  Everything is level-triggered: an event
that was handled twice, or late, leads to the same world.  Instants come in with each call, and
randomness through `jitter`, so a history can be replayed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, assert_never

from greeterd.core.events import (
    NO_TICKET,
    Action,
    CloseSlot,
    Command,
    Drain,
    Event,
    Exit,
    Exited,
    ExitRequested,
    Finished,
    GateAll,
    Generation,
    How,
    Kill,
    Lend,
    Life,
    Policy,
    Pulse,
    Ready,
    Reload,
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
    SteerAway,
    Stop,
    TakeBack,
    Tick,
    Ticket,
    WorkerId,
)
from greeterd.core.operations import Launch, Operation, Resize, Roll
from greeterd.core.workers import Slot, Worker, backoff_delay

ABORT_GRACE: Final = 2.0
"""Seconds that an aborted worker gets to write its stack before it is killed."""
QUICK_TIMEOUT: Final = 2.0
"""Seconds that a quick stop gives the workers."""
STUCK_AFTER: Final = 0.4
"""Seconds of waiting connections without a turn of the loop that make a worker stuck."""
UNSERVED_AFTER: Final = 0.5
"""Seconds without a ready worker after which a slot's listener is lent to a sibling."""
MAX_SLOTS: Final = 512

STOPPING: Final = "the daemon is stopping"


class Supervisor:
    """The daemon's slots and workers, as decided; no process, socket or clock is touched."""

    def __init__(self, *, workers: int, policy: Policy, jitter: Callable[[], float]) -> None:
        self.policy = policy
        self.generation = Generation(1)
        self.slots: dict[SlotIndex, Slot] = {}
        self.highest_slot = SlotIndex(0)
        """The highest number that a slot has had: slots that are gone have counted, too."""
        self.restarts: list[float] = []
        """When workers were found dead, within the last `restart_window`."""
        self.stopping: Stop | None = None
        self.operation: Operation | None = Launch()
        self._jitter = jitter
        self._commands: deque[Command] = deque()
        self._stop_tickets: list[Ticket] = []
        self._exit = Exit(0, "")
        self._gated = False
        self._ended = False
        self._last_worker = 0
        self._actions: list[Action] = []
        for _ in range(workers):
            self._add_slot(0.0)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Record the event, and return what is to be done now, in this order."""
        self._actions = []
        self._apply(event, now)
        self._reconcile(now)
        return self._actions

    def next_deadline(self) -> float | None:
        """Return the instant by which `handle` wants a Tick at the latest; None for no such."""
        return min(self._deadlines(), default=None)

    @property
    def workers(self) -> Iterator[Worker]:
        """Every worker that is not gone."""
        return (worker for slot in self.slots.values() for worker in slot.workers)

    def worker(self, ident: WorkerId | None) -> Worker | None:
        """Return the worker of this name, None when it is gone."""
        return next((worker for worker in self.workers if worker.id == ident), None)

    @property
    def live_slots(self) -> list[Slot]:
        """The slots that are to be served, by their number."""
        return [self.slots[index] for index in sorted(self.slots) if not self.slots[index].retiring]

    def recent_restarts(self, now: float) -> int:
        """Return how many workers were found dead within the last `restart_window`."""
        horizon = now - self.policy.restart_window
        return sum(when > horizon for when in self.restarts)

    # Facts ----------------------------------------------------------------------------------

    def _apply(self, event: Event, now: float) -> None:  # noqa: C901, PLR0912 - a case an event
        match event:
            case Spawned():
                if worker := self.worker(event.worker):
                    worker.pid = event.pid
            case SpawnFailed():
                self._bury(event.worker, event.reason, 70, now)
            case Ready():
                self._note_ready(event.worker, now)
            case Exited():
                self._bury(event.worker, event.reason, event.code, now)
            case ExitRequested():
                self._retire_for(event.worker)
            case Returned():
                self._note_returned(event)
            case Stop():
                self._note_stop(event)
            case Reload() | Restart() | Scale():
                if self.stopping is None:
                    self._commands.append(event)
                else:
                    self._finish(event.ticket, _name_of(event), STOPPING)
            case Tick():
                for pulse in event.pulses:
                    self._feel(pulse, now)
            case _:
                assert_never(event)

    def _note_ready(self, ident: WorkerId, now: float) -> None:
        worker = self.worker(ident)
        if worker is None or worker.life is not Life.STARTING:
            return
        worker.become(Life.READY, now)
        if not worker.doomed:
            worker.deadline = None
        slot = self.slots[worker.slot]
        slot.served = True
        slot.generation = worker.generation

    def _bury(self, ident: WorkerId, reason: str, code: int, now: float) -> None:
        worker = self.worker(ident)
        if worker is None:
            return
        slot = self.slots[worker.slot]
        life, since = worker.life, worker.since
        worker.become(Life.GONE, now)
        slot.workers.remove(worker)
        reason = f"{worker.doomed}; {reason}" if worker.doomed else reason
        if life is Life.DRAINING:
            # Only a worker that ended in peace has emptied the listener behind it.
            slot.swept = slot.retiring and code == 0
            return
        self._note_failed_step(worker, life, reason, code)
        if slot.ready is None:
            healthy = life is Life.READY and now - since >= self.policy.restart_window
            self._count_death(slot, now, healthy=healthy)
            restart_in = round(slot.retry_at - now, 3)
            self._say("warning", "worker died", worker=slot.index, restart_in=restart_in)

    def _note_failed_step(self, worker: Worker, life: Life, reason: str, code: int) -> None:
        """Let the operation fail that waits for a worker which died while it started."""
        if life is not Life.STARTING:
            return
        match self.operation:
            case Launch():
                self._end(Exit(code or 70, f"worker {worker.slot} did not start: {reason}"))
            case Roll() as roll if roll.replacement == worker.id:
                roll.failure = f"worker {worker.slot} did not start: {reason}"
            case Resize() as resize if worker.slot in resize.added:
                if not self.slots[worker.slot].served:
                    resize.failure = f"worker {worker.slot} did not start: {reason}"
            case _:
                pass

    def _count_death(self, slot: Slot, now: float, *, healthy: bool) -> None:
        slot.failures = 1 if healthy else slot.failures + 1
        slot.retry_at = now + backoff_delay(slot.failures, self._jitter())
        slot.unserved_since = now
        slot.restarts += 1
        horizon = now - self.policy.restart_window
        self.restarts = [when for when in self.restarts if when > horizon]
        self.restarts.append(now)
        if len(self.restarts) > self.policy.max_restarts and self.stopping is None:
            window = f"{self.policy.restart_window:g} s"
            self._end(Exit(70, f"{len(self.restarts)} workers died within {window}"))

    def _retire_for(self, ident: WorkerId) -> None:
        """One slot less: this worker's, or another's when this one retires already."""
        live = self.live_slots
        worker = self.worker(ident)
        if worker is None or not live or self.stopping is not None:
            return
        if len(live) == 1:
            self._say("info", "the last worker was asked to exit")
            self._end(Exit(0, ""))
            return
        slot = self.slots[worker.slot]
        victim = live[0] if slot.retiring else slot
        victim.retiring = True
        self._say("info", "worker retires", worker=victim.index)

    def _note_returned(self, event: Returned) -> None:
        slot = self.slots.get(event.slot)
        if slot is None or slot.borrower != event.worker:
            return
        slot.borrower = None
        slot.returning = False
        slot.swept = slot.retiring and not slot.workers

    def _note_stop(self, event: Stop) -> None:
        if event.ticket != NO_TICKET:
            self._stop_tickets.append(event.ticket)
        if self.stopping is None or (event.quick and not self.stopping.quick):
            self._end(self._exit, quick=event.quick)

    def _end(self, final: Exit, *, quick: bool = False) -> None:
        """Leave for good; commands under way and queued are answered now."""
        self.stopping = Stop(quick=quick)
        self._exit = final
        operation, self.operation = self.operation, None
        if isinstance(operation, Roll | Resize):
            self._finish(operation.ticket, operation.command, STOPPING)
        for command in self._commands:
            self._finish(command.ticket, _name_of(command), STOPPING)
        self._commands.clear()

    def _feel(self, pulse: Pulse, now: float) -> None:
        worker = self.worker(pulse.worker)
        if worker is None or worker.life is not Life.READY:
            return
        if pulse.turned:
            worker.stalled_since = None
            worker.stuck = False
        elif pulse.queued and worker.stalled_since is None:
            worker.stalled_since = now
        if worker.stalled_since is not None and now - worker.stalled_since >= STUCK_AFTER:
            worker.stuck = True
        if pulse.age > self.policy.worker_timeout and not worker.doomed:
            worker.deadline = now
            worker.doomed = f"no heartbeat for {pulse.age:.1f} s"

    # Consequences ---------------------------------------------------------------------------

    def _reconcile(self, now: float) -> None:
        """Repeat until nothing changes: one consequence may be what another waits for."""
        while not self._ended:
            before = (len(self._actions), self.operation, len(self._commands), len(self.slots))
            self._end_overdue(now)
            if self.stopping is None:
                self._operate(now)
                self._drain_replaced(now)
                self._retire(now)
                self._respawn(now)
            self._settle_loans()
            self._lend(now)
            if self.stopping is not None:
                self._leave(now, self.stopping)
            after = (len(self._actions), self.operation, len(self._commands), len(self.slots))
            if after == before:
                return

    def _end_overdue(self, now: float) -> None:
        """Abort what hangs, and kill what neither an abort nor a drain has ended."""
        for worker in self.workers:
            if worker.deadline is None or now < worker.deadline or worker.killed:
                continue
            if worker.aborted or worker.life is Life.DRAINING:
                worker.doomed = worker.doomed or "not drained in time"
                worker.killed = True
                worker.deadline = None
                self._do(Kill(worker.id, Signal.KILL, worker.doomed))
            else:
                worker.doomed = worker.doomed or f"not ready within {self.policy.start_timeout:g} s"
                worker.aborted = True
                worker.deadline = now + ABORT_GRACE
                self._do(Kill(worker.id, Signal.ABORT, worker.doomed))

    def _operate(self, now: float) -> None:
        """Carry the operation on; when it has ended, begin the next command."""
        if self.operation is None and self._commands:
            self.operation = self._begin(self._commands.popleft())
        match self.operation:
            case Launch():
                if all(slot.ready for slot in self.live_slots):
                    self.operation = None
                    self._do(Started())
            case Roll() as roll:
                self._roll(roll, now)
            case Resize() as resize:
                self._resize(resize, now)
            case None:
                pass
            case _:
                assert_never(self.operation)

    def _begin(self, command: Command) -> Operation | None:
        """Return the operation that carries the command out; None if it was refused."""
        live = self.live_slots
        match command:
            case Reload():
                targets = {slot.index: command.generation for slot in live}
                return Roll(
                    command="reload", targets=targets, ticket=command.ticket, reload=command
                )
            case Restart():
                chosen = [slot for slot in live if command.slot in (None, slot.index)]
                if not chosen:
                    self._finish(command.ticket, "restart", f"there is no worker {command.slot}")
                    return None
                targets = {slot.index: slot.generation for slot in chosen}
                return Roll(command="restart", targets=targets, ticket=command.ticket)
            case Scale():
                want = len(live) + command.change if command.workers is None else command.workers
                if not 1 <= want <= MAX_SLOTS:
                    reason = f"{want} workers: not between 1 and {MAX_SLOTS}"
                    self._finish(command.ticket, "scale", reason)
                    return None
                return Resize(command="scale", want=want, ticket=command.ticket)
            case _:
                assert_never(command)

    def _roll(self, roll: Roll, now: float) -> None:
        if roll.failure:
            self._end_failed_roll(roll)
            return
        while roll.targets:
            index, generation = next(iter(roll.targets.items()))
            slot = self.slots.get(index)
            worker = self.worker(roll.replacement)
            if slot is not None and not slot.retiring:
                if roll.replacement is None:
                    if slot.starting is None and slot.free_place is not None:
                        roll.replaced[index] = slot.generation
                        roll.replacement = self._spawn(slot, generation, now)
                    return
                if worker is not None and worker.life is Life.STARTING:
                    return
            del roll.targets[index]
            roll.replacement = None
        self.operation = None
        if roll.reload is not None:
            self.generation = roll.reload.generation
            self.policy = roll.reload.policy
            if roll.reload.workers != len(self.live_slots):
                self.operation = Resize(
                    command=roll.command, want=roll.reload.workers, ticket=roll.ticket
                )
                return
        self._finish(roll.ticket, roll.command, roll.undoing)

    def _end_failed_roll(self, roll: Roll) -> None:
        """Go back to what served before where a reload has got on; else tell the failure."""
        roll.replaced.pop(next(iter(roll.targets)), None)
        if roll.reload is not None and roll.replaced:
            self.operation = Roll(
                command=roll.command,
                targets=roll.replaced,
                ticket=roll.ticket,
                undoing=roll.failure,
            )
            self._say("warning", "reload is undone", reason=roll.failure)
            return
        self.operation = None
        reason = f"{roll.undoing}; undoing it: {roll.failure}" if roll.undoing else roll.failure
        self._finish(roll.ticket, roll.command, reason)

    def _resize(self, resize: Resize, now: float) -> None:
        if not resize.begun:
            resize.begun = True
            live = self.live_slots
            resize.added = [self._add_slot(now).index for _ in range(resize.want - len(live))]
            resize.removing = [slot.index for slot in live[resize.want :]]
            for index in resize.removing:
                self.slots[index].retiring = True
        if resize.failure:
            for index in resize.added:
                if index in self.slots:
                    self.slots[index].retiring = True
        else:
            added = [self.slots[index] for index in resize.added if index in self.slots]
            if any(slot.ready is None and not slot.retiring for slot in added):
                return
            if any(index in self.slots for index in resize.removing):
                return
        self.operation = None
        self._finish(resize.ticket, resize.command, resize.failure)

    def _drain_replaced(self, now: float) -> None:
        """Where two workers are ready, the older one leaves: start first, stop second."""
        for slot in self.slots.values():
            ready = [worker for worker in slot.workers if worker.life is Life.READY]
            for worker in ready[:-1]:
                self._drain(worker, How.HAND_OVER, now)

    def _retire(self, now: float) -> None:
        """Empty and close the slots that are to go.

        One at a time where each has a listener of its own, since a listener that closes changes
        the index of another, and with two on their way out no program would be right for both.
        """
        how = How.SWEEP if self.policy.own_listeners else How.HAND_OVER
        for index in sorted(index for index, slot in self.slots.items() if slot.retiring):
            slot = self.slots[index]
            has_listener = self.policy.own_listeners and slot.served
            if has_listener and not slot.steered:
                slot.steered = True
                self._do(SteerAway(index))
            for worker in slot.workers:
                if worker.life is not Life.DRAINING:
                    self._drain(worker, how, now)
            if not slot.workers and (
                not has_listener
                or slot.swept
                or (slot.borrower is None and self._sibling(slot) is None)
            ):
                del self.slots[index]
                self._do(CloseSlot(index))
            elif has_listener:
                return

    def _respawn(self, now: float) -> None:
        for slot in self.live_slots:
            if slot.current is None and now >= slot.retry_at and slot.free_place is not None:
                self._spawn(slot, slot.generation, now)

    def _settle_loans(self) -> None:
        """Forget the borrowers that are gone or leave, and call back from one that is stuck."""
        for slot in self.slots.values():
            if slot.borrower is None:
                continue
            borrower = self.worker(slot.borrower)
            if borrower is None or borrower.life is not Life.READY or borrower.stuck:
                if borrower is not None and borrower.stuck and not slot.returning:
                    self._do(TakeBack(slot.index, borrower.id))
                if self.stopping is None or borrower is None:
                    slot.borrower = None
                    slot.returning = False

    def _lend(self, now: float) -> None:
        """Let a sibling serve the listener of a slot that cannot, and end the loan when it can."""
        if not self.policy.own_listeners:
            return
        for slot in self.slots.values():
            emptying = slot.retiring and not slot.workers and not slot.swept
            if slot.borrower is None:
                sibling = self._sibling(slot)
                if sibling is not None and (emptying or self._needs_rescue(slot, now)):
                    slot.borrower = sibling.id
                    self._do(Lend(slot.index, sibling.id))
            elif not slot.returning and (emptying or not self._needs_rescue(slot, now)):
                slot.returning = True
                self._do(TakeBack(slot.index, slot.borrower))

    def _needs_rescue(self, slot: Slot, now: float) -> bool:
        if not self.policy.rescue or not slot.served:
            return False
        if slot.ready is not None:
            return slot.ready.stuck
        if slot.retiring and slot.workers:
            return False
        if slot.borrower is not None or self.stopping is not None:
            return True
        return now < slot.retry_at or now - slot.unserved_since >= UNSERVED_AFTER

    def _sibling(self, slot: Slot) -> Worker | None:
        """Return the ready worker of another slot that carries the fewest loans."""
        loans = [other.borrower for other in self.slots.values()]
        return min(
            (
                other.ready
                for other in self.live_slots
                if other is not slot and other.ready is not None and not other.ready.stuck
            ),
            key=lambda worker: (loans.count(worker.id), worker.slot),
            default=None,
        )

    def _leave(self, now: float, stop: Stop) -> None:
        """Drain everyone; when nobody is left, end the daemon."""
        if not self._gated and not stop.quick:
            self._gated = True
            self._do(GateAll())
        how = How.QUICK if stop.quick else How.SWEEP
        for worker in self.workers:
            if worker.life is not Life.DRAINING or (stop.quick and worker.leaving is not how):
                self._drain(worker, how, now)
        if not any(self.workers):
            self._ended = True
            for ticket in self._stop_tickets:
                self._finish(ticket, "stop", "")
            self._do(self._exit)

    # Small steps ----------------------------------------------------------------------------

    def _add_slot(self, now: float) -> Slot:
        index = next(SlotIndex(n) for n in range(1, MAX_SLOTS + 2) if n not in self.slots)
        slot = Slot(index=index, generation=self.generation, retry_at=now, unserved_since=now)
        self.slots[index] = slot
        self.highest_slot = max(self.highest_slot, index)
        return slot

    def _spawn(self, slot: Slot, generation: Generation, now: float) -> WorkerId:
        place = slot.free_place
        assert place is not None
        self._last_worker += 1
        worker = Worker(
            id=WorkerId(self._last_worker),
            slot=slot.index,
            place=place,
            generation=generation,
            since=now,
            deadline=now + self.policy.start_timeout,
        )
        slot.workers.append(worker)
        self._do(Spawn(worker.id, slot.index, place, generation))
        return worker.id

    def _drain(self, worker: Worker, how: How, now: float) -> None:
        timeout = QUICK_TIMEOUT if how is How.QUICK else self.policy.graceful_timeout
        if worker.life is not Life.DRAINING:
            worker.become(Life.DRAINING, now)
            if not worker.aborted:
                worker.deadline = None
        worker.leaving = how
        limit = now + timeout
        worker.deadline = limit if worker.deadline is None else min(worker.deadline, limit)
        self._do(Drain(worker.id, how))

    def _deadlines(self) -> Iterator[float]:
        for worker in self.workers:
            if worker.deadline is not None and not worker.killed:
                yield worker.deadline
        if self.stopping is None:
            for slot in self.live_slots:
                if slot.current is None and slot.free_place is not None:
                    yield slot.retry_at

    def _finish(self, ticket: Ticket, command: str, reason: str) -> None:
        self._do(Finished(ticket, command, reason))

    def _say(self, level: str, event: str, **fields: object) -> None:
        self._do(Say(level, event, tuple(fields.items())))

    def _do(self, action: Action) -> None:
        self._actions.append(action)


def _name_of(command: Command) -> str:
    return type(command).__name__.lower()
