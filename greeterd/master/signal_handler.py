"""What each signal asks of the master: SIGHUP is `on_hup`, and so on for each of MASTER_SIGNALS.

Nothing of this runs in a handler of the kernel's: the signals arrive as bytes in a pipe that the
event loop reads, see `system.signals`.
"""

import selectors
import signal

from greeterd.master.commands import CommandHandler
from greeterd.master.context import MasterContext
from greeterd.supervisor.events import Scale, Stop
from greeterd.system.signals import SignalPipe


class SignalHandler:
    """Takes signals as they come; `greeterctl` has a command for each but CHLD."""

    def __init__(self, context: MasterContext, pipe: SignalPipe, commands: CommandHandler) -> None:
        self._context = context
        self._pipe = pipe
        self._commands = commands
        self._interrupted = False
        context.selector.register(pipe, selectors.EVENT_READ, lambda _mask: self.read())

    def read(self) -> None:
        """Do what the signals ask for that have come."""
        for number in self._pipe.read():
            if number is not signal.SIGCHLD:
                self._context.logger.info("signal", signal=number.name)
            getattr(self, f"on_{number.name.removeprefix('SIG').lower()}")()

    def on_term(self) -> None:
        """Stop when all that was accepted is served."""
        self._context.feed(Stop())

    def on_int(self) -> None:
        """Stop as by TERM; the second time as by QUIT."""
        self._context.feed(Stop(quick=self._interrupted))
        self._interrupted = True

    def on_quit(self) -> None:
        """Stop at once."""
        self._context.feed(Stop(quick=True))

    def on_hup(self) -> None:
        """Reload the configuration, once what is under way has ended."""
        self._commands.reload_soon()

    def on_usr1(self) -> None:
        """Reopen the logs."""
        self._commands.reopen()

    def on_usr2(self) -> None:
        """Upgrade to the program that is installed now."""
        self._commands.upgrade()

    def on_ttin(self) -> None:
        """Add a worker."""
        self._context.feed(Scale(change=1))

    def on_ttou(self) -> None:
        """Remove a worker."""
        self._context.feed(Scale(change=-1))

    def on_chld(self) -> None:
        """Wake the loop: each of its turns looks for children that have ended."""
