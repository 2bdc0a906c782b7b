"""Settings: types, defaults, help, cross-checks.

One field of `Config` is one flag (`--max-name-bytes`), one variable (`GREETERD_MAX_NAME_BYTES`) and
one key of the file (`max_name_bytes`). Beside its field stands all about a setting: its group in
the help, its type and unit, its default, its help, and whether a reload may change it. Only
`greeterd.config.loader.load` checks the values of a Config.
"""

import pwd
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Final, Literal, TypedDict

from cyclopts import Group, Parameter

from greeterd.config.types import (
    ADDRESSES,
    AFFINITY,
    GROUP,
    MAX_COUNT,
    OCTAL,
    ON_OFF,
    USER,
    choice,
    count,
    count_or_auto,
    directory,
    seconds,
)
from greeterd.sockets.address import Address, parse_address
from greeterd.sockets.rights import MAX_FDS
from greeterd.system.cpus import affinity_of, render_cpus, unusable, usable_cpus

MAX_WORKERS: Final = 512
MAX_MIB: Final = 2**30
MIN_FILES: Final = 64
"""With fewer descriptors a master cannot supervise a few workers."""

Mode = Literal["inherit", "reuseport", "handoff"]
Wait = Literal["auto", "rotate", "exclusive", "epoll", "blocking"]
Steering = Literal["hash", "cpu", "random"]
HandoffPolicy = Literal["round-robin", "least-busy"]
Fsync = Literal["never", "always"]
LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LISTENING: Final = Parameter(group=Group.create_ordered("Listening"))
_GREETING: Final = Parameter(group=Group.create_ordered("Greeting"))
_SUPERVISION: Final = Parameter(group=Group.create_ordered("Supervision"))
_PROCESS: Final = Parameter(group=Group.create_ordered("Process"))
_LOGS: Final = Parameter(group=Group.create_ordered("Logs"))


class Facts(TypedDict):
    """The metadata of a field; cyclopts shows `help`."""

    help: str
    reload: bool


