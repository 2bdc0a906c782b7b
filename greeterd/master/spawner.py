"""Forks the workers that the supervisor asks for, in its order, and gives each its context."""

import os
import time
from collections import deque

from greeterd.errors import GreeterdError, reason_of
from greeterd.master.children import Child, fork
from greeterd.master.context import MasterContext
from greeterd.master.generations import may_exit
from greeterd.master.workers import Workers
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.events import Spawned, SpawnFailed
from greeterd.supervisor.ids import DISPATCHER, WorkerId
from greeterd.system.signals import SignalPipe
from greeterd.worker import main
from greeterd.worker.channel import Channel
from greeterd.worker.context import DispatcherContext, WorkerContext
from greeterd.worker.conversation import Conversation
from greeterd.worker.counters import Row
from greeterd.worker.messages import FailedMessage


class Spawner:
    """The workers that are still to be forked; once it is forked, `workers` has the process."""

    def __init__(self, context: MasterContext, workers: Workers) -> None:
        self._context = context
        self._workers = workers
        self._pending: deque[Spawn] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def ask(self, spawn: Spawn) -> None:
        """Fork this worker when its turn comes."""
        self._pending.append(spawn)

    def renounce(self, ident: WorkerId) -> bool:
        """Do not fork this worker, if it is not forked yet; return whether that was so."""
        for spawn in self._pending:
            if spawn.worker == ident:
                self._pending.remove(spawn)
                self._context.feed(SpawnFailed(ident, "not needed any more"))
                return True
        return False

    def fork_pending(self, until: float) -> None:
        """Fork the first pending worker, then others until the instant `until`."""
        while self._pending:
            self._spawn(self._pending.popleft())
            if time.monotonic() > until:
                return

    def _spawn(self, spawn: Spawn) -> None:
        try:
            child = self._fork(spawn)
        except OSError as error:
            reason = reason_of(error)
            self._context.logger.warning("cannot fork", worker=spawn.slot, reason=reason)
            self._context.feed(SpawnFailed(spawn.worker, f"fork: {reason}"))
            return
        try:
            self._workers.enter(child)
        except OSError as error:  # its end is handled as that of any other
            child.end(71, f"cannot watch its channel: {reason_of(error)}")
        self._context.feed(Spawned(spawn.worker, child.pid))

    def _fork(self, spawn: Spawn) -> Child:
        context = self._context
        log = context.log.file
        listeners = context.escrow.for_slot(spawn.slot) or []
        routes = context.escrow.pairs.routes if spawn.slot == DISPATCHER else {}
        keep = [log.fd, *(sock.fileno() for sock in listeners)]
        keep += [fd for pair in routes.values() for fd in pair.fds]
        with (
            context.scoreboard.open_row(spawn.slot, spawn.place) as row,
            context.scoreboard.views(routes) as rows,
        ):

            def run(channel: Channel, pipe: SignalPipe, log_lock: int) -> int:
                handoff = DispatcherContext(routes, rows) if spawn.slot == DISPATCHER else None
                return self._run_worker(spawn, row, handoff, channel, pipe, log_lock)

            return fork(
                spawn,
                run,
                keep=keep,
                conversation=Conversation(
                    listeners=0 if listeners else len(context.escrow.addresses),
                    may_exit=may_exit(spawn.slot, context.generations[spawn.generation]),
                ),
                log=log.logger.bind(worker=spawn.slot, generation=spawn.generation),
                log_lock_fd=self._workers.log_lock_of(spawn.slot),
            )

    def _run_worker(  # noqa: PLR0913, PLR0917 - what the master made, and what the child has of its own
        self,
        spawn: Spawn,
        row: Row,
        handoff: DispatcherContext | None,
        channel: Channel,
        pipe: SignalPipe,
        log_lock: int,
    ) -> int:
        """In the child: be the worker; return its exit code."""
        config = self._context.generations[spawn.generation]
        try:
            daemon_log = self._context.log.of(config)
        except GreeterdError as error:
            channel.send(FailedMessage(error.exit_code, str(error)))
            return error.exit_code
        log = daemon_log.logger.bind(worker=spawn.slot, generation=spawn.generation)
        escrow = self._context.escrow
        context = WorkerContext(
            slot=spawn.slot,
            generation=spawn.generation,
            config=config,
            addresses=escrow.addresses,
            listeners=escrow.for_slot(spawn.slot),
            handoff=handoff,
            row=row,
            log_lock=log_lock,
            identity=self._context.identity,
            channel=channel,
            signals=pipe,
            daemon_log=daemon_log,
            log=log.bind(pid=os.getpid()),
            passed=escrow.passed,
            gated=escrow.gated,
        )
        return main.main(context)
