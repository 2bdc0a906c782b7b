"""Shows that this image of the program could take over a daemon: all of a start, but serving."""

import os
import selectors

from greeterd.config.schema import Config
from greeterd.errors import StartError
from greeterd.master.children import Child, Children
from greeterd.master.escrow import Escrow
from greeterd.master.generations import prepare_log_dir
from greeterd.master.log import MasterLog
from greeterd.master.upgrade.reexec import UpgradeState
from greeterd.master.upgrade.serialize import adopt_board
from greeterd.sockets import rights
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.ids import DISPATCHER, Generation, SlotIndex, WorkerId, name_of
from greeterd.system.daemon_log import DaemonLog, open_daemon_log
from greeterd.system.privileges import resolve
from greeterd.system.signals import SignalPipe
from greeterd.worker import main
from greeterd.worker.channel import Channel
from greeterd.worker.context import DispatcherContext, WorkerContext
from greeterd.worker.conversation import Conversation
from greeterd.worker.messages import FailedMessage, Message, ReadyMessage
from greeterd.worker.scoreboard import spare_row


def rehearse(config: Config, estate: UpgradeState) -> None:
    """Start a worker for each slot, which leaves as soon as it could serve.

    Blocks for at most `start_timeout` a worker.

    Raises:
        GreeterdError: one of them could not.

    """
    identity = resolve(config.user, config.group)
    prepare_log_dir(config, identity)
    MasterLog(config, identity).file.close()
    log = open_daemon_log(path=None, format="json", level=config.log_level)
    escrow = Escrow(config, inherited=estate.listeners)
    adopt_board(estate)  # after the exec it would be too late to find that it cannot be
    generation = Generation(estate.last_generation + 1)
    for slot in estate.slots:
        spawn = Spawn(WorkerId(slot.index), SlotIndex(slot.index), 0, generation)
        message = _start(spawn, config, escrow, log)
        if isinstance(message, FailedMessage):
            raise StartError(f"{name_of(slot.index)} did not start: {message.reason}")
        if not isinstance(message, ReadyMessage):
            raise StartError(f"{name_of(slot.index)} ended, or said nothing, before it was ready")


def _start(spawn: Spawn, config: Config, escrow: Escrow, log: DaemonLog) -> Message | None:
    """Return the first thing that the worker says, None if it ends or the time is up first."""
    said: list[Message] = []

    def hear(_child: Child, message: Message, fds: list[int]) -> None:
        rights.close_all(fds)
        said.append(message)

    def live(channel: Channel, pipe: SignalPipe, log_lock: int) -> int:
        seat = WorkerContext(
            slot=spawn.slot,
            generation=spawn.generation,
            config=config,
            addresses=escrow.addresses,
            listeners=escrow.for_slot(spawn.slot),
            handoff=DispatcherContext({}, {}) if spawn.slot == DISPATCHER else None,
            # The slot's own rows belong to the worker that serves meanwhile.
            row=spare_row(),
            log_lock=log_lock,
            identity=resolve(config.user, config.group),
            channel=channel,
            signals=pipe,
            daemon_log=log,
            log=log.logger,
            rehearsal=True,
        )
        return main.main(seat)

    with selectors.DefaultSelector() as selector:
        nursery = Children(selector, hear)
        keep = [log.fd, *(sock.fileno() for sock in escrow.for_slot(spawn.slot) or [])]
        own = 0 if escrow.for_slot(spawn.slot) else len(escrow.addresses)
        conversation = Conversation(listeners=own)
        child = nursery.fork(spawn, live, keep=keep, conversation=conversation, log=log.logger)
        while not said and child.hung_up is None:
            ready = selector.select(config.start_timeout)
            if not ready:
                return None  # the whole process ends now, and with it the channel
            for key, mask in ready:
                key.data(mask)
        os.waitpid(child.pid, 0)
    return said[0] if said else child.failure
