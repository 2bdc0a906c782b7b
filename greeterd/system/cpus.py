"""The CPUs that this process may use, and how many: its affinity, capped by cgroup quotas.

A container or a unit with `CPUQuota=` sees every CPU of the machine and is throttled when it uses
them, so the affinity alone is not the answer. A quota holds for everything below the cgroup that
sets it: the smallest on the way from the process's own cgroup up to the mounted root counts.
Formats: cgroups(7), the kernel's cgroup-v2.rst (`cpu.max`) and sched-bwc.rst (`cpu.cfs_quota_us`),
proc(5) for mountinfo. Both versions may be mounted at once. What cannot be read sets no limit.

Lists of CPUs are written as the kernel writes them: "0,2-3" (cpuset(7), List format). Their order
counts, and no CPU is in one twice.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from greeterd.errors import ResourceError

MAX_CPU: Final = 8191
"""The highest number that any Linux can have: NR_CPUS is 8192 at most."""

_ITEM: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_OCTAL_ESCAPE = re.compile(r"\\([0-7]{3})")


def usable_cpus(root: Path = Path("/"), affinity: int | None = None) -> int:
    """Return the number of CPUs that this process may keep busy, at least 1.

    A fraction of a CPU is rounded up: with a quota of 1.5 a second worker has half a CPU to use.
    Where the affinity is unknown, all CPUs of the machine count.
    `root` holds `proc` and what is mounted; tests replace it, and the kernel's `affinity`.
    """
    if affinity is None:
        affinity = len(allowed_cpus()) or os.cpu_count() or 1
    quotas = [quota for group in _cgroups(root) for quota in _quotas(group)]
    return math.ceil(min([affinity, *quotas]))  # none is 0 or less, so this is 1 or more


def allowed_cpus() -> frozenset[int]:
    """Return the CPUs that this process may run on; none where the call is not allowed."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except OSError:  # a seccomp filter
        return frozenset()


def affinity_of(setting: str) -> tuple[int, ...]:
    """Return the CPUs that workers are pinned to, by turns; none for `off`, all usable for `auto`.

    `setting` is `cpu_affinity`. Whether the CPUs of a list are usable is not checked.

    Raises:
        ResourceError: `auto`, and which are usable is unknown.

    """
    if setting == "off":
        return ()
    if setting != "auto":
        return parse_cpus(setting)
    if not (usable := allowed_cpus()):
        raise ResourceError("cpu_affinity: auto: the usable CPUs are unknown")
    return tuple(sorted(usable))


def cpu_of(slot: int, cpus: Sequence[int]) -> int | None:
    """Return the CPU of a slot, by turns: the first CPU for slot 1."""
    return cpus[(slot - 1) % len(cpus)] if cpus else None


def unusable(cpus: Iterable[int]) -> list[int]:
    """Return those of the CPUs that this process may not run on; none where that is unknown."""
    usable = allowed_cpus()
    return sorted(set(cpus) - usable) if usable else []


def parse_cpus(text: str) -> tuple[int, ...]:
    """Return the CPUs of a list, in its order.

    Raises:
        ValueError: it is no list, or empty, or has a CPU twice, or one above MAX_CPU.

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
    """Return the CPUs as a list, the shortest one that keeps their order."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _cgroups(root: Path) -> Iterator[Path]:
    """Yield every cgroup directory whose quota holds for this process."""
    memberships = _memberships(root)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        match mount.split(), kind.split():
            case [_, _, _, top, point, *_], ["cgroup2", *_]:
                own = memberships.get("")
            case [_, _, _, top, point, *_], ["cgroup", _, options] if "cpu" in options.split(","):
                own = memberships.get("cpu")
            case _:
                continue
        if own is not None:
            mounted = root / _unescape(point).lstrip("/")
            below = _below(own, _unescape(top))
            yield from (mounted / path for path in (below, *below.parents))


def _memberships(root: Path) -> dict[str, str]:
    """Return the path of the own cgroup by controller; version 2 has the controller ''."""
    found: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _below(own: str, top: str) -> PurePosixPath:
    """Return the own cgroup's path below the mount, which shows the hierarchy from `top` down."""
    # Outside of what is mounted, as after a move between cgroup namespaces, the mount's root is the
    # nearest that can be read.
    path = PurePosixPath(own)
    if ".." in path.parts or not path.is_relative_to(top):
        return PurePosixPath()
    return path.relative_to(top)


def _quotas(group: Path) -> Iterator[float]:
    """Yield the quotas of one cgroup, in CPUs."""
    version_2 = _read(group / "cpu.max").split()
    version_1 = [_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")]
    for pair in (version_2, version_1):
        try:
            quota, period = map(int, pair)
        except ValueError:
            continue  # "max", or not there
        if quota > 0 and period > 0:  # version 1 writes -1 for "no quota"
            yield quota / period


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _unescape(text: str) -> str:
    return _OCTAL_ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
