"""Carries out an upgrade as the supervisor says: the new image's preflight, then the exec."""

from collections.abc import Callable
from pathlib import Path

from greeterd.errors import reason_of
from greeterd.master.log import MasterLog
from greeterd.master.upgrade import reexec
from greeterd.master.upgrade.preflight import PreflightProcess
from greeterd.master.upgrade.reexec import Program
from greeterd.master.upgrade.state import UpgradeState
from greeterd.supervisor.events import Event, PreflightEnded
from greeterd.supervisor.ids import NO_TICKET, Ticket
from greeterd.system import signals


class Upgrader:
    """The preflight that is under way, and those that were given up."""

    def __init__(
        self,
        directory: Path,
        *,
        state: Callable[[Ticket], UpgradeState],
        pipe: signals.SignalPipe,
        log: MasterLog,
        feed: Callable[[Event], None],
    ) -> None:
        """`directory` is where the program was started; `state` returns what it hands over now."""
        self._program = Program.this(directory)
        self._state = state
        self._pipe = pipe
        self._log = log
        self._feed = feed
        self._preflight: PreflightProcess | None = None
        self._given_up: list[PreflightProcess] = []
        """Those that were killed and are not reaped."""

    def start_preflight(self) -> None:
        """Start the new image beside this one; `reap` feeds PreflightEnded when it has ended."""
        try:
            self._preflight = PreflightProcess(self._state(NO_TICKET), self._program)
        except OSError as error:
            self._fail(error)
            return
        self._log.logger.info("trying the new image", trial_pid=self._preflight.pid)

    def end_preflight(self) -> None:
        """Kill the preflight, if there is one."""
        if self._preflight is not None:
            self._preflight.kill()
            self._given_up.append(self._preflight)
            self._preflight = None

    def pids(self) -> list[int]:
        """Return the children that `reap` waits for."""
        current = [] if self._preflight is None else [self._preflight]
        return [each.pid for each in [*self._given_up, *current]]

    def reap(self) -> None:
        """Reap the preflights that have ended; without blocking."""
        self._given_up = [each for each in self._given_up if each.verdict() is None]
        if self._preflight is not None and (verdict := self._preflight.verdict()) is not None:
            if verdict:
                self._log.logger.warning("new image refused", said=self._preflight.stderr)
            self._preflight = None
            self._feed(PreflightEnded(verdict))

    def replace(self, ticket: Ticket) -> None:
        """Become the new image.  Returns only by a failure, which it feeds as PreflightEnded."""
        self._log.logger.info("becoming the new image")
        # Until the new image has its handlers, signals wait; also those that were read already.
        signals.hold()
        self._pipe.put_back()
        try:
            reexec.execute(self._state(ticket), self._program)
        except OSError as error:
            signals.release()
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        reason = f"the new image cannot be executed: {reason_of(error)}"
        self._feed(PreflightEnded(self._program.explain(reason)))
