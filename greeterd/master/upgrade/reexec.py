"""Replaces the program in this process by the one that is installed now: execve(2).

The process keeps its pid, and with it the shell's job, the container's PID 1, the service manager's
main process and the parentage of the workers.  It keeps the descriptors of the upgrade state, too:
that is JSON in an anonymous file, whose descriptor the variable STATE_FD names.
"""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from greeterd.errors import GreeterdError
from greeterd.master.upgrade.state import UpgradeState, read_state, write_state
from greeterd.system.inheritance import LOST_DIRECTORY, PREFLIGHT, STATE_FD


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How this program was started. Started again, it is what is installed at its names by then."""

    executable: str
    argv: tuple[str, ...]
    directory: Path
    """Where it was started; relative names start there."""

    @classmethod
    def this(cls, directory: Path) -> "Program":
        """Return the one that runs.

        A script whose first line names the interpreter is executed itself: the script of another
        release has another interpreter, with that release's packages.
        """
        interpreter, *arguments = sys.orig_argv
        if arguments and _interpreter_of(directory / arguments[0]) == interpreter:
            return cls(executable=arguments[0], argv=tuple(arguments), directory=directory)
        return cls(executable=sys.executable, argv=tuple(sys.orig_argv), directory=directory)

    @property
    def start_directory(self) -> Path:
        """Where to start it: `directory`, or "/" if that has gone.

        Most programs need nothing from it. The new image knows by LOST_DIRECTORY that relative
        names lead nowhere.
        """
        return self.directory if self._has_directory else Path("/")

    def environment(self, state_fd: int) -> dict[str, str]:
        """Return its environment; `state_fd` is the file of the upgrade state."""
        # The sockets of a service manager are in the upgrade state by now.
        dropped = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", LOST_DIRECTORY)
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        lost = {} if self._has_directory else {LOST_DIRECTORY: str(self.directory)}
        return kept | lost | {STATE_FD: str(state_fd)}

    def explain(self, reason: str) -> str:
        """Return why it cannot be started; that its directory has gone may be the cause."""
        if self._has_directory:
            return reason
        return f"{reason}; the start directory {self.directory} has gone"

    @property
    def _has_directory(self) -> bool:
        return self.directory.is_dir()


def _interpreter_of(script: Path) -> str | None:
    try:
        with script.open("rb") as file:
            line = file.readline(256)
    except (OSError, ValueError):
        return None
    return os.fsdecode(line[2:].strip()) if line.startswith(b"#!") else None


def execute(state: UpgradeState, program: Program) -> None:
    """Become the new image.  Returns only by an error, and has changed nothing then.

    Raises:
        OSError: the program cannot be executed.

    """
    with ExitStack() as undo:
        state_fd = write_state(state)
        undo.callback(os.close, state_fd)
        # To come back by descriptor: the directory may have no name any more.
        before = os.open(".", os.O_PATH | os.O_CLOEXEC)
        undo.callback(os.close, before)
        for fd in {*state.fds(), state_fd}:
            os.set_inheritable(fd, True)
            undo.callback(os.set_inheritable, fd, False)
        os.chdir(program.start_directory)
        undo.callback(os.fchdir, before)
        os.execve(program.executable, program.argv, program.environment(state_fd))


def inherited_state() -> UpgradeState | None:
    """Return the state that a predecessor in this process has left; None at a start.

    Call it once: the variable is gone when this returns.

    Raises:
        GreeterdError: it cannot be understood.

    """
    number = os.environ.pop(STATE_FD, None)
    if number is None:
        return None
    try:
        state_fd = int(number)
    except ValueError as error:
        raise GreeterdError(f"the predecessor's upgrade state cannot be read: {error}") from error
    return read_state(state_fd)


def is_preflight() -> bool:
    """Tell whether this process is only to show that it could start; call it once."""
    return os.environ.pop(PREFLIGHT, None) is not None
