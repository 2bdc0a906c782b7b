"""Compare servers by pairs of runs, and say whether greeterd meets its targets. Pure.

A ratio is greeterd's CPU per greeting over another server's in the same round and cell; what is
shown and judged is the median over the rounds. Within 10 % above its target it is a tie.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table

TIE = 1.10  # a ratio within 10 % of its target is noise
TARGETS = {
    "drain": {"threaded": 1.00},
    "fire": {"threaded": 1.00},
    "closed": {"threaded": 1.15, "bare": 1.25},
}


class Cell(NamedTuple):
    """What is compared with nothing else changed."""

    pattern: str
    mode: str
    workers: int


class Sample(msgspec.Struct, frozen=True):
    """One run of one server; `fault` tells why it does not count."""

    round: int
    cell: Cell
    server: str
    cpu_us: float  # per greeting
    rate: float  # greetings per second of wall time
    p50_us: float
    p99_us: float
    late: int
    fault: str


class Spread(NamedTuple):
    """Median, least and greatest over the rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None when there is no value."""
        known = sorted(values)
        return cls(statistics.median(known), known[0], known[-1]) if known else None


def render(spread: Spread | None, digits: int) -> str:
    """Render as `median (least-greatest)`, or as nothing."""
    return "" if spread is None else "{:.{n}f} ({:.{n}f}-{:.{n}f})".format(*spread, n=digits)


def ratios(samples: Sequence[Sample], cell: Cell, other: str) -> Spread | None:
    """CPU of greeterd over CPU of another server, by pairs of the same round."""
    cpu = {(s.round, s.server): s.cpu_us for s in samples if s.cell == cell and not s.fault}
    return Spread.of(
        value / cpu[number, other]
        for (number, kind), value in cpu.items()
        if kind == "greeterd" and (number, other) in cpu
    )


def verdict(ratio: Spread | None, target: float) -> str:
    """Say whether a ratio meets its target; within 10 % above it is a tie."""
    if ratio is None:
        return "unknown"
    if ratio.median <= target:
        return "met"
    return "tie" if ratio.median <= target * TIE else "missed"


def to_table(samples: Sequence[Sample], cells: Iterable[Cell], servers: Sequence[str]) -> Table:
    """One row per cell and server; the ratios stand in greeterd's row."""
    table = Table(title="per greeting, median (least-greatest) over the rounds", box=SIMPLE_HEAD)
    for column in ("pattern", "mode", "workers", "server"):
        table.add_column(column, no_wrap=True)
    for column in ("CPU us", "thousand/s", "p50 ms", "p99 ms", "CPU / threaded", "CPU / bare"):
        table.add_column(column, justify="right", no_wrap=True)
    for cell in cells:
        for kind in servers:
            valid = [s for s in samples if (s.cell, s.server) == (cell, kind) and not s.fault]
            figures = [
                render(Spread.of(s.cpu_us for s in valid), 1),
                render(Spread.of(s.rate / 1e3 for s in valid), 1),
                render(Spread.of(s.p50_us / 1e3 for s in valid if cell.pattern == "closed"), 1),
                render(Spread.of(s.p99_us / 1e3 for s in valid if cell.pattern == "closed"), 1),
            ]
            if kind == "greeterd":
                figures += [render(ratios(samples, cell, s), 2) for s in ("threaded", "bare")]
            table.add_row(cell.pattern, cell.mode, str(cell.workers), kind, *figures)
        table.add_section()
    return table


def judge(
    samples: Sequence[Sample], cells: Iterable[Cell], servers: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield one line and its verdict per cell and target, for the servers that were run."""
    for cell in cells:
        for other, target in TARGETS[cell.pattern].items():
            if not {"greeterd", other} <= set(servers):
                continue
            ratio = ratios(samples, cell, other)
            word = verdict(ratio, target)
            name = f"{cell.pattern} {cell.mode} x{cell.workers}"
            yield f"{name:20} / {other:8} {render(ratio, 2):18} <= {target:.2f}: {word}", word