def _about(text: str, *, reload: bool = True) -> Facts:
    return {"help": text, "reload": reload}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one daemon, immutable; a reload makes another."""

    mode: Annotated[Mode, _LISTENING, choice(Mode)] = field(
        default="inherit",
        metadata=_about(
            "Share one listener, give each worker its own, or have one process hand off.",
            reload=False,
        ),
    )
    workers: Annotated[
        int | Literal["auto"], _LISTENING, count_or_auto("COUNT", 1, MAX_WORKERS)
    ] = field(
        default="auto",
        metadata=_about("Number of workers; auto is one for each usable CPU."),
    )
    bind: Annotated[tuple[str, ...], _LISTENING, ADDRESSES] = field(
        default=("127.0.0.1:12345",),
        metadata=_about("host:port, [v6]:port or unix:/path; repeat it for several.", reload=False),
    )
    backlog: Annotated[int, _LISTENING, count("COUNT", 1)] = field(
        default=4096,
        metadata=_about("Accept queue of a listener; somaxconn caps it.", reload=False),
    )
    wait: Annotated[Wait, _LISTENING, choice(Wait)] = field(
        default="auto",
        metadata=_about("How workers wait; auto is rotate for inherit, else epoll.", reload=False),
    )
    steering: Annotated[Steering, _LISTENING, choice(Steering)] = field(
        default="hash",
        metadata=_about("How the kernel chooses the listener of a connection (reuseport)."),
    )
    handoff_policy: Annotated[HandoffPolicy, _LISTENING, choice(HandoffPolicy)] = field(
        default="round-robin",
        metadata=_about("How the dispatcher chooses the worker of a connection (handoff)."),
    )

    max_name_bytes: Annotated[int, _GREETING, count("BYTES", 1, 2**20)] = field(
        default=4096, metadata=_about("Longest name; more resets the connection.")
    )
    client_timeout: Annotated[float, _GREETING, seconds()] = field(
        default=10.0, metadata=_about("Time in which a client must finish its name.")
    )
    max_connections: Annotated[int, _GREETING, count("COUNT", 1)] = field(
        default=4096, metadata=_about("Unfinished connections per worker.")
    )
    reply: Annotated[bool, _GREETING, ON_OFF] = field(
        default=False, metadata=_about("Answer with the greeting once it is logged.")
    )
    allow_exit: Annotated[bool, _GREETING, ON_OFF] = field(
        default=False, metadata=_about('Let the name "exit" retire the worker that reads it.')
    )

    graceful_timeout: Annotated[float, _SUPERVISION, seconds()] = field(
        default=30.0, metadata=_about("Time to drain before a worker is killed.")
    )
    drain_grace: Annotated[float, _SUPERVISION, seconds(0.0)] = field(
        default=0.25,
        metadata=_about("Wait for handshakes in flight before a listener closes."),
    )
    shutdown_delay: Annotated[float, _SUPERVISION, seconds(0.0)] = field(
        default=0.0,
        metadata=_about("Time to go on accepting after a stop begins, while reporting not ready."),
    )
    worker_timeout: Annotated[float, _SUPERVISION, seconds()] = field(
        default=30.0, metadata=_about("Time without a heartbeat before a worker is aborted.")
    )
    start_timeout: Annotated[float, _SUPERVISION, seconds()] = field(
        default=30.0, metadata=_about("Time in which a worker must become ready.")
    )
    max_restarts: Annotated[int, _SUPERVISION, count("COUNT", 0)] = field(
        default=8,
        metadata=_about("Restarts of one worker in the window before the daemon gives up."),
    )
    restart_window: Annotated[float, _SUPERVISION, seconds()] = field(
        default=60.0, metadata=_about("Span over which restarts are counted.")
    )
    rescue: Annotated[bool, _SUPERVISION, ON_OFF] = field(
        default=True,
        metadata=_about("Lend the listener of a worker that cannot accept to a sibling."),
    )
    max_greetings: Annotated[int, _SUPERVISION, count("COUNT", 0)] = field(
        default=0, metadata=_about("Greetings after which a worker is replaced; 0 is never.")
    )
    max_age: Annotated[float, _SUPERVISION, seconds(0.0)] = field(
        default=0.0, metadata=_about("Age at which a worker is replaced; 0 is never.")
    )
    max_rss: Annotated[int, _SUPERVISION, count("MIB", 0, MAX_MIB)] = field(
        default=0, metadata=_about("Resident memory at which a worker is replaced; 0 is never.")
    )

    daemonize: Annotated[bool, _PROCESS, ON_OFF] = field(
        default=False, metadata=_about("Detach once the workers are ready.", reload=False)
    )
    run_dir: Annotated[Path, _PROCESS, directory()] = field(
        default=Path("/run/greeterd"),
        metadata=_about(
            "Run lock and control socket. [default: $RUNTIME_DIRECTORY, else"
            " $XDG_RUNTIME_DIR/greeterd, else a private one]",
            reload=False,
        ),
    )
    user: Annotated[str | None, _PROCESS, USER] = field(
        default=None,
        metadata=_about("User to become, a name or number. [default: unchanged]", reload=False),
    )
    group: Annotated[str | None, _PROCESS, GROUP] = field(
        default=None,
        metadata=_about("Group to become. [default: the user's own]", reload=False),
    )
    max_files: Annotated[
        int | Literal["auto"], _PROCESS, count_or_auto("COUNT", MIN_FILES, MAX_COUNT)
    ] = field(
        default="auto",
        metadata=_about("Descriptors that a process may have open; auto is the hard limit."),
    )
    core_dumps: Annotated[bool, _PROCESS, ON_OFF] = field(
        default=False, metadata=_about("Let a process that crashes leave a core file.")
    )
    cpu_affinity: Annotated[str, _PROCESS, AFFINITY] = field(
        default="off",
        metadata=_about("Run each worker on one CPU of this list, by turns; auto is all usable."),
    )
    umask: Annotated[int, _PROCESS, OCTAL] = field(
        default=0o027, metadata=_about("Permissions that new files do not get.", reload=False)
    )
    unix_mode: Annotated[int, _PROCESS, OCTAL] = field(
        default=0o666,
        metadata=_about("Permissions of unix sockets that are listened on.", reload=False),
    )

    log_dir: Annotated[Path, _LOGS, directory()] = field(
        default=Path("logs"),
        metadata=_about("Where logs are written. [default: $LOGS_DIRECTORY, else ./logs]"),
    )
    log_format: Annotated[LogFormat, _LOGS, choice(LogFormat)] = field(
        default="auto", metadata=_about("Daemon log; auto is console on a terminal, else json.")
    )
    log_level: Annotated[LogLevel, _LOGS, choice(LogLevel)] = field(
        default="info", metadata=_about("Lowest level that the daemon log records.")
    )
    fsync: Annotated[Fsync, _LOGS, choice(Fsync)] = field(
        default="never", metadata=_about("Force greetings to the disk before they are answered.")
    )

    @property
    def worker_count(self) -> int:
        """The number of workers; `auto` asks the kernel each time, so read it once per reload."""
        return min(usable_cpus(), MAX_WORKERS) if self.workers == "auto" else self.workers

    @property
    def pinned_cpus(self) -> tuple[int, ...]:
        """The CPUs that workers are pinned to by turns; none when they are not pinned."""
        return affinity_of(self.cpu_affinity)

    @property
    def wait_strategy(self) -> Literal["rotate", "exclusive", "epoll", "blocking"]:
        """The wait strategy that was chosen, or that `auto` means."""
        if self.wait == "auto":
            return "rotate" if self.mode == "inherit" else "epoll"
        return self.wait


NAMES: Final = tuple(one.name for one in fields(Config))
"""Every setting, in the order in which they are shown."""

FIXED: Final = frozenset(one.name for one in fields(Config) if not one.metadata["reload"])
"""The settings that only a restart can change."""


def fixed_differences(old: Config, new: Config) -> list[str]:
    """Return the names of the settings that differ though a reload may not change them."""
    return [name for name in NAMES if name in FIXED and getattr(old, name) != getattr(new, name)]


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Settings whose values exclude each other."""

    names: tuple[str, ...]
    reason: str


