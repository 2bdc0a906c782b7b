"""The commands `greeter bench report` and `greeter bench compare`: what has been measured before.

Standard output carries the report; messages go to standard error.
"""

import sys
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter

from greeterd.bench.analysis import compare as comparing
from greeterd.bench.report import export, tables
from greeterd.cli.outputs import Outputs
from greeterd.cli.usage import epilogue

EX_DIFFERENT: Final = 1
ABOUT_REPORT: Final = """\
Prints tables, unless it is to write files.

Exit codes:

- 0: the report is printed, or written
- 2: the command line is wrong
- 66: FILE cannot be read, or holds no results or no trial yet
- 69: the package for --html is missing
- 74: a file cannot be written
"""
ABOUT_COMPARE: Final = """\
Each case that both have is compared by rate, CPU time, latencies, wasted wake-ups, balance and
losses. A difference is one of 10 % or more that noise does not explain; a tie is one that cannot be
10 %; the rest cannot be told. All intervals hold together with 95 %, so that two runs of the same
seldom differ anywhere.

Exit codes:

- 0: no difference was found
- 1: there is one, for better or worse
- 2: the command line is wrong
- 66: a file cannot be read or holds no results, or no case has a valid trial in both
"""

EXAMPLES_REPORT: Final = (
    "greeter bench report results.json",
    "greeter bench report results.json --html report.html",
)
EXAMPLES_COMPARE: Final = ("greeter bench compare before.json after.json",)

report_app = App(name="report", help_epilogue=epilogue(EXAMPLES_REPORT, ABOUT_REPORT))
compare_app = App(name="compare", help_epilogue=epilogue(EXAMPLES_COMPARE, ABOUT_COMPARE))

_Results = Annotated[Path, Parameter(negative=())]


@report_app.default
def report(file: _Results, /, *, outputs: Outputs | None = None) -> int:
    """Show the report of an experiment that was run before.

    Parameters
    ----------
    file
        Results: of --json, or as `greeter bench` keeps them, finished or not.
    """
    outputs = outputs or Outputs()
    results = export.read(file)
    if not results.trials:
        raise export.UnreadableError(f"{file} holds no trial yet")
    outputs.require({"FILE": file})
    if outputs.given:
        outputs.write(results)
    else:
        sys.stdout.write(tables.show(tables.render(results), sys.stdout))
    return 0


@compare_app.default
def compare(a: _Results, b: _Results, /) -> int:
    """Tell where two experiments differ, and return the exit code.

    Parameters
    ----------
    a
        Results that are compared with: of --json, or as `greeter bench` keeps them.
    b
        Results that are told of.
    """
    before, after = export.read(a), export.read(b)
    found = comparing.compare(before, after)
    shown = comparing.show(found, before, after, (str(a), str(b)))
    sys.stdout.write(tables.show(shown, sys.stdout))
    return EX_DIFFERENT if found.differences else 0
