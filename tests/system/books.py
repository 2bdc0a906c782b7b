"""What the logs, the scoreboard and the kernel say, and whether they say the same.

A reader only: the greeting logs, the status, /proc. Counts are exact once the daemon is quiet.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.support import until
from tests.system import proc
from tests.system.harness import Daemon, Record

OUTCOMES = ("greetings", "empty", "oversize", "timeout", "reset", "exit", "open")
_LISTEN = "0A"  # TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp writes it


# The scoreboard


def balanced(totals: Record) -> bool:
    """Tell whether every connection is open or has had exactly one outcome."""
    return bool(totals["connections"] == sum(totals[outcome] for outcome in OUTCOMES))


def quiet_totals(daemon: Daemon, *, connections: int, timeout: float = 10.0) -> Record:
    """Wait until so many connections have come and ended; return the totals, which balance."""

    def quiet() -> Record | None:
        totals: Record = daemon.status()["totals"]
        over = totals["connections"] >= connections and not totals["open"]
        return totals if over and balanced(totals) else None

    totals = until(quiet, timeout=timeout, what=f"{connections} connections: {daemon.status()}")
    assert totals is not None
    assert totals["connections"] == connections, totals
    return totals


def outcomes(totals: Record) -> dict[str, int]:
    """Return the outcomes that occurred, and how often."""
    return {name: totals[name] for name in OUTCOMES if totals[name]}


# The logs


def names(greetings: Iterable[Record]) -> Counter[str]:
    """Return how often each name was greeted."""
    return Counter(one["name"] for one in greetings)


def assert_gap_free(greetings: Iterable[Record]) -> None:
    """Assert that `seq` counts 1, 2, 3... for each (worker, pid), in the order of the file."""
    runs: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for one in greetings:
        runs[one["worker"], one["pid"]].append(one["seq"])
    for run, numbers in runs.items():
        assert numbers == list(range(1, len(numbers) + 1)), f"(worker, pid) {run}"


# The kernel


def listening(address: str) -> set[str]:
    """Return the inodes of the IPv4 sockets that listen on the port of `address`.

    Slow after a load: /proc/net/tcp then has a line for each connection that was.
    """
    port = int(address.rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        f"socket:[{row[9]}]"
        for row in rows
        if row[3] == _LISTEN and int(row[1].partition(":")[2], 16) == port
    }


def held_sockets(pid: int) -> set[str]:
    """Return the inodes of the sockets that a process has open."""
    return {link for link in proc.links(pid) if link.startswith("socket:")}


def held_connections(pid: int, listeners: set[str]) -> int:
    """Return how many connections a process has open: accepted, and not closed.

    Those are its sockets but for the unix ones and the listeners.
    """
    rows = Path("/proc/net/unix").read_text().splitlines()[1:]
    unix = {f"socket:[{row.split()[6]}]" for row in rows}
    return len(held_sockets(pid) - unix - listeners)


def state_of(pid: int) -> str:
    """Return the letter of a process's state, as proc_pid_stat(5) has it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def worker_of(daemon: Daemon, slot: int) -> int:
    """Return the pid of the slot's ready worker, 0 for none."""
    workers = daemon.status()["workers"]
    ready = (one["pid"] for one in workers if one["slot"] == slot and one["state"] == "ready")
    return next(ready, 0)


def serving(daemon: Daemon) -> dict[int, tuple[int, int]]:
    """Return pid and generation of each slot's serving worker."""
    workers = [one for one in daemon.status()["workers"] if not one["leaving"]]
    assert {one["state"] for one in workers} == {"ready"}
    return {one["slot"]: (one["pid"], one["generation"]) for one in workers}
