"""The command `greeter census`: who has the connections of a port, by process.

Standard output carries the census and nothing else.  Nothing is changed, and no server is asked.
"""

import select
import sys
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Final

import msgspec
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from greeterd.bench.census import Census, take
from greeterd.bench.report.tables import show
from greeterd.cli.usage import epilogue
from greeterd.errors import GreeterdError
from greeterd.system.escape import escape, to_ascii

SHOWN_NAME: Final = 48
ABOUT: Final = """\
Each established connection of the port is attributed to the process that has it open, and each
listening socket's queue to those that have it. Run as root to look into processes of other users.

Exit codes:

- 0: something listens at the port
- 1: nothing does
- 2: the command line is wrong
- 70: the kernel does not tell
- 74: standard output cannot be written
- 130: interrupted
"""
EXAMPLES: Final = ("greeter census 80", "greeter census 12345 --watch", "greeter census 443 --json")
EX_NOTHING: Final = 1

app = App(
    name="census",
    help="Say who has the connections of a port, by process, of any server.",
    help_epilogue=epilogue(EXAMPLES, ABOUT),
)


class CensusError(GreeterdError):
    """The kernel does not tell of its sockets (EX_SOFTWARE)."""

    exit_code = 70


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One process, as `--json` has it."""

    pid: int
    name: str
    established: int
    share: float
    """Of all that processes have."""
    cpu_percent: float | None
    """Since the census before; None in the first."""
    cpu_seconds: float
    listeners: list[int]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints."""

    port: int
    processes: list[Row]
    listening: list[msgspec.Raw]
    queued: int
    unseen: int
    jain: float | None
    p_value: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Moment:
    """A census, and when it was taken."""

    census: Census
    at: float


@app.default
def census(
    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))],
    /,
    *,
    watch: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    interval: Annotated[float, Parameter(validator=Number(gte=0.1))] = 2.0,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Say who has the connections of a port.

    Parameters
    ----------
    port
        A TCP port of this machine.
    watch
        Again and again, with the CPU time since the time before.
    interval
        Seconds between two.
    json
        One JSON object for each.
    """
    before: Moment | None = None
    while True:
        now = _moment(port)
        told = summarise(now, before)
        if json:
            sys.stdout.write(to_ascii(msgspec.json.encode(told)) + "\n")
        else:
            sys.stdout.write(show(render(told, now.census), sys.stdout))
        sys.stdout.flush()
        if not watch:
            return 0 if now.census.listening else EX_NOTHING
        before = now
        select.select((), (), (), interval)


def _moment(port: int) -> Moment:
    try:
        return Moment(take(port), monotonic())
    except OSError as error:
        raise CensusError(f"the kernel does not tell of its sockets: {error.strerror}") from error


def summarise(now: Moment, before: Moment | None) -> Told:
    """Return what a census says, with what changed since the one before."""
    found = now.census
    whole = sum(one.established for one in found.members)
    used = {one.pid: one.cpu_seconds for one in before.census.members} if before else {}
    passed = now.at - before.at if before else 0.0
    spread = found.balance
    tells = spread is not None and len(spread.counts) > 1 and spread.total > 0
    return Told(
        port=found.port,
        processes=[
            Row(
                pid=one.pid,
                name=one.name,
                established=one.established,
                share=one.established / whole if whole else 0.0,
                cpu_percent=100 * (one.cpu_seconds - used[one.pid]) / passed
                if one.pid in used and passed
                else None,
                cpu_seconds=one.cpu_seconds,
                listeners=one.listeners,
            )
            for one in found.members
        ],
        listening=[msgspec.Raw(msgspec.json.encode(one)) for one in found.listening],
        queued=found.queued,
        unseen=found.unseen,
        jain=spread.found.jain if spread and tells else None,
        p_value=spread.p_value if spread and tells else None,
        sentence=_sentence(found),
    )


def _sentence(found: Census) -> str:
    if not found.listening:
        return f"nothing listens at port {found.port}"
    parts = []
    if (spread := found.balance) and spread.total and len(spread.counts) > 1:
        # A census knows processes, not slots.
        parts.append(spread.sentence.replace("worker ", "process ").replace("workers", "processes"))
    elif not sum(one.established for one in found.members):
        parts.append("no connection is established in a process")
    if found.queued:
        parts.append(f"{found.queued} wait in accept queues")
    if found.unseen:
        parts.append(
            f"{found.unseen} belong to processes that may not be looked into (run as root)"
        )
    return "; ".join(parts) or "one process has all"


def render(told: Told, found: Census) -> RenderableType:
    """Return the tables and the sentence, for a console of any width."""
    workers = found.workers
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in ("pid", "established", "share", "CPU s", "CPU %", "listening sockets", "process"):
        name = head == "process"
        table.add_column(head, justify="left" if name else "right", no_wrap=not name)
    for row in told.processes:
        table.add_row(
            str(row.pid),
            str(row.established),
            f"{100 * row.share:.1f} %" if row.pid in workers else "-",
            f"{row.cpu_seconds:.2f}",
            "-" if row.cpu_percent is None else f"{row.cpu_percent:.0f}",
            str(len(row.listeners)),
            escape(row.name[:SHOWN_NAME]),
        )
    queues = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in ("listening at", "queued", "limit", "drops", "processes"):
        queues.add_column(head, justify="right", no_wrap=True)
    for one in found.listening:
        queues.add_row(
            one.address,
            str(one.queued),
            str(one.limit),
            "-" if one.drops is None else str(one.drops),
            str(len(one.pids)),
        )
    return Group(table, Text(), queues, Text(), Text(escape(f"{told.sentence}.")))
