"""Shows results in a terminal: what was found, then tables.

On a terminal the names of cases and the sentences are folded to its width, figures never; in a
pipe, where no width is known, lines are as long as they need to be and have no colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.console import Group as Together
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from greeterd.bench.analysis.answers import Answer, Kind, answers
from greeterd.bench.analysis.compare import CAUTION, HEAD, Compared, cells, conclude, unlike
from greeterd.bench.analysis.expectations import Verdict
from greeterd.bench.analysis.rows import question, rows
from greeterd.bench.analysis.summary import summarise
from greeterd.bench.model import Results
from greeterd.bench.report.sheets import (
    Group,
    Sheet,
    comparisons,
    effects,
    invalid_trials,
    make_sheets,
)
from greeterd.screen import Screen
from greeterd.system.escape import escape

_STYLES: Final[dict[Kind, str]] = {
    "answer": "bold green",
    "more": "green",
    "fault": "cyan",
    "advice": "bold",
    "caution": "red",
}
_UNLIMITED: Final = 100_000
_GAP: Final = 2
_LEAST_SOFT: Final = 12
"""Columns that names and words have at least, whatever the figures take."""
_LEAST: Final = 40


def render(results: Results, verdicts: Sequence[Verdict] = ()) -> RenderableType:
    """Return the report for a console of any width."""
    summaries, compared = summarise(results), rows(results)
    machine = results.environment
    pinned = f", {machine.pin}" if machine.pin else ""
    about = f"Linux {machine.kernel}, {machine.cpus} CPUs ({machine.cpu}){pinned}, {machine.date}"
    parts: list[RenderableType] = [Text(escape(about))]
    if any(one.trials for one in summaries):
        parts += [Text(), Text(escape(question(results)), "bold")]
    else:
        parts.append(Text("There is no valid trial.", "red"))
    parts += map(_answer, answers(results, summaries, compared))
    sheets = [comparisons(compared), *make_sheets(summaries), effects(verdicts)]
    for sheet in [*sheets, invalid_trials(results)]:
        if sheet.groups:
            parts += [Text(), SheetView(sheet)]
    return Together(*parts)


def comparison(found: Compared, a: Results, b: Results) -> RenderableType:
    """Return what two runs say beside each other, for a console of any width."""
    parts: list[RenderableType] = [Text(escape(CAUTION), "yellow")]
    parts += [Text(escape(line), "yellow") for line in unlike(a, b)]
    groups: dict[str, Group] = {}
    for one in found.pairs:
        called = found.names[one.case]
        groups.setdefault(called, Group(called, [])).rows.append(cells(one))
    note = "Ratios of geometric means with intervals of 95 %; the p-values hold together (Holm)."
    sheet = Sheet("B against A", note, HEAD, list(groups.values()), frozenset({"B is"}))
    parts += [Text(), SheetView(sheet)]
    for letter, only in zip("AB", found.only, strict=True):
        if only:
            told = "; ".join(found.names[case] for case in only)
            parts.append(Text(escape(f"Only in {letter}: {told}.")))
    return Together(*parts, Text(), Text(escape(conclude(found)), "bold"))


def show(renderable: RenderableType, file: TextIO) -> str:
    """Return the text that shows something on `file`, which is asked for its width and colours."""
    console = Screen(file)
    if not console.is_terminal:
        console.width = _UNLIMITED
        widest = console.measure(renderable, options=console.options).maximum
        console.width = min(_UNLIMITED, max(80, widest))
    return console.text_of(renderable)


def _answer(one: Answer) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=max(map(len, _STYLES)), no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(one.kind, _STYLES[one.kind]), Text(escape(one.text)))
    return grid


@dataclass(frozen=True, slots=True)
class SheetView:
    """A table that fits itself into the width of its console."""

    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, the groups with one header above the first, and the note."""
        widths = fit(self.sheet, options.max_width)
        yield Text(self.sheet.title, "bold underline")
        for index, group in enumerate(self.sheet.groups):
            if group.title:
                yield Text(escape(group.title), "italic")
            yield self._table(group, widths, header=index == 0)
        yield Text(self.sheet.note, "dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return how wide it is when nothing is folded."""
        widths = fit(self.sheet, _UNLIMITED)
        titles = (group.title for group in self.sheet.groups)
        natural = max(sum(widths) + _GAP * len(widths), *map(len, titles), len(self.sheet.note))
        return Measurement(min(natural, _LEAST), natural)

    def _table(self, group: Group, widths: list[int], *, header: bool) -> Table:
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=header)
        for index, (title, width) in enumerate(zip(self.sheet.head, widths, strict=True)):
            left = index == 0 or title in self.sheet.words
            table.add_column(
                title, width=width, justify="left" if left else "right", overflow="fold"
            )
        for row in group.rows:
            table.add_row(*(Text(escape(cell)) for cell in row))
        return table


def fit(sheet: Sheet, width: int) -> list[int]:
    """Return the widths of the columns: as wide as their cells, or names and words folded."""
    rows = [sheet.head, *(row for group in sheet.groups for row in group.rows)]
    widths = [max(len(escape(cell)) for cell in column) for column in zip(*rows, strict=True)]
    soft = [i for i, title in enumerate(sheet.head) if i == 0 or title in sheet.words]
    excess = sum(widths) + _GAP * (len(widths) - 1) - width
    while excess > 0:
        widest = max(soft, key=widths.__getitem__)
        if widths[widest] <= _LEAST_SOFT:
            break
        widths[widest] -= 1
        excess -= 1
    return widths
