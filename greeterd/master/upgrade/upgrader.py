"""Replaces the program as the supervisor says: tries the new image, then becomes it."""

from collections.abc import Callable
from pathlib import Path

from greeterd.errors import reason_of
from greeterd.master.log import MasterLog
from greeterd.master.upgrade import reexec
from greeterd.master.upgrade.reexec import PreflightProcess, Program, UpgradeState
from greeterd.supervisor.events import Event, PreflightEnded
from greeterd.supervisor.ids import NO_TICKET, Ticket
from greeterd.system import signals


class Upgrader:
    """The trial that is under way, and those that were given up."""

    def __init__(
        self,
        directory: Path,
        *,
        estate: Callable[[Ticket], UpgradeState],
        pipe: signals.SignalPipe,
        log: MasterLog,
        feed: Callable[[Event], None],
    ) -> None:
        """`directory` is where the program was started; `estate` says what it hands over now."""
        self._program = Program.this(directory)
        self._estate = estate
        self._pipe = pipe
        self._log = log
        self._feed = feed
        self._trial: PreflightProcess | None = None
        self._given_up: list[PreflightProcess] = []
        """Trials that were killed and are not reaped."""

    def start_trial(self) -> None:
        """Start the new image beside this one; `look` tells how that has ended."""
        try:
            self._trial = PreflightProcess(self._estate(NO_TICKET), self._program)
        except OSError as error:
            self._fail(error)
            return
        self._log.logger.info("trying the new image", trial_pid=self._trial.pid)

    def end_trial(self) -> None:
        """Kill the new image that is being tried, if there is one."""
        if self._trial is not None:
            self._trial.kill()
            self._given_up.append(self._trial)
            self._trial = None

    def pids(self) -> list[int]:
        """Return the children that `look` waits for."""
        trials = [*self._given_up, *([self._trial] if self._trial else [])]
        return [trial.pid for trial in trials]

    def look(self) -> None:
        """Reap what has ended; without blocking."""
        self._given_up = [trial for trial in self._given_up if trial.verdict() is None]
        if self._trial is not None and (verdict := self._trial.verdict()) is not None:
            if verdict:
                self._log.logger.warning("new image refused", said=self._trial.said)
            self._trial = None
            self._feed(PreflightEnded(verdict))

    def replace(self, ticket: Ticket) -> None:
        """Become the new image; only a failure comes back."""
        self._log.logger.info("becoming the new image")
        signals.hold()
        self._pipe.put_back()
        try:
            reexec.become(self._estate(ticket), self._program)
        except OSError as error:
            signals.release()
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        reason = f"the new image cannot be executed: {reason_of(error)}"
        self._feed(PreflightEnded(self._program.explain(reason)))
