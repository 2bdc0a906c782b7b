"""A world for the supervisor: it performs the actions, and its processes misbehave.

Forks fail; workers start late or never, hang, ignore messages and crash; a SIGKILL always works.
Everything comes from one seed, so that a history can be replayed.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from greeterd.supervisor.actions import (
    Action,
    CloseSlot,
    Drain,
    GateAll,
    Kill,
    Lend,
    Replace,
    Spawn,
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
    Pulse,
    Ready,
    Reload,
    Returned,
    Spawned,
    SpawnFailed,
    Tick,
)
from greeterd.supervisor.ids import (
    DISPATCHER,
    DrainMode,
    Generation,
    Pid,
    Signal,
    SlotIndex,
    Ticket,
    WorkerId,
    WorkerState,
)
from greeterd.supervisor.machine import LoanState, SlotState
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.records import Slot
from greeterd.supervisor.supervisor import Supervisor
from tests.unit.supervisor.rules import Rules

TICK = 0.2
RSS_BYTES = 1000
"""What a worker begins with; it leaks one for each greeting."""


@dataclass
class Process:
    """A worker's process."""

    spawn: Spawn
    hung: bool = False
    turned_at: float = 0.0
    greetings: int = 0
    serving: bool = False
    leaving: DrainMode | None = None
    lent: set[SlotIndex] = field(default_factory=set)
    unread: list[Action] = field(default_factory=list)
    """Messages that came while it hung."""


