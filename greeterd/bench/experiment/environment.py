"""Describes the machine and the programs that an experiment is run with.

Read once before the first trial, from /proc, the packages' metadata and git; what cannot be read
is left out.
"""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

import greeterd
from greeterd.bench.model import Environment
from greeterd.system.cpus import usable_cpus

SYSCTLS: Final = (
    "net.core.somaxconn",
    "net.core.netdev_max_backlog",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_migrate_req",
    "net.ipv4.tcp_abort_on_overflow",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_max_tw_buckets",
)
PACKAGES: Final = (
    "cyclopts", "hdrhistogram", "jinja2", "matplotlib", "msgspec", "psutil", "rich", "scipy",
    "structlog", "uvloop",
)  # fmt: skip
_GIT_TIMEOUT: Final = 5.0


def describe(version: str = greeterd.__version__, command: str = "") -> Environment:
    """Return what there is now; blocks for some files and two calls of git.

    `version` is that of the daemon that is measured, and `command` runs it where it is not this
    installation's: its source is not known then.
    """
    return Environment(
        date=now(),
        kernel=platform.release(),
        machine=platform.machine(),
        cpu=_cpu(_read("/proc/cpuinfo")),
        cpus=usable_cpus(),
        memory_mib=_memory_mib(_read("/proc/meminfo")),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        greeterd=version,
        command=command,
        commit="" if command else _commit(Path(greeterd.__file__).parent),
        sysctls={name: text for name in SYSCTLS if (text := _sysctl(name))},
        packages={name: text for name in PACKAGES if (text := _version(name))},
        load_average=round(os.getloadavg()[0], 2),
    )


def now() -> str:
    """Return the time of day for a record, UTC in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _cpu(cpuinfo: str) -> str:
    """Return the model's name; x86 and some ARM kernels tell it."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model", "cpu model"}:
            return value.strip()
    return platform.processor() or platform.machine()


def _memory_mib(meminfo: str) -> int:
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return 0


def _sysctl(name: str) -> str:
    return " ".join(_read(f"/proc/sys/{name.replace('.', '/')}").split())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit(directory: Path) -> str:
    """Return the source's commit, with `+` when it has changes; empty when it is no checkout."""
    commit = _git(directory, "rev-parse", "--short=12", "HEAD")
    changed = commit and _git(directory, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{commit}+" if changed else commit


def _git(directory: Path, *arguments: str) -> str:
    # The package may be installed inside of somebody's repository: only a tracked file counts.
    command = ["git", "-C", str(directory), *arguments]
    try:
        known = subprocess.run(  # noqa: S603
            ["git", "-C", str(directory), "ls-files", "--error-unmatch", "__init__.py"],  # noqa: S607
            capture_output=True,
            timeout=_GIT_TIMEOUT,
            check=False,
        )
        if known.returncode:
            return ""
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=_GIT_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