def contradictions(config: Config) -> Iterator[Contradiction]:
    """Yield the settings that exclude each other, the simplest cases first."""
    addresses = [parse_address(text) for text in config.bind]
    twice = next((one for one in addresses if addresses.count(one) > 1), None)
    if twice is not None:
        yield Contradiction(("bind",), f"{twice} is listed twice")
    yield from _of_the_mode(config, addresses)
    if missing := unusable(config.pinned_cpus):
        yield Contradiction(
            ("cpu_affinity",), f"CPU {render_cpus(missing)} cannot be used by this process"
        )
    if config.wait == "blocking" and len(addresses) > 1:
        yield Contradiction(
            ("wait", "bind"), "a worker blocks on one listener, it cannot watch several"
        )
    if config.drain_grace >= config.graceful_timeout:
        yield Contradiction(
            ("drain_grace", "graceful_timeout"),
            "the first must be shorter, or a worker would be killed before its listener closes",
        )
    if config.user is not None and config.group is None and not _has_entry(config.user):
        yield Contradiction(
            ("user", "group"), "a user without an entry in the user database needs a group"
        )


def _of_the_mode(config: Config, addresses: list[Address]) -> Iterator[Contradiction]:
    if config.mode == "reuseport":
        if any(address.is_unix for address in addresses):
            yield Contradiction(
                ("mode", "bind"),
                "the kernel has no reuseport balancing for unix sockets",
            )
        if config.wait in {"rotate", "exclusive"}:
            yield Contradiction(
                ("mode", "wait"),
                f"{config.wait} is for workers that share a listener, and in reuseport none do",
            )
    elif config.steering != "hash":
        yield Contradiction(
            ("mode", "steering"),
            f"steering chooses between listeners, and {config.mode} has one",
        )
    if config.mode != "inherit" and len(addresses) > MAX_FDS:
        yield Contradiction(
            ("mode", "bind"),
            f"{config.mode} passes a listener of each address between processes,"
            f" and so has {MAX_FDS} addresses at most",
        )
    if config.mode == "handoff":
        if config.wait not in {"auto", "epoll"}:
            yield Contradiction(
                ("mode", "wait"),
                f"{config.wait} is for several accepting workers; in handoff only the dispatcher"
                " accepts",
            )
    elif config.handoff_policy != "round-robin":
        yield Contradiction(
            ("mode", "handoff_policy"), f"nothing is handed off in mode {config.mode}"
        )


def _has_entry(user: str) -> bool:
    try:
        if user.isdecimal():
            pwd.getpwuid(int(user))
        else:
            pwd.getpwnam(user)
    except KeyError:
        return False
    return True
