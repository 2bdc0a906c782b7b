"""Turns the supervisor's records, the children and the scoreboard into upgrade state, and back."""

import socket
from collections.abc import Callable

from greeterd.errors import StartError
from greeterd.master.children import Child
from greeterd.master.generations import Generations, may_exit
from greeterd.master.upgrade.state import (
    InheritedRow,
    InheritedSlot,
    InheritedWorker,
    UpgradeState,
)
from greeterd.master.workers import Workers
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.ids import (
    DISPATCHER,
    DrainMode,
    Generation,
    Pid,
    SlotIndex,
    WorkerId,
    WorkerState,
)
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.records import Slot, Worker
from greeterd.supervisor.supervisor import MAX_SLOTS, Supervisor
from greeterd.worker.channel import Channel
from greeterd.worker.conversation import Conversation
from greeterd.worker.row import Claim
from greeterd.worker.scoreboard import Scoreboard


def dump_slots(supervisor: Supervisor, workers: Workers) -> list[InheritedSlot]:
    """Return every slot with its workers.

    Loans are not among it: the new image lends anew where that is needed.
    """
    return [
        InheritedSlot(
            index=slot.index,
            generation=slot.generation,
            served=slot.served,
            failures=slot.failures,
            restarts=slot.restarts,
            deaths=slot.deaths,
            retry_at=slot.retry_at,
            served_since=slot.served_since,
            unserved_since=slot.unserved_since,
            workers=[
                InheritedWorker(
                    worker=worker.id,
                    pid=child.pid,
                    place=worker.place,
                    generation=worker.generation,
                    life=worker.state.value,
                    since=worker.since,
                    deadline=worker.deadline,
                    leaving=worker.leaving.value if worker.leaving else None,
                    accepts=worker.accepts,
                    channel_fd=child.channel.fileno(),
                    stack_fd=child.stack_fd,
                    log_lock_fd=child.log_lock_fd,
                    credit=child.conversation.credit,
                )
                for worker in slot.workers
                if (child := workers.get(worker.id)) is not None
            ],
        )
        for slot in supervisor.slots.values()
    ]


def dump_rows(board: Scoreboard) -> list[InheritedRow]:
    """Return the row of every worker that lives."""
    return [
        InheritedRow(
            slot=slot,
            place=place,
            fd=claim.fd,
            offset=claim.offset,
            own=claim.own,
            believed=claim.believed,
            greetings_before=claim.greetings_before,
        )
        for (slot, place), claim in board.hand_on().items()
    ]


def adopt_scoreboard(state: UpgradeState) -> Scoreboard:
    """Return the scoreboard of the workers in the state.

    Raises:
        StartError: its memory cannot be mapped, or is no scoreboard.

    """
    try:
        return _adopt_scoreboard(state)
    except (OSError, ValueError, IndexError) as error:
        raise StartError(f"the predecessor's scoreboard: {error}") from error


def _adopt_scoreboard(state: UpgradeState) -> Scoreboard:
    if state.rows is None:
        living = [(slot.index, worker.place) for slot in state.slots for worker in slot.workers]
        return Scoreboard.copy(MAX_SLOTS, state.board_fd, living)
    board = Scoreboard(MAX_SLOTS, state.board_fd)
    for row in state.rows:
        claim = Claim(
            row.fd,
            row.believed,
            offset=row.offset,
            own=row.own,
            greetings_before=row.greetings_before,
        )
        board.adopt(row.slot, row.place, claim)
    return board


def adopt_supervisor(
    state: UpgradeState, policy: Policy, jitter: Callable[[], float]
) -> Supervisor:
    """Return the supervisor of the slots in the state."""
    return Supervisor.adopt(
        policy=policy,
        jitter=jitter,
        generation=Generation(state.generation),
        slots=[_slot(each) for each in state.slots],
        last_worker=WorkerId(state.last_worker),
        highest_slot=state.highest_slot,
    )


def adopt_children(state: UpgradeState, generations: Generations) -> list[Child]:
    """Return the processes in the state."""
    slots = [slot.index for slot in state.slots]
    return [
        _child(slot, worker, slots, generations) for slot in state.slots for worker in slot.workers
    ]


def _child(
    slot: InheritedSlot, each: InheritedWorker, slots: list[int], generations: Generations
) -> Child:
    generation = Generation(each.generation)
    # An older image says neither what its workers may send nor with which settings it forked them.
    exits = (
        slot.index != DISPATCHER
        if each.credit is None
        else may_exit(slot.index, generations[generation])
    )
    conversation = Conversation.go_on(each.credit, may_exit=exits, slots=slots)
    # The version that brought the log lock brought the answer to routes, too.
    conversation.answers_routes = each.log_lock_fd is not None
    return Child(
        pid=Pid(each.pid),
        spawn=Spawn(WorkerId(each.worker), SlotIndex(slot.index), each.place, generation),
        channel=Channel(socket.socket(fileno=each.channel_fd)),
        conversation=conversation,
        stack_fd=each.stack_fd,
        log_lock_fd=each.log_lock_fd,
    )


def _slot(each: InheritedSlot) -> Slot:
    return Slot(
        index=SlotIndex(each.index),
        generation=Generation(each.generation),
        workers=[_worker(each, worker) for worker in each.workers],
        served=each.served,
        failures=each.failures,
        restarts=each.restarts,
        deaths=each.deaths,
        retry_at=each.retry_at,
        served_since=each.served_since,
        unserved_since=each.unserved_since,
    )


def _worker(slot: InheritedSlot, each: InheritedWorker) -> Worker:
    return Worker(
        id=WorkerId(each.worker),
        slot=SlotIndex(slot.index),
        place=each.place,
        generation=Generation(each.generation),
        since=each.since,
        state=WorkerState(each.life),
        pid=Pid(each.pid),
        deadline=each.deadline,
        leaving=DrainMode(each.leaving) if each.leaving else None,
        accepts=each.accepts,
    )
