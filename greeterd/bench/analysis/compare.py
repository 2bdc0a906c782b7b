"""Says where two runs differ: per case that both have, and per metric.

Many comparisons at once find differences in pure noise: of 100 at a level of 95 %, about five.  So
each is made at a stricter level, by which all of them together hold with LEVEL (C. Bonferroni,
1936): two runs of the same differ in one place or more with a probability of 5 % or less.  The
intervals that are shown are those, and a difference is one whose interval leaves out 1 and whose
ratio is TIE or more.  That the comparisons depend on each other makes it stricter still, not wrong.

B is told of as against A: B is better, B is worse, they tie, or which of these cannot be told.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich.console import Group as Together
from rich.console import RenderableType
from rich.text import Text

from greeterd.bench.analysis.stats import (
    LEVEL,
    TIE,
    UNKNOWN,
    Asked,
    Comparison,
    compare_all,
    level_of,
    ratio_of,
    summarise,
)
from greeterd.bench.analysis.together import compare_together
from greeterd.bench.labels import names, place
from greeterd.bench.metrics import COMPARED, METRICS
from greeterd.bench.model import Case, Results
from greeterd.bench.report.export import UnreadableError
from greeterd.bench.report.sheets import NOTHING, Group, Sheet
from greeterd.bench.report.tables import SheetView
from greeterd.system.escape import escape

Verdict = Literal["better", "worse", "tie", "cannot be told"]
VERDICTS: Final[dict[str, Verdict]] = {
    "tie": "tie",
    "a better": "worse",
    "b better": "better",
    "cannot be told": "cannot be told",
}
ENVIRONMENT: Final = ("kernel", "machine", "cpu", "cpus", "python", "greeterd", "commit")
"""What may explain a difference, and is told when it is not the same."""


@dataclass(frozen=True, slots=True)
class Versus:
    """One metric in both runs."""

    case: Case | None
    """None is all together."""
    found: Comparison
    verdict: Verdict
    """Of B."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Two runs beside each other."""

    names: dict[Case, str]
    """Of all cases of both."""
    pairs: list[Versus]
    """By case, each with all its metrics."""
    together: list[Versus]
    """By metric, of all cases that both have; none of a single case."""
    only_a: list[Case]
    """Cases of which only A has valid trials."""
    only_b: list[Case]
    level: float
    """Of each interval."""

    @property
    def differences(self) -> list[Versus]:
        """Those of which B is better or worse."""
        return [o for o in (*self.pairs, *self.together) if o.verdict in {"better", "worse"}]


def compare(a: Results, b: Results) -> Comparisons:
    """Compare the valid trials of the cases that both have.

    Raises:
        UnreadableError: there is none.

    """
    mine, theirs = ({one.case: one for one in summarise(r) if one.trials} for r in (a, b))
    every = sorted({**mine, **theirs}, key=place)
    both = [(mine[case], theirs[case]) for case in every if case in mine and case in theirs]
    if not both:
        raise UnreadableError("there is no case of which both have a valid trial")
    asked: list[Asked] = [
        (one, other, metric)
        for one, other in both
        for metric in COMPARED
        if one.values(metric) and other.values(metric)
    ]
    level = level_of(len(asked) + (len(COMPARED) if len(both) > 1 else 0))
    pairs = [
        Versus(one.case, found, VERDICTS[found.verdict])
        for (one, _, _), found in zip(asked, compare_all(asked, level), strict=True)
        if found is not None
    ]
    means = [compare_together(both, metric, level=level) for metric in COMPARED]
    return Comparisons(
        names=names(every),
        pairs=pairs,
        together=[Versus(None, one, VERDICTS[one.verdict]) for one in means if one is not None],
        only_a=[case for case in every if case not in theirs],
        only_b=[case for case in every if case not in mine],
        level=level,
    )


def render(a: Results, b: Results, called: tuple[str, str] = ("A", "B")) -> RenderableType:
    """Return the comparison for a console of any width; `called` names the two runs.

    Raises:
        UnreadableError: as `compare`.

    """
    return show(compare(a, b), a, b, called)


