"""What no history may break, checked around every event that a supervisor handles.

The rules keep records of tsuccessor own, made from events and actions alone, and compare.
"""

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

from greeterd.supervisor import recycling
from greeterd.supervisor.actions import (
    Action,
    CloseSlot,
    Drain,
    EndPreflight,
    Exit,
    Finished,
    GateAll,
    Kill,
    Lend,
    Replace,
    Say,
    Spawn,
    Started,
    StartPreflight,
    SteerAway,
    TakeBack,
)
from greeterd.supervisor.events import (
    Closed,
    Event,
    Exited,
    Leaving,
    LoanRefused,
    PreflightEnded,
    Ready,
    Reload,
    Restart,
    Returned,
    Scale,
    SpawnFailed,
    Stop,
    Tick,
    Upgrade,
)
from greeterd.supervisor.ids import (
    DISPATCHER,
    NO_TICKET,
    DrainMode,
    Signal,
    SlotIndex,
    Ticket,
    WorkerId,
    WorkerState,
)
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.records import Roll
from greeterd.supervisor.slots import ABORT_GRACE
from greeterd.supervisor.state import QUICK_TIMEOUT
from greeterd.supervisor.supervisor import Supervisor

FOREVER = float("inf")
ROLLS = {"reload", "restart", "upgrade", recycling.COMMAND}


@dataclass
class Record:
    """A process from Spawn until Exited or SpawnFailed."""

    slot: SlotIndex
    place: int
    abort_from: float
    state: WorkerState = WorkerState.STARTING
    accepts: bool = True
    """It may, even after a Drain with HAND_OVER, until it reports Closed."""
    handing_over: bool = False
    aborted: bool = False
    killed: bool = False
    kill_from: float = FOREVER


