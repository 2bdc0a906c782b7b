"""The command `greeter load`: a bounded load on a server of this machine, told as a table or JSON.

Standard output carries the report and nothing else; progress, on a terminal, and all messages go
to standard error.
"""

import sys
from typing import Annotated

import msgspec
from cyclopts import Parameter

from greeterd.bench.load import LoadInterrupted, LoadOptions, run
from greeterd.bench.model import LoadReport

EX_FAILED = 1
EX_INTERRUPTED = 130


def load(
    *,
    options: Annotated[LoadOptions | None, Parameter(name="*")] = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Send a bounded load and report its rate and latencies.

    Parameters
    ----------
    json
        Print the report as JSON.
    """
    try:
        report = run(options or LoadOptions())
    except LoadInterrupted as interrupted:
        _print(interrupted.report, json=json)
        print("greeter: interrupted", file=sys.stderr)
        return EX_INTERRUPTED
    _print(report, json=json)
    return EX_FAILED if report.errors else 0


def _print(report: LoadReport, *, json: bool) -> None:
    if json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    print(report)
