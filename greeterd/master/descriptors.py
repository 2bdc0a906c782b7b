"""Counts the descriptors that a daemon has to have: by its mode, its workers and its addresses.

The master is what counts, since it keeps every listener in escrow; a worker has fewer by far, and
what it has left over is for connections (when there is none, it waits).
"""

from typing import Final

STANDARD: Final = 3
OF_THE_MASTER: Final = 8
"""The run lock, the daemon log, the pipe to the launcher, the pipe of signals (2), the epoll set,
the scoreboard, the control socket."""
OF_A_CHILD: Final = 5
"""Its channel, its scoreboard row (2: a mapping keeps a duplicate), and the files for its stack and
for the lock of its log."""
OF_A_PAIR: Final = 2
"""Both ends of the socketpair by which a slot is handed connections."""
WORKERS_A_SLOT: Final = 2
"""A worker that was replaced stays until its last client has left."""
SPARE: Final = 16
"""What comes and goes: the instant of a fork (5), control connections (3), files that are read or
opened anew, the trial of an upgrade (5)."""


def needed(mode: str, *, workers: int, addresses: int) -> int:
    """Return how many descriptors the master of a daemon must be allowed."""
    fixed, each = _costs(mode, addresses)
    return fixed + each * workers


def most_workers(mode: str, *, addresses: int, files: int) -> int:
    """Return how many workers can be had with so many descriptors, 0 for none."""
    fixed, each = _costs(mode, addresses)
    return max(0, files - fixed) // each


def _costs(mode: str, addresses: int) -> tuple[int, int]:
    """Return the descriptors of a daemon without workers, and those that each worker adds."""
    # A listener an address, or in mode reuseport a guard.
    fixed = STANDARD + OF_THE_MASTER + SPARE + addresses
    slot = WORKERS_A_SLOT * OF_A_CHILD
    match mode:
        case "reuseport":
            return fixed, slot + addresses
        case "handoff":
            return fixed + slot, slot + OF_A_PAIR  # the dispatcher has a slot, too
        case _:
            return fixed, slot
