"""Shows how evenly greetings are spread over workers: by a daemon's counters, or by their logs.

A log is read once, line by line, whatever its size; `.gz` by its name. Lines that are no complete
greeting record are counted and reported. A worker without a record counts too, if its log has its
number in the name: `worker-3.log` of an idle worker is empty.
"""

import gzip
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal, TextIO, cast

import msgspec
from msgspec import Meta, Struct
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from greeterd.balance import SURE, Balance, balance
from greeterd.control.protocol import MAX_WORKERS
from greeterd.control.status import Status
from greeterd.errors import GreeterdError
from greeterd.screen import Screen, duration
from greeterd.supervisor.ids import DISPATCHER
from greeterd.system.escape import escape

LONGEST_LINE: Final = 2**24
"""Bytes; more than any record has. A longer line is read in pieces, none of which is a record."""
BAR: Final = 30
LEAST_BAR: Final = 8
LEAST_WIDTH: Final = 80
TINY: Final = 5e-324
"""Shown instead of a p-value of 0, which comes only from rounding."""
EIGHTHS: Final = " ▏▎▍▌▋▊▉█"

_LARGE_IS_EVEN: Final = frozenset({"Jain index", "p-value"})
_NAME: Final = re.compile(r"worker-([1-9]\d{0,2})\.log\b")


class LogError(GreeterdError):
    """A log that cannot be counted."""

    exit_code = 1


class _Greeting(Struct, gc=False):
    event: Literal["greeting"]
    worker: Annotated[int, Meta(ge=1, le=MAX_WORKERS)]


@dataclass(frozen=True, slots=True)
class GreetingCounts:
    """Greetings by worker, and where they were counted."""

    heading: str
    source: Literal["daemon", "logs"]
    greetings: dict[int, int]
    """By worker, in their order."""
    foreign: int = 0
    """Whole lines that are no greeting records."""
    torn: int = 0
    """Last lines without their end."""


def count_daemon(status: Status) -> GreetingCounts:
    """Take the greetings of each slot from a daemon's counters, since its start."""
    workers = {
        slot: each.greetings
        for slot, each in sorted(status.counters.items())
        if slot != DISPATCHER  # it hands connections on, and serves none
    }
    heading = (
        f"greeterd pid {status.pid}, {status.mode} ({status.wait}), up {duration(status.uptime)}: "
    )
    return GreetingCounts(heading + _sum(workers), "daemon", workers)


def count_logs(paths: Sequence[Path]) -> GreetingCounts:
    """Count the greeting records of each worker in logs.

    Raises:
        LogError: one cannot be read, or none holds a record or is named as a worker's.

    """
    counts: Counter[int] = Counter()
    foreign = torn = 0
    for path in paths:
        found, others, tails = _count(path)
        if not found and (name := _NAME.match(path.name)) is not None:
            found[int(name[1])] = 0
        counts.update(found)  # keeps a count of 0
        foreign += others
        torn += tails
    if not counts:
        raise LogError(f"no greeting record among {_number(foreign + torn, 'line')}")
    workers = dict(sorted(counts.items()))
    heading = f"{_number(len(paths), 'log')}: {_sum(workers)}"
    return GreetingCounts(heading, "logs", workers, foreign, torn)


def to_plain(tally: GreetingCounts) -> dict[str, Any]:
    """Return what --json prints; an infinite max/min is null."""
    told = balance(tally.greetings)
    workers = [
        {"worker": slot, "greetings": count, "share": told.shares[slot], "ratio": told.ratios[slot]}
        for slot, count in told.counts.items()
    ]
    return {
        "source": tally.source,
        "total": told.total,
        "workers": workers,
        "found": told.found,
        "chance": told.chance,
        "p_value": told.p_value,
        "even": told.even,
        "sentence": told.sentence,
        "foreign_lines": tally.foreign,
        "torn_lines": tally.torn,
    }


