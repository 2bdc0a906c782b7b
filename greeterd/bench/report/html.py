"""Renders results as one HTML file that needs nothing but itself.

No script, no font, no picture from elsewhere: it can be mailed, archived and printed.  Everything
that is text is escaped by the template, drawings by the module that draws them.
"""

from importlib import resources
from typing import Any

from greeterd import __version__
from greeterd.bench.analysis.findings import find, not_measured
from greeterd.bench.analysis.stats import FEW, LEVEL, TIE, summarise
from greeterd.bench.extras import require
from greeterd.bench.labels import common, names
from greeterd.bench.metrics import rate
from greeterd.bench.model import Results
from greeterd.bench.report.charts import make_charts
from greeterd.bench.report.sheets import blocks, environment, invalid_trials, make_sheets


def render(results: Results) -> str:
    """Return the report.

    Raises:
        MissingPackageError: jinja2 is not installed.

    """
    summaries = summarise(results)
    shown = [one for block in blocks(summaries) for _, one in block.members]
    called = names(list(dict.fromkeys(trial.case for trial in results.trials)))
    sheets = make_sheets(summaries)
    invalid = invalid_trials(results)
    return str(
        _template().render(
            version=__version__,
            machine=results.environment,
            environment=environment(results),
            shared=[p for p in common(one.case for one in shown) if p != "no fault"],
            findings=find(results, summaries),
            missing=not_measured(summaries),
            sections=make_charts(summaries),
            sheets=sheets,
            invalid=invalid if invalid.groups else None,
            trials=[(called[trial.case], trial) for trial in results.trials],
            few=FEW,
            level=round(100 * LEVEL),
            rate=rate,
            tie=round(100 * (TIE - 1)),
        )
    )


def _template() -> Any:
    require("jinja2")
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - of the extra `bench`

    source = (
        resources.files("greeterd.bench.report")
        .joinpath("templates/report.html")
        .read_text("utf-8")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)
