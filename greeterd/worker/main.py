"""Begins a worker's process: its listeners, its limits, its user, its log; then turns its loop.

All that can fail comes before ReadyMessage, and is told by FailedMessage.
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


def main(seat: WorkerContext) -> int:
    """Be a worker; return the process's exit code.  Blocks until it has drained."""
    title_worker(seat.slot, seat.generation)
    opened: list[socket.socket] = []
    try:
        if seat.listeners is None:
            # Before the privileges go: ports below 1024 need them, and the sockets of one reuseport
            # group must have been made by one user.
            opened = [open_member(address) for address in seat.addresses]
        _confine(seat)
        greetings = None if seat.handoff is not None else _open_greeting_log(seat)
        worker = WorkerLoop(seat, greetings, seat.listeners or opened)
    except GreeterdError as error:
        seat.channel.send(FailedMessage(error.exit_code, str(error)))
        return error.exit_code
    except OSError as error:
        failure = failure_of(error)
        seat.channel.send(FailedMessage(failure.exit_code, str(failure)))
        return failure.exit_code
    os.close(seat.log_lock)  # the log has opened it anew
    if greetings is not None and greetings.repaired_bytes:
        seat.log.warning("torn record removed", bytes=greetings.repaired_bytes)
    if refused := seat.channel.send(ReadyMessage(), [sock.fileno() for sock in opened]):
        seat.channel.send(FailedMessage(71, f"cannot pass its listeners: {refused}"))
        return 71
    if not seat.rehearsal and (not opened or _await_go(seat.channel)):
        worker.run()
    return 0


def _open_greeting_log(seat: WorkerContext) -> GreetingLog:
    return open_greeting_log(
        seat.config.log_dir,
        worker=seat.slot,
        generation=seat.generation,
        pid=os.getpid(),
        fsync=seat.config.fsync == "always",
        lock=seat.log_lock,
        repair=not seat.rehearsal,
    )


def _confine(seat: WorkerContext) -> None:
    """Take on the limits of a worker, and let go of all that it has no need of.

    Raises:
        GreeterdError: the kernel does not let us.

    """
    config = seat.config
    limit_files(config.max_files)
    limit_core_dumps(allowed=config.core_dumps)
    cpu = cpu_of(seat.slot, config.pinned_cpus)
    if cpu is not None and seat.handoff is None:
        pin(cpu)
    drop(seat.identity, traceable=config.core_dumps)
    reduce_environment()


def _await_go(channel: Channel) -> bool:
    """Wait until the master lets our listeners listen; False when we are to leave instead."""
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