def render(tally: GreetingCounts, file: TextIO) -> str:
    """Return the text that shows a balance on `file`, by its width and encoding."""
    told = balance(tally.greetings)
    console = Screen(file)
    workers = _workers(told, console, blocks=_has_blocks(file))
    console.width = max(console.width, LEAST_WIDTH)  # nothing is cut off
    shown: list[RenderableType] = [Text(escape(tally.heading)), Text(), workers, Text()]
    if told.total and len(told.counts) > 1:
        shown += [_figures(told), Text()]
    shown.append(Text(told.sentence, "green" if told.even else "yellow"))
    return console.text_of(*shown, *map(Text, _remarks(tally)))


def _count(path: Path) -> tuple[Counter[int], int, int]:
    """Return the records by worker, the foreign lines and the torn ones of a log."""
    counts: Counter[int] = Counter()
    foreign = torn = 0
    decode = msgspec.json.Decoder(_Greeting).decode
    for line in _lines(path):
        if not line.endswith(b"\n"):
            torn += 1
            continue
        try:
            counts[decode(line).worker] += 1
        except (msgspec.MsgspecError, ValueError, RecursionError):
            foreign += 1
    return counts, foreign, torn


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with _open(path) as log:
            while line := log.readline(LONGEST_LINE):
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LogError(f"{path}: {error}") from error
    except OSError as error:
        raise LogError(f"{path}: {error.strerror}") from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    return path.open("rb")


def _workers(told: Balance, console: Screen, *, blocks: bool) -> Table:
    rows = [
        (str(slot), str(count), f"{100 * told.shares[slot]:.1f}%", f"{told.ratios[slot]:.2f}")
        for slot, count in told.counts.items()
    ]
    names = ("worker", "greetings", "share", "of fair")
    table = _table(names, ["", *("right" for _ in names[1:])])
    table.columns[0].justify = "right"
    table.add_column("", no_wrap=True)
    taken = sum(max(map(len, column)) + 1 for column in zip(names, *rows, strict=True))
    width = max(LEAST_BAR, min(BAR, console.width - taken)) if console.is_terminal else BAR
    longest = max(told.ratios.values())
    for row in rows:
        ratio = told.ratios[int(row[0])]
        table.add_row(*row, _bar(ratio / longest * width if longest else 0.0, blocks=blocks))
    return table


def _figures(told: Balance) -> Table:
    """Return the figures, each beside the bound that chance keeps in 95 of 100 cases."""
    found, chance = told.found, told.chance
    table = _table(("", "measured", "chance alone, 95 of 100 times"), ["left", "right", "left"])
    for name, form, one, bound in (
        ("max/min", ".4f", found.max_over_min, chance.max_over_min),
        ("coefficient of variation", ".5f", found.cv, chance.cv),
        ("Jain index", ".6f", found.jain, chance.jain),
        ("Gini coefficient", ".5f", found.gini, chance.gini),
        ("chi-square", ".3f", found.chi_square, chance.chi_square),
        ("p-value", ".4f", told.p_value or TINY, SURE),
    ):
        side = "at least" if name in _LARGE_IS_EVEN else "at most"
        table.add_row(name, _figure(one, form), f"{side} {_figure(bound, form)}")
    return table


def _table(names: Iterable[str], justify: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name, side in zip(names, justify, strict=True):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    return table


def _bar(length: float, *, blocks: bool) -> str:
    if not blocks:
        return "#" * round(length)
    whole, rest = divmod(round(8 * length), 8)
    return EIGHTHS[8] * whole + (EIGHTHS[rest] if rest else "")


def _has_blocks(file: TextIO) -> bool:
    try:
        EIGHTHS.encode(file.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _figure(value: float, form: str) -> str:
    if math.isinf(value):
        return "infinite"
    shown = format(value, form)
    return f"< {shown[:-1]}1" if value and not float(shown) else shown


def _remarks(tally: GreetingCounts) -> list[str]:
    found = []
    if tally.foreign:
        found.append(f"not counted: {_number(tally.foreign, 'line')} that hold no greeting record")
    if tally.torn:
        found.append(f"not counted: {_number(tally.torn, 'torn line')}")
    return found


def _sum(workers: dict[int, int]) -> str:
    greetings, count = sum(workers.values()), len(workers)
    return f"{_number(greetings, 'greeting')}, {_number(count, 'worker')}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
