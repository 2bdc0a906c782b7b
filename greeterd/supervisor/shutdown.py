"""Ends workers that do not end by themselves, and the daemon when it is to stop."""

from typing import Final

from greeterd.supervisor import recycling
from greeterd.supervisor.actions import CloseSlot, EndPreflight, GateAll, Kill
from greeterd.supervisor.events import Stop
from greeterd.supervisor.ids import DISPATCHER, DrainMode, Signal, WorkerState
from greeterd.supervisor.records import Preflight, Resize, Roll, Worker
from greeterd.supervisor.state import State

ABORT_GRACE: Final = 2.0
"""Seconds that an aborted worker gets to write its stack before it is killed."""
STOPPING: Final = "the daemon is stopping"


def end_overdue(state: State, now: float) -> None:
    """Abort what hangs, and kill what neither an abort nor a drain has ended."""
    for worker in state.workers.values():
        if worker.deadline is None or now < worker.deadline or worker.killed:
            continue
        if worker.aborted or worker.life is WorkerState.DRAINING:
            worker.doomed = worker.doomed or "not drained in time"
            worker.killed = True
            state.do(Kill(worker.id, Signal.KILL, worker.doomed))
        else:
            worker.doomed = worker.doomed or f"not ready within {state.policy.start_timeout:g} s"
            worker.aborted = True
            worker.deadline = now + ABORT_GRACE
            state.do(Kill(worker.id, Signal.ABORT, worker.doomed))


def _share(worker: Worker, how: DrainMode) -> float:
    """Return how much of the time to leave is a worker's: others wait for the dispatcher's end."""
    return 0.5 if worker.slot == DISPATCHER and how is DrainMode.SWEEP else 1.0


def refuse(state: State, now: float) -> None:
    """Refuse what was asked: the daemon is to stop, now or after a delay that the log tells."""
    if not state.announced and not state.leaving:
        state.announced = True
        state.say("info", "stopping", delay=round(state.leave_at - now, 3))
    operation, state.operation = state.operation, None
    if isinstance(operation, Preflight):
        state.do(EndPreflight())
    if isinstance(operation, Roll | Resize | Preflight) and operation.command != recycling.COMMAND:
        state.finish(operation.ticket, operation.command, STOPPING)
    for command in state.commands:
        state.finish(command.ticket, command.name, STOPPING)
    state.commands.clear()


def leave(state: State, stop: Stop, now: float) -> None:
    """Drain everyone; when nobody is left, end the daemon.

    Who is handed connections has more to come until the dispatcher's slot is closed.
    """
    if not state.gated and not stop.quick:
        state.gated = True
        state.do(GateAll())
    how = DrainMode.QUICK if stop.quick else DrainMode.SWEEP
    for worker in state.workers.values():
        # None: not told yet, or leaving of its own accord, without knowing that a gate is shut.
        if worker.leaving is None or (stop.quick and worker.leaving is not how):
            state.drain(worker, how, now)
        worker.end_by(now + _share(worker, how) * state.timeout(how))
    dispatcher = state.slots.get(DISPATCHER)
    if dispatcher is not None and not dispatcher.workers:
        del state.slots[DISPATCHER]
        state.do(CloseSlot(DISPATCHER))
    if not state.workers:
        state.ended = True
        for ticket in state.stop_tickets:
            state.finish(ticket, "stop", "")
        state.do(state.exit)
