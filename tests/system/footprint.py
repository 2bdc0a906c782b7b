"""What a daemon's processes hold: descriptors by kind, memory, and how many they are.

A reader of /proc only. Kinds are what a descriptor's link says, less its numbers: `socket:`,
`pipe:`, `/memfd:greeterd-stack (deleted)`, a path.
"""

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support import until
from tests.system.harness import Daemon


def kinds(pid: int) -> Counter[str]:
    """Return how many descriptors of each kind the process has."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[re.sub(r"\[\d+\]", "", str(entry.readlink()))] += 1
    return found


@dataclass(frozen=True, slots=True)
class Footprint:
    """One daemon with no client; equal footprints hold the same, whoever the processes are."""

    processes: int
    master: Counter[str]
    workers: list[Counter[str]]

    @classmethod
    def of(cls, daemon: Daemon) -> "Footprint":
        """Look at a daemon that is quiet."""
        workers = sorted((kinds(pid) for pid in daemon.worker_pids()), key=sorted)
        return cls(len(daemon.processes()), kinds(daemon.pid), workers)

    def is_left_by(self, daemon: Daemon, *, timeout: float = 10.0) -> None:
        """Wait until the daemon holds this and nothing else; AssertionError with the difference.

        Not at once: the master closes a control connection some time after the answer.
        """
        found = [self]

        def same() -> bool:
            with suppress(OSError):  # one of them ends
                found[0] = Footprint.of(daemon)
                return found[0] == self
            return False

        with suppress(AssertionError):
            until(same, timeout=timeout)
        assert found[0] == self


def memory_bytes(pid: int) -> int:
    """Return the memory that is the process's own: neither shared nor files."""
    return int(psutil.Process(pid).memory_full_info().uss)