@dataclass
class Rules:
    """Feeds a supervisor, and checks each of its actions against the rules."""

    supervisor: Supervisor
    alive: dict[WorkerId, Record] = field(default_factory=dict)
    steered: SlotIndex | None = None
    listening: set[SlotIndex] = field(default_factory=set)
    holders: set[tuple[SlotIndex, WorkerId]] = field(default_factory=set)
    asked: Counter[Ticket] = field(default_factory=Counter)
    answered: Counter[Ticket] = field(default_factory=Counter)
    failures: Counter[SlotIndex] = field(default_factory=Counter)
    deaths: dict[SlotIndex, list[float]] = field(default_factory=lambda: defaultdict(list))
    """When the workers of a slot were found dead."""
    served_since: dict[SlotIndex, float] = field(default_factory=dict)
    vacant_since: dict[SlotIndex, float] = field(default_factory=dict)
    close_from: dict[SlotIndex, float] = field(default_factory=dict)
    """From when on a slot may be closed though its listener was not emptied."""
    overdue: Counter[WorkerId] = field(default_factory=Counter)
    """How many times in a row the heartbeat of a worker was too old."""
    preflight: str = ""
    """How far a new image has got: running, passed, replacing."""
    started: bool = False
    stopping: bool = False
    """The daemon was to stop before the event."""
    leave_from: float = 0.0
    """When the workers may be drained, once the daemon stops."""
    stopped_at: float | None = None
    """When they were, by a graceful stop."""
    final: Exit | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=30))
    """The last events with tsuccessor actions, to print at a failure."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """Have the supervisor handle the event; AssertionError when it breaks a rule."""
        policy = self.supervisor.policy
        self.stopping = self.supervisor.stopping is not None
        actions = self.supervisor.handle(event, now)
        if actions or not isinstance(event, Tick):
            what = "Tick" if isinstance(event, Tick) else event
            self.tail.append("\n    ".join(map(str, [f"{now:.3f} {what}", *actions])))
        if self.final is not None:
            assert actions == []
            return actions
        self._note(event, policy, now)
        for action in actions:
            assert self.final is None, "nothing comes after Exit"
            self._check(action, now)
        self._check_state(now)
        return actions

    def succeed(self, successor: Supervisor, alive: list[WorkerId]) -> None:
        """Watch the successor of the supervisor."""
        self.supervisor = successor
        self.alive = {ident: self.alive[ident] for ident in alive}
        self.holders.clear()
        self.overdue.clear()
        self.preflight = ""
        for ticket in self.asked - self.answered:
            self.asked[ticket] = 0  # it is asked again, by its last step

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.supervisor.policy

    def leaving(self, now: float) -> bool:
        """Tell whether the daemon is to serve no client any longer."""
        stop = self.supervisor.stopping
        return stop is not None and (stop.quick or now >= self.leave_from)

    # Facts ----------------------------------------------------------------------------------

    def _note(self, event: Event, policy: Policy, now: float) -> None:  # noqa: C901, PLR0912 - as _check
        match event:
            case SpawnFailed(worker) | Exited(worker):
                self._bury(worker, now)
            case Ready(worker):
                record = self.alive.get(worker)
                if record is not None and record.state is WorkerState.STARTING:
                    self.listening.add(record.slot)
                    if not record.aborted:
                        if not self._in_state(record.slot, WorkerState.READY):
                            self.served_since[record.slot] = now
                        record.state = WorkerState.READY
            case Leaving(worker):
                record = self.alive.get(worker)
                if record is not None and record.state is WorkerState.READY:
                    record.state = WorkerState.DRAINING
                    record.kill_from = min(record.kill_from, now + policy.graceful_timeout)
                    if not self._in_state(record.slot, WorkerState.READY):
                        self._vacate(record, WorkerState.READY, now)
            case Closed(worker):
                if worker in self.alive:
                    self.alive[worker].accepts = False
            case PreflightEnded(reason):
                self.preflight = "passed" if self.preflight == "running" and not reason else ""
            case Returned(slot, worker) | LoanRefused(slot, worker):
                self.holders.discard((slot, worker))
            case Stop(quick, ticket):
                self.asked[ticket] += 1
                if self.started and not self.stopping and not quick:
                    self.leave_from = now + policy.shutdown_delay
            case Tick(pulses):
                for pulse in pulses:
                    late = pulse.age > policy.worker_timeout
                    self.overdue[pulse.worker] = self.overdue[pulse.worker] + 1 if late else 0
            case Reload() | Restart() | Scale() | Upgrade():
                self.asked[event.ticket] += 1
            case _:
                pass

    def _bury(self, ident: WorkerId, now: float) -> None:
        record = self.alive.pop(ident, None)
        if record is None:
            return
        self.holders = {each for each in self.holders if each[1] != ident}
        self.close_from[record.slot] = now + self.policy.graceful_timeout
        if record.state is not WorkerState.DRAINING and not self._in_state(
            record.slot, WorkerState.READY
        ):
            self._vacate(record, record.state, now)
            self.deaths[record.slot].append(now)

    def _vacate(self, record: Record, before: WorkerState, now: float) -> None:
        if before is WorkerState.READY:
            served = now - self.served_since[record.slot]
            if served >= self.policy.restart_window:
                self.failures[record.slot] = 0
        self.failures[record.slot] += 1
        self.vacant_since[record.slot] = now

    def _in_state(self, slot: SlotIndex, state: WorkerState) -> list[WorkerId]:
        return [
            ident for ident, each in self.alive.items() if each.slot == slot and each.state is state
        ]

    def able(self, ident: WorkerId) -> bool:
        """Tell whether the worker can serve another slot's listener, as far as is known."""
        record = self.alive.get(ident)
        worker = self.supervisor.worker(ident)
        return (
            record is not None
            and record.state is WorkerState.READY
            and not record.aborted
            and worker is not None
            and not worker.stuck
        )

    # Actions --------------------------------------------------------------------------------

    def _check(self, action: Action, now: float) -> None:  # noqa: C901, PLR0912 - a case an action
        match action:
            case Spawn():
                self._check_spawn(action, now)
            case Drain(worker, how):
                self._check_drain(self.alive[worker], how, now)
            case Kill(worker, number):
                self._check_kill(worker, number, now)
            case SteerAway(slot):
                assert self.policy.own_listeners
                assert slot != DISPATCHER
                assert slot in self.listening
                assert self.steered is None, "one at a time"
                self.steered = slot
                self.close_from[slot] = now + self.policy.graceful_timeout
            case CloseSlot(slot):
                self._check_close(slot, now)
            case StartPreflight() | EndPreflight() | Replace():
                self._check_preflight(action)
            case GateAll():
                assert self.supervisor.stopping == Stop()
                assert self.leaving(now)
                assert self.stopped_at is None
                self.stopped_at = now
            case Lend(slot, worker):
                assert self.policy.own_listeners
                assert self.policy.rescue or self.steered == slot
                assert slot in self.listening
                assert self.alive[worker].slot not in {slot, DISPATCHER}
                assert self.able(worker) or self.leaving(now)
                assert not any(lent == slot and self.able(holder) for lent, holder in self.holders)
                self.holders.add((slot, worker))
            case TakeBack(slot, worker):
                assert (slot, worker) in self.holders
            case Finished():
                self._check_finished(action)
            case Exit():
                assert not self.alive
                assert DISPATCHER not in self.supervisor.slots
                self.final = action
            case Started():
                self.started = True
            case Say():
                pass

    def _check_finished(self, finished: Finished) -> None:
        if finished.command in ROLLS and not finished.reason:
            assert not any(each.handing_over and each.accepts for each in self.alive.values())
            ready = [each.slot for each in self.alive.values() if each.state is WorkerState.READY]
            assert len(ready) == len(set(ready))
        if finished.command != recycling.COMMAND:  # it has no ticket
            ticket = finished.ticket
            self.answered[ticket] += 1
            assert ticket == NO_TICKET or self.answered[ticket] <= self.asked[ticket]

    def _check_preflight(self, action: StartPreflight | EndPreflight | Replace) -> None:
        match action:
            case StartPreflight():
                assert self.preflight == ""
                self.preflight = "running"
            case EndPreflight():
                assert self.preflight in {"running", "passed"}
                self.preflight = ""
            case Replace():
                assert self.preflight == "passed"
                assert all(each.state is not WorkerState.STARTING for each in self.alive.values())
                assert not any(slot.retiring for slot in self.supervisor.slots.values())
                self.preflight = "replacing"

    def _check_spawn(self, spawn: Spawn, now: float) -> None:
        assert not self.leaving(now)
        others = [each for each in self.alive.values() if each.slot == spawn.slot]
        assert len(others) < 2, "two at most"
        assert spawn.place in {0, 1}
        assert spawn.place not in {each.place for each in others}
        operation = self.supervisor.operation
        if not isinstance(operation, Roll) or operation.replacement != spawn.worker:
            assert all(each.state is WorkerState.DRAINING for each in others)
            wait = min(15.0, 0.05 * 2 ** (self.failures[spawn.slot] - 2))
            if self.failures[spawn.slot] > 1:
                assert now - self.vacant_since[spawn.slot] >= wait, "back-off"
        else:
            assert not self._in_state(spawn.slot, WorkerState.STARTING)
            if operation.command == recycling.COMMAND:
                assert all(each.state is WorkerState.READY for each in self.alive.values()), (
                    "one slot"
                )
        limit = now + self.policy.start_timeout
        self.alive[spawn.worker] = Record(spawn.slot, spawn.place, limit)

    def _check_drain(self, record: Record, how: DrainMode, now: float) -> None:
        stop = self.supervisor.stopping if self.leaving(now) else None
        slot = self.supervisor.slots.get(record.slot)
        if (
            record.state is WorkerState.READY
            and stop is None
            and slot is not None
            and not slot.retiring
        ):
            assert len(self._in_state(record.slot, WorkerState.READY)) > 1
            assert how is DrainMode.HAND_OVER
        if how is DrainMode.SWEEP and stop is None and record.slot in self.listening:
            assert self.steered == record.slot
        assert (how is DrainMode.QUICK) == (stop is not None and stop.quick)
        if how is DrainMode.HAND_OVER and self.policy.own_listeners:
            assert stop is None
            assert len(self._in_state(record.slot, WorkerState.READY)) > 1
        record.state = WorkerState.DRAINING
        record.handing_over = how is DrainMode.HAND_OVER
        timeout = QUICK_TIMEOUT if how is DrainMode.QUICK else self.policy.graceful_timeout
        if record.slot == DISPATCHER and how is DrainMode.SWEEP:
            timeout /= 2  # the others have the other half
        record.kill_from = min(record.kill_from, now + timeout)

    def _check_kill(self, ident: WorkerId, number: Signal, now: float) -> None:
        record = self.alive[ident]
        if number is Signal.KILL:
            assert not record.killed
            assert now >= self._kill_from(record)
            record.killed = True
            return
        assert not record.aborted
        if record.state is WorkerState.STARTING:
            assert now >= record.abort_from
        else:
            assert record.state is WorkerState.READY
            assert self.overdue[ident] == 2
        record.aborted = True
        record.kill_from = now + ABORT_GRACE

    def _kill_from(self, record: Record) -> float:
        if self.stopped_at is None:
            return record.kill_from
        share = 0.5 if record.slot == DISPATCHER else 1.0  # the others have the other half
        return min(record.kill_from, self.stopped_at + share * self.policy.graceful_timeout)

    def _check_close(self, slot: SlotIndex, now: float) -> None:
        assert not any(record.slot == slot for record in self.alive.values())
        if slot == DISPATCHER:
            assert self.leaving(now)
        elif self.policy.own_listeners and slot in self.listening:
            assert self.steered == slot
            self.steered = None
        if now < self.close_from[slot]:
            assert not any(lent == slot and self.able(worker) for lent, worker in self.holders)
        self.listening.discard(slot)
        self.holders = {each for each in self.holders if each[0] != slot}
        self.failures.pop(slot, None)
        self.deaths.pop(slot, None)

    # What is, after the actions -------------------------------------------------------------

    def _check_state(self, now: float) -> None:
        supervisor = self.supervisor
        if not self.leaving(now):  # a borrower that cannot serve counts no longer
            self.holders = {each for each in self.holders if self.able(each[1])}
        states = {worker.id: worker.state for worker in supervisor.workers}
        assert states == {ident: record.state for ident, record in self.alive.items()}
        for record in self.alive.values():
            assert record.killed or now < self._kill_from(record), "killed in time"
            if record.state is WorkerState.STARTING:
                assert record.aborted or now < record.abort_from, "aborted in time"
        deadline = supervisor.next_deadline()
        assert deadline is None or deadline > now, "no busy loop"
        assert supervisor.handle(Tick(), now) == [], "all that follows has been asked for"
        assert (self.final is not None) <= (not supervisor.slots or not self.alive)
        if self.final is None and not self.leaving(now):
            assert supervisor.live_slots
            horizon = now - self.policy.restart_window
            for deaths in self.deaths.values():
                recent = sum(when > horizon for when in deaths)
                assert recent <= self.policy.max_restarts or self.stopping, "a crash loop ends"
