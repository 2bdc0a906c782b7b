"""Carries out the commands of `greeterctl`, and answers each when it is done.

What takes time has a ticket: the supervisor names it when it has finished.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from greeterd.control import ControlServer, Request
from greeterd.errors import GreeterdError
from greeterd.master.context import MasterContext
from greeterd.master.mender import Mender
from greeterd.master.names import Names
from greeterd.master.outdated import OutdatedWorkers
from greeterd.master.reload import Reloader
from greeterd.master.upgrade.state import UpgradeState
from greeterd.master.workers import Workers
from greeterd.supervisor.actions import Finished
from greeterd.supervisor.events import MENDING, Restart, Scale, Stop, Upgrade
from greeterd.supervisor.ids import NO_TICKET, SlotIndex, Ticket

SERVING: Final = frozenset({"reload", "restart", "scale", "upgrade"})
"""The commands that fail while there is an address that does not accept."""


class CommandHandler:
    """The requests that wait for their answer, and the reload that a signal has asked for."""

    def __init__(  # noqa: PLR0913 - what a command may concern, each needed
        self,
        context: MasterContext,
        control: ControlServer,
        *,
        workers: Workers,
        mender: Mender,
        names: Names,
        outdated: OutdatedWorkers,
        reloader: Reloader,
        status: Callable[[], object],
    ) -> None:
        self._context = context
        self._control = control
        self._workers = workers
        self._mender = mender
        self._status = status
        self._names = names
        self._outdated = outdated
        self._reloader = reloader
        self._requests: dict[Ticket, Request] = {}
        self._last_ticket = 0
        self._reload_asked = False
        """By a signal; that it has come twice means no more."""

    def adopt(self, predecessor: UpgradeState) -> Ticket:
        """Go on with a predecessor's connections; return the ticket of who awaits the upgrade."""
        for fd in predecessor.idle_fds:
            self._control.adopt(fd)
        if predecessor.client_fd is None:
            return NO_TICKET
        return self._ticket(self._control.adopt_request(predecessor.client_fd, "upgrade"))

    def client_fd(self, ticket: Ticket) -> int | None:
        """Return the descriptor of the client that waits with this ticket, or None."""
        request = self._requests.get(ticket)
        return None if request is None or request.gone else request.fd

    def handle(self, request: Request) -> None:
        """Carry out a request: `on_reload` for `reload`, and so on; each answers, now or later."""
        getattr(self, f"on_{request.command}")(request)

    # The commands of greeterctl -------------------------------------------------------------

    def on_ping(self, request: Request) -> None:
        """Answer whether the daemon serves every address."""
        stops = self._context.supervisor.stopping is not None
        reason = "the daemon is stopping" if stops else self._mender.trouble
        request.answer(not reason, pid=os.getpid(), **_failure(reason))

    def on_status(self, request: Request) -> None:
        """Answer with the status."""
        request.answer(True, status=self._status())

    def on_reload(self, request: Request) -> None:
        """Reload the configuration."""
        self._reload(self._ticket(request))

    def on_restart(self, request: Request) -> None:
        """Replace the worker of a slot, or every worker."""
        slot = request.arguments["slot"]
        ticket = self._ticket(request)
        event = Restart(None if slot is None else SlotIndex(slot), ticket=ticket)
        self._begin("restart", ticket, lambda: self._context.feed(event))

    def on_scale(self, request: Request) -> None:
        """Have this many workers."""
        workers = request.arguments["workers"]
        self._context.feed(Scale(workers=workers, ticket=self._ticket(request)))

    def on_reopen(self, request: Request) -> None:
        """Open every log file anew."""
        self.reopen(request)

    def on_upgrade(self, request: Request) -> None:
        """Replace the program by what is installed now."""
        self.upgrade(self._ticket(request))

    def on_stop(self, request: Request) -> None:
        """End the daemon."""
        quick = request.arguments["now"]
        self._context.feed(Stop(quick=quick, ticket=self._ticket(request)))

    # What signals ask for, too --------------------------------------------------------------

    def reload_soon(self) -> None:
        """Reload when what is under way is done."""
        self._reload_asked = True

    def attend(self) -> None:
        """Begin the reload that was put off, if it can begin now."""
        supervisor = self._context.supervisor
        if self._reload_asked and (supervisor.operation is None or supervisor.stopping is not None):
            self._reload_asked = False
            self._reload(NO_TICKET)

    def reopen(self, request: Request | None = None) -> None:
        """Open every log file anew; answer the request when every worker has done so, too."""

        def done(reasons: str) -> None:
            if not reasons:
                self._context.logger.info("logs reopened")
            if request is not None:
                request.answer(not reasons, **_failure(reasons))

        self._workers.reopen(self._context.log.reopen(), done)

    def upgrade(self, ticket: Ticket = NO_TICKET) -> None:
        """Replace the program by what is installed now."""

        def begin() -> None:
            self._mender.look()
            self._context.feed(Upgrade(ticket=ticket))

        self._context.service_manager.begin()
        self._begin("upgrade", ticket, begin)

    def _reload(self, ticket: Ticket) -> None:
        self._context.service_manager.begin()
        self._begin("reload", ticket, lambda: self._reloader.begin(ticket))

    def _begin(self, command: str, ticket: Ticket, begin: Callable[[], None]) -> None:
        """Begin what starts workers, if they can be reached at every address; else refuse it."""
        try:
            self._names.require_listeners()
            begin()
        except GreeterdError as error:
            supervisor = self._context.supervisor
            workers = len(supervisor.live_slots)
            self.finish(Finished(ticket, command, str(error), supervisor.generation, workers))

    def _ticket(self, request: Request) -> Ticket:
        self._last_ticket += 1
        ticket = Ticket(self._last_ticket)
        self._requests[ticket] = request
        return ticket

    # Their ends -----------------------------------------------------------------------------

    def finish(self, action: Finished) -> None:
        """Log how a command has ended, draw the consequences, and answer whoever waits for it."""
        succeeded = not action.reason
        if action.ticket == MENDING:
            self._outdated.finished(action.reason)
        if action.command in SERVING and succeeded:
            # It may have done all that it was to do, and yet clients find an address shut.
            self._mender.look()
            action = replace(action, reason=self._mender.trouble)
        if action.command == "reload" or (action.command == "upgrade" and succeeded):
            self._reloader.conclude(action.reason)
            self._control.log = self._context.logger
        self._log_end(action)
        if action.command in {"reload", "upgrade"}:
            self._context.service_manager.end(
                f"{action.command} failed: {action.reason}" if action.reason else ""
            )
        if request := self._requests.pop(action.ticket, None):
            request.answer(
                not action.reason,
                generation=action.generation,
                workers=action.workers,
                **_failure(action.reason),
            )

    def _log_end(self, action: Finished) -> None:
        record, command = self._context.logger, action.command
        if action.reason:
            self._context.log.last_error = f"{command}: {action.reason}"
            record.error(f"{command} failed", reason=action.reason)
        else:
            record.info(f"{command} done", generation=action.generation, workers=action.workers)


def _failure(reason: str) -> dict[str, str]:
    """Return the field of an answer that says why a command has failed; none if it has not."""
    return {"error": reason} if reason else {}
