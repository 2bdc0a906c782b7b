"""Carries out what an operator asks for, and answers when it is done.

What takes time has a ticket: the supervisor names it when it has finished.  A reload reads the
configuration here; a bad one is refused, and the old one goes on.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from greeterd.config.schema import Config, fixed_differences
from greeterd.control import ControlServer, Request
from greeterd.errors import GreeterdError
from greeterd.master.context import MasterContext
from greeterd.master.generations import policy_of, set_limits
from greeterd.master.mender import Mender
from greeterd.master.names import Names
from greeterd.master.upgrade.state import UpgradeState
from greeterd.master.workers import Workers
from greeterd.supervisor.actions import Finished
from greeterd.supervisor.events import MENDING, Reload, Restart, Scale, Stop, Upgrade
from greeterd.supervisor.ids import NO_TICKET, SlotIndex, Ticket

SERVING: Final = frozenset({"reload", "restart", "scale", "upgrade"})
"""The commands that have not done what was asked while an address accepts nobody."""


class CommandHandler:
    """The control socket, and the requests that wait for their answer."""

    def __init__(  # noqa: PLR0913 - what a command may concern, each needed
        self,
        context: MasterContext,
        control: ControlServer,
        *,
        workers: Workers,
        mender: Mender,
        names: Names,
        status: Callable[[], object],
    ) -> None:
        self._context = context
        self._control = control
        self._workers = workers
        self._mender = mender
        self._status = status
        self._names = names
        self._requests: dict[Ticket, Request] = {}
        self._last_ticket = 0
        self._reload_asked = False
        """By a signal, which says no more when it comes again."""

    def adopt(self, predecessor: UpgradeState) -> Ticket:
        """Go on with a predecessor's connections; return the ticket of who awaits the upgrade."""
        for fd in predecessor.idle_fds:
            self._control.adopt(fd)
        if predecessor.client_fd is None:
            return NO_TICKET
        return self._ticket(self._control.adopt_request(predecessor.client_fd, "upgrade"))

    def client_fd(self, ticket: Ticket) -> int | None:
        """Return the connection of who waits with this ticket; None for nobody."""
        request = self._requests.get(ticket)
        return None if request is None or request.gone else request.fd

    def handle(self, request: Request) -> None:
        """Carry a request out; what takes time is answered later."""
        match request.command:
            case "ping":
                stops = self._context.supervisor.stopping is not None
                reason = "the daemon is stopping" if stops else self._mender.trouble
                failure = {"error": reason} if reason else {}
                request.answer(not reason, pid=os.getpid(), **failure)
            case "status":
                request.answer(True, status=self._status())
            case "reload":
                self._reload(self._ticket(request))
            case "scale":
                workers = request.arguments["workers"]
                self._context.feed(Scale(workers=workers, ticket=self._ticket(request)))
            case "restart":
                self._restart(request.arguments.get("slot"), self._ticket(request))
            case "reopen":
                self.reopen(request)
            case "upgrade":
                self.upgrade(self._ticket(request))
            case "stop":
                quick = request.arguments.get("now", False)
                self._context.feed(Stop(quick=quick, ticket=self._ticket(request)))
            case _:
                request.answer(False, error=f"{request.command} is not available")

    def _ticket(self, request: Request) -> Ticket:
        self._last_ticket += 1
        ticket = Ticket(self._last_ticket)
        self._requests[ticket] = request
        return ticket

    # Commands -------------------------------------------------------------------------------

    def reload_soon(self) -> None:
        """Reload when what is under way is done."""
        self._reload_asked = True

    def attend(self) -> None:
        """Do what was put off until now, if it can be done."""
        if self._reload_asked and (
            self._context.supervisor.operation is None
            or self._context.supervisor.stopping is not None
        ):
            self._reload_asked = False
            self._reload(NO_TICKET)

    def _reload(self, ticket: Ticket) -> None:
        self._context.service_manager.begin()
        try:
            self._names.require_listeners()
            config = self._context.generations.read()
            self._context.log.open(config).close()
        except GreeterdError as error:
            self._refuse("reload", ticket, str(error))
            return
        if fixed := fixed_differences(self._context.config, config):
            self._refuse("reload", ticket, f"only a restart changes {', '.join(fixed)}")
            return
        self.begin_reload(config, ticket, "reload")

    def _refuse(self, command: str, ticket: Ticket, reason: str) -> None:
        supervisor = self._context.supervisor
        workers = len(supervisor.live_slots)
        self.finish(Finished(ticket, command, reason, supervisor.generation, workers))

    def _restart(self, slot: int | None, ticket: Ticket) -> None:
        try:
            self._names.require_listeners()
        except GreeterdError as error:
            self._refuse("restart", ticket, str(error))
            return
        self._context.feed(Restart(None if slot is None else SlotIndex(slot), ticket=ticket))

    def begin_reload(self, config: Config, ticket: Ticket, name: str) -> None:
        """Have every worker replaced by one of this configuration; `name` is the command's."""
        self._mender.look(follow=False)
        generation = self._context.generations.begin(config)
        policy = policy_of(config, self._context.escrow.groups.most_slots)
        self._context.feed(Reload(generation, config.worker_count, policy, ticket, name))

    def upgrade(self, ticket: Ticket = NO_TICKET) -> None:
        """Replace the program by what is installed now."""
        self._context.service_manager.begin()
        try:
            self._names.require_listeners()
        except GreeterdError as error:
            self._refuse("upgrade", ticket, str(error))
            return
        self._mender.look(follow=False)
        self._context.feed(Upgrade(ticket=ticket))

    def reopen(self, request: Request | None = None) -> None:
        """Open every log file anew; it is answered when every worker has done so, too."""

        def done(reasons: str) -> None:
            if not reasons:
                self._context.logger.info("logs reopened")
            if request is not None:
                request.answer(not reasons, **({"error": reasons} if reasons else {}))

        self._workers.reopen(self._context.log.reopen(), done)

    # Their ends -----------------------------------------------------------------------------

    def finish(self, action: Finished) -> None:
        """Tell how a command has ended, and draw the consequences."""
        reloaded = action.command == "reload" or (action.command == "upgrade" and not action.reason)
        if action.ticket == MENDING:
            self._mender.finished(action.reason)
        if action.command in SERVING and not action.reason:
            self._mender.look()
            action = replace(action, reason=self._mender.trouble)
        if reloaded:
            self._conclude_reload(action.reason)
        record = self._context.logger
        if action.reason:
            self._context.log.last_error = f"{action.command}: {action.reason}"
            record.error(f"{action.command} failed", reason=action.reason)
        else:
            record.info(
                f"{action.command} done", generation=action.generation, workers=action.workers
            )
        if action.command in {"reload", "upgrade"}:
            self._context.service_manager.end(
                f"{action.command} failed: {action.reason}" if action.reason else ""
            )
        request = self._requests.pop(action.ticket, None)
        if request is not None:
            failure = {"error": action.reason} if action.reason else {}
            request.answer(
                not action.reason,
                generation=action.generation,
                workers=action.workers,
                **failure,
            )

    def _conclude_reload(self, reason: str) -> None:
        at = time.clock_gettime(time.CLOCK_REALTIME)
        config = self._context.generations.conclude(self._context.supervisor, reason, at)
        if config is not None:
            set_limits(config)
            self._context.escrow.groups.steer_as(config)
            self._context.log.change(config)
            self._control.log = self._context.logger
