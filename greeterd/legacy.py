"""Turns the supervisor's records and the children into an estate, and back."""

import socket
from collections.abc import Callable

from greeterd.channel import Channel
from greeterd.core.conversation import Conversation
from greeterd.core.events import Generation, How, Life, Pid, Policy, SlotIndex, Spawn, WorkerId
from greeterd.core.supervisor import Supervisor
from greeterd.core.workers import Slot, Worker
from greeterd.generations import Generations, may_exit
from greeterd.nursery import Child, Nursery
from greeterd.succession import Estate, InheritedSlot, InheritedWorker


def bequeath(supervisor: Supervisor, nursery: Nursery) -> list[InheritedSlot]:
    """Return every slot with its workers; loans are forgotten, and made anew where needed."""
    return [
        InheritedSlot(
            index=slot.index,
            generation=slot.generation,
            served=slot.served,
            failures=slot.failures,
            restarts=slot.restarts,
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
                    credit=child.conversation.credit,
                )
                for worker in slot.workers
                if (child := nursery.get(worker.id)) is not None
            ],
        )
        for slot in supervisor.slots.values()
    ]


def adopt_supervisor(estate: Estate, policy: Policy, jitter: Callable[[], float]) -> Supervisor:
    """Return the supervisor of the slots in the estate."""
    return Supervisor.adopt(
        policy=policy,
        jitter=jitter,
        generation=Generation(estate.generation),
        slots=[_slot(each) for each in estate.slots],
        last_worker=WorkerId(estate.last_worker),
        highest_slot=estate.highest_slot,
    )


def adopt_children(estate: Estate, nursery: Nursery, generations: Generations) -> None:
    """Take over the processes in the estate."""
    slots = [slot.index for slot in estate.slots]
    for slot in estate.slots:
        for each in slot.workers:
            generation = Generation(each.generation)
            conversation = Conversation.go_on(
                each.credit, may_exit=may_exit(slot.index, generations[generation]), slots=slots
            )
            nursery.enter(
                Child(
                    pid=Pid(each.pid),
                    spawn=Spawn(
                        WorkerId(each.worker), SlotIndex(slot.index), each.place, generation
                    ),
                    channel=Channel(socket.socket(fileno=each.channel_fd)),
                    conversation=conversation,
                    stack_fd=each.stack_fd,
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
        life=Life(each.life),
        pid=Pid(each.pid),
        deadline=each.deadline,
        leaving=How(each.leaving) if each.leaving else None,
        accepts=each.accepts,
    )
