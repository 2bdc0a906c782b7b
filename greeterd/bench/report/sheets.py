"""The tables of a report as plain text cells, for the terminal and for HTML alike.

A cell with an interval is `median [low, high]`.  A table whose figures no case has is left out.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from greeterd.bench.analysis.stats import Summary
from greeterd.bench.labels import names, place, scenario_of, varying
from greeterd.bench.latencies import FIELDS
from greeterd.bench.model import Case, Results

NOTHING = "-"
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
    shown = sorted((one for one in summaries if one.trials), key=lambda one: place(one.case))
    titles = varying(scenario_of(one.case) for one in shown)
    found = []
    for scenario, members in groupby(shown, key=lambda one: scenario_of(one.case)):
        some = list(members)
        called = names([one.case for one in some])
        found.append(Block(titles[scenario], [(called[one.case], one) for one in some]))
    return found


def listeners(case: Case) -> str:
    """Return how many sockets listen."""
    return str(case.workers if case.mode == "reuseport" else 1)


def interval(one: Summary, name: str, form: str) -> str:
    """Return a metric's median and interval; of one trial, the value alone."""
    found = one.figures.get(name)
    if found is None:
        return NOTHING
    if found.trials == 1:
        return f"{found.median:{form}}"
    return f"{found.median:{form}} [{found.low:{form}}, {found.high:{form}}]"


def median(one: Summary, name: str, form: str) -> str:
    """Return a metric's median."""
    found = one.figures.get(name)
    return NOTHING if found is None else f"{found.median:{form}}"


def milliseconds(value: float) -> str:
    """Return a latency in three digits, or in whole milliseconds."""
    return f"{value:#.3g}" if value < 99.95 else f"{value:.0f}"  # noqa: PLR2004


def percentiles(one: Summary) -> tuple[str, ...]:
    """Return the percentiles of all clients that reports have, in milliseconds."""
    values = map(one.percentile, FIELDS)
    return tuple(NOTHING if value is None else milliseconds(value) for value in values)


Row = Callable[[Summary], tuple[str, ...] | None]


def _groups(shown: Sequence[Block], row: Row) -> list[Group]:
    """Return the rows of the cases of which there is one, in groups that are not empty."""
    found = []
    for block in shown:
        made = [(name, row(one)) for name, one in block.members]
        rows = [(name, *cells) for name, cells in made if cells is not None]
        if rows:
            found.append(Group(block.title, rows))
    return found


def _classic(shown: Sequence[Block]) -> Sheet:
    trials = {(one.valid, one.invalid) for block in shown for _, one in block.members}
    same = len(trials) == 1 and not max(invalid for _, invalid in trials)

    def row(one: Summary) -> tuple[str, ...]:
        number = str(one.valid) + (f" of {one.valid + one.invalid}" if one.invalid else "")
        return (
            interval(one, "seconds", ".2f"),
            " ".join(map(str, one.per_worker)) or NOTHING,
            f"{one.spread.typical.found.max_over_min:.2f}" if one.spread else NOTHING,
            listeners(one.case),
            *([] if same else [number]),
        )

    note = "Greetings per worker are those of the trial whose Jain index is in the middle"
    return Sheet(
        "Time and workers",
        f"{note}, of {next(iter(trials))[0]} of each case." if same else f"{note}.",
        (
            *("approach", "time, s", "greetings per worker", "max/min", "listeners"),
            *([] if same else ["trials"]),
        ),
        _groups(shown, row),
        frozenset({"greetings per worker"}),
    )


def _cost(shown: Sequence[Block]) -> Sheet:
    def row(one: Summary) -> tuple[str, ...]:
        return (
            interval(one, "rate", ".0f"),
            interval(one, "cpu_us", ".1f"),
            median(one, "cpu_user_us", ".1f"),
            median(one, "cpu_system_us", ".1f"),
            median(one, "switches", ".2f"),
        )

    return Sheet(
        "Cost",
        "Greetings per second, where the next client waits for one before it; else the rate is the "
        "client's. CPU time of the whole server and context switches, per greeting.",
        ("approach", "rate, 1/s", "CPU, us", "user", "system", "switches"),
        _groups(shown, row),
    )


