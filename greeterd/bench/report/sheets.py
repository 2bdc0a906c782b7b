"""The tables of a report as plain text cells, for the terminal and for HTML alike.

A table is declared once: for each column its header and what its cell says of a case.  A cell with
an interval is `median [low, high]`.  A column whose figure no case has is left out, and so is a
table that has no other one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from greeterd.bench.analysis.expectations import Verdict, figures_of
from greeterd.bench.analysis.rows import Row, interval, shown
from greeterd.bench.analysis.summary import Summary
from greeterd.bench.labels import approach, names, place, scenario_of, varying, words
from greeterd.bench.latencies import FIELDS
from greeterd.bench.metrics import METRICS, PRIMARY
from greeterd.bench.model import Case, Results

NOTHING: Final = "-"
"""What stands where there is no figure."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of cases that are asked the same."""

    title: str
    """What is asked, as far as it differs between groups; empty when it does not."""
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table: its first column names what serves, the others are figures but for `words`."""

    title: str
    note: str
    head: tuple[str, ...]
    groups: list[Group]
    words: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Block:
    """The cases that are asked the same, each with a name."""

    title: str
    members: list[tuple[str, Summary]]


def blocks(summaries: Sequence[Summary]) -> list[Block]:
    """Return the summaries that have valid trials, in the order in which a report shows them."""
    told = sorted((one for one in summaries if one.trials), key=lambda one: place(one.case))
    titles = varying(scenario_of(one.case) for one in told)
    found = []
    for scenario, members in groupby(told, key=lambda one: scenario_of(one.case)):
        some = list(members)
        called = names([one.case for one in some])
        found.append(Block(titles[scenario], [(called[one.case], one) for one in some]))
    return found


Cell = Callable[[Summary], str]


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its header, and its cell of a case."""

    head: str
    cell: Cell
    words: bool = False


def figure(head: str, name: str, form: str, *, low: bool = True) -> Column:
    """Return the column of a metric: its median and, with `low`, the interval."""

    def cell(one: Summary) -> str:
        found = one.figures.get(name)
        if found is None:
            return NOTHING
        told = f"{found.median:{form}}"
        if not low or found.trials == 1:
            return told
        return f"{told} [{found.low:{form}}, {found.high:{form}}]"

    return Column(head, cell)


def latency(head: str, at: float) -> Column:
    """Return the column of a percentile of all clients, in ms."""

    def cell(one: Summary) -> str:
        value = one.percentile(at) if one.latency.count else None
        return NOTHING if value is None else milliseconds(value)

    return Column(head, cell)


def milliseconds(value: float) -> str:
    """Return a latency in three digits, or in whole milliseconds."""
    return f"{value:#.3g}" if value < 99.95 else f"{value:.0f}"  # noqa: PLR2004


def _balance(head: str, tell: Callable[[Summary], str], *, words: bool = False) -> Column:
    """Return a column that is told of cases with several workers."""

    def cell(one: Summary) -> str:
        return tell(one) if one.spread is not None and one.case.workers > 1 else NOTHING

    return Column(head, cell, words)


def _chance(one: Summary) -> str:
    return f"{one.spread.typical.chance.jain:.4f}" if one.spread else NOTHING


def _p_value(one: Summary) -> str:
    return shown(one.spread.p_value) if one.spread and not one.spread.few else NOTHING


def _lost(one: Summary) -> str:
    if one.case.fault == "none" and not one.lost:
        return NOTHING
    each = f", {one.lost / one.faults:.2g} a fault" if one.faults else ""
    return f"{one.lost} of {one.sent}{each}"


def _errors(one: Summary) -> str:
    kinds: Counter[str] = Counter()
    for trial in one.trials:
        kinds.update(trial.load.errors if trial.load else {})
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or NOTHING


def _held(kind: str) -> Cell:
    def cell(one: Summary) -> str:
        for found in one.held:
            if found.kind == kind:
                told = " ".join(map(str, sorted(found.per_process.values(), reverse=True)))
                told += f", {found.at_once} at once" * bool(found.at_once)
                return told + f" ({found.queued} queued)" * bool(found.queued)
        return NOTHING

    return cell


