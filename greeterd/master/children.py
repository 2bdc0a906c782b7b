"""A worker's process as the master has it: forked, heard, ended and reaped here and nowhere else.

This is the only module of the daemon that forks.  Signals are blocked around the fork: a signal to
a child that still shares the master's wakeup pipe would arrive in the master.  The child gives back
all that is the master's and ends in os._exit, whatever happens.
Children are waited for one by one: waitpid(-1) would steal those of other code.  Only as PID 1 does
the master reap strangers, too.
"""

import contextlib
import faulthandler
import fcntl
import gc
import os
import resource
import selectors
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from structlog.typing import FilteringBoundLogger

from greeterd.sockets import rights
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.ids import Pid
from greeterd.system import signals
from greeterd.system.escape import escape_lines
from greeterd.system.files import open_memory
from greeterd.system.rlimits import open_descriptors
from greeterd.worker.channel import Channel
from greeterd.worker.conversation import Conversation
from greeterd.worker.messages import Breach, FailedMessage, FromMaster, Message, ReadyMessage

RECORDS_A_TURN: Final = 64
"""Messages that are read from one child before others have their turn."""
MAX_STACK_BYTES: Final = 64 * 1024
SPARE_FDS: Final = 5
"""The channel's two, those of a child's signals, and one to look which others there are."""


OnMessage = Callable[["Child", Message, list[int]], None]
"""Takes a message that is due, and owns its descriptors."""


@dataclass(frozen=True, slots=True)
class ChildExit:
    """How a child ended: `exitcode` as waitstatus_to_exitcode, and the stack that it wrote."""

    exitcode: int
    stack: str

    @property
    def reason(self) -> str:
        """The exit code in words."""
        if self.exitcode >= 0:
            return f"exit status {self.exitcode}"
        try:
            return f"killed by {signal.Signals(-self.exitcode).name}"
        except ValueError:
            return f"killed by signal {-self.exitcode}"


@dataclass(slots=True, kw_only=True)
class Child:
    """A worker's process, with all that the kernel gives for it, from the fork until `reap`."""

    pid: Pid
    spawn: Spawn
    channel: Channel
    conversation: Conversation
    stack_fd: int
    """An anonymous file into which faulthandler writes the stack when the worker is aborted."""
    log_lock_fd: int | None
    """An anonymous file that the slot's workers lock while they write its log; None for a worker of
    a version that had none, and locks the log itself."""
    failure: FailedMessage | None = None
    """Why it ends, where that is known better than by its exit code."""
    hung_up: float | None = None
    """When it has closed its channel, or was ended: nothing that it sends is read any more.  The
    master's end stays open until the child is reaped; by its closing the worker would take the
    master for dead, and shut the listeners down."""
    turns: int = 0
    """Turns of the worker's loop at the last tick."""
    connections: int = 0
    """Connections that it had accepted by then."""
    _selector: selectors.BaseSelector | None = None
    _on_message: OnMessage | None = None

    @property
    def facts(self) -> dict[str, object]:
        """What each log record about it says of it."""
        return {
            "worker": self.spawn.slot,
            "worker_pid": self.pid,
            "generation": self.spawn.generation,
        }

    def rss_bytes(self) -> int:
        """Return its resident memory, shared pages included; 0 where the kernel does not tell."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * resource.getpagesize()

    # Its channel ----------------------------------------------------------------------------

    def listen(self, selector: selectors.BaseSelector, on_message: OnMessage) -> None:
        """Call `on_message` with each message that is due, whenever `selector` finds some."""
        self._on_message = on_message
        selector.register(self.channel, selectors.EVENT_READ, lambda _mask: self.hear())
        self._selector = selector

    def hear(self) -> None:
        """Read what it has sent; harmless when nothing has come, or the channel is closed."""
        for _ in range(RECORDS_A_TURN):
            if self.hung_up is not None:
                return
            received = self.channel.receive(self.conversation.descriptors_due)
            if received is None:
                return
            if received.message is None:
                self._hang_up()
            elif isinstance(received.message, Breach):
                self.end_breach(received.message.reason)
            elif received.lost and isinstance(received.message, ReadyMessage):
                self.end(71, "the master has no descriptors free for its listeners")
            else:
                self._take(received.message, received.fds)

    def _take(self, message: Message, fds: list[int]) -> None:
        if breach := self.conversation.heard(message, len(fds)):
            rights.close_all(fds)
            self.end_breach(breach)
        elif self._on_message is not None:
            self._on_message(self, message, fds)

    def send(self, message: FromMaster, fds: list[int] | None = None) -> str:
        """Send a message; return why the child cannot have it though it lives, or nothing."""
        if self.hung_up is not None:
            return ""
        reason = self.channel.send(message, fds)
        if not reason:
            self.conversation.told(message)
        return reason

    def _hang_up(self) -> None:
        if self.hung_up is None:
            self.hung_up = time.monotonic()
            if self._selector is not None:
                self._selector.unregister(self.channel)

    # Its end --------------------------------------------------------------------------------

    def kill(self, number: signal.Signals) -> None:
        """Send a signal; the pid cannot be another process's, since the child is not reaped."""
        os.kill(self.pid, number)

    def end(self, code: int, reason: str) -> None:
        """Kill it and read nothing more from it; the first reason given is the one that counts."""
        self.failure = self.failure or FailedMessage(code, reason)
        self._hang_up()
        self.kill(signal.SIGKILL)

    def end_breach(self, what: str) -> None:
        """Kill it because it does not keep the protocol."""
        self.end(70, f"protocol error: {what}")

    def reap(self) -> ChildExit | None:
        """Return how it has ended, after its last messages were heard; None while it lives.

        What the kernel gave for it is released by that.
        """
        # WNOWAIT: until the waitpid below no other process can have its pid.
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        self.hear()
        self._hang_up()
        self.channel.close()
        _, status = os.waitpid(self.pid, 0)
        stack = _read_stack(self.stack_fd)
        os.close(self.stack_fd)
        if self.log_lock_fd is not None:
            os.close(self.log_lock_fd)
        return ChildExit(os.waitstatus_to_exitcode(status), stack)


