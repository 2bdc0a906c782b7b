"""Carries out the first start and the commands, one at a time and in order.

A command is answered once, by `Finished`, when it has succeeded or failed; `shutdown` answers those
that a stop overtakes.  The states stand in machine.OPERATIONS.
"""

from typing import assert_never

from greeterd.supervisor import recycling
from greeterd.supervisor.actions import EndPreflight, Replace, Started, StartPreflight
from greeterd.supervisor.events import Command, Reload, Restart, Scale, Upgrade
from greeterd.supervisor.ids import DISPATCHER
from greeterd.supervisor.machine import OPERATIONS, Cause, OperationState, follow
from greeterd.supervisor.records import Launch, Preflight, Resize, Roll, Slot
from greeterd.supervisor.state import State


def operate(state: State, now: float) -> None:
    """Carry on with the operation; if there is none, begin the next command or a recycling."""
    if state.operation is None and state.commands:
        _begin(state, state.commands.popleft(), now)
    elif state.operation is None:
        recycling.begin(state, now)
    match state.operation:
        case Launch():
            if all(slot.ready for slot in state.staffed_slots):
                state.switch(Cause.DONE)
                state.do(Started())
        case Roll() as roll:
            _roll(state, roll, now)
        case Resize() as resize:
            _resize(state, resize, now)
        case Preflight() as preflight:
            _preflight(state, preflight, now)
        case None:
            pass
        case _:
            assert_never(state.operation)


def _begin(state: State, command: Command, now: float) -> None:
    """Begin the operation that carries the command out, or answer why there is none."""
    match command:
        case Reload():
            targets = {slot.index: command.generation for slot in state.staffed_slots}
            roll = Roll(
                command=command.name, targets=targets, ticket=command.ticket, reload=command
            )
            state.switch(Reload, roll)
        case Restart():
            chosen = [slot for slot in state.staffed_slots if command.slot in (None, slot.index)]
            if not chosen:
                state.finish(command.ticket, command.name, f"there is no worker {command.slot}")
                return
            targets = {slot.index: slot.generation for slot in chosen}
            roll = Roll(command=command.name, targets=targets, ticket=command.ticket)
            state.switch(Restart, roll)
        case Scale():
            live = len(state.live_slots)
            want = live + command.change if command.workers is None else command.workers
            if not 1 <= want <= state.most_slots:
                state.finish(command.ticket, command.name, _out_of_range(state, want))
                return
            resize = Resize(command=command.name, want=want, ticket=command.ticket)
            state.switch(Scale, resize)
        case Upgrade():
            deadline = now + state.policy.start_timeout
            preflight = Preflight(command=command.name, deadline=deadline, ticket=command.ticket)
            state.switch(Upgrade, preflight)
            state.do(StartPreflight())
        case _:
            assert_never(command)


def _out_of_range(state: State, want: int) -> str:
    """Return why there cannot be so many workers."""
    reason = f"{want} workers: not between 1 and {state.most_slots}"
    if state.most_slots == state.policy.most_slots:
        reason += ", as many as the service manager has passed sockets for"
    elif state.most_slots == state.policy.most_by_files:
        reason += ", as many as the limit of open files allows (max_files)"
    return reason


def _roll(state: State, roll: Roll, now: float) -> None:
    """Replace the workers of the targets, one after the other."""
    if roll.failure:
        _end_failed_roll(state, roll, now)
        return
    while roll.targets:
        index = next(iter(roll.targets))
        slot = state.slots.get(index)
        if slot is not None and not slot.retiring and not _replaced(state, roll, slot, now):
            return
        del roll.targets[index]
        roll.replacement = None
    if any(slot.handing_over for slot in state.slots.values()):
        return  # a client that connects after the answer is to find new workers only
    if roll.reload is not None:
        state.generation = roll.reload.generation
        state.policy = roll.reload.policy
        if roll.reload.workers != len(state.live_slots):
            resize = Resize(command=roll.command, want=roll.reload.workers, ticket=roll.ticket)
            state.switch(Cause.RESIZE, resize)
            _resize(state, resize, now)
            return
    state.switch(Cause.DONE)
    state.finish(roll.ticket, roll.command, roll.undoing)


def _replaced(state: State, roll: Roll, slot: Slot, now: float) -> bool:
    """Start the slot's new worker as soon as there is room; return whether it is ready."""
    if roll.replacement is not None:
        return slot.starting is None
    if slot.starting is None and slot.free_place is not None:
        roll.replaced[slot.index] = slot.generation
        roll.replacement = state.spawn(slot, roll.targets[slot.index], now)
    return False


def _end_failed_roll(state: State, roll: Roll, now: float) -> None:
    """Undo a reload that has replaced workers; answer any other with its failure."""
    index = next(iter(roll.targets))
    roll.replaced.pop(index, None)  # this slot has not got a new worker
    if roll.command == recycling.COMMAND:
        recycling.put_off(state, state.slots[index], now)
    if roll.reload is not None and roll.replaced:
        back = Roll(
            command=roll.command, targets=roll.replaced, ticket=roll.ticket, undoing=roll.failure
        )
        state.switch(Cause.UNDO, back)
        state.say("warning", "reload is undone", reason=roll.failure)
        return
    state.switch(Cause.FAILED)
    reason = f"{roll.undoing}; undoing it: {roll.failure}" if roll.undoing else roll.failure
    state.finish(roll.ticket, roll.command, reason)


def _resize(state: State, resize: Resize, now: float) -> None:
    """Add slots, or retire those with the highest numbers, and wait until that is done."""
    if not resize.begun:
        live = state.live_slots
        taken = sum(index != DISPATCHER for index in state.slots)
        if resize.want - len(live) > state.most_slots - taken:
            return  # slots that retire still have the numbers
        resize.begun = True
        resize.added = [state.add_slot(now).index for _ in range(resize.want - len(live))]
        resize.removing = [slot.index for slot in live[resize.want :]]
        for index in resize.removing:
            state.slots[index].move(Cause.RETIRE)
    added = [state.slots[index] for index in resize.added if index in state.slots]
    if resize.failure:
        # All or nothing: those that did start go as well.
        for slot in added:
            slot.move(Cause.RETIRE)
    else:
        starting = any(slot.ready is None and not slot.retiring for slot in added)
        if starting or any(index in state.slots for index in resize.removing):
            return
    state.switch(Cause.FAILED if resize.failure else Cause.DONE)
    state.finish(resize.ticket, resize.command, resize.failure)


def _preflight(state: State, preflight: Preflight, now: float) -> None:
    """Execute the new image once it has shown that it can start and the workers are settled."""
    if preflight.state is OperationState.PREFLIGHT and now >= preflight.deadline:
        timeout = f"{state.policy.start_timeout:g} s"
        preflight.failure = f"the new image was not ready within {timeout}"
        state.do(EndPreflight())
    if preflight.failure:
        state.switch(Cause.NO_IMAGE)
        state.finish(preflight.ticket, preflight.command, preflight.failure)
    elif preflight.state is OperationState.PASSED and not any(
        map(_unsettled, state.slots.values())
    ):
        preflight.state = follow(OPERATIONS, Replace, preflight.state)
        # The new image does not know of the commands that wait here.
        for command in state.commands:
            state.finish(command.ticket, command.name, "the daemon was upgraded first: ask again")
        state.commands.clear()
        state.do(Replace(preflight.ticket))


def _unsettled(slot: Slot) -> bool:
    """Tell whether the slot is in a state that the new image cannot take over."""
    return slot.starting is not None or slot.retiring
