"""What the daemon tells about itself: Status, its JSON, and the cells of its table.

The master fills a Status from the supervisor's records and the scoreboard; greeterctl and the
metrics read it.  Counters are cumulative unless SlotCounters says otherwise.  Durations are
seconds; `since` and `at` are wall-clock seconds since the epoch, for people and records only.
A field may be added; none changes its meaning.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from greeterd.supervisor.ids import DISPATCHER

State = Literal["starting", "running", "reloading", "stopping"]

BACK_OFF: Final = "back-off"
"""The state of a slot's row while no process exists: it waits for its restart."""

COLUMNS: Final = (
    "slot", "pid", "gen", "state", "age", "conns", "greeted", "share", "queue", "open",
    "restarts", "beat", "note",
)  # fmt: skip

LOG_BLOCKED: Final = 1
BLOCKED: Final[Mapping[int, str]] = {
    LOG_BLOCKED: "not accepting: log cannot be written",
    2: "not accepting: out of descriptors",
    3: "not accepting: at max_connections",
    4: "not accepting: no worker has room",
}


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
    """A gauge: why nothing is accepted; 0 when it is, else a key of BLOCKED."""
    log_errno: int = 0
    """A gauge: why the greeting log cannot be written (where that is why nothing is accepted), or
    not be reopened after it was moved (where it is not), as an errno; else 0."""


class WorkerStatus(Struct, frozen=True, kw_only=True):
    """One worker, or a slot that waits for its next one (no pid, state BACK_OFF)."""

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
    """The slot whose worker accepts from this slot's listener meanwhile."""
    title: str = ""
    """The process title."""
    leaving: bool = False
    """It drains, and another worker has or gets the slot."""
    log: str | None = None
    """Why its greeting log cannot be written, or not be reopened; None when all is well."""


class ListenerStatus(Struct, frozen=True, kw_only=True):
    """A listener's accept queue."""

    address: str
    slot: int | None = None
    """Whose it is; None for a listener that all slots share."""
    queued: int
    """Connections that wait to be accepted."""
    queued_max: int = 0
    """The most that the master has seen waiting, in this image of the program: it looks five times
    a second in mode reuseport and once a second else, and at each status request.  A queue that was
    longer in between is not in it."""
    limit: int
    """The backlog in force."""
    drops: int | None = None
    """Packets that the kernel has dropped here since the listener was opened, mostly connections
    that found the queue full, counted again at each new attempt; None where it does not tell."""


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
    """A socket unit has opened the listeners, and they are not `bind` of the configuration."""
    workers: list[WorkerStatus]
    """Each slot at least once, in the order of slots; the serving worker before a leaving one."""
    counters: dict[int, SlotCounters]
    """By slot."""
    totals: SlotCounters
    """Of all slots that there have been."""
    dispatcher: list[WorkerStatus] = []
    """Of mode handoff, as `workers`; its slot is 0."""
    handed: SlotCounters = SlotCounters()
    """What the dispatcher has counted; its connections are counted again where they are served."""
    listeners: list[ListenerStatus] = []
    restarts_in_window: int = 0
    """Of all workers."""
    max_restarts: int = 0
    """Of each worker."""
    restart_window: float = 0.0
    longest_stall: float = 0.0
    """The longest time for which the master's loop was deaf: busy, or woken late. Since its start
    or the latest upgrade, whose own exec is not in it."""
    trouble: str | None = None
    """Which addresses do not accept, and why; None if all do."""
    last_error: str | None = None
    warnings: list[str] = []
    """What is wrong at this moment, a line each, such as a control socket that was removed."""
    reload: ReloadResult | None = None
    """The latest; None before the first."""
    log_dir: str = ""
    run_dir: str = ""
    config: str | None = None
    """The configuration file; None without one."""


def total(rows: Iterable[SlotCounters]) -> SlotCounters:
    """Return the sum; of the gauges but `open` the greatest."""
    rows = tuple(rows)
    sums = {
        name: sum(getattr(row, name) for row in rows) % 2**64  # more is no JSON
        for name in SlotCounters.__struct_fields__
    }
    for gauge in ("heartbeat_ns", "blocked", "log_errno"):
        sums[gauge] = max((getattr(row, gauge) for row in rows), default=0)
    return SlotCounters(**sums)


def share(part: int, whole: int) -> float | None:
    """Return `part` as a fraction of `whole`; None of nothing."""
    return part / whole if whole else None


def to_json(status: Status) -> bytes:
    """Return one line of JSON without its newline."""
    return msgspec.json.encode(status)


def from_json(data: bytes) -> Status:
    """Read what `to_json` wrote, also that of a newer version with more fields.

    Raises:
        ValueError: it is not the JSON of a Status.

    """
    return msgspec.json.decode(data, type=Status)


def from_plain(value: Any) -> Status:
    """Read a Status that is already decoded into dicts and lists.

    Raises:
        ValueError: it is not that of a Status.

    """
    # A dict from JSON has text for keys; the counters' keys are slots.
    return msgspec.convert(value, Status, strict=False)


