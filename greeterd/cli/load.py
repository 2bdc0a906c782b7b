"""The command `greeter load`: a bounded load on a server of this machine, told as a table or JSON.

Standard output carries the report and nothing else; progress (where standard error is a terminal)
and all messages go to standard error.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Annotated, Final

import msgspec
from cyclopts import App, Parameter
from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from greeterd.bench.load.run import LoadInterrupted, LoadOptions, run
from greeterd.bench.model import Latency, LoadReport
from greeterd.cli.greeter import first_bound
from greeterd.cli.program import EX_INTERRUPTED, complain
from greeterd.cli.usage import epilogue
from greeterd.screen import Screen
from greeterd.system.escape import escape, to_ascii

REDRAW: Final = 0.2
EX_FAILED: Final = 1

ABOUT: Final = """\
Arrivals:

- closed: `--concurrency` connections, and a new one for each that ends
- constant: `--rate` connections per second, evenly spaced
- poisson: `--rate` connections per second, at random instants
- burst: `--concurrency` connections at once, again when all have ended
- seed: as closed, each greeting from a process of its own

The schedule of constant and poisson does not wait for the server, and latencies count from the
instant that was due: a server that stalls for a second shows it in every connection that was
due in that second. A report names the client where the client was the limit.
"""

EXAMPLES: Final = (
    "greeter load",
    "greeter load --count 100000 --concurrency 64",
    "greeter load --arrival poisson --rate 5000 --duration 30",
    (
        r"greeter load --address 127.0.0.1:80 --request 'GET / HTTP/1.0\r\n\r\n'"
        " --expect '^HTTP/1.. 200' --no-half-close"
    ),
)

EXIT_CODES: Final = """\
Exit codes:

- 0: every connection ended in order
- 1: some did not; each kind of failure is counted
- 2: the command line is wrong
- 69: nobody listens at the address, or a package is missing
- 70: a sending process has died
- 74: standard output cannot be written
- 130: interrupted; the report is of what was measured until then
- 141: the reader of standard output has gone
"""

app = App(name="load", help_epilogue=epilogue(EXAMPLES, f"{ABOUT}\n{EXIT_CODES}"))


@app.default
def load(
    *,
    options: Annotated[LoadOptions | None, Parameter(name="*", negative=())] = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Send a bounded load to a server of this machine, and report its rate and latencies.

    Parameters
    ----------
    json
        Print the report as JSON, with the latency curve and the HdrHistogram.
    """
    options = options or LoadOptions()
    options = replace(options, address=first_bound(options.address))
    try:
        with _progress(options) as tell:
            report = run(options, tell)
    except LoadInterrupted as interrupted:
        _print(interrupted.report, json=json)
        complain("greeter", "interrupted")
        return EX_INTERRUPTED
    _print(report, json=json)
    return EX_FAILED if report.errors else 0


@contextmanager
def _progress(options: LoadOptions) -> Iterator[Callable[[int], None]]:
    """Show how far a load is on a terminal; what is yielded takes the number that have ended."""
    console = Screen(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    total = None if options.greetings is None else options.greetings + options.warmup
    columns = (TextColumn("{task.completed:.0f} greetings"), BarColumn(), TimeElapsedColumn())
    left = () if total is None else (TextColumn("left"), TimeRemainingColumn())
    # Drawn when there is news, so that it takes no thread.
    with Progress(*columns, *left, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=total, next=0.0)
        yield lambda ended: _draw(progress, task, ended)


def _draw(progress: Progress, task: TaskID, ended: int) -> None:
    """Draw news, but not so often that it takes CPU time from the load."""
    if monotonic() >= progress.tasks[0].fields["next"]:
        again = monotonic() + REDRAW
        progress.update(task, completed=ended, refresh=True, next=again)


def _print(report: LoadReport, *, json: bool) -> None:
    said = to_ascii(msgspec.json.encode(report)) + "\n" if json else _render(report)
    sys.stdout.write(said)
    sys.stdout.flush()


def _render(report: LoadReport) -> str:
    shown: list[RenderableType] = [Text(escape(f"{_what(report)} on {report.address}")), Text()]
    shown.append(_counts(report))
    if report.latency.count:
        shown += [Text(), _latencies(report)]
        if report.latency.missing:
            shown.append(Text(_caution(report.latency), "yellow"))
    if report.bottleneck:
        shown += [Text(), Text(escape(report.bottleneck), "yellow")]
    return Screen(sys.stdout).text_of(*shown)


def _what(report: LoadReport) -> str:
    rate = f" {report.rate:g}/s" if report.rate else f", {report.concurrency} at once"
    processes = "1 process" if report.processes == 1 else f"{report.processes} processes"
    return f"{report.arrival}{rate}, {processes}"


def _table() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")


def _counts(report: LoadReport) -> Table:
    table = _table()
    cells = {
        "sent": f"{report.sent}",
        "ok": f"{report.ok}",
        **{kind: f"{count}" for kind, count in report.errors.items()},
        "uncertain": f"{report.uncertain}",
        "seconds": f"{report.seconds:.2f}",
        "per second": f"{report.greetings_per_second:.0f}",
        "client CPU s": f"{report.client_cpu_seconds:.2f}",
    }
    for name in cells:
        style = "red" if name in report.errors else ""
        table.add_column(name, justify="right", no_wrap=True, style=style)
    table.add_row(*cells.values())
    return table


def _latencies(report: LoadReport) -> Table:
    latency = report.latency
    table = _table()
    percentiles = {50.0: latency.p50, 90.0: latency.p90, 99.0: latency.p99, 99.9: latency.p999}
    cells = {
        "mean": latency.mean,
        "min": latency.min,
        **{f"p{at:g}": value if at <= latency.known else None for at, value in percentiles.items()},
        "max": None if latency.missing else latency.max,
    }
    for name in ("latency", *cells):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("ms", *("-" if cell is None else f"{cell:.3f}" for cell in cells.values()))
    return table


def _caution(latency: Latency) -> str:
    return (
        f"{latency.missing} greetings did not end in order and have no latency: the figures are"
        f" of the other {latency.known:.2f} %, and no percentile above it is known"
    )
