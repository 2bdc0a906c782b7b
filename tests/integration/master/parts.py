"""A child of the master that is no process, and what is taken from it."""

import contextlib
import os
import selectors
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field

from greeterd.master.children import Child, ChildExit
from greeterd.sockets import rights
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.ids import Generation, Pid, SlotIndex, WorkerId
from greeterd.worker.channel import Channel
from greeterd.worker.conversation import Conversation
from greeterd.worker.messages import Message, ReadyMessage
from greeterd.worker.scoreboard import Scoreboard

WORKER = WorkerId(7)


@dataclass(kw_only=True)
class FakeChild(Child):
    """A child that is no process; signals to it are noted."""

    killed: list[signal.Signals] = field(default_factory=list)
    exit: ChildExit | None = None
    """How it has ended, once it is to."""

    def kill(self, number: signal.Signals) -> None:
        """Note the signal."""
        self.killed.append(number)

    def reap(self) -> ChildExit | None:
        """Return how it has ended, and release what the kernel gave."""
        if self.exit is not None:
            self.hear()
            self._hang_up()
            self.channel.close()
        return self.exit

    @property
    def reason(self) -> str:
        """Why it is ended; empty when it is not."""
        assert (self.failure is not None) == bool(self.killed)
        return "" if self.failure is None else self.failure.reason


def fake_child(
    spawn: Spawn | None = None, conversation: Conversation | None = None
) -> tuple[FakeChild, Channel]:
    """Return a child that has no process, and its own end of the channel."""
    ours, theirs = Channel.pair()
    child = FakeChild(
        pid=Pid(0),
        spawn=spawn or Spawn(WORKER, SlotIndex(1), 0, Generation(1)),
        channel=ours,
        conversation=conversation or Conversation(),
        stack_fd=-1,
        log_lock_fd=None,
    )
    return child, theirs


class HeardChild:
    """A child that is listened to, and what was taken from it."""

    def __init__(self, *, listeners: int = 0, ready: bool = True) -> None:
        self.heard: list[tuple[Message, int]] = []
        self.selector = selectors.DefaultSelector()
        conversation = Conversation(listeners=listeners, may_exit=True)
        if ready:
            conversation.heard(ReadyMessage(), listeners)
        self.child, self.channel = fake_child(conversation=conversation)
        self.theirs = self.channel._socket
        self.child.listen(self.selector, self._note)

    def _note(self, child: Child, message: Message, fds: list[int]) -> None:
        assert child is self.child
        self.heard.append((message, len(fds)))
        rights.close_all(fds)

    def turn(self) -> None:
        """Have the master's loop turn once."""
        turn(self.selector)


@contextlib.contextmanager
def heard_child(*, listeners: int = 0, ready: bool = True) -> Iterator[HeardChild]:
    """Give a child, and see that it has left no descriptor open."""
    before = open_fds()
    one = HeardChild(listeners=listeners, ready=ready)
    try:
        yield one
    finally:
        one.theirs.close()
        one.child.channel.close()
        one.selector.close()
    assert open_fds() == before


def turn(selector: selectors.BaseSelector) -> None:
    """Have the master's loop turn once."""
    for key, mask in selector.select(0):
        key.data(mask)


def free(board: Scoreboard) -> None:
    """Release a scoreboard's memory now, not by the garbage collector in a test that counts."""
    for slot, place in list(board._claims):
        board.settle(slot, place)
    board._totals.release()
    os.close(board.fd)


def open_fds() -> list[int]:
    """Return the open descriptors, less that of the look itself."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            found.append(int(name))
    return sorted(found)
