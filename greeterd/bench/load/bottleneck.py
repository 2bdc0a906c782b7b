"""Decides whether the client, not the server, was the limit of a load, and says why; pure.

Three signs: its processes were never idle, an open loop's arrivals began late, or it ran out of
ports or descriptors.  None of them proves that the server would have been faster; each says that
this client cannot tell.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

BUSY: Final = 0.9
"""The share of the time in which a process that is the limit runs, or waits for a CPU."""
SHORTEST: Final = 0.05
"""Seconds of each process below which its being busy says nothing."""
LATE: Final = 0.01
"""The share of arrivals that may begin late, by more than 1 ms."""


class Effort(NamedTuple):
    """What the processes of a client spent, in seconds over all of them."""

    processes: int
    wall: float
    """Summed over the processes."""
    cpu: float
    waited: float = 0.0
    """Ready to run, without a CPU; 0 where the kernel does not tell."""
    starts: int = 0
    """Of an open loop."""
    late: int = 0
    latest: float = 0.0


def find_bottleneck(effort: Effort, errors: Mapping[str, int], cpus: int) -> str:
    """Return a sentence, or nothing when the client was not the limit."""
    reasons = [
        *_starved(errors),
        *_late(effort),
        *_busy(effort, cpus),
    ]
    return f"the client was the limit: {'; '.join(reasons)}" if reasons else ""


def _starved(errors: Mapping[str, int]) -> list[str]:
    reasons = []
    if count := errors.get("no local port", 0):
        reasons.append(f"{count} connections found no free port (more --sources)")
    if count := errors.get("no descriptor", 0):
        reasons.append(f"{count} connections found no free descriptor (ulimit -n)")
    return reasons


def _late(effort: Effort) -> list[str]:
    if effort.starts == 0 or effort.late <= LATE * effort.starts:
        return []
    share = 100 * effort.late / effort.starts
    worst = 1e3 * effort.latest
    said = f"{share:.0f} % of the starts came more than 1 ms late, the worst {worst:.1f} ms"
    return [f"{said} (the latencies count it in)"]


def _busy(effort: Effort, cpus: int) -> list[str]:
    if effort.wall < SHORTEST * effort.processes or effort.wall == 0:
        return []
    busy = (effort.cpu + effort.waited) / effort.wall
    used = effort.cpu / effort.wall * effort.processes
    if busy < BUSY and used < BUSY * cpus:
        return []
    said = f"its {effort.processes} processes were busy {100 * min(1.0, busy):.0f} % of the time"
    if effort.processes == 1:
        said = said.replace("processes were", "process was")
    if effort.waited > 0.1 * effort.wall:
        said += f", {100 * min(1.0, effort.waited / effort.wall):.0f} % waiting for a CPU"
    return [f"{said}, and used {used:.1f} of {cpus} CPUs"]
