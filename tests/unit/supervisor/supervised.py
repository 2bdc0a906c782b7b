"""A supervisor, its clock, and short words for what happens to it; the rules watch every test.

Workers are numbered in the order in which they are asked for, from 1.
"""

from greeterd.supervisor.actions import (
    Action,
    CloseSlot,
    Drain,
    Finished,
    Kill,
    Lend,
    Say,
    Spawn,
    SteerAway,
    TakeBack,
)
from greeterd.supervisor.events import (
    Closed,
    Event,
    Exited,
    ExitRequested,
    PreflightEnded,
    Pulse,
    Ready,
    Reload,
    Restart,
    Returned,
    Scale,
    Stop,
    Tick,
    Upgrade,
)
from greeterd.supervisor.ids import (
    NO_TICKET,
    DrainMode,
    Generation,
    Signal,
    SlotIndex,
    Ticket,
    WorkerId,
    WorkerState,
)
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.supervisor import Supervisor
from tests.unit.supervisor.rules import Rules

OWN = Policy(own_listeners=True, graceful_timeout=10.0)


class Daemon:
    """A daemon whose processes do what the test says."""

    def __init__(self, workers: int, *, policy: Policy, jitter: float = 0.0) -> None:
        self.supervisor = Supervisor(workers=workers, policy=policy, jitter=lambda: jitter)
        self.now = 1000.0
        self._rules = Rules(self.supervisor)

    def tell(self, *events: Event, after: float = 0.0) -> list[Action]:
        """Tell what happens after so many seconds; return what is asked for, but for the log."""
        return [each for each in self.hear(*events, after=after) if not isinstance(each, Say)]

    def hear(self, *events: Event, after: float = 0.0) -> list[Action]:
        """Tell what happens after so many seconds; return what is asked for."""
        self.now += after
        return [action for event in events for action in self._rules.handle(event, self.now)]

    def wait(self, seconds: float) -> list[Action]:
        """Let time pass, with nothing in it but the deadlines of the supervisor."""
        end, found = self.now + seconds, list[Action]()
        while (deadline := self.supervisor.next_deadline()) is not None and deadline <= end:
            self.now = deadline
            found += self.tell(Tick())
        self.now = end
        return found + self.tell(Tick())

    def states(self, slot: int) -> list[WorkerState]:
        """Return the states of the slot's workers, the oldest first."""
        return [worker.state for worker in self.supervisor.slots[SlotIndex(slot)].workers]

    def generations(self) -> dict[int, int]:
        """Return the generation that serves, by slot."""
        return {
            int(slot.index): int(slot.ready.generation)
            for slot in self.supervisor.live_slots
            if slot.ready
        }

    def slots(self) -> list[int]:
        """Return the numbers of the slots that are to be served."""
        return [int(slot.index) for slot in self.supervisor.live_slots]


def started(workers: int, *, policy: Policy | None = None, jitter: float = 0.0) -> Daemon:
    """Return a daemon whose workers 1 to `workers` are ready, each in the slot of its number."""
    daemon = Daemon(workers, policy=policy or Policy(), jitter=jitter)
    daemon.tell(Tick())
    daemon.tell(*(ready(worker) for worker in range(1, workers + 1)))
    return daemon


def ready(worker: int) -> Ready:
    return Ready(WorkerId(worker), rss_bytes=0)


def died(worker: int, reason: str = "killed by SIGSEGV", code: int = 70) -> Exited:
    return Exited(WorkerId(worker), reason, code)


def left(worker: int) -> Exited:
    return Exited(WorkerId(worker), "exit status 0", 0)


def asked_to_exit(worker: int) -> ExitRequested:
    return ExitRequested(WorkerId(worker))


def closed(worker: int) -> Closed:
    return Closed(WorkerId(worker))


def returned(slot: int, worker: int) -> Returned:
    return Returned(SlotIndex(slot), WorkerId(worker))


def look(*pulses: Pulse) -> Tick:
    return Tick(pulses)


def stalls(worker: int, *, queued: int = 1, age: float = 0.0) -> Pulse:
    return Pulse(WorkerId(worker), age, turned=False, queued=queued, greetings=0, rss_bytes=0)


def turns(worker: int, *, queued: int = 0, age: float = 0.0) -> Pulse:
    return Pulse(WorkerId(worker), age, turned=True, queued=queued, greetings=0, rss_bytes=0)


def reload(
    generation: int,
    workers: int,
    *,
    policy: Policy | None = None,
    ticket: int = NO_TICKET,
    name: str = "reload",
) -> Reload:
    return Reload(Generation(generation), workers, policy or Policy(), Ticket(ticket), name)


def restart(slot: int | None, *, ticket: int = NO_TICKET) -> Restart:
    return Restart(None if slot is None else SlotIndex(slot), Ticket(ticket))


def scale(workers: int | None = None, *, change: int = 0, ticket: int = NO_TICKET) -> Scale:
    return Scale(workers, change, Ticket(ticket))


def upgrade(*, ticket: int = NO_TICKET) -> Upgrade:
    return Upgrade(Ticket(ticket))


def tried(reason: str = "") -> PreflightEnded:
    return PreflightEnded(reason)


def stop(*, quick: bool = False, ticket: int = NO_TICKET) -> Stop:
    return Stop(quick, Ticket(ticket))


def spawn(worker: int, slot: int, place: int = 0, generation: int = 1) -> Spawn:
    return Spawn(WorkerId(worker), SlotIndex(slot), place, Generation(generation))


def hand_over(worker: int) -> Drain:
    return Drain(WorkerId(worker), DrainMode.HAND_OVER)


def sweep(worker: int) -> Drain:
    return Drain(WorkerId(worker), DrainMode.SWEEP)


def quick(worker: int) -> Drain:
    return Drain(WorkerId(worker), DrainMode.QUICK)


def abort(worker: int, reason: str) -> Kill:
    return Kill(WorkerId(worker), Signal.ABORT, reason)


def kill(worker: int, reason: str = "not drained in time") -> Kill:
    return Kill(WorkerId(worker), Signal.KILL, reason)


def lend(slot: int, worker: int) -> Lend:
    return Lend(SlotIndex(slot), WorkerId(worker))


def take_back(slot: int, worker: int) -> TakeBack:
    return TakeBack(SlotIndex(slot), WorkerId(worker))


def finished(command: str, reason: str = "", *, ticket: int = NO_TICKET) -> Finished:
    return Finished(Ticket(ticket), command, reason, Generation(0), workers=0)


def steer_away(slot: int) -> SteerAway:
    return SteerAway(SlotIndex(slot))


def close(slot: int) -> CloseSlot:
    return CloseSlot(SlotIndex(slot))


def is_stuck(daemon: Daemon, worker: int) -> list[Action]:
    """Let the worker's queue wait until it is stuck."""
    assert daemon.tell(look(stalls(worker)), after=0.2) == []
    assert daemon.tell(look(stalls(worker)), after=0.2) == []
    return daemon.tell(look(stalls(worker)), after=0.2)