ChildMain = Callable[[Channel, signals.SignalPipe, int], int]
"""What a child runs, with its own end of the channel, its signals and the descriptor of its slot's
log lock; returns its exit code."""


def fork(  # noqa: PLR0913 - all that a child begins with
    spawn: Spawn,
    main: ChildMain,
    *,
    keep: Collection[int],
    conversation: Conversation,
    log: FilteringBoundLogger,
    log_lock_fd: int | None = None,
) -> Child:
    """Fork a child that runs `main`; of the master's descriptors it has only those in `keep`.

    `log_lock_fd`: the log lock of its slot, of which it gets a duplicate; None: it gets a new one.

    Raises:
        OSError: the kernel refuses.

    """
    with contextlib.ExitStack() as undo:
        stack_fd = _open_stack()
        undo.callback(os.close, stack_fd)
        # A lock of the slot's own: any other process that had it could hold it for ever.
        log_lock_fd = (
            open_memory("greeterd-log-lock") if log_lock_fd is None else os.dup(log_lock_fd)
        )
        undo.callback(os.close, log_lock_fd)
        _require_spare_fds()
        ours, theirs = Channel.pair()
        undo.callback(ours.close)
        # The child's garbage collector does not look again at what exists now: its pages stay
        # shared with the master, and no dead object of the master's closes a descriptor that is
        # the child's by then.
        gc.freeze()
        try:
            with signals.blocked():
                pid = os.fork()
                if pid == 0:
                    _run(main, theirs, stack_fd, log_lock_fd, keep, log)
        finally:
            theirs.close()
        undo.pop_all()
    return Child(
        pid=Pid(pid),
        spawn=spawn,
        channel=ours,
        conversation=conversation,
        stack_fd=stack_fd,
        log_lock_fd=log_lock_fd,
    )


def any_ended() -> bool:
    """Tell whether a child waits to be reaped; one system call, whatever became of its SIGCHLD."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def reap_strangers(known: Collection[int]) -> None:
    """Reap children that have ended and are not ours; `known` are children that others reap.

    PID 1 is given all orphans, and who executes the daemon may leave it children.
    """
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or info.si_pid in known:
            return
        os.waitpid(info.si_pid, 0)


def _run(  # noqa: PLR0913, PLR0917 - all that a child begins with
    main: ChildMain,
    channel: Channel,
    stack_fd: int,
    log_lock: int,
    keep: Collection[int],
    log: FilteringBoundLogger,
) -> NoReturn:
    """In the child: leave what is the master's, run, and end."""
    code = 70
    try:
        pipe = signals.become_worker()
        _close_others({channel.fileno(), stack_fd, log_lock, *pipe.fds, *keep})
        faulthandler.enable(file=stack_fd)
        code = main(channel, pipe, log_lock)
    except BaseException:
        log.exception("worker crashed", pid=os.getpid())
    finally:
        # Not sys.exit: the master's atexit handlers and finally blocks are not the child's.
        os._exit(code)


def _close_others(keep: set[int]) -> None:
    """Close every descriptor but the standard ones and these: all of the master's."""
    for fd in open_descriptors():
        if fd > 2 and fd not in keep:  # noqa: PLR2004 - stderr
            os.close(fd)


def _require_spare_fds() -> None:
    """Raise OSError unless a child can begin, which has all of our descriptors for a moment."""
    spare: list[int] = []
    try:
        while len(spare) < SPARE_FDS:
            spare.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
    finally:
        for fd in spare:
            os.close(fd)


def _open_stack() -> int:
    """Return the file for a worker's stack, sealed so that the worker cannot make it larger."""
    fd = open_memory("greeterd-stack", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, MAX_STACK_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except OSError:
        os.close(fd)
        raise
    return fd


def _read_stack(fd: int) -> str:
    """Return what was written, up to the zeros that follow; also of a file without seals."""
    written, _, _ = os.pread(fd, MAX_STACK_BYTES, 0).partition(b"\0")
    return escape_lines(written.decode("ascii", "backslashreplace"))[:MAX_STACK_BYTES]
