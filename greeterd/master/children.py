"""Spawner workers, talks with them and reaps them: the only module of the daemon that forks.

Signals are blocked around the fork, or a signal to a child that still shares our wakeup pipe would
arrive here.  The child gives back all that is the master's and ends in os._exit, whatever happens.
Children are waited for one by one: waitpid(-1) would steal those of other code.  Only as PID 1 are
strangers reaped, too.
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
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Protocol

from structlog.typing import FilteringBoundLogger

from greeterd.sockets import rights
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.ids import Pid, SlotIndex, WorkerId
from greeterd.system import signals
from greeterd.system.escape import escape_lines
from greeterd.system.files import open_memory
from greeterd.system.rlimits import open_descriptors
from greeterd.worker.channel import Channel
from greeterd.worker.conversation import Conversation
from greeterd.worker.messages import Breach, FailedMessage, FromMaster, Message, ReadyMessage

RECORDS_A_TURN: Final = 64
"""Messages that are read from one child before others have their turn."""
HANG_UP_GRACE: Final = 1.0
"""Seconds that a child may live on after it has closed its channel, which only its end does."""
MAX_STACK_BYTES: Final = 64 * 1024
SPARE_FDS: Final = 5
"""The channel's two, those of a child's signals, and one to look which others there are."""


@dataclass(slots=True, kw_only=True)
class Child:
    """A worker's process, as the master knows it."""

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
    """Why it ends, where that is known better than by how."""
    hung_up: float | None = None
    """When it has closed its channel, or was ended; it is not heard any more. Ours stays open until
    its end, since it would take the master for dead, and shut its listeners."""
    turns: int = 0
    """Turns of the worker's loop at the last tick."""
    connections: int = 0
    """What it had accepted by then."""

    def rss_bytes(self) -> int:
        """Return its resident memory, shared pages included; 0 where the kernel does not tell."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * resource.getpagesize()


@dataclass(frozen=True, slots=True)
class ChildExit:
    """How a child ended: `exitcode` as waitstatus_to_exitcode, and the stack that it wrote."""

    child: Child
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


class ChildMain(Protocol):
    """What a child does with its life; the result is its exit code."""

    def __call__(self, channel: Channel, pipe: signals.SignalPipe, log_lock: int) -> int:
        """Live, in the child, with its own end of the channel, its signals and its slot's lock."""


OnMessage = Callable[[Child, Message, list[int]], None]
"""Is called with what is due, and owns the descriptors."""


