"""Shows what has become of expectations: a table with a row for each, and a sentence."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from greeterd.bench.analysis.predicates import Finding, Outcome, Verdict
from greeterd.bench.model import Case
from greeterd.system.escape import escape

STYLES: Final[dict[Outcome, str]] = {"held": "green", "failed": "bold red", "not tested": "yellow"}
SHOWN: Final = 4
"""Cases of one expectation that are shown; those that failed come first."""


def render(verdicts: Sequence[Verdict]) -> Group:
    """Return the table and the sentence, to be printed by rich."""
    table = Table(title="Expectations", title_justify="left", show_lines=True)
    table.add_column("expectation", ratio=3)
    table.add_column("verdict", no_wrap=True)
    table.add_column("figures", ratio=5)
    table.add_column("trials", justify="right")
    for verdict in verdicts:
        table.add_row(
            Text(escape(verdict.predicate.name)),
            Text(verdict.outcome, style=STYLES[verdict.outcome]),
            Text("\n".join(map(escape, _figures(verdict)))),
            str(verdict.trials),
        )
    return Group(table, Text(escape(sentence(verdicts))))


def sentence(verdicts: Sequence[Verdict]) -> str:
    """Return how many have held, failed and not been tested, and which have failed."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    tested = counts["held"] + counts["failed"]
    said = f"{counts['held']} of {tested} tested expectations held"
    if counts["not tested"]:
        said += f", {counts['not tested']} could not be tested"
    failed = [verdict.predicate.name for verdict in verdicts if verdict.outcome == "failed"]
    return f"{said}. Failed: {'; '.join(failed)}." if failed else f"{said}."


def _figures(verdict: Verdict) -> list[str]:
    if not verdict.findings:
        return [verdict.reason]
    cases = [finding.case for finding in verdict.findings]
    ordered = sorted(verdict.findings, key=lambda finding: finding.holds)
    lines = [_line(verdict, finding, cases) for finding in ordered[:SHOWN]]
    if len(ordered) > SHOWN:
        lines.append(f"and {len(ordered) - SHOWN} cases more")
    return lines


def _line(verdict: Verdict, finding: Finding, cases: Sequence[Case]) -> str:
    """Return the figures of a case, and in what it differs from the others."""
    differing = [
        f"{name} {getattr(finding.case, name)}"
        for name in Case.__struct_fields__
        if len({getattr(case, name) for case in cases}) > 1
    ]
    figures = f"{verdict.predicate.metric} {finding.figures}"
    return f"{', '.join(differing)}: {figures}" if differing else figures
