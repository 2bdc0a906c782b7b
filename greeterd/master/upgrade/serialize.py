"""Turns the supervisor's records and the children into an estate, and back."""

import socket
from collections.abc import Callable

from greeterd.errors import StartError
from greeterd.master.children import Child, Children
from greeterd.master.generations import Generations, may_exit
from greeterd.master.upgrade.reexec import (
    InheritedRow,
    InheritedSlot,
    InheritedWorker,
    UpgradeState,
)
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
from greeterd.worker.scoreboard import Claim, Scoreboard


def bequeath(supervisor: Supervisor, nursery: Children) -> list[InheritedSlot]:
    """Return every slot with its workers; loans are forgotten, and made anew where needed."""
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
                    life=worker.life.value,
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
                if (child := nursery.get(worker.id)) is not None
            ],
        )
        for slot in supervisor.slots.values()
    ]


def bequeath_rows(board: Scoreboard) -> list[InheritedRow]:
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


def adopt_board(estate: UpgradeState) -> Scoreboard:
    """Return the scoreboard of the workers in the estate.

    Raises:
        StartError: its memory is none of ours, or there can be none.

    """
    try:
        return _adopt_board(estate)
    except (OSError, ValueError, IndexError) as error:
        raise StartError(f"the predecessor's scoreboard: {error}") from error


def _adopt_board(estate: UpgradeState) -> Scoreboard:
    if estate.rows is None:
        living = [(slot.index, worker.place) for slot in estate.slots for worker in slot.workers]
        return Scoreboard.copy(MAX_SLOTS, estate.board_fd, living)
    board = Scoreboard(MAX_SLOTS, estate.board_fd)
    for row in estate.rows:
        before = row.greetings_before
        claim = Claim(row.fd, row.believed, offset=row.offset, own=row.own, greetings_before=before)
        board.adopt(row.slot, row.place, claim)
    return board


def adopt_supervisor(
    estate: UpgradeState, policy: Policy, jitter: Callable[[], float]
) -> Supervisor:
    """Return the supervisor of the slots in the estate."""
    return Supervisor.adopt(
        policy=policy,
        jitter=jitter,
        generation=Generation(estate.generation),
        slots=[_slot(each) for each in estate.slots],
        last_worker=WorkerId(estate.last_worker),
        highest_slot=estate.highest_slot,
    )


def adopt_children(estate: UpgradeState, nursery: Children, generations: Generations) -> None:
    """Take over the processes in the estate."""
    slots = [slot.index for slot in estate.slots]
    for slot in estate.slots:
        for each in slot.workers:
            generation = Generation(each.generation)
            # With which settings version 0.1 has started it is not known here.
            exits = (
                slot.index != DISPATCHER
                if each.credit is None
                else may_exit(slot.index, generations[generation])
            )
            conversation = Conversation.go_on(each.credit, may_exit=exits, slots=slots)
            # Version 0.1 knew neither the lock nor that answer.
            conversation.answers_routes = each.log_lock_fd is not None
            nursery.enter(
                Child(
                    pid=Pid(each.pid),
                    spawn=Spawn(
                        WorkerId(each.worker), SlotIndex(slot.index), each.place, generation
                    ),
                    channel=Channel(socket.socket(fileno=each.channel_fd)),
                    conversation=conversation,
                    stack_fd=each.stack_fd,
                    log_lock_fd=each.log_lock_fd,
                )
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
        life=WorkerState(each.life),
        pid=Pid(each.pid),
        deadline=each.deadline,
        leaving=DrainMode(each.leaving) if each.leaving else None,
        accepts=each.accepts,
    )