def _busiest(one: Summary) -> str:
    last = one.trials[-1].processes
    return " ".join(f"{process.cpu_us:.1f}" for process in last[:8]) or NOTHING


SHEETS: Final = (
    (
        "Cost",
        (
            "CPU time and context switches of the whole server, per greeting. Greetings per second "
            "where the next client waits for one before it, and the client was not the limit."
        ),
        (
            figure("CPU, us", "cpu_us", ".1f"),
            figure("user", "cpu_user_us", ".1f", low=False),
            figure("system", "cpu_system_us", ".1f", low=False),
            Column("by process", _busiest, words=True),
            figure("switches", "switches", ".2f", low=False),
            figure("rate, 1/s", "rate", ".0f"),
        ),
    ),
    (
        "Balance",
        (
            "Each trial is judged by itself; Jain is the median, chance what chance alone reaches "
            "in 95 of 100 trials. p is the probability that chance is so uneven in as many trials "
            "(their chi-squares are added), and holds for all cases together (Holm)."
        ),
        (
            Column(
                "greetings per worker",
                lambda one: " ".join(map(str, one.per_worker)) or NOTHING,
                words=True,
            ),
            _balance("Jain", lambda one: figure("", "jain", ".4f", low=False).cell(one)),
            _balance("chance", _chance),
            _balance("p", _p_value),
            _balance("in words", lambda one: one.spread.sentence if one.spread else "", words=True),
            Column("listening", lambda one: str(one.trials[-1].listener.sockets or NOTHING)),
        ),
    ),
    (
        "Who has the connections",
        (
            "By process, the most first. Held: as many connections held open at once, each "
            "attributed (exact). Sample: probes, so many at once, over and over."
        ),
        (
            Column("held", _held("held"), words=True),
            Column("sample", _held("sample"), words=True),
        ),
    ),
    (
        "Latency, ms",
        (
            "From a connection's start (in open loop: its intended start) to its end. A client "
            "that was lost is slower than any that was served: a percentile among the lost is not "
            "known."
        ),
        tuple(latency("largest" if at == 100 else f"p{at:g}", at) for at in FIELDS),  # noqa: PLR2004
    ),
    (
        "Wake-ups and queues",
        "Wake-ups per greeting; a wasted one found nothing to accept. Queues and drops in clients.",
        (
            figure("wake-ups", "wakeups", ".2f", low=False),
            figure("wasted", "wasted_wakeups", ".2f"),
            figure("longest queue", "queued_max", ".0f", low=False),
            figure("drops", "drops", ".0f", low=False),
        ),
    ),
    (
        "Losses",
        "Clients that were not served in order, of all trials.",
        (Column("lost", _lost, words=True), Column("errors", _errors, words=True)),
    ),
)
"""Title, note and columns of each table of cases."""


def make_sheets(summaries: Sequence[Summary]) -> list[Sheet]:
    """Return the tables that have figures."""
    told = blocks(summaries)
    made = (_sheet(told, *one) for one in SHEETS)
    return [sheet for sheet in made if sheet.groups]


def _sheet(told: Sequence[Block], title: str, note: str, columns: Sequence[Column]) -> Sheet:
    every = [one for block in told for _, one in block.members]
    kept = [column for column in columns if any(column.cell(one) != NOTHING for one in every)]
    groups = []
    for block in told:
        rows = [(name, *(column.cell(one) for column in kept)) for name, one in block.members]
        rows = [row for row in rows if {*row[1:]} != {NOTHING}]
        if rows and kept:
            groups.append(Group(block.title, rows))
    heads = ("approach", *(column.head for column in kept))
    return Sheet(title, note, heads, groups, _words(kept))


def _words(columns: Iterable[Column]) -> frozenset[str]:
    return frozenset(column.head for column in columns if column.words)


