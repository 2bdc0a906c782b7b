"""Sets resource limits of this process (open files, core dumps) and the CPU that it runs on.

The master sets its own at the start and after a reload, a worker its own before it drops its
privileges. Only soft limits are lowered, so that a later reload may raise them again; a hard limit
is raised where a setting asks for more, which takes CAP_SYS_RESOURCE (setrlimit(2)).

Where a limit cannot even be read (prlimit(2) refused by a seccomp filter), it stays as it was
inherited, and nothing is checked against it.
"""

import os
import resource
from contextlib import suppress
from typing import Final, Literal

from greeterd.errors import ConfigError, ResourceError
from greeterd.system.cpus import allowed_cpus, render_cpus

MaxFiles = int | Literal["auto"]

_UNKNOWN: Final = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
_LOOKED_AT: Final = 65536
"""Without /proc: descriptors above this are not found."""


def allow_files(wanted: MaxFiles) -> None:
    """Raise the hard limit of open files where it is below `wanted`; change nothing else.

    Raises:
        ConfigError: that is not allowed.

    """
    soft, hard = _limit_of(resource.RLIMIT_NOFILE)
    if wanted == "auto" or hard == resource.RLIM_INFINITY or wanted <= hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, wanted))
    except (ValueError, OSError) as error:  # CPython turns EPERM into a ValueError
        raise ConfigError(
            f"max_files: {wanted} is above the hard limit of {hard}, and may not be raised here"
            " (it takes CAP_SYS_RESOURCE, and fs.nr_open must allow it)"
        ) from error


def limit_files(wanted: MaxFiles) -> None:
    """Set the number of descriptors that may be open at a time; auto: as many as the hard limit.

    Raises:
        ConfigError: as `allow_files`.
        ResourceError: the limit can neither be read nor set.

    """
    allow_files(wanted)
    _, hard = limits = _limit_of(resource.RLIMIT_NOFILE)
    if limits == _UNKNOWN and wanted == "auto":
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if wanted == "auto" else wanted, hard))
    except (ValueError, OSError) as error:
        raise ResourceError(f"max_files: {wanted}: {error}") from error


def require_files(wanted: MaxFiles, needed: int, what: str) -> None:
    """Make sure that `needed` descriptors may be open; `what` says what needs them.

    Raises:
        ConfigError: the setting is too small.
        ResourceError: the hard limit is too small.

    """
    if wanted != "auto":
        if wanted < needed:
            raise ConfigError(f"max_files: {wanted} is too few: {what} takes {needed}")
        return
    allowed = most_files(wanted)
    if allowed is not None and allowed < needed:
        raise ResourceError(
            f"{allowed} open files are too few: {what} takes {needed} (ulimit -n, LimitNOFILE=)"
        )


def most_files(wanted: MaxFiles) -> int | None:
    """Return how many descriptors may be open after `limit_files`; None if there is no limit."""
    if wanted != "auto":
        return wanted
    _, hard = _limit_of(resource.RLIMIT_NOFILE)
    return None if hard == resource.RLIM_INFINITY else hard


def open_descriptors() -> list[int]:
    """Return the descriptors that are open in this process."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    except OSError:  # no /proc, or no descriptor left to look at it
        soft, _ = _limit_of(resource.RLIMIT_NOFILE)
        few = _LOOKED_AT if soft == resource.RLIM_INFINITY else min(soft, _LOOKED_AT)
        numbers = [*range(few)]
    return [fd for fd in numbers if _is_open(fd)]  # the listing's own is closed by now


def spare_files() -> int:
    """Return how many more descriptors this process may open."""
    soft, _ = _limit_of(resource.RLIMIT_NOFILE)
    most = _LOOKED_AT if soft == resource.RLIM_INFINITY else soft
    return most - len(open_descriptors())


def limit_core_dumps(*, allowed: bool) -> None:
    """Let a crash write no core file, or one as large as the hard limit allows."""
    _, hard = _limit_of(resource.RLIMIT_CORE)
    # Neither takes a privilege; a sandbox that refuses it has made the decision for us.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (hard if allowed else 0, hard))


def pin(cpu: int) -> None:
    """Run on this CPU alone from now on.

    Raises:
        ConfigError: that is not allowed.

    """
    usable = allowed_cpus()
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        known = f" (usable: {render_cpus(sorted(usable))})" if usable else ""
        raise ConfigError(
            f"cpu_affinity: cannot run on CPU {cpu}{known}: {error.strerror}"
        ) from error


def _limit_of(number: int) -> tuple[int, int]:
    try:
        return resource.getrlimit(number)
    except OSError:
        return _UNKNOWN


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
