"""Forks workers in the order in which the supervisor asks for them, and gives each its context."""

import os
import time
from collections import deque
from functools import partial

from greeterd.errors import GreeterdError, reason_of
from greeterd.master.children import Children
from greeterd.master.context import MasterContext
from greeterd.master.generations import may_exit
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
    """The workers that are still to be forked."""

    def __init__(self, context: MasterContext, children: Children) -> None:
        self._context = context
        self._children = children
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
            self._fork(self._pending.popleft())
            if time.monotonic() > until:
                return

    def _fork(self, spawn: Spawn) -> None:
        log = self._context.log.file.logger.bind(worker=spawn.slot, generation=spawn.generation)
        keep = [self._context.log.file.fd]
        routes = self._context.escrow.pairs.routes if spawn.slot == DISPATCHER else {}
        keep += [fd for pair in routes.values() for fd in pair.fds]
        try:
            listeners = self._context.escrow.for_slot(spawn.slot)
            keep += [sock.fileno() for sock in listeners or []]
            conversation = Conversation(
                listeners=0 if listeners else len(self._context.escrow.addresses),
                may_exit=may_exit(spawn.slot, self._context.generations[spawn.generation]),
            )
            with (
                self._context.scoreboard.open_row(spawn.slot, spawn.place) as row,
                self._context.scoreboard.views(routes) as rows,
            ):
                live = partial(self._live, spawn, row, DispatcherContext(routes, rows))
                child = self._children.fork(
                    spawn, live, keep=keep, conversation=conversation, log=log
                )
        except OSError as error:
            reason = reason_of(error)
            self._context.logger.warning("cannot fork", worker=spawn.slot, reason=reason)
            self._context.feed(SpawnFailed(spawn.worker, f"fork: {reason}"))
            return
        self._context.feed(Spawned(spawn.worker, child.pid))

    def _live(  # noqa: PLR0913, PLR0917 - what the parent made, and what the child has of its own
        self,
        spawn: Spawn,
        row: Row,
        handoff: DispatcherContext,
        channel: Channel,
        pipe: SignalPipe,
        log_lock: int,
    ) -> int:
        """In the child: be the worker."""
        config = self._context.generations[spawn.generation]
        try:
            daemon_log = self._context.log.of(config)
        except GreeterdError as error:
            channel.send(FailedMessage(error.exit_code, str(error)))
            return error.exit_code
        log = daemon_log.logger.bind(worker=spawn.slot, generation=spawn.generation)
        context = WorkerContext(
            slot=spawn.slot,
            generation=spawn.generation,
            config=config,
            addresses=self._context.escrow.addresses,
            listeners=self._context.escrow.for_slot(spawn.slot),
            handoff=handoff if spawn.slot == DISPATCHER else None,
            row=row,
            log_lock=log_lock,
            identity=self._context.identity,
            channel=channel,
            signals=pipe,
            daemon_log=daemon_log,
            log=log.bind(pid=os.getpid()),
            passed=self._context.escrow.passed,
            gated=self._context.escrow.gated,
        )
        return main.main(context)
