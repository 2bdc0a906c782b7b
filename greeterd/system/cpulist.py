"""Reads and writes lists of CPUs as the kernel does: "0,2-3" (cpuset(7), List format).

The order counts, and no CPU is there twice.
"""

import re
from collections.abc import Sequence
from typing import Final

MAX_CPU: Final = 8191
"""The highest number that any Linux can have: NR_CPUS is 8192 at most."""

_ITEM: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def parse_cpus(text: str) -> tuple[int, ...]:
    """Return the CPUs in the order of the text.

    Raises:
        ValueError: it is no list, or an empty one, or has a CPU twice, or one above MAX_CPU.

    """
    cpus: list[int] = []
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise ValueError("a list looks like 0,2-3")
        first, last = int(match[1]), int(match[2] or match[1])
        if last > MAX_CPU or first > last:
            raise ValueError(f"{item.strip()} is no range of CPUs between 0 and {MAX_CPU}")
        cpus += range(first, last + 1)
    twice = next((cpu for cpu in cpus if cpus.count(cpu) > 1), None)
    if twice is not None:
        raise ValueError(f"CPU {twice} is listed twice")
    return tuple(cpus)


def render_cpus(cpus: Sequence[int]) -> str:
    """Return the list, the shortest that keeps the order."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
