"""Hurts a running server while the load runs: a worker stopped, one killed or a reload each second.

The first comes when the first measured greeting has been logged, or the load runs for FIRST_AFTER
seconds where there is no log to see, so that the load, and not the start of its processes, meets
it.  A stopped worker stays so until the load has ended: `objection`
tells when it has not, which its trial would not show.
"""

import contextlib
import os
import subprocess
from dataclasses import dataclass
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, Signals
from typing import Final

from greeterd.bench.census import process_stat
from greeterd.bench.experiment.servers import Server, TrialError, filled
from greeterd.control.status import WorkerStatus

PERIOD: Final = 1.0
"""Seconds between two kills, or two reloads."""
STOPPED_SLOT: Final = 1
FIRST_AFTER: Final = 0.2
RELOAD_TIMEOUT: Final = 30.0
"""Seconds that a command of `--reload-command` may take."""


@dataclass(slots=True)
class Injector:
    """The fault of one trial."""

    server: Server
    log_bytes: int
    """The size of the greeting logs before the load."""
    done: int = 0
    """How often it was inflicted."""
    _next_at: float | None = None
    _stopped: int | None = None

    def step(self, now: float) -> None:
        """Inflict what is due at an instant of time.monotonic().

        Raises:
            TrialError: the server does not tell who its workers are.
        """
        if self.server.case.fault == "none":
            return
        if self._next_at is None:
            if self.server.command is not None:
                self._next_at = now + FIRST_AFTER
            elif self.server.log_bytes() > self.log_bytes:
                self._next_at = now
            return
        if now < self._next_at:
            return
        self._next_at += PERIOD
        match self.server.case.fault:
            case "stopped" if self._stopped is None:
                self._stopped = self._signal(STOPPED_SLOT, SIGSTOP)
            case "killed":
                self._signal(self.done % self.server.case.workers + 1, SIGKILL)
            case "reload":
                self._reload()
            case _:
                pass

    def objection(self) -> str:
        """Return why the fault was not what it should have been; empty when it was."""
        fault = self.server.case.fault
        if fault != "none" and not self.done:
            return f"the load had ended before the fault ({fault})"
        if self._stopped is not None and not _is_stopped(self._stopped):
            return "the stopped worker did not stay so until the load had ended"
        return ""

    def end(self) -> None:
        """Let a stopped worker go on."""
        if self._stopped is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._stopped, SIGCONT)
            self._stopped = None

    def _reload(self) -> None:
        command = self.server.command
        if command is None:
            # As a signal, since a command would keep this loop until the reload is done.
            self._send(self._status_pid(), SIGHUP)
        elif command.reload_command:
            one = self.server
            words = filled(
                command.reload_command, one.case, one.address, one.directory, pid=one.pid
            )
            done = subprocess.run(  # noqa: S603
                words, capture_output=True, text=True, check=False, timeout=RELOAD_TIMEOUT
            )
            if done.returncode:
                raise TrialError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()}")
            self.done += 1
        else:
            self._send(self.server.pid, Signals[f"SIG{command.reload_signal}"])

    def _signal(self, slot: int, number: int) -> int | None:
        """Signal the worker of a slot, if it has one that serves; return its pid."""
        status = self.server.status()
        if status is None:
            workers = self.server.workers()
            pid = workers[slot - 1] if slot <= len(workers) else None
        else:
            pid = next((one.pid for one in status.workers if _serves(one, slot)), None)
        if pid is not None:
            self._send(pid, number)
        return pid

    def _send(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            self.done += 1

    def _status_pid(self) -> int:
        status = self.server.status()
        if status is None or (status.reload is not None and not status.reload.ok):
            raise TrialError(f"a reload failed: {status and status.reload}")
        return status.pid


def _serves(worker: WorkerStatus, slot: int) -> bool:
    return worker.slot == slot and worker.state == "ready" and not worker.leaving


def _is_stopped(pid: int) -> bool:
    return process_stat(pid)[:1] == ["T"]
