"""Ends the daemon: answers what was asked for, drains the workers, closes the listeners."""

from typing import Final

from greeterd.supervisor import recycling
from greeterd.supervisor.actions import CloseSlot, EndPreflight, Exit, GateAll
from greeterd.supervisor.ids import DISPATCHER, DrainMode
from greeterd.supervisor.machine import STOPS, Cause, follow
from greeterd.supervisor.records import Preflight, Resize, Roll, Worker
from greeterd.supervisor.state import State

STOPPING: Final = "the daemon is stopping"


def _share(worker: Worker, how: DrainMode) -> float:
    """Return the worker's share of the time to drain: the dispatcher gets the first half."""
    return 0.5 if worker.slot == DISPATCHER and how is DrainMode.SWEEP else 1.0


def refuse(state: State) -> None:
    """Answer every command that is under way or waits: the daemon is to stop."""
    operation = state.operation
    state.switch(Cause.SHUT_DOWN)
    if isinstance(operation, Preflight):
        state.do(EndPreflight())
    if isinstance(operation, Roll | Resize | Preflight) and operation.command != recycling.COMMAND:
        state.finish(operation.ticket, operation.command, STOPPING)
    for command in state.commands:
        state.finish(command.ticket, command.name, STOPPING)
    state.commands.clear()


def leave(state: State, now: float) -> None:
    """Drain all workers; when none is left, end the daemon.

    The dispatcher goes first.  Its slot is closed when it has ended: from then on the others can
    expect no more connections.
    """
    if not state.gated and not state.quick:
        state.gated = True
        state.do(GateAll())
    how = DrainMode.QUICK if state.quick else DrainMode.SWEEP
    for worker in state.workers.values():
        # None: it serves, or leaves of its own accord and does not know that a gate is shut.
        if worker.leaving is None or (state.quick and worker.leaving is not how):
            state.drain(worker, how, now)
        worker.end_by(now + _share(worker, how) * state.timeout(how))
    dispatcher = state.slots.get(DISPATCHER)
    if dispatcher is not None and not dispatcher.workers:
        dispatcher.move(CloseSlot)
        del state.slots[DISPATCHER]
        state.do(CloseSlot(DISPATCHER))
    if not state.workers:
        state.daemon = follow(STOPS, Exit, state.daemon)
        for ticket in state.stop_tickets:
            state.finish(ticket, "stop", "")
        state.do(state.exit)
