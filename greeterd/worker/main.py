"""Starts a worker's process: its listeners, its limits, its user, its log; then runs its loop.

All that can fail comes before ReadyMessage, and is reported by FailedMessage.
"""

import os
import select
import socket

from greeterd.errors import GreeterdError, failure_of
from greeterd.sockets.listener import open_member
from greeterd.system.cpus import cpu_of
from greeterd.system.environment import reduce_environment
from greeterd.system.privileges import drop
from greeterd.system.proctitle import title_worker
from greeterd.system.rlimits import limit_core_dumps, limit_files, pin
from greeterd.worker.channel import Channel
from greeterd.worker.context import WorkerContext
from greeterd.worker.greeting_log import GreetingLog, open_greeting_log
from greeterd.worker.loop import WorkerLoop
from greeterd.worker.messages import DrainMessage, FailedMessage, GoMessage, ReadyMessage


def main(context: WorkerContext) -> int:
    """Run a worker; return the process's exit code.  Blocks until it has drained."""
    title_worker(context.slot, context.generation)
    opened: list[socket.socket] = []
    try:
        if context.listeners is None:
            # Before the privileges go: ports below 1024 need them, and the sockets of one reuseport
            # group must have been made by one user.
            opened = [open_member(address) for address in context.addresses]
        _confine(context)
        greetings = None if context.handoff is not None else _open_greeting_log(context)
        worker = WorkerLoop(context, greetings, context.listeners or opened)
    except GreeterdError as error:
        context.channel.send(FailedMessage(error.exit_code, str(error)))
        return error.exit_code
    except OSError as error:
        failure = failure_of(error)
        context.channel.send(FailedMessage(failure.exit_code, str(failure)))
        return failure.exit_code
    os.close(context.log_lock)  # the log has its own descriptor of that file
    if greetings is not None and greetings.repaired_bytes:
        context.log.warning("torn record removed", bytes=greetings.repaired_bytes)
    if refused := context.channel.send(ReadyMessage(), [sock.fileno() for sock in opened]):
        context.channel.send(FailedMessage(71, f"cannot pass its listeners: {refused}"))
        return 71
    if not context.rehearsal and (not opened or _await_go(context.channel)):
        worker.run()
    return 0


def _open_greeting_log(context: WorkerContext) -> GreetingLog:
    return open_greeting_log(
        context.config.log_dir,
        worker=context.slot,
        generation=context.generation,
        pid=os.getpid(),
        fsync=context.config.fsync == "always",
        lock=context.log_lock,
        repair=not context.rehearsal,
    )


def _confine(context: WorkerContext) -> None:
    """Set a worker's limits, and drop the user, privileges and environment that it does not need.

    Raises:
        GreeterdError: the kernel refuses.

    """
    config = context.config
    limit_files(config.max_files)
    limit_core_dumps(allowed=config.core_dumps)
    cpu = cpu_of(context.slot, config.pinned_cpus)
    if cpu is not None and context.handoff is None:
        pin(cpu)
    drop(context.identity, traceable=config.core_dumps)
    reduce_environment()


def _await_go(channel: Channel) -> bool:
    """Wait until the master has our listeners listen; False if the worker is to exit instead."""
    while True:
        # Not select.select(): it cannot take descriptors above 1023.
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLIN)
        poll.poll()
        received = channel.receive()
        if received is None:
            continue
        if isinstance(received.message, GoMessage):
            return True
        if received.message is None or isinstance(received.message, DrainMessage):
            return False
