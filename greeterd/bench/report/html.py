"""Renders results as one HTML file that needs nothing but itself.

The first screen has the question, the answer and the charts; everything else is folded below.
No script, no font, no picture from elsewhere: it can be mailed, archived and printed.  Everything
that is text is escaped by the template, drawings by the module that draws them.
"""

from collections.abc import Sequence
from importlib import resources
from typing import Any

from greeterd import __version__
from greeterd.bench.analysis.answers import answers
from greeterd.bench.analysis.expectations import Verdict
from greeterd.bench.analysis.paired import LEVEL, level_of
from greeterd.bench.analysis.rows import question, rows
from greeterd.bench.analysis.summary import summarise
from greeterd.bench.extras import require
from greeterd.bench.model import Results
from greeterd.bench.report import sheets
from greeterd.bench.report.charts import make_charts

FIRST = frozenset({"answer", "advice"})
"""The kinds of sentences that are not folded."""


def render(results: Results, verdicts: Sequence[Verdict] = ()) -> str:
    """Return the report.

    Raises:
        MissingPackageError: jinja2 or matplotlib is not installed.

    """
    summaries, compared = summarise(results), rows(results)
    told = answers(results, summaries, compared)
    tables = [
        sheets.comparisons(compared),
        *sheets.make_sheets(summaries),
        sheets.effects(verdicts),
        sheets.invalid_trials(results),
        sheets.trials(results),
    ]
    return str(
        _template().render(
            version=__version__,
            machine=results.environment,
            environment=sheets.environment(results),
            question=question(results),
            valid=any(one.trials for one in summaries),
            first=[one for one in told if one.kind in FIRST],
            more=[one for one in told if one.kind not in FIRST and one.kind != "caution"],
            cautions=[one for one in told if one.kind == "caution"],
            charts=make_charts(results, summaries, compared),
            tables=[sheet for sheet in tables if sheet.groups],
            level=round(100 * level_of(results.pairs)),
            whole=round(100 * LEVEL),
        )
    )


def _template() -> Any:
    require("jinja2")
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - of the extra `bench`

    source = resources.files(__package__).joinpath("templates/report.html").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)
