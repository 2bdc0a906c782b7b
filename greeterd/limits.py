"""Sets what the kernel allows this process: open files, core dumps, the CPU that it runs on.

The master sets its own at the start and after a reload, a worker its own before it drops its
privileges. Only soft limits are lowered, so that a later reload may raise them again; a hard limit
is raised where a setting asks for more, which takes CAP_SYS_RESOURCE (setrlimit(2)).
"""

import os
import resource
from pathlib import Path
from typing import Literal

from greeterd.core.cpulist import render_cpus
from greeterd.errors import ConfigError

MaxFiles = int | Literal["auto"]


def allow_files(wanted: MaxFiles) -> None:
    """Raise the hard limit of open files where it is below what is wanted; change nothing else.

    Raises:
        ConfigError: the kernel does not let us.

    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted == "auto" or wanted <= hard:
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

    Raises: ConfigError as `allow_files`.
    """
    allow_files(wanted)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if wanted == "auto" else wanted, hard))


def spare_files() -> int:
    """Return how many descriptors more this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - sum(1 for _ in Path("/proc/self/fd").iterdir())


def limit_core_dumps(*, allowed: bool) -> None:
    """Let a crash write no core file, or one as large as the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard if allowed else 0, hard))


def pin(cpu: int) -> None:
    """Run on this CPU alone from now on.

    Raises:
        ConfigError: the kernel does not let us.

    """
    usable = render_cpus(sorted(os.sched_getaffinity(0)))
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        raise ConfigError(
            f"cpu_affinity: cannot run on CPU {cpu} (usable: {usable}): {error.strerror}"
        ) from error
