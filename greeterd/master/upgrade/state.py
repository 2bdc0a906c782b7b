"""The upgrade state: all that a running master hands to the next image of the program.

Two versions of greeterd speak these structs to each other, as JSON: a field may be added, with a
default, and none is renamed, removed or given another meaning.  Descriptors are numbers, which
execve(2) keeps; instants are CLOCK_MONOTONIC in seconds, unless they say otherwise.
"""

import os
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct

from greeterd.errors import GreeterdError
from greeterd.system.files import open_memory

VERSION: Final = 1


class InheritedWorker(Struct, frozen=True, kw_only=True):
    """A child that goes on serving or draining."""

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
    """None: a version forked it whose workers lock the log itself."""
    credit: dict[str, int] | None = None
    """How often it may still send each message: see worker/conversation.py. None: the predecessor
    did not count."""


class InheritedSlot(Struct, frozen=True, kw_only=True):
    """A slot with its workers."""

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
    """The escrow's descriptors, in each list one an address in the order of `bind`."""

    shared: list[int | None] = []
    """None stands for one that is still to be opened; only at a start, never at an upgrade."""
    guards: list[int] = []
    slots: dict[int, list[int]] = {}
    """Mode reuseport: each slot's own."""
    order: list[int] = []
    """The slots in the order in which the kernel counts their listeners."""
    unix_files: dict[str, tuple[int, int]] = {}
    """Device and inode of the files that unix listeners have made, by their paths."""
    avoided: list[int] = []
    """The slots that new connections are steered away from."""
    pairs: dict[int, tuple[int, int]] = {}
    """Entry and exit of the socketpair by which a slot is handed connections."""
    routed: list[int] = []
    """The slots that the dispatcher hands connections to."""
    passed: bool = False
    """A socket unit has opened them: do not gate, shut down or unlink them."""
    gated: bool = False
    """Connections in the queues may have inherited a gate by TTL: open it after accept."""

    def listening(self) -> list[int]:
        """Return every listener."""
        members = [fd for fds in self.slots.values() for fd in fds]
        return [*(fd for fd in self.shared if fd is not None), *members]


class InheritedRow(Struct, frozen=True, kw_only=True):
    """The scoreboard row of a living worker, and how much of it is accounted for."""

    slot: int
    place: int
    fd: int
    """The file that the worker writes its counters into."""
    offset: int = 0
    own: bool = True
    """False in the memory of an older build, in which all rows are."""
    believed: list[int]
    """The cells as of the latest look."""
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
    """The scoreboard's totals of all slots."""
    rows: list[InheritedRow] | None = None
    """None from a build whose workers write into the totals themselves."""
    lock_fd: int
    control_fd: int
    control_file: tuple[int, int] | None = None
    """Device and inode of the control socket's file; None from a build that did not record them."""
    client_fd: int | None = None
    """The control connection that waits for the upgrade."""
    log_fd: int | None = None
    """The daemon log's file, if it is one."""
    idle_fds: list[int] = []
    """The control connections that have no request under way."""
    generation: int
    last_generation: int
    last_worker: int
    highest_slot: int = 0
    """The highest number that a slot has ever had; 0: that of the highest in `slots`."""
    since: float
    """When the daemon was started, wall clock."""
    started: float
    """The same, monotonic."""
    left: float | None = None
    """When the predecessor stopped its event loop."""

    def fds(self) -> set[int]:
        """Return every descriptor in it: those that have to survive the exec."""
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

    def differences(self, fixed: Iterable[tuple[str, str]]) -> list[str]:
        """Return the names of the settings that only a restart changes, and that differ."""
        return [name for name, value in fixed if self.fixed.get(name, value) != value]


def write_state(state: UpgradeState) -> int:
    """Write the state into an anonymous file; return its descriptor, which is close-on-exec.

    Raises:
        OSError: there is no room for it.

    """
    fd = open_memory("greeterd-upgrade-state")
    data = msgspec.json.encode(state)
    try:
        while data:  # RLIMIT_FSIZE holds for memory, too: the last write raises then
            data = data[os.write(fd, data) :]
    except OSError:
        os.close(fd)
        raise
    return fd


def read_state(fd: int) -> UpgradeState:
    """Read what `write_state` of a predecessor has written, and close that file.

    The descriptors in the state are close-on-exec when this returns.

    Raises:
        GreeterdError: it cannot be understood.

    """
    try:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        os.close(fd)
        state = msgspec.json.decode(data, type=UpgradeState)
        for each in state.fds():
            os.set_inheritable(each, False)
    except (ValueError, OSError, OverflowError, RecursionError) as error:
        raise GreeterdError(f"the predecessor's upgrade state cannot be read: {error}") from error
    if state.version != VERSION:
        raise GreeterdError(f"the predecessor's upgrade state is of version {state.version}")
    return state
