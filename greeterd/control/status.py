"""The daemon's status as greeterctl and the bench read it: Status, and reading one from JSON.

The master fills a Status from the supervisor's records and the scoreboard. Counters are cumulative
unless SlotCounters says otherwise. Durations are seconds; `since` and `at` are wall-clock seconds
since the epoch, for people and records only.
A field may be added; none changes its meaning.
"""

from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

State = Literal["starting", "running", "reloading", "stopping"]

BACK_OFF: Final = "back-off"
"""The state of a slot's row while no process exists: it waits for its restart."""


class SlotCounters(Struct, frozen=True, kw_only=True):
    """The scoreboard's cells, summed over the workers that a slot has had.

    connections == greetings + empty + oversize + timeout + reset + exit + handed_over + open.
    """

    connections: int = 0
    greetings: int = 0
    empty: int = 0
    oversize: int = 0
    timeout: int = 0
    reset: int = 0
    exit: int = 0
    replies: int = 0
    accept_errors: int = 0
    accepts_paused: int = 0
    log_errors: int = 0
    wakeups: int = 0
    wasted_wakeups: int = 0
    turns: int = 0
    handed_over: int = 0
    """Connections that the dispatcher (slot 0 of mode handoff) has passed to a worker."""
    rescued: int = 0
    """Connections accepted from a sibling's lent listener."""
    heartbeat_ns: int = 0
    """A gauge: the monotonic instant of the latest loop turn."""
    open: int = 0
    """A gauge: connections that are not finished."""
    blocked: int = 0
    """A gauge: why nothing is accepted, a number of the scoreboard; 0 while connections are."""
    log_errno: int = 0
    """A gauge: the errno with which the greeting log cannot be written (then `blocked` says so), or
    cannot be reopened after it was moved; else 0."""


class WorkerStatus(Struct, frozen=True, kw_only=True):
    """One worker, or a slot in back-off (no pid, state BACK_OFF)."""

    slot: int
    generation: int
    state: str
    """starting, ready, draining (the supervisor's words), or BACK_OFF."""
    pid: int | None = None
    age: float = 0.0
    """Seconds in this state."""
    heartbeat_age: float | None = None
    """Seconds since the worker last turned its loop; None before the first turn."""
    restarts: int = 0
    """How often this slot's worker was started again after a death."""
    backoff: float | None = None
    """Seconds left until the restart; None when none is waiting."""
    lent_to: int | None = None
    """The slot whose worker accepts from this slot's listener for now."""
    title: str = ""
    """The process title."""
    leaving: bool = False
    """It drains, and another worker replaces it."""
    log: str | None = None
    """Why its greeting log cannot be written or reopened; None when it can."""


class ListenerStatus(Struct, frozen=True, kw_only=True):
    """A listener's accept queue."""

    address: str
    slot: int | None = None
    """Its slot; None for a listener that all slots share."""
    queued: int
    """Connections that wait to be accepted."""
    queued_max: int = 0
    """The longest queue that the master has seen since its start or latest upgrade. It looks five
    times a second in mode reuseport, once a second in others, and at each status request."""
    limit: int
    """The backlog in force."""
    drops: int | None = None
    """Packets that the kernel has dropped here since the listener was opened, mostly connections
    that found the queue full, counted again at each new attempt; None where it is not known."""


class ReloadResult(Struct, frozen=True, kw_only=True):
    """How the latest reload ended."""

    ok: bool
    generation: int
    """The generation in force afterwards."""
    at: float
    took: float
    error: str | None = None


class Status(Struct, frozen=True, kw_only=True):
    """The whole daemon at one instant."""

    version: str
    """greeterd's."""
    pid: int
    """The master's."""
    mode: str
    wait: str
    """The wait strategy in force, never `auto`."""
    state: State
    generation: int
    since: float
    uptime: float
    addresses: list[str]
    """As bound: port 0 is resolved."""
    passed: bool = False
    """A socket unit has opened the listeners; `bind` of the configuration is not used."""
    workers: list[WorkerStatus]
    """Each slot at least once, in the order of slots; the serving worker before a leaving one."""
    counters: dict[int, SlotCounters]
    """By slot."""
    totals: SlotCounters
    """Of all slots that there have been."""
    dispatcher: list[WorkerStatus] = []
    """Of mode handoff, as `workers`; its slot is 0."""
    handed: SlotCounters = SlotCounters()
    """The counters of the dispatcher; its connections count again in the slots that serve them."""
    listeners: list[ListenerStatus] = []
    restarts_in_window: int = 0
    """Of all workers."""
    max_restarts: int = 0
    """Of each worker."""
    restart_window: float = 0.0
    longest_stall: float = 0.0
    """The longest time in which the master's loop took no event: busy, or woken late. Since its
    start or latest upgrade, without the exec of that."""
    trouble: str | None = None
    """The addresses that do not accept, and why; None if all do."""
    last_error: str | None = None
    warnings: list[str] = []
    """Present problems, a line each, such as a control socket that was removed."""
    reload: ReloadResult | None = None
    """The latest; None before the first."""
    log_dir: str = ""
    run_dir: str = ""
    config: str | None = None
    """The configuration file; None without one."""


def total(rows: Iterable[SlotCounters]) -> SlotCounters:
    """Return the sums; of the gauges, the maxima (of `open`, the sum)."""
    rows = tuple(rows)
    sums = {
        name: sum(getattr(row, name) for row in rows) % 2**64  # more is no JSON
        for name in SlotCounters.__struct_fields__
    }
    for gauge in ("heartbeat_ns", "blocked", "log_errno"):
        sums[gauge] = max((getattr(row, gauge) for row in rows), default=0)
    return SlotCounters(**sums)


def from_plain(value: Any) -> Status:
    """Return a Status from its decoded JSON, also that of a newer version with more fields.

    Raises:
        ValueError: it is not a Status.

    """
    # The keys of a JSON object are texts; those of `counters` are slots.
    return msgspec.convert(value, Status, strict=False)
