"""Measure greeterd's memory per worker, and how long it takes to become ready.

Run by hand: python -m tests.perf.footprint [--help]

Memory is the unique set size, what would come free if the process ended: Private_Clean +
Private_Dirty of /proc/PID/smaps_rollup. It grows when a worker writes to pages that it shared
with the master, so it is taken when ready and again after 200 greetings per worker. The time is
from exec until the ready record stands in the daemon log, to about 1 ms.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.perf.load import run_load
from tests.perf.servers import GREETERD, built, poll, run_program, running

GREETINGS_PER_WORKER = 200


class Footprint(NamedTuple):
    """One start of the daemon: seconds, and KiB of unique memory."""

    ready_after: float
    master: float
    fresh_worker: float  # the median of its workers
    used_worker: float


def uss_kib(pid: int) -> int:
    """Return the unique set size of a process in KiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    private = ("Private_Clean:", "Private_Dirty:")
    return sum(int(line.split()[1]) for line in rollup if line.startswith(private))


def measure(mode: str, workers: int, greeterd: Sequence[str], programs: Path | None) -> Footprint:
    """Start, look, load, look again, end."""
    with running("greeterd", mode, workers, programs=programs, greeterd=greeterd) as server:
        master, *pids = server.pids()
        if len(pids) != workers:
            raise SystemExit(f"{len(pids)} children for {workers} workers")
        fresh = statistics.median(map(uss_kib, pids))
        load = run_load(
            programs, "closed", server.port, GREETINGS_PER_WORKER * workers, outstanding=16
        )
        poll(lambda: server.done() >= load.done, timeout=10.0)
        used = statistics.median(map(uss_kib, pids))
        return Footprint(server.ready_after, uss_kib(master), fresh, used)


def main() -> int:
    """Print one row per number of workers: medians, and the spread of the time."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf.footprint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workers", default="1,4,16,64")
    parser.add_argument("--mode", choices=("inherit", "reuseport"), default="inherit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--greeterd", type=shlex.split, default=list(GREETERD), help="the command that runs it"
    )
    asked = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    sizes = [int(word) for word in asked.workers.split(",")]
    found: dict[int, list[Footprint]] = {size: [] for size in sizes}
    with built() as programs:
        for size in track(sizes * asked.rounds, "measuring", console=console, transient=True):
            found[size].append(measure(asked.mode, size, asked.greeterd, programs))
    table = Table(title=f"{asked.mode}, medians of {asked.rounds} rounds")
    for column in (
        "workers",
        "ready after ms",
        "master MiB",
        "fresh worker MiB",
        "used worker MiB",
    ):
        table.add_column(column, justify="right")
    for size, footprints in found.items():
        ready, *memory = zip(*footprints, strict=True)
        least, middle, most = (1e3 * f(ready) for f in (min, statistics.median, max))
        mebibytes = [f"{statistics.median(values) / 1024:.1f}" for values in memory]
        table.add_row(str(size), f"{middle:.0f} ({least:.0f}-{most:.0f})", *mebibytes)
    console.print(table)
    return 0


if __name__ == "__main__":
    run_program(main)
