"""Spawner workers in the order in which that was asked for, and gives each its seat."""

import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from greeterd.errors import GreeterdError, reason_of
from greeterd.master.children import Children
from greeterd.master.escrow import Escrow
from greeterd.master.generations import Generations, may_exit
from greeterd.master.log import MasterLog
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.events import Event, Spawned, SpawnFailed
from greeterd.supervisor.ids import DISPATCHER, WorkerId
from greeterd.system.files import Identity
from greeterd.system.signals import SignalPipe
from greeterd.worker import main
from greeterd.worker.channel import Channel
from greeterd.worker.context import DispatcherContext, WorkerContext
from greeterd.worker.conversation import Conversation
from greeterd.worker.messages import FailedMessage
from greeterd.worker.scoreboard import Row, Scoreboard


class Spawner:
    """The orders to fork a worker that are not carried out yet."""

    def __init__(  # noqa: PLR0913 - what a seat is made of
        self,
        nursery: Children,
        *,
        generations: Generations,
        board: Scoreboard,
        escrow: Escrow,
        identity: Identity | None,
        log: MasterLog,
        feed: Callable[[Event], None],
    ) -> None:
        self._nursery = nursery
        self._generations = generations
        self._board = board
        self._escrow = escrow
        self._identity = identity
        self._log = log
        self._feed = feed
        self._orders: deque[Spawn] = deque()

    def __len__(self) -> int:
        return len(self._orders)

    def order(self, spawn: Spawn) -> None:
        """Fork this worker when its turn comes."""
        self._orders.append(spawn)

    def renounce(self, ident: WorkerId) -> bool:
        """Take back the order to fork this worker, if it is not carried out yet."""
        for spawn in self._orders:
            if spawn.worker == ident:
                self._orders.remove(spawn)
                self._feed(SpawnFailed(ident, "not needed any more"))
                return True
        return False

    def carry_out(self, until: float) -> None:
        """Fork the workers that were asked for, one at least, others as time allows."""
        while self._orders:
            self._fork(self._orders.popleft())
            if time.monotonic() > until:
                return

    def _fork(self, spawn: Spawn) -> None:
        log = self._log.file.logger.bind(worker=spawn.slot, generation=spawn.generation)
        keep = [self._log.file.fd]
        routes = self._escrow.routes if spawn.slot == DISPATCHER else {}
        keep += [fd for pair in routes.values() for fd in pair.fds]
        try:
            listeners = self._escrow.for_slot(spawn.slot)
            keep += [sock.fileno() for sock in listeners or []]
            conversation = Conversation(
                listeners=0 if listeners else len(self._escrow.addresses),
                may_exit=may_exit(spawn.slot, self._generations[spawn.generation]),
            )
            with (
                self._board.open_row(spawn.slot, spawn.place) as row,
                self._board.views(routes) as rows,
            ):
                live = partial(self._live, spawn, row, DispatcherContext(routes, rows))
                child = self._nursery.fork(
                    spawn, live, keep=keep, conversation=conversation, log=log
                )
        except OSError as error:
            reason = reason_of(error)
            self._log.logger.warning("cannot fork", worker=spawn.slot, reason=reason)
            self._feed(SpawnFailed(spawn.worker, f"fork: {reason}"))
            return
        self._feed(Spawned(spawn.worker, child.pid))

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
        config = self._generations[spawn.generation]
        try:
            daemon_log = self._log.of(config)
        except GreeterdError as error:
            channel.send(FailedMessage(error.exit_code, str(error)))
            return error.exit_code
        log = daemon_log.logger.bind(worker=spawn.slot, generation=spawn.generation)
        seat = WorkerContext(
            slot=spawn.slot,
            generation=spawn.generation,
            config=config,
            addresses=self._escrow.addresses,
            listeners=self._escrow.for_slot(spawn.slot),
            handoff=handoff if spawn.slot == DISPATCHER else None,
            row=row,
            log_lock=log_lock,
            identity=self._identity,
            channel=channel,
            signals=pipe,
            daemon_log=daemon_log,
            log=log.bind(pid=os.getpid()),
            passed=self._escrow.passed,
            gated=self._escrow.gated,
        )
        return main.main(seat)