class Children:
    """The children that are not reaped."""

    def __init__(self, selector: selectors.BaseSelector, on_message: OnMessage) -> None:
        self._selector = selector
        self._on_message = on_message
        self._children: dict[WorkerId, Child] = {}

    def __len__(self) -> int:
        return len(self._children)

    def get(self, ident: WorkerId) -> Child | None:
        """Return the child of this name, None when it is reaped."""
        return self._children.get(ident)

    def fork(
        self,
        spawn: Spawn,
        live: ChildMain,
        *,
        keep: Collection[int],
        conversation: Conversation,
        log: FilteringBoundLogger,
    ) -> Child:
        """Fork a child that calls `live`; of the descriptors only `keep` goes with it.

        Raises:
            OSError: the kernel refuses.

        """
        with contextlib.ExitStack() as undo:
            stack_fd = _open_stack()
            undo.callback(os.close, stack_fd)
            log_lock_fd = self._open_log_lock(spawn.slot)
            undo.callback(os.close, log_lock_fd)
            _look_for_room()
            ours, theirs = Channel.pair()
            undo.callback(ours.close)
            # What exists now is not looked at again by the children's garbage collectors, so that
            # its pages stay shared, and so that no dead object of ours closes a descriptor of
            # theirs.
            gc.freeze()
            try:
                with signals.blocked():
                    pid = os.fork()
                    if pid == 0:
                        _live(live, theirs, stack_fd, log_lock_fd, keep, log)
            finally:
                theirs.close()
            undo.pop_all()
        child = Child(
            pid=Pid(pid),
            spawn=spawn,
            channel=ours,
            conversation=conversation,
            stack_fd=stack_fd,
            log_lock_fd=log_lock_fd,
        )
        self.enter(child)
        return child

    def enter(self, child: Child) -> None:
        """Care for a child, also for one that a predecessor in this process has forked."""
        self._children[child.spawn.worker] = child
        self._selector.register(
            child.channel, selectors.EVENT_READ, lambda _mask: self._listen(child)
        )

    def _open_log_lock(self, slot: SlotIndex) -> int:
        """Return a new descriptor of the lock that the slot's workers share.

        No other slot's worker has it, and no reader of the log.
        """
        for child in self._children.values():
            if child.spawn.slot == slot and child.log_lock_fd is not None:
                return os.dup(child.log_lock_fd)
        return open_memory("greeterd-log-lock")

    def send(self, ident: WorkerId, message: FromMaster, fds: list[int] | None = None) -> str:
        """Send a message; return why the child cannot have it though it lives, or nothing."""
        child = self._children.get(ident)
        if child is None or child.hung_up is not None:
            return ""
        reason = child.channel.send(message, fds)
        if not reason:
            child.conversation.told(message)
        return reason

    def broadcast(self, message: FromMaster) -> list[WorkerId]:
        """Send a message to every child; return those that it was sent to."""
        living = [each for each in self._children.values() if each.hung_up is None]
        return [each.spawn.worker for each in living if not self.send(each.spawn.worker, message)]

    def kill(self, child: Child, number: signal.Signals) -> None:
        """Send a signal; the pid cannot be another's, since it is not reaped."""
        os.kill(child.pid, number)

    @staticmethod
    def any_ended() -> bool:
        """Tell whether a child waits to be reaped, whatever became of its SIGCHLD; one call."""
        try:
            return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return False

    def end(self, child: Child, code: int, reason: str) -> None:
        """Kill a child, for the first reason that is given, and listen to it no more."""
        child.failure = child.failure or FailedMessage(code, reason)
        self._hang_up(child)
        self.kill(child, signal.SIGKILL)

    def end_breach(self, child: Child, what: str) -> None:
        """Kill a child that does not keep the protocol."""
        self.end(child, 70, f"protocol error: {what}")

    def mute(self) -> list[Child]:
        """Return the children who are not heard any more, and not reaped."""
        return [each for each in self._children.values() if each.hung_up is not None]

    def reap(self, others: Collection[int] = ()) -> Iterator[ChildExit]:
        """Yield the children that have ended, each after its last messages were heard.

        `others` are children that somebody else waits for.
        """
        for ident, child in list(self._children.items()):
            # Reaped last, so that until then the pid is its own.
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            self._listen(child)
            self._hang_up(child)
            child.channel.close()
            del self._children[ident]
            _, status = os.waitpid(child.pid, 0)
            stack = _read_stack(child.stack_fd)
            os.close(child.stack_fd)
            if child.log_lock_fd is not None:
                os.close(child.log_lock_fd)
            yield ChildExit(child, os.waitstatus_to_exitcode(status), stack)
        if os.getpid() == 1:
            self._reap_strangers({child.pid for child in self._children.values()} | {*others})

    def _listen(self, child: Child) -> None:
        """Read what the child has sent; an event that came too late finds it closed."""
        for _ in range(RECORDS_A_TURN):
            if child.hung_up is not None:
                return
            received = child.channel.receive(child.conversation.descriptors_due)
            if received is None:
                return
            if received.message is None:
                self._hang_up(child)
            elif isinstance(received.message, Breach):
                self.end_breach(child, received.message.reason)
            elif received.lost and isinstance(received.message, ReadyMessage):
                self.end(child, 71, "the master has no descriptors free for its listeners")
            else:
                self._weigh(child, received.message, received.fds)

    def _weigh(self, child: Child, message: Message, fds: list[int]) -> None:
        if breach := child.conversation.heard(message, len(fds)):
            rights.close_all(fds)
            self.end_breach(child, breach)
        else:
            self._on_message(child, message, fds)

    def _hang_up(self, child: Child) -> None:
        if child.hung_up is None:
            child.hung_up = time.monotonic()
            self._selector.unregister(child.channel)

    def _reap_strangers(self, known: set[int]) -> None:
        """As PID 1, end the zombies that the kernel gave us for their dead parents."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None or info.si_pid in known:
                return
            os.waitpid(info.si_pid, 0)


def _live(  # noqa: PLR0913, PLR0917 - all that a child begins with
    live: ChildMain,
    channel: Channel,
    stack_fd: int,
    log_lock: int,
    keep: Collection[int],
    log: FilteringBoundLogger,
) -> NoReturn:
    code = 70
    try:
        pipe = signals.become_worker()
        _close_others({channel.fileno(), stack_fd, log_lock, *pipe.fds, *keep})
        faulthandler.enable(file=stack_fd)
        code = live(channel, pipe, log_lock)
    except BaseException:
        log.exception("worker crashed", pid=os.getpid())
    finally:
        os._exit(code)


def _close_others(keep: set[int]) -> None:
    """Close every descriptor but the standard ones and these: all of the master's."""
    for fd in open_descriptors():
        if fd > 2 and fd not in keep:  # noqa: PLR2004 - stderr
            os.close(fd)


def _look_for_room() -> None:
    """Raise OSError unless a child can begin, which has all of our descriptors for a moment."""
    spare: list[int] = []
    try:
        while len(spare) < SPARE_FDS:
            spare.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
    finally:
        for fd in spare:
            os.close(fd)


def _open_stack() -> int:
    """Return the file for a worker's stack, which nobody can make larger."""
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
