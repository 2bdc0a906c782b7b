"""Forks workers, talks with them and reaps them: the only module of the daemon that forks.

Signals are blocked around the fork, or a signal to a child that still shares our wakeup pipe would
arrive here.  The child gives back all that is the master's and ends in os._exit, whatever happens.
Children are waited for one by one: waitpid(-1) would steal those of other code.  Only as PID 1 are
strangers reaped, too.
"""

import faulthandler
import gc
import os
import resource
import selectors
import signal
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from structlog.typing import FilteringBoundLogger

from greeterd import signals
from greeterd.channel import Channel, FailedMessage, FromMaster, FromWorker
from greeterd.core.events import Pid, SlotIndex, Spawn, WorkerId
from greeterd.files import open_memory
from greeterd.limits import open_descriptors


@dataclass(slots=True, kw_only=True)
class Child:
    """A worker's process, as the master knows it."""

    pid: Pid
    spawn: Spawn
    channel: Channel
    stack_fd: int
    """An anonymous file into which faulthandler writes the stack when the worker is aborted."""
    log_lock_fd: int | None
    """An anonymous file that the slot's workers lock while they write its log; None for a worker of
    a version that had none, and locks the log itself."""
    failure: FailedMessage | None = None
    turns: int = 0
    """Turns of the worker's loop at the last tick."""
    connections: int = 0
    """What it had accepted by then."""
    distrusted: bool = False
    """It was ended for what it says."""

    def rss_bytes(self) -> int:
        """Return its resident memory, shared pages included; 0 where the kernel does not tell."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * resource.getpagesize()


@dataclass(frozen=True, slots=True)
class Death:
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


class Life(Protocol):
    """What a child does with its life; the result is its exit code."""

    def __call__(self, channel: Channel, pipe: signals.SignalPipe, log_lock: int) -> int:
        """Live, in the child, with its own end of the channel, its signals and its slot's lock."""


Listener = Callable[[Child, FromWorker | FromMaster, list[int]], None]


class Nursery:
    """The children that are not reaped."""

    def __init__(self, selector: selectors.BaseSelector, on_message: Listener) -> None:
        self._selector = selector
        self._on_message = on_message
        self._children: dict[WorkerId, Child] = {}
        self.hung_up = False
        """A child has closed its channel since the last `reap`: it has ended, or is about to."""

    def __len__(self) -> int:
        return len(self._children)

    def get(self, ident: WorkerId) -> Child | None:
        """Return the child of this name, None when it is reaped."""
        return self._children.get(ident)

    def fork(
        self, spawn: Spawn, live: Life, *, keep: Collection[int], log: FilteringBoundLogger
    ) -> Child:
        """Fork a child that calls `live`; of the descriptors only `keep` goes with it.

        Raises:
            OSError: the kernel refuses.

        """
        ours, theirs = Channel.pair()
        stack_fd = open_memory("greeterd-stack")
        log_lock_fd = self._open_log_lock(spawn.slot)
        # What exists now is not looked at again by the children's garbage collectors, so that its
        # pages stay shared, and so that no dead object of ours closes a descriptor of theirs.
        gc.freeze()
        try:
            with signals.blocked():
                pid = os.fork()
                if pid == 0:
                    _live(live, theirs, stack_fd, log_lock_fd, keep, log)
        except OSError:
            ours.close()
            os.close(stack_fd)
            os.close(log_lock_fd)
            raise
        finally:
            theirs.close()
        child = Child(
            pid=Pid(pid),
            spawn=spawn,
            channel=ours,
            stack_fd=stack_fd,
            log_lock_fd=log_lock_fd,
        )
        self._enter(child)
        return child

    def adopt(
        self, spawn: Spawn, pid: Pid, channel_fd: int, stack_fd: int, log_lock_fd: int | None
    ) -> None:
        """Take over a child that a predecessor in this process has forked."""
        channel = Channel(socket.socket(fileno=channel_fd))
        self._enter(
            Child(pid=pid, spawn=spawn, channel=channel, stack_fd=stack_fd, log_lock_fd=log_lock_fd)
        )

    def _open_log_lock(self, slot: SlotIndex) -> int:
        """Return a new descriptor of the lock that the slot's workers share.

        No other slot's worker has it, and no reader of the log.
        """
        for child in self._children.values():
            if child.spawn.slot == slot and child.log_lock_fd is not None:
                return os.dup(child.log_lock_fd)
        return open_memory("greeterd-log-lock")

    def _enter(self, child: Child) -> None:
        self._children[child.spawn.worker] = child
        self._selector.register(
            child.channel, selectors.EVENT_READ, lambda _mask: self._listen(child)
        )

    def send(self, ident: WorkerId, message: FromMaster, fds: list[int] | None = None) -> bool:
        """Send a message; False when the child lives but does not read."""
        child = self._children.get(ident)
        if child is None or child.channel.fileno() < 0:
            return True
        return child.channel.send(message, fds)

    def broadcast(self, message: FromMaster) -> list[WorkerId]:
        """Send a message to every child; return those that it was sent to."""
        living = [each for each in self._children.values() if each.channel.fileno() >= 0]
        return [each.spawn.worker for each in living if each.channel.send(message)]

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

    def reap(self, others: Collection[int] = ()) -> Iterator[Death]:
        """Yield the children that have ended, each after its last messages were heard.

        `others` are children that somebody else waits for.
        """
        self.hung_up = False
        for ident, child in list(self._children.items()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._listen(child)
                self._hang_up(child)
                del self._children[ident]
                stack = _read_all(child.stack_fd)
                os.close(child.stack_fd)
                if child.log_lock_fd is not None:
                    os.close(child.log_lock_fd)
                yield Death(child, os.waitstatus_to_exitcode(status), stack)
        if os.getpid() == 1:
            self._reap_strangers({child.pid for child in self._children.values()} | {*others})

    def _listen(self, child: Child) -> None:
        """Read all that the child has sent; an event that came too late finds it closed."""
        while child.channel.fileno() >= 0:
            try:
                message, fds = child.channel.receive()
            except BlockingIOError:
                return
            if message is None:
                self._hang_up(child)
                self.hung_up = True
                return
            self._on_message(child, message, fds)

    def _hang_up(self, child: Child) -> None:
        if child.channel.fileno() >= 0:
            self._selector.unregister(child.channel)
            child.channel.close()

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
    live: Life,
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


def _read_all(fd: int) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0).decode("utf-8", "backslashreplace") if size else ""