def show(found: Comparisons, a: Results, b: Results, called: tuple[str, str]) -> RenderableType:
    """Return a comparison that has been made, for a console of any width."""
    parts: list[RenderableType] = [
        Text(escape(f"{letter}: {name}, {run.environment.date}, {len(run.trials)} trials"))
        for letter, name, run in zip("AB", called, (a, b), strict=True)
    ]
    for field in ENVIRONMENT:
        here, there = (getattr(run.environment, field) for run in (a, b))
        if here != there:
            parts.append(Text(escape(f"Not the same: {field} {here} and {there}."), "yellow"))
    parts += [Text(), SheetView(sheet(found))]
    for letter, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            told = "; ".join(found.names[case] for case in only)
            parts.append(Text(escape(f"Only in {letter}: {told}.")))
    parts += [Text(), Text(escape(conclude(found)), "bold")]
    return Together(*parts)


def sheet(found: Comparisons) -> Sheet:
    """Return the table: a group for each case, a row for each metric."""
    groups: dict[Case | None, Group] = {}
    for one in (*found.pairs, *found.together):
        called = found.names[one.case] if one.case else "all together: the mean of the ratios"
        group = groups.setdefault(one.case, Group(called, []))
        metric = one.found.metric
        group.rows.append((
            f"{metric.title}, {metric.unit}",
            *(number(v) if one.case else NOTHING for v in (one.found.a, one.found.b)),
            ratio_of(one.found),
            one.verdict,
        ))  # fmt: skip
    return Sheet(
        "B against A",
        "Medians, and the ratio B/A with its interval, at a level by which all "
        f"{len(found.pairs) + len(found.together)} hold together with {LEVEL:.0%}. A tie is one "
        f"whose interval is within {round(100 * (TIE - 1))} %. {_floors()}",
        ("metric", "A", "B", "B/A", "B is"),
        list(groups.values()),
        frozenset({"B is"}),
    )


def _floors() -> str:
    added = [f"{one.floor:g} ({one.title})" for one in COMPARED if one.floor]
    return f"So that 0 has a ratio, both sides are first added {', '.join(added)}."


def number(value: float) -> str:
    """Return a figure in as many digits as one reads."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"  # noqa: PLR2004


def conclude(found: Comparisons) -> str:
    """Return the sentence at the end: whether they differ, where, and what would not be seen."""
    cases = len({one.case for one in found.pairs})
    of = f"{len(found.pairs)} comparisons in {cases} {'case' if cases == 1 else 'cases'}"
    of += f" and {len(found.together)} of all together" if found.together else ""
    if not found.differences:
        every = [one.verdict for one in (*found.pairs, *found.together)]
        untold = every.count("cannot be told")
        said = f"{every.count('tie')} of {of} are ties"
        said += f", {untold} cannot be told" if untold else ""
        return f"No difference found: {said}. {_unseen(found)}"
    told, together = _told(found.pairs), _told(found.together)
    told += [f"all together: {'; '.join(together)}"] if together else []
    return f"B differs from A in {len(found.differences)} of {of}: {'; '.join(told)}."


def _told(some: Sequence[Versus]) -> list[str]:
    """Return for each metric in words where B is better, and where worse."""
    told = []
    for metric in COMPARED:
        for verdict in ("worse", "better"):
            mine = [o for o in some if o.found.metric is metric and o.verdict == verdict]
            if mine:
                ratio = statistics.median(one.found.ratio for one in mine)
                times = f"{ratio:.2f} times" if len(mine) == 1 else f"about {ratio:.2f} times"
                where = f" in {len(mine)}" if mine[0].case else ""
                told.append(f"{metric.title} is {verdict}{where} ({times} A)")
    return told


def _unseen(found: Comparisons) -> str:
    """Tell how large a difference of the rate, or without any rate of CPU, would be missed."""
    limits = []
    names = {one.found.metric.name for one in found.pairs}
    metric = "rate" if "rate" in names else "cpu_us"
    for some, where in ((found.pairs, "in one case"), (found.together, "in all")):
        mine = [one.found for one in some if one.found.metric.name == metric]
        if mine:
            reach = max(statistics.median(one.high / one.ratio for one in mine), TIE)
            limits.append((reach, where))
    if not limits or min(limits)[0] > UNKNOWN:
        return "There are too few trials to see any."
    told = " or ".join(f"{100 * (reach - 1):.0f} % {where}" for reach, where in limits)
    what = f"A difference of the {METRICS[metric].title}"
    return f"{what} of less than {told} would hardly have been seen."
