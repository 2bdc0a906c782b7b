"""Carries out what the master asks of a worker, and what TERM and the master's death mean.

A worker decides nothing about its own life but this: on TERM, and when the master has gone
(end-of-file on the channel), it drains.
"""

import select
import signal
import socket
from time import monotonic
from typing import Final

from greeterd.sockets import rights
from greeterd.sockets.fd_passing import HandoffPair
from greeterd.sockets.steering import gate_syn
from greeterd.supervisor.ids import DrainMode
from greeterd.worker.acceptor import Acceptor
from greeterd.worker.channel import Received
from greeterd.worker.context import WorkerContext
from greeterd.worker.dispatcher import Dispatcher
from greeterd.worker.drain import Drainer
from greeterd.worker.logs import WorkerLogs
from greeterd.worker.messages import (
    ClosedMessage,
    DrainMessage,
    LeavingMessage,
    LendMessage,
    RefusedMessage,
    ReopenedMessage,
    ReopenMessage,
    RoutedMessage,
    RouteMessage,
    TakeBackMessage,
)
from greeterd.worker.row import map_view


class MessageHandler:
    """Handles the two descriptors by which a worker is controlled: its channel and its signals."""

    def __init__(  # noqa: PLR0913 - the worker's parts, each needed
        self,
        context: WorkerContext,
        *,
        epoll: select.epoll,
        acceptor: Acceptor,
        drainer: Drainer,
        logs: WorkerLogs,
        dispatcher: Dispatcher | None,
    ) -> None:
        self._context: Final = context
        self._epoll: Final = epoll
        self._acceptor: Final = acceptor
        self._drainer: Final = drainer
        self._logs: Final = logs
        self._dispatcher: Final = dispatcher
        self._orphaned_since: float | None = None
        """When the master was found to be gone; None while it is there."""

    def on_readable(self, fd: int) -> None:
        """Handle what has come by this descriptor.

        It may be neither of ours: a connection that epoll reported in the same turn in which an
        earlier event has closed it.
        """
        if fd == self._context.signals.fileno():
            if signal.SIGTERM in self._context.signals.read():
                self._on_term()
        elif fd == self._context.channel.fileno() and self._orphaned_since is None:
            while (received := self._context.channel.receive()) is not None:
                if received.message is None:
                    self._on_master_gone()
                    return
                self._on_message(received)

    def hurry_orphan(self, now: float) -> None:
        """Drop what is unfinished when a master would have ended this worker."""
        if self._orphaned_since is None or self._drainer.mode is DrainMode.QUICK:
            return
        if now - self._orphaned_since >= self._context.config.graceful_timeout:
            self._drainer.begin(DrainMode.QUICK)

    # ----------------------------------------------------------------------------------------

    def _on_term(self) -> None:
        if self._drainer.mode is not None:
            return
        self._context.send(LeavingMessage())
        # Not HAND_OVER: TERM may have been sent to the whole process group, and then no worker is
        # left to take what is queued.  What the dispatcher hands over from now on is the next
        # worker's, so its end is not waited for.
        self._drainer.begin(DrainMode.SWEEP, to_the_end=False)

    def _on_master_gone(self) -> None:
        """Serve what is there and leave."""
        # At its end the channel is readable for ever.
        self._epoll.unregister(self._context.channel.fileno())
        self._orphaned_since = monotonic()
        if self._drainer.mode is not None:
            return
        self._context.log.error("the master is gone, draining")
        for source in self._acceptor.sources.values():
            # The socket of a socket unit is never gated: it survives us, and serves the successor.
            if source.sock.family != socket.AF_UNIX and not self._context.passed:
                gate_syn(source.sock)
        self._drainer.begin(DrainMode.SWEEP)

    def _on_message(self, received: Received) -> None:
        match received.message:
            case DrainMessage(how, True):
                # The second message of a sweep; by now another mode may have replaced that.
                if self._drainer.mode is DrainMode(how):
                    self._drainer.settle()
            case DrainMessage(how, settled):
                self._drainer.begin(DrainMode(how), settled=settled)
                if DrainMode(how) is DrainMode.HAND_OVER:
                    self._context.send(ClosedMessage())
            case ReopenMessage():
                self._context.send(ReopenedMessage(self._logs.reopen()))
            case LendMessage(slot):
                self._on_lend(slot, received)
            case TakeBackMessage(slot):
                self._drainer.give_back(slot)
            case RouteMessage(slot) if self._dispatcher is not None:
                reason = _add_route(self._dispatcher, slot, received)
                self._context.send(RoutedMessage(slot, reason))
            case other:
                rights.close_all(received.fds)
                self._context.log.error("unexpected message", message=type(other).__name__)

    def _on_lend(self, slot: int, received: Received) -> None:
        """Accept from all listeners that are lent, or from none of them."""
        try:
            for fd in received.take():
                self._acceptor.add(socket.socket(fileno=fd), slot)
        except OSError as error:
            added = self._acceptor.lent_from(slot)
            self._acceptor.close(added)
            rights.close_all(set(received.fds).difference(added))
            self._context.send(RefusedMessage(slot, error.strerror or str(error)))


def _add_route(dispatcher: Dispatcher, slot: int, received: Received) -> str:
    """Hand connections on to this slot, too; return why that failed, or nothing."""
    try:
        fds = received.take()
        entry, exit_, *row = fds
        view = map_view(row[0]) if row else None
        dispatcher.add_route(slot, HandoffPair.adopt(entry, exit_), view)
    except OSError as error:
        return error.strerror or str(error)
    return ""
