"""Hands the daemon over to a new image of the program in the same process: execve(2).

The process keeps its pid, and so all that hangs on it: the shell's job, the container's PID 1, the
service manager's main process, the parentage of the workers.  What it keeps beside that is what the
estate lists: descriptors, which survive the exec, and the records that say what they are.
The estate is JSON in an anonymous file whose descriptor the variable ESTATE names; it is read by a
later version of this module, so a field may be added, with a default, and none changes its meaning.

Before that, the same estate is given to a child that runs the new image for trial: it does all that
a start does, short of serving, and tells by its exit code whether it could.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from greeterd.errors import GreeterdError
from greeterd.system.files import open_memory
from greeterd.system.inheritance import ESTATE, LOST, TRIAL

VERSION: Final = 1
MAX_REASON_BYTES: Final = 4096
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class InheritedWorker(Struct, frozen=True, kw_only=True):
    """A child that goes on serving, or leaving."""

    worker: int
    pid: int
    place: int
    generation: int
    life: str
    since: float
    deadline: float | None = None
    leaving: str | None = None
    accepts: bool = True
    channel_fd: int
    stack_fd: int
    log_lock_fd: int | None = None
    """None: it was forked by a version whose workers lock the log itself."""
    credit: dict[str, int] | None = None
    """What it may still say: see core.conversation. None: the version before kept no books."""


class InheritedSlot(Struct, frozen=True, kw_only=True):
    """A slot with its workers; a reuseport slot with its listeners, one an address."""

    index: int
    generation: int
    served: bool
    failures: int
    restarts: int
    deaths: list[float] = []
    retry_at: float
    served_since: float
    unserved_since: float
    workers: list[InheritedWorker] = []


class InheritedListeners(Struct, frozen=True, kw_only=True):
    """The escrow: descriptors by address, and the order in which the kernel counts the slots."""

    shared: list[int | None] = []
    """None stands for one that is still to be opened; only at a start, never in an estate."""
    guards: list[int] = []
    slots: dict[int, list[int]] = {}
    order: list[int] = []
    unix_files: dict[str, tuple[int, int]] = {}
    avoided: list[int] = []
    """The slots that new connections are steered away from."""
    pairs: dict[int, tuple[int, int]] = {}
    """Entry and exit of the socketpair by which a slot is handed connections."""
    routed: list[int] = []
    """The slots that the dispatcher hands connections on to."""
    passed: bool = False
    """A socket unit has opened them, and they are not ours to gate, shut down or unlink."""
    gated: bool = False
    """What waits in the queues may be deaf by a gate that looked at TTLs."""

    def listening(self) -> list[int]:
        """Return every listener."""
        members = [fd for fds in self.slots.values() for fd in fds]
        return [*(fd for fd in self.shared if fd is not None), *members]


class InheritedRow(Struct, frozen=True, kw_only=True):
    """What a living worker writes of itself, in the file `fd`, and what of that is in the books."""

    slot: int
    place: int
    fd: int
    offset: int = 0
    own: bool = True
    """False in the memory of an older build, in which all rows are."""
    believed: list[int]
    greetings_before: int = 0


class UpgradeState(Struct, frozen=True, kw_only=True):
    """All that the new image takes over."""

    version: int = VERSION
    program: str
    """The version of greeterd that has written this."""
    fixed: dict[str, str]
    """The settings that only a restart changes, as they are."""
    listeners: InheritedListeners
    slots: list[InheritedSlot]
    board_fd: int
    """The books: what is known of all workers."""
    rows: list[InheritedRow] | None = None
    """None from a build whose workers write into the books themselves."""
    lock_fd: int
    control_fd: int
    control_file: tuple[int, int] | None = None
    """Device and inode of the control socket's file; None: the predecessor does not tell."""
    client_fd: int | None = None
    """The control connection that waits for the upgrade."""
    log_fd: int | None = None
    """The daemon log's file, if it is one."""
    idle_fds: list[int] = []
    """The control connections that wait for nothing yet."""
    generation: int
    last_generation: int
    last_worker: int
    highest_slot: int = 0
    """The highest number that a slot has had; 0: that of the highest which there is."""
    since: float
    started: float
    left: float | None = None
    """When the predecessor stopped to turn its loop, monotonic."""

    def fds(self) -> set[int]:
        """Return every descriptor that has to survive."""
        listeners = self.listeners
        workers = [worker for slot in self.slots for worker in slot.workers]
        return {
            self.board_fd,
            *(row.fd for row in self.rows or []),
            self.lock_fd,
            self.control_fd,
            *(fd for fd in (self.client_fd, self.log_fd) if fd is not None),
            *self.idle_fds,
            *listeners.listening(),
            *listeners.guards,
            *(fd for pair in listeners.pairs.values() for fd in pair),
            *(worker.channel_fd for worker in workers),
            *(worker.stack_fd for worker in workers),
            *(worker.log_lock_fd for worker in workers if worker.log_lock_fd is not None),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How this program was started, to be started again: what is installed at its names by then."""

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
    def place(self) -> Path:
        """Where to start it: a directory that has gone is no obstacle, unless something needs it.

        The new image knows by LOST that what is relative cannot be found.
        """
        return self.directory if self.directory.is_dir() else Path("/")

    def environment(self, memory: int) -> dict[str, str]:
        """Return its environment; `memory` holds the estate."""
        # Sockets of the service manager are in the estate by now.
        passed = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", LOST)
        kept = {name: value for name, value in os.environ.items() if name not in passed}
        lost = {} if self.place == self.directory else {LOST: str(self.directory)}
        return kept | lost | {ESTATE: str(memory)}

    def explain(self, reason: str) -> str:
        """Return the reason why it cannot be started, with the directory if that has gone."""
        if self.place == self.directory:
            return reason
        return f"{reason}; the start directory {self.directory} has gone"


def _interpreter_of(script: Path) -> str | None:
    try:
        with script.open("rb") as file:
            line = file.readline(256)
    except (OSError, ValueError):
        return None
    return os.fsdecode(line[2:].strip()) if line.startswith(b"#!") else None


class PreflightProcess:
    """The child in which the new image shows that it can start.

    It leads a process group, so that a child of its own that hangs ends with it, and it does not
    outlive this process, whose listeners it holds.
    """

    def __init__(self, estate: UpgradeState, program: Program) -> None:
        """Start it.  Raises: OSError if it cannot be executed."""
        self.said = ""
        """The end of what it has written to standard error, once there is a verdict."""
        self._program = program
        libc = ctypes.CDLL(None)
        with ExitStack() as undo:
            self._said = open_memory("greeterd-trial")
            undo.callback(os.close, self._said)
            memory = _write(estate)
            try:
                self._process = subprocess.Popen(
                    program.argv,
                    executable=program.executable,
                    cwd=program.place,
                    env=program.environment(memory) | {TRIAL: "1"},
                    pass_fds=[*estate.fds(), memory],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._said,
                    process_group=0,
                    # There are no threads here, whose locks it could find taken.
                    preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
                )
            finally:
                os.close(memory)
            undo.pop_all()

    @property
    def pid(self) -> int:
        """The child's."""
        return self._process.pid

    def verdict(self) -> str | None:
        """Return why the new image cannot start, empty when it can, None while it tries."""
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        self.kill()  # what it has left behind, while the number cannot be another's
        code = self._process.wait()
        size = os.fstat(self._said).st_size
        tail = os.pread(self._said, MAX_REASON_BYTES, max(0, size - MAX_REASON_BYTES))
        os.close(self._said)
        if code == 0:
            return ""
        self.said = tail.decode("utf-8", "backslashreplace").strip()
        words = self.said.splitlines()
        last = words[-1].removeprefix("greeterd: ") if words else "it said nothing"
        how = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return self._program.explain(f"the new image cannot start ({how}): {last}")

    def kill(self) -> None:
        """End it and its own children; `verdict` is still to be asked."""
        os.killpg(self.pid, signal.SIGKILL)


def become(estate: UpgradeState, program: Program) -> None:
    """Become the new image.  Returns only by an error; everything is as before then.

    Raises:
        OSError: the program cannot be executed.

    """
    with ExitStack() as undo:
        memory = _write(estate)
        undo.callback(os.close, memory)
        # By descriptor: it may have no name any more.
        before = os.open(".", os.O_PATH | os.O_CLOEXEC)
        undo.callback(os.close, before)
        for fd in {*estate.fds(), memory}:
            os.set_inheritable(fd, True)
            undo.callback(os.set_inheritable, fd, False)
        os.chdir(program.place)
        undo.callback(os.fchdir, before)
        os.execve(program.executable, program.argv, program.environment(memory))


def inherited() -> UpgradeState | None:
    """Return what a predecessor has left, None if this is a start of its own.

    Raises:
        GreeterdError: it cannot be understood.

    """
    number = os.environ.pop(ESTATE, None)
    if number is None:
        return None
    try:
        memory = int(number)
        data = os.pread(memory, os.fstat(memory).st_size, 0)
        os.close(memory)
        estate = msgspec.json.decode(data, type=UpgradeState)
        for fd in estate.fds():
            os.set_inheritable(fd, False)
    except (ValueError, OSError, OverflowError, RecursionError) as error:
        raise GreeterdError(f"the predecessor's estate cannot be read: {error}") from error
    if estate.version != VERSION:
        raise GreeterdError(f"the predecessor's estate is of version {estate.version}")
    return estate


def is_trial() -> bool:
    """Tell whether this program was started to be tried only."""
    return os.environ.pop(TRIAL, None) is not None


def differences(estate: UpgradeState, fixed: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names of the settings that only a restart changes, and that differ."""
    return [name for name, value in fixed if estate.fixed.get(name, value) != value]


def _write(estate: UpgradeState) -> int:
    memory = open_memory("greeterd-estate")
    try:
        os.write(memory, msgspec.json.encode(estate))
    except OSError:
        os.close(memory)
        raise
    return memory
