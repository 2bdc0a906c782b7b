"""Shows a Status as text: a heading, a table of slots, notes on what is unusual.

Nothing is cut off. On a terminal the notes stand in the table where they fit, else under it; in a
pipe, which has no width, lines are as long as they need to be and have no colours.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TextIO

from rich.table import Table
from rich.text import Text

from greeterd.control.status import BACK_OFF, ListenerStatus, SlotCounters, Status, WorkerStatus
from greeterd.screen import Screen, duration
from greeterd.supervisor.ids import DISPATCHER
from greeterd.system.escape import escape

COLUMNS: Final = (
    "slot", "pid", "gen", "state", "age", "conns", "greeted", "share", "queue", "open",
    "restarts", "beat", "note",
)  # fmt: skip

BLOCKED: Final[Mapping[int, str]] = {
    1: "not accepting: log cannot be written",
    2: "not accepting: out of descriptors",
    3: "not accepting: at max_connections",
    4: "not accepting: no worker has room",
}
"""The reasons of worker.scoreboard (BLOCKED_BY_...) in words."""

_STATE_STYLES: Final = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    BACK_OFF: "red",
}
_LEFT: Final = frozenset({"state", "note"})
_UNLIMITED: Final = 100_000
_STATE: Final = COLUMNS.index("state")


def render_status(status: Status, file: TextIO) -> str:
    """Return the text that shows a status on `file`, by its width and colours."""
    console = Screen(file)
    rows = [tuple(escape(cell) for cell in row) for row in table_rows(status)]
    table = _table(rows, notes=True)
    fits = not console.is_terminal or _width(console, table) <= console.width
    if not fits:
        table = _table(rows, notes=False)
    console.width = max(console.width, _width(console, table))
    lines = [escape(line) for line in heading(status)]
    after = [escape(line) for line in footing(status)]
    if not fits:
        after = [f"slot {slot}: {note}" for slot, *_, note in rows if note] + after
    return console.text_of(*map(Text, lines), Text(), table, *map(Text, after))


def _table(rows: list[tuple[str, ...]], *, notes: bool) -> Table:
    shown = COLUMNS if notes else COLUMNS[:-1]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in shown:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    for row in rows:
        style = _STATE_STYLES.get(row[_STATE], "")
        cells = [
            Text(cell, style if index == _STATE else "")
            for index, cell in enumerate(row[: len(shown)])
        ]
        table.add_row(*cells)
    return table


def _width(console: Screen, table: Table) -> int:
    return console.measure(table, options=console.options.update(max_width=_UNLIMITED)).maximum


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
    """Return the lines under the table: the connections that became no greeting, if any."""
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
    """Return what is unusual about a worker and its slot, the most urgent first."""
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


def share(part: int, whole: int) -> float | None:
    """Return `part` as a fraction of `whole`; None of nothing."""
    return part / whole if whole else None


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage, `-` for None."""
    return "-" if fraction is None else f"{100 * fraction:.1f}%"