def heading(status: Status) -> list[str]:
    """Return the lines above the table: the daemon first, then only what is worth a line."""
    queues = {each.address: each for each in status.listeners if each.slot is None}
    addresses = [
        f"{address} ({_queue(queues[address])})" if address in queues else address
        for address in status.addresses
    ]
    daemon = (
        f"greeterd {status.version}: {status.state}, {status.mode} ({status.wait}),"
        f" pid {status.pid}, up {duration(status.uptime)}, generation {status.generation}"
    )
    origin = ", passed by the service manager" if status.passed else ""
    lines = [daemon, f"listening on {', '.join(addresses) or 'nothing'}{origin}"]
    if status.trouble:
        lines.append(f"trouble: {status.trouble}")
    if status.restarts_in_window:
        lines.append(
            f"restarts: {status.restarts_in_window} in the last"
            f" {duration(status.restart_window)}, {status.max_restarts} are allowed to each worker"
        )
    if status.reload is not None:
        ago = duration(status.since + status.uptime - status.reload.at)
        how = "done" if status.reload.ok else f"failed: {status.reload.error or 'no reason given'}"
        lines.append(f"last reload: {ago} ago, {how}")
    if status.last_error:
        lines.append(f"last error: {status.last_error}")
    lines += [f"warning: {each}" for each in status.warnings]
    return lines


def _queue(listener: ListenerStatus) -> str:
    found = [f"queue {listener.queued} of {listener.limit}"]
    if listener.queued_max:
        found.append(f"{listener.queued_max} at most")
    if listener.drops:
        found.append(f"{listener.drops} dropped")
    return ", ".join(found)


def footing(status: Status) -> list[str]:
    """Return the lines under the table: what was accepted and not greeted, if anything."""
    kinds = ("empty", "oversize", "timeout", "reset", "exit")
    counts = [(kind, getattr(status.totals, kind)) for kind in kinds]
    refused = ", ".join(f"{count} {kind}" for kind, count in counts if count)
    return [f"not greeted: {refused}"] if refused else []


def table_rows(status: Status) -> list[tuple[str, ...]]:
    """Return a row of COLUMNS per worker, then one of totals when there are several slots.

    A slot's counters stand in its first row only: they belong to the slot, not to a process.
    """
    rows: list[tuple[str, ...]] = []
    for number, worker in enumerate(status.dispatcher):
        rows.append(_row(status, worker, status.handed, first=number == 0))
    seen: set[int] = set()
    for worker in status.workers:
        counters = status.counters.get(worker.slot, SlotCounters())
        rows.append(_row(status, worker, counters, first=worker.slot not in seen))
        seen.add(worker.slot)
    if len(seen) > 1:
        totals = status.totals
        rows.append((
            "all", "", "", "", "", str(totals.connections), str(totals.greetings),
            percent(share(totals.connections, totals.connections)), "", str(totals.open),
            str(sum({worker.slot: worker.restarts for worker in status.workers}.values())),
            "", "",
        ))  # fmt: skip
    return rows


def _row(
    status: Status, worker: WorkerStatus, counters: SlotCounters, *, first: bool
) -> tuple[str, ...]:
    listeners = [each for each in status.listeners if each.slot == worker.slot]
    own = (
        str(counters.connections),
        str(counters.greetings),
        "-"
        if worker.slot == DISPATCHER
        else percent(share(counters.connections, status.totals.connections)),
        str(sum(each.queued for each in listeners)) if listeners else "-",
        str(counters.open),
        str(worker.restarts),
    )
    return (
        str(worker.slot),
        "-" if worker.pid is None else str(worker.pid),
        str(worker.generation),
        worker.state,
        duration(worker.age),
        *(own if first else ("",) * len(own)),
        "-" if worker.heartbeat_age is None else f"{worker.heartbeat_age:.1f}s",
        ", ".join(
            notes(worker, counters, listeners) if first else notes(worker, SlotCounters(), ())
        ),
    )


def notes(
    worker: WorkerStatus, counters: SlotCounters, listeners: Sequence[ListenerStatus]
) -> list[str]:
    """Return what is out of the ordinary about a worker and its slot, the most urgent first."""
    found = ["dispatcher"] if worker.slot == DISPATCHER else []
    if counters.blocked:
        found.append(BLOCKED.get(counters.blocked, f"not accepting: {counters.blocked}"))
    if worker.log:
        found.append(worker.log)
    if worker.backoff is not None:
        found.append(f"back-off {worker.backoff:.1f} s")
    if worker.lent_to is not None:
        found.append(f"lent to {worker.lent_to}")
    if worker.leaving:
        found.append("leaving")
    if any(each.queued_max > each.limit for each in listeners):
        found.append("queue was full")  # the kernel lets in one more than the limit
    counts = {
        "dropped": sum(each.drops or 0 for each in listeners),
        "rescued": counters.rescued,
        "accept errors": counters.accept_errors,
        "log errors": counters.log_errors,
    }
    return found + [f"{count} {what}" for what, count in counts.items() if count]


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage, `-` for None."""
    return "-" if fraction is None else f"{100 * fraction:.1f}%"


def duration(seconds: float) -> str:
    """Return at most two units, six characters below a hundred days: 7s, 12m05s, 3h20m, 2d04h."""
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hour}h{minute:02}m"
    if minutes:
        return f"{minute}m{second:02}s"
    return f"{second}s"