def comparisons(rows: Sequence[Row]) -> Sheet:
    """Return the table of all ratios, CPU first in each comparison."""
    groups = []
    for row in rows:
        a, b = row.comparison.cases
        told = {PRIMARY.name: row.primary, **row.others}
        cells: list[tuple[str, ...]] = [
            (
                METRICS[name].title,
                interval(one),
                str(one.pairs),
                NOTHING if name == PRIMARY.name else shown(one.p_value),
            )
            for name, one in told.items()
            if one is not None
        ]
        title = f"{approach(b)} / {approach(a)}, {words(scenario_of(a))}"
        groups += [Group(title, cells)] * bool(cells)
    return Sheet(
        "Comparisons",
        "Ratios by pairs of adjacent trials, with their intervals. CPU is what the run is for; the "
        "p-values of all else hold together (Holm).",
        ("metric", "ratio", "pairs", "p"),
        groups,
    )


def effects(verdicts: Sequence[Verdict]) -> Sheet:
    """Return the table of the expectations that were tested."""
    rows: list[tuple[str, ...]] = [
        (one.predicate.name, one.outcome, "; ".join(figures_of(one)), one.predicate.why)
        for one in verdicts
        if one.outcome != "not tested"
    ]
    return Sheet(
        "Expectations",
        "Written down before the run.",
        ("expectation", "outcome", "figures", "why"),
        [Group("", rows)] if rows else [],
        frozenset({"outcome", "figures", "why"}),
    )


def invalid_trials(results: Results) -> Sheet:
    """Return a table of the trials that say nothing, each with the reason."""
    called = names(_cases(results))
    rows: list[tuple[str, ...]] = [
        (called[trial.case], str(trial.pair + 1), trial.began, trial.invalid)
        for trial in results.trials
        if trial.invalid
    ]
    return Sheet(
        "Invalid trials",
        "They are in no figure.",
        ("approach", "pair", "began", "reason"),
        [Group("", rows)] if rows else [],
        frozenset({"began", "reason"}),
    )


def trials(results: Results) -> Sheet:
    """Return a table of all trials, in the order in which they were run."""
    called = names(_cases(results))

    def number(value: float | None, form: str = "d") -> str:
        return NOTHING if value is None else f"{value:{form}}"

    rows: list[tuple[str, ...]] = [
        (
            called[one.case],
            str(one.pair + 1),
            number(one.cpu_us or None, ".1f"),
            number(METRICS["rate"].of(one), ".0f"),
            number(one.lost if one.load else None),
            number(one.counts.client),
            number(one.counts.scoreboard),
            number(one.counts.log),
            one.invalid,
        )
        for one in results.trials
    ]
    head = ("case", "pair", "CPU, us", "rate, 1/s", "lost", "clients", "scoreboard", "log")
    return Sheet(
        "Trials",
        "In the order in which they were run; the last three numbers count the same thing.",
        (*head, "invalid because"),
        [Group("", rows)] if rows else [],
        frozenset({"invalid because"}),
    )


def _cases(results: Results) -> list[Case]:
    return list(dict.fromkeys(trial.case for trial in results.trials))


def environment(results: Results) -> list[tuple[str, str]]:
    """Return what is known of the machine and the programs, by name."""
    machine = results.environment
    rows = [
        ("date", machine.date),
        ("kernel", f"Linux {machine.kernel} {machine.machine}"),
        ("CPU", f"{machine.cpu}, {machine.cpus} usable"),
        ("pinned", machine.pin),
        ("memory", f"{machine.memory_mib:,} MiB" if machine.memory_mib else ""),
        ("load average before", f"{machine.load_average:.2f}"),
        ("greeterd", " ".join(filter(None, [machine.greeterd, machine.commit]))),
        ("run by", machine.command),
        ("request", machine.request),
        ("Python", machine.python),
        ("packages", ", ".join(f"{name} {value}" for name, value in machine.packages.items())),
        *sorted(machine.sysctls.items()),
        ("preset", results.preset),
        ("seed of the order", str(results.seed)),
        ("trials", str(len(results.trials))),
    ]
    return [(name, value) for name, value in rows if value]