def _balance(shown: Sequence[Block]) -> Sheet:
    def row(one: Summary) -> tuple[str, ...] | None:
        spread = one.spread
        if spread is None or one.case.workers == 1:
            return None
        typical, p_value = spread.typical, f"{spread.p_value:.4f}"
        return (
            median(one, "jain", ".4f"),
            f"{typical.chance.jain:.4f}",
            f"{typical.found.max_over_min:.2f}",
            f"{typical.chance.max_over_min:.2f}",
            NOTHING if spread.few else "<.0001" if spread.p_value < 0.0001 else p_value,  # noqa: PLR2004
            spread.sentence,
        )

    return Sheet(
        "Balance",
        "Each trial is judged by itself; Jain is the median. Max/min and a worker that is named "
        "are those of the trial whose Jain index is in the middle. Beside the Jain index, what "
        "chance alone reaches, and beside max/min, what it keeps to, in 95 of 100 trials. p is the "
        "probability that chance is so uneven in as many trials (their chi-squares are added), and "
        "holds for all cases together (Holm).",
        ("approach", "Jain", "chance", "max/min", "chance", "p", "in words"),
        _groups(shown, row),
        frozenset({"in words"}),
    )


def _latency(shown: Sequence[Block]) -> Sheet:
    def row(one: Summary) -> tuple[str, ...] | None:
        return percentiles(one) if one.latency.count else None

    return Sheet(
        "Latency, ms",
        "From a connection's start (in open loop: its intended start) to its end. A client that "
        "was lost is slower than any that was served: a percentile among the lost is not known.",
        ("approach", "p50", "p90", "p99", "p99.9", "largest"),
        _groups(shown, row),
    )


def _wakeups(shown: Sequence[Block]) -> Sheet:
    def row(one: Summary) -> tuple[str, ...] | None:
        if one.case.server != "greeterd":
            return None
        return (
            median(one, "wakeups", ".2f"),
            interval(one, "wasted_wakeups", ".2f"),
            median(one, "queued_max", ".0f"),
            median(one, "drops", ".0f"),
        )

    return Sheet(
        "Wake-ups and queues",
        "Wake-ups per greeting; a wasted one found nothing to accept. Queues and drops in clients.",
        ("approach", "wake-ups", "wasted", "longest queue", "drops"),
        _groups(shown, row),
    )


def _losses(shown: Sequence[Block]) -> Sheet:
    def row(one: Summary) -> tuple[str, ...] | None:
        lost = one.figures.get("lost_percent")
        if lost is None or (one.case.fault == "none" and lost.high == 0):
            return None
        kinds: Counter[str] = Counter()
        for trial in one.trials:
            kinds.update(trial.load.errors if trial.load else {})
        return (
            interval(one, "lost_percent", ".2f"),
            f"{100 / one.case.workers:.1f}",
            ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none",
        )

    return Sheet(
        "Losses",
        "Clients that were not served in order, in percent of all; 1/N is one worker's share.",
        ("approach", "lost, %", "1/N, %", "errors of all trials"),
        _groups(shown, row),
        frozenset({"errors of all trials"}),
    )


def make_sheets(summaries: Sequence[Summary]) -> list[Sheet]:
    """Return the tables that have rows."""
    shown = blocks(summaries)
    makers = (_classic, _cost, _balance, _latency, _wakeups, _losses)
    return [sheet for sheet in (maker(shown) for maker in makers) if sheet.groups] if shown else []


def invalid_trials(results: Results) -> Sheet:
    """Return a table of the trials that say nothing, each with the reason."""
    called = names(list(dict.fromkeys(trial.case for trial in results.trials)))
    rows: list[tuple[str, ...]] = [
        (called[trial.case], str(trial.repeat + 1), trial.began, trial.invalid)
        for trial in results.trials
        if trial.invalid
    ]
    return Sheet(
        "Invalid trials",
        "They are in no figure.",
        ("approach", "trial", "began", "reason"),
        [Group("", rows)] if rows else [],
        frozenset({"began", "reason"}),
    )


def environment(results: Results) -> list[tuple[str, str]]:
    """Return what is known of the machine and the programs, by name."""
    machine = results.environment
    rows = [
        ("date", machine.date),
        ("kernel", f"Linux {machine.kernel} {machine.machine}"),
        ("CPU", f"{machine.cpu}, {machine.cpus} usable"),
        ("memory", f"{machine.memory_mib:,} MiB" if machine.memory_mib else ""),
        ("load average before", f"{machine.load_average:.2f}"),
        ("greeterd", " ".join(filter(None, [machine.greeterd, machine.commit]))),
        ("run by", machine.command),
        ("Python", machine.python),
        ("packages", ", ".join(f"{name} {value}" for name, value in machine.packages.items())),
        *sorted(machine.sysctls.items()),
        ("preset", results.preset),
        ("seed of the order", str(results.seed)),
        ("trials", f"{len(results.trials)} of {results.planned} planned"),
    ]
    return [(name, value) for name, value in rows if value]
