"""Measures a server from outside: CPU time, context switches and accept queues, out of /proc.

CPU time in sum is the process CPU clock of clock_getcpuclockid(3), nanoseconds over all threads.
No file of /proc splits it as finely: utime and stime of /proc/PID/stat are ticks of 10 ms, and on
most kernels the split is itself sampled by the timer; so the ticks give the proportion, and the
clock the sum.  Processes that died in between are in cutime and cstime of who reaped them, in
ticks too.  Context switches are per thread in /proc/PID/task/TID/status and die with it: where a
process has died, nobody knows them.  Of one that lived and died between two looks cminflt tells:
there is no process without a page fault, and who reaps it has them added there.

The accept queue of a listening TCP socket is the column rx_queue of /proc/net/tcp (proc(5),
tcp_diag.txt); listeners come first in that file, so the rest is not read.  Nobody is asked, so
watching costs the server nothing.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from greeterd.bench.census import process_stat
from greeterd.sockets.address import Address

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_LISTEN: Final = "0A"

# proc(5), /proc/PID/stat behind the command's closing parenthesis: state is the first.
_CMINFLT, _UTIME, _STIME, _CUTIME, _CSTIME, _STARTED = 8, 11, 12, 13, 14, 19


class Key(NamedTuple):
    """A process: a pid may come again, not with the same start."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far: nanoseconds, and switches."""

    cpu_ns: int
    user_ns: int
    system_ns: int
    reaped_user_ns: int
    reaped_system_ns: int
    reaped_faults: int
    voluntary: int
    involuntary: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What a whole server used between two looks."""

    user_ns: float
    system_ns: float
    ticks: int
    """On which the proportion of the two rests."""
    voluntary: int | None
    involuntary: int | None
    """None when a process has died."""
    by_pid: dict[int, int]
    """Nanoseconds of each process that lives, the busiest first."""


@dataclass(slots=True)
class Watch:
    """The processes of a server from now on; `root` is the first of them."""

    root: int
    _base: dict[Key, Usage] = field(init=False)

    def __post_init__(self) -> None:
        self._base = dict(_tree(self.root))

    def spent(self) -> Spent:
        """Return what has been used since the beginning, also by the dead."""
        living = dict(_tree(self.root))
        base = self._base
        dead = [usage for one, usage in base.items() if one not in living]
        nothing = Usage(0, 0, 0, 0, 0, 0, 0, 0)
        pairs = [(usage, base.get(one, nothing)) for one, usage in living.items()]
        user = sum(new.user_ns - old.user_ns for new, old in pairs)
        system = sum(new.system_ns - old.system_ns for new, old in pairs)
        total = sum(new.cpu_ns - old.cpu_ns for new, old in pairs)
        # A dead one's whole life is in its parent's figures; what it had used before is not ours.
        reaped_user = sum(new.reaped_user_ns - old.reaped_user_ns for new, old in pairs)
        reaped_system = sum(new.reaped_system_ns - old.reaped_system_ns for new, old in pairs)
        reaped_user -= sum(usage.user_ns + usage.reaped_user_ns for usage in dead)
        reaped_system -= sum(usage.system_ns + usage.reaped_system_ns for usage in dead)
        by_pid = {
            one.pid: usage.cpu_ns - base.get(one, nothing).cpu_ns for one, usage in living.items()
        }
        share = user / (user + system) if user + system else 0.5
        died = bool(dead) or any(new.reaped_faults != old.reaped_faults for new, old in pairs)
        return Spent(
            user_ns=total * share + max(0, reaped_user),
            system_ns=total * (1 - share) + max(0, reaped_system),
            ticks=round((user + system + max(0, reaped_user) + max(0, reaped_system)) / _TICK_NS),
            voluntary=None if died else sum(new.voluntary - old.voluntary for new, old in pairs),
            involuntary=None
            if died
            else sum(new.involuntary - old.involuntary for new, old in pairs),
            by_pid=dict(sorted(by_pid.items(), key=lambda item: -item[1])),
        )


def tree(root: int) -> list[int]:
    """Return the pids of a process and its living descendants; empty when it is gone."""
    if not Path(f"/proc/{root}/task/{root}/children").exists():
        return _tree_by_parents(root)  # it is gone, or the kernel is without CONFIG_PROC_CHILDREN
    found = [root]
    for pid in found:  # which grows
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def _tree_by_parents(root: int) -> list[int]:
    import psutil  # noqa: PLC0415  of the extra: reports are made without it

    try:
        process = psutil.Process(root)
        return [root, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _tree(root: int) -> Iterator[tuple[Key, Usage]]:
    for pid in tree(root):
        # It may end at any moment.
        with contextlib.suppress(OSError, ValueError, IndexError):
            yield _usage(pid)


def _usage(pid: int) -> tuple[Key, Usage]:
    stat = process_stat(pid)
    ticks = [int(stat[at]) * _TICK_NS for at in (_UTIME, _STIME, _CUTIME, _CSTIME)]
    switches = [0, 0]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        lines = (thread / "status").read_text().splitlines()
        told = [int(line.split()[1]) for line in lines if "voluntary_ctxt_switches" in line]
        switches = [mine + more for mine, more in zip(switches, told, strict=True)]
    cpu_ns = time.clock_gettime_ns((~pid << 3) | 2)
    user, system, reaped_user, reaped_system = ticks
    return Key(pid, int(stat[_STARTED])), Usage(
        cpu_ns, user, system, reaped_user, reaped_system, int(stat[_CMINFLT]), *switches
    )


def queues(address: Address) -> list[int]:
    """Return how many connections wait in each socket that listens on a TCP address's port."""
    if address.is_unix:
        return []
    port = f":{address.port:04X}"
    found = []
    with Path("/proc/net/tcp6" if address.is_v6 else "/proc/net/tcp").open() as table:
        next(table)
        for line in table:
            _, local, _, state, lengths, *_ = line.split()
            if state != _LISTEN:
                break
            if local.endswith(port):
                found.append(int(lengths.partition(":")[2], 16))
    return found


def listen_drops() -> int:
    """Return how many connections all listeners of this network namespace have ever dropped."""
    table = [line.split() for line in Path("/proc/net/netstat").read_text().splitlines()]
    names, values = (row for row in table if row[0] == "TcpExt:")
    return int(dict(zip(names, values, strict=True)).get("ListenDrops", 0))
