"""The commands `greeter bench report` and `greeter bench compare`: what has been measured before.

Standard output carries the report; messages go to standard error.
"""

import sys
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter

from greeterd.bench.analysis import compare as comparing
from greeterd.bench.analysis import expectations
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
- 69: a package is missing
- 74: a file cannot be written
"""
ABOUT_COMPARE: Final = """\
Each case that both have is compared by CPU time, rate, latencies and wasted wake-ups. What changed
on the machine between the two runs is in every ratio, and no interval shows it: to compare two
builds, run both at once, `greeter bench --greeterd A --greeterd B`.

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
    known = results.preset in {"quick", "full"}
    effects = expectations.load(expectations.KNOWN_EFFECTS) if known else []
    verdicts = expectations.check(effects, results)
    if outputs.given:
        outputs.write(results, verdicts)
    else:
        sys.stdout.write(tables.show(tables.render(results, verdicts), sys.stdout))
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
    if not found.pairs:
        raise export.UnreadableError("there is no case of which both have valid trials")
    sys.stdout.write(tables.show(tables.comparison(found, before, after), sys.stdout))
    return EX_DIFFERENT if found.differences else 0
