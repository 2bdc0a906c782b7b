"""A child of the nursery that is no process: what it sends, and what the master makes of it."""

import contextlib
import os
import selectors
import signal
from collections.abc import Iterator

from greeterd.master.children import Child, Children
from greeterd.sockets import rights
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.ids import Generation, Pid, SlotIndex, WorkerId
from greeterd.worker.channel import Channel
from greeterd.worker.conversation import Conversation
from greeterd.worker.messages import Message, ReadyMessage

WORKER = WorkerId(7)


class Ward(Children):
    """A nursery with one child that is no process, and what became of it."""

    def __init__(self, *, listeners: int = 0, ready: bool = True) -> None:
        self.heard: list[tuple[Message, int]] = []
        self.killed: list[signal.Signals] = []
        self.selector = selectors.DefaultSelector()
        super().__init__(self.selector, self._note)
        ours, self.channel = Channel.pair()
        self.theirs = self.channel._socket
        conversation = Conversation(listeners=listeners, may_exit=True)
        if ready:
            conversation.heard(ReadyMessage(), listeners)
        spawn = Spawn(WORKER, SlotIndex(1), 0, Generation(1))
        self.child = Child(
            pid=Pid(0),
            spawn=spawn,
            channel=ours,
            conversation=conversation,
            stack_fd=-1,
            log_lock_fd=None,
        )
        self.enter(self.child)

    def _note(self, _child: Child, message: Message, fds: list[int]) -> None:
        self.heard.append((message, len(fds)))
        rights.close_all(fds)

    def kill(self, child: Child, number: signal.Signals) -> None:
        """Note it."""
        assert child is self.child
        self.killed.append(number)

    def turn(self) -> None:
        """Have the master's loop turn once."""
        for key, mask in self.selector.select(0):
            key.data(mask)

    @property
    def reason(self) -> str:
        """Why the child is ended; empty when it is not."""
        assert (self.child.failure is not None) == bool(self.killed)
        return "" if self.child.failure is None else self.child.failure.reason


@contextlib.contextmanager
def ward(*, listeners: int = 0, ready: bool = True) -> Iterator[Ward]:
    """Give a ward, and see that it has left no descriptor open."""
    before = open_fds()
    one = Ward(listeners=listeners, ready=ready)
    try:
        yield one
    finally:
        one.theirs.close()
        one.child.channel.close()
        one.selector.close()
    assert open_fds() == before


def open_fds() -> list[int]:
    """Return the open descriptors, less that of the look itself."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            found.append(int(name))
    return sorted(found)