class Kernel:
    """Processes, listeners and time."""

    def __init__(self, seed: int, *, workers: int, policy: Policy) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.supervisor = Supervisor(workers=workers, policy=policy, jitter=self.rng.random)
        self.rules = Rules(self.supervisor)
        self.processes: dict[WorkerId, Process] = {}
        self.faults = 1.0
        """How much goes wrong: 0 for nothing."""
        self.broken: set[Generation] = set()
        """The generations whose workers cannot start."""
        self.queues: Counter[SlotIndex] = Counter()
        """Connections that wait, by the slot whose listener they wait in."""
        self.open: set[SlotIndex] = set()
        """The slots whose listener takes new connections."""
        self.generation = 1
        """The last generation that was made."""
        self.past: list[Event] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._entries = 0
        self._next_tick = self.now

    # Time -----------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass, with all that happens in it."""
        end = self.now + seconds
        while self.rules.final is None:
            deadline = self.supervisor.next_deadline()
            due = self._agenda[0][0] if self._agenda else end
            soonest = min(end, due, self._next_tick, end if deadline is None else deadline)
            if soonest >= end:
                break
            self.now = max(self.now, soonest)
            if self._agenda and due <= self.now:
                heapq.heappop(self._agenda)[2]()
            elif self._next_tick <= self.now:
                self.tick()
            else:
                actions = self.feed(Tick())
                later = self.supervisor.next_deadline()
                assert actions or later is None or later > self.now
        self.now = end

    def later(self, least: float, most: float, what: Callable[[], None]) -> None:
        """Have something happen in so many seconds."""
        self._entries += 1
        when = self.now + self.rng.uniform(least, most)
        heapq.heappush(self._agenda, (when, self._entries, what))

    def tick(self) -> None:
        """Let a connection come to every listener, those who can accept, and the master look."""
        self._next_tick = self.now + TICK
        for slot in self.open:
            self.queues[slot] += 1
        for process in self.processes.values():
            if process.serving and not process.hung:
                process.turned_at = self.now
                process.greetings += 1
                self._serve(process)
        self.feed(Tick(tuple(self._pulses())))

    def _serve(self, process: Process) -> None:
        if process.leaving in {None, DrainMode.SWEEP}:
            self.queues[process.spawn.slot] = 0
        for slot in process.lent:
            self.queues[slot] = 0

    def _pulses(self) -> list[Pulse]:
        found = []
        for worker in self.supervisor.workers:
            process = self.processes.get(worker.id)
            if process is not None and worker.state is WorkerState.READY:
                age = self.now - process.turned_at
                queued = self.queues[worker.slot] if self.supervisor.policy.own_listeners else 0
                rss = RSS_BYTES + process.greetings
                turned = age == 0.0
                found.append(Pulse(worker.id, age, turned, queued, process.greetings, rss))
        return found

    def chance(self, probability: float) -> bool:
        """Tell whether something goes wrong."""
        return self.rng.random() < probability * self.faults

    def feed(self, event: Event) -> list[Action]:
        """Tell the supervisor what has happened, and do what it asks for."""
        before = self.supervisor
        actions = self.rules.handle(event, self.now)
        if not isinstance(event, Tick):
            self.past.append(event)
        for action in actions:
            self._perform(action)
            if self.supervisor is not before:
                break  # the new image knows nothing of what the old one still wanted
        return actions

    # Actions --------------------------------------------------------------------------------

    def _perform(self, action: Action) -> None:  # noqa: C901, PLR0912 - a case an action
        match action:
            case Spawn():
                self._fork(action)
            case Drain(worker) | Lend(_, worker) | TakeBack(_, worker):
                process = self.processes.get(worker)
                if process is not None and process.hung:
                    process.unread.append(action)
                elif process is not None:
                    self._obey(worker, process, action)
            case Kill(worker, Signal.KILL, _):
                self.later(0.0, 0.05, lambda: self.die(worker, 70))
            case Kill(worker):
                if not self.chance(0.3):
                    self.later(0.0, 1.0, lambda: self.die(worker, 70))
            case SteerAway(slot):
                self.open.discard(slot)
                self.queues[slot] += 1  # a handshake that was under way
            case CloseSlot(slot):
                self._close(slot)
            case StartPreflight():
                reason = "no module" if self.chance(0.3) else ""
                if not self.chance(0.2):
                    self.later(0.0, 1.0, lambda: self._end_preflight(reason))
            case Replace(ticket):
                self._replace(ticket)
            case GateAll():
                self.open.clear()
            case _:
                pass

    def _end_preflight(self, reason: str) -> None:
        self.feed(PreflightEnded(reason))

    def _replace(self, ticket: Ticket) -> None:
        """Go on with a supervisor that has inherited what one image tells the next."""
        old = self.supervisor
        if self.chance(0.3) or any(worker.end_reason for worker in old.workers):
            self.feed(PreflightEnded("exec: out of memory"))
            return
        self.supervisor = Supervisor.adopt(
            policy=old.policy,
            jitter=self.rng.random,
            generation=old.generation,
            slots=[self._inherited(slot) for slot in old.slots.values()],
            last_worker=old.last_worker,
        )
        self.rules.succeed(self.supervisor, list(self.processes))
        self.generation += 1
        workers = len(self.supervisor.live_slots)
        self.feed(Reload(Generation(self.generation), workers, old.policy, ticket, "upgrade"))

    def _inherited(self, slot: Slot) -> Slot:
        inherited = replace(
            slot,
            workers=[
                replace(worker, stalled_since=None, stuck=False, overdue=False)
                for worker in slot.workers
                if worker.id in self.processes
            ],
            died=False,
            loan=LoanState.KEPT,
            borrower=None,
        )
        assert slot.state is SlotState.LIVE
        return inherited

    def _fork(self, spawn: Spawn) -> None:
        if self.chance(0.05):
            self.feed(SpawnFailed(spawn.worker, "fork: out of memory"))
            return
        process = self.processes[spawn.worker] = Process(spawn, turned_at=self.now)
        self.feed(Spawned(spawn.worker, Pid(spawn.worker + 1000)))
        limit = self.supervisor.policy.start_timeout
        if spawn.generation in self.broken or self.chance(0.1):
            self.later(0.0, 0.5, lambda: self.die(spawn.worker, 78))
        elif self.chance(0.05):
            self.later(limit, limit + 2.0, lambda: self.be_ready(spawn.worker))
        elif self.chance(0.05):
            process.hung = True
        else:
            self.later(0.0, 0.5, lambda: self.be_ready(spawn.worker))

    def be_ready(self, worker: WorkerId) -> None:
        """Let a worker serve, unless it drains."""
        process = self.processes.get(worker)
        record = self.supervisor.worker(worker)
        if process is None or record is None or record.state is not WorkerState.STARTING:
            return
        process.serving, process.turned_at = True, self.now
        if self.supervisor.policy.own_listeners and record.slot not in self.rules.listening:
            self.open.add(record.slot)
        self.feed(Ready(worker, RSS_BYTES))

    def die(self, worker: WorkerId, code: int) -> None:
        """Let a process end."""
        process = self.processes.pop(worker, None)
        if process is None:
            return
        if process.hung:
            code = 70
        if code == 0 and process.leaving in {None, DrainMode.SWEEP}:
            self.queues[process.spawn.slot] = 0
        self.feed(Exited(worker, f"exit status {code}", code))

    def leave_unasked(self, worker: WorkerId) -> None:
        """Let a worker drain without the supervisor: it got a signal."""
        process = self.processes[worker]
        if process.serving and not process.hung and process.leaving is None:
            process.leaving = DrainMode.SWEEP
            process.serving = self.chance(0.5)
            self.later(0.0, 3.0, lambda: self._leave(worker, 0))
            self.feed(Leaving(worker))

    def resume(self, worker: WorkerId) -> None:
        """Let a hung process go on, with the messages that came meanwhile."""
        process = self.processes.get(worker)
        if process is None or not process.hung:
            return
        process.hung = False
        process.turned_at = self.now
        for action in process.unread:
            self._obey(worker, process, action)
        process.unread.clear()

    def _obey(self, worker: WorkerId, process: Process, action: Action) -> None:
        match action:
            case Drain(_, how):
                process.leaving = how
                if how is DrainMode.HAND_OVER and not self.chance(0.1):
                    self.later(0.0, 0.2, lambda: self._tell_closed(worker))
                code = 70 if self.chance(0.2) else 0
                if how is DrainMode.QUICK or not self.chance(0.2):
                    self.later(0.0, 1.5, lambda: self._leave(worker, code))
            case Lend(slot):
                if self.chance(0.1):
                    self.later(0.0, 0.1, lambda: self._refuse(worker, slot))
                else:
                    process.lent.add(slot)
            case TakeBack(slot):
                self.later(0.25, 0.3, lambda: self._return(worker, slot))
            case _:
                pass

    def _tell_closed(self, worker: WorkerId) -> None:
        if worker in self.processes:
            self.feed(Closed(worker))

    def _leave(self, worker: WorkerId, code: int) -> None:
        process = self.processes.get(worker)
        if process is not None and process.hung:
            process.unread.append(Drain(worker, process.leaving or DrainMode.SWEEP))
        else:
            self.die(worker, code)

    def _return(self, worker: WorkerId, slot: SlotIndex) -> None:
        process = self.processes.get(worker)
        if process is None or process.leaving is not None:
            return
        if process.hung:
            process.unread.append(TakeBack(slot, worker))
            return
        self.queues[slot] = 0
        process.lent.discard(slot)
        self.feed(Returned(slot, worker))

    def _refuse(self, worker: WorkerId, slot: SlotIndex) -> None:
        if worker in self.processes:
            self.feed(LoanRefused(slot, worker))

    def _close(self, slot: SlotIndex) -> None:
        """Close a listener; connections are lost only if none were accepted for long."""
        # When all leave, nothing serves the listener of a dispatcher that has crashed.
        late = self.now >= self.rules.close_from[slot] or slot == DISPATCHER
        assert late or not self.queues[slot], "connections were lost"
        self.queues[slot] = 0
        self.open.discard(slot)
