"""Says in sentences what an experiment has found, the answer to its question first; pure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from greeterd.bench.analysis.queueing import response_quantile
from greeterd.bench.analysis.rows import Row, interval, others, sentence
from greeterd.bench.analysis.summary import Summary
from greeterd.bench.labels import FAULTS, approach, scenario_of, wait_of, words
from greeterd.bench.model import Results

RULE_OF_THREE: Final = 3
"""Of n that all went well, less than 3/n go wrong with 95 % (J. Hanley, A. Lippman-Hand, 1983)."""
BUSY: Final = 0.5
"""The load average per CPU before a run from which on its figures are doubtful."""
LIMIT: Final = "the client was the limit: "
"""How the sentence of a load begins."""
TOLD: Final = 3
"""Reasons that are told; more are counted."""

Kind = Literal["answer", "more", "fault", "advice", "caution"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A sentence, and what sort of thing it says."""

    kind: Kind
    text: str


def answers(results: Results, summaries: Sequence[Summary], rows: Sequence[Row]) -> list[Answer]:
    """Return what the results say: comparisons, what faults cost, advice, cautions."""
    calm = [row for row in rows if row.comparison.a.fault == "none"]
    found = [
        Answer("more" if at else "answer", _where(row, calm) + sentence(row, results.precision))
        for at, row in enumerate(calm)
    ]
    found += [Answer("more", _where(row, calm) + text) for row in calm if (text := others(row))]
    found += [Answer("fault", text) for text in _faults(summaries)]
    found += [Answer("more", text) for text in _queueing(summaries)]
    if advice := recommendation(summaries, calm, results.precision):
        found.append(Answer("advice", advice))
    return found + [Answer("caution", text) for text in _cautions(results, summaries)]


def _where(row: Row, all_: Sequence[Row]) -> str:
    """Return what is asked, where not all are asked the same."""
    asked = {scenario_of(one.comparison.a) for one in all_}
    return f"{words(scenario_of(row.comparison.a))}: " if len(asked) > 1 else ""


def _faults(summaries: Sequence[Summary]) -> Iterator[str]:
    """Tell what a stopped worker, kills and reloads cost the clients."""
    for fault in ("stopped", "killed", "reload"):
        told = [one for one in summaries if one.case.fault == fault and one.trials]
        if told:
            yield f"With {FAULTS[fault]}: {'; '.join(map(_losses, told))}."


def _queueing(summaries: Sequence[Summary]) -> Iterator[str]:
    """Tell the tail of each case with work at random arrivals, beside what theory says of it."""
    for one in summaries:
        case, measured = one.case, one.percentile(99)
        if not case.work or case.arrival != "poisson" or measured is None:
            continue
        shared = case.mode == "inherit"
        servers, rate = (case.workers, case.rate) if shared else (1, case.rate / case.workers)
        theory = 1e3 * response_quantile(servers, rate, case.work / 1e6, 0.99)
        queue = f"one queue for {case.workers}" if shared else "a queue each"
        load = 100 * rate * case.work / 1e6 / servers
        yield (
            f"{approach(case)}, {words(scenario_of(case))}, {queue}: p99 {measured:.0f} ms; "
            f"M/M/{servers} says {theory:.0f} ms at {load:.0f} % load."
        )


def _losses(one: Summary) -> str:
    asked = words(scenario_of(one.case)._replace(fault="none"))
    said = f"{approach(one.case)}, {asked}: {one.lost or 'none'} of {one.sent:,} clients lost"
    if one.case.fault == "stopped":
        share = 100 * one.lost / one.sent if one.sent else 0.0
        return f"{said} ({share:.2g} %; 1/N is {100 / one.case.workers:.0f} %)"
    if not one.faults:
        return said
    if not one.lost:
        return f"{said} in {one.faults} faults, less than {RULE_OF_THREE / one.faults:.2g} a fault"
    return f"{said} in {one.faults} faults, {one.lost / one.faults:.2g} a fault"


def recommendation(summaries: Sequence[Summary], rows: Sequence[Row], precision: float) -> str:
    """Return which way of greeterd to take for the first load, and why; empty without a choice."""
    row = next((one for one in rows if one.comparison.a.server == "greeterd"), None)
    if row is None or row.comparison.a.build:
        return ""
    asked, base = scenario_of(row.comparison.a), row.comparison.a
    rivals = [
        (one.comparison.b, one.primary)
        for one in rows
        if one.comparison.b is not None
        and one.comparison.b.server == "greeterd"
        and scenario_of(one.comparison.a) == asked
        and one.primary is not None
    ]
    matter = [(case, ratio) for case, ratio in rivals if not ratio.is_within(precision)]
    cheaper = [(case, ratio) for case, ratio in matter if ratio.high < 1]
    uneven = {one.case for one in summaries if one.spread is not None and not one.spread.fair}
    better = [(case, ratio) for case, ratio in cheaper if case not in uneven]
    if better:
        case, ratio = min(better, key=lambda one: one[1].ratio)
        why = f"it takes the least CPU, {interval(ratio)} of {approach(base)}, and spreads evenly"
    else:
        case = base
        dearer = [approach(other) for other, ratio in matter if ratio.low > 1]
        same = [approach(other) for other, _ in rivals if approach(other) not in dearer]
        same = [name for name in same if name not in {approach(one) for one, _ in cheaper}]
        parts = [f"{', '.join(dearer)} {_verb(dearer, 'take')} more CPU"] * bool(dearer)
        parts += [f"{', '.join(same)} no less that matters"] * bool(same)
        tilted = [approach(one) for one, _ in cheaper]
        parts += [f"{', '.join(tilted)} {_verb(tilted, 'spread')} unevenly"] * bool(tilted)
        parts += ["one queue for all needs no rescue when a worker is stuck"] * (
            base.mode == "inherit"
        )
        why = "; ".join(parts)
    return f"For {words(asked)} on this machine: {case.mode}, wait {wait_of(case)}: {why}."


def _verb(subjects: Sequence[object], verb: str) -> str:
    return verb if len(subjects) > 1 else f"{verb}s"


def _cautions(results: Results, summaries: Sequence[Summary]) -> Iterator[str]:
    """Tell what makes the figures doubtful."""
    trials = results.trials
    if not results.finished:
        yield f"The run was not finished: there are {len(trials)} trials."
    for one in results.objections:
        yield f"{approach(one.case)} is in no figure: {one.reason}."
    if invalid := Counter(trial.invalid for trial in trials if trial.invalid):
        reasons = "; ".join(f"{reason} ({count})" for reason, count in invalid.most_common(TOLD))
        yield f"{invalid.total()} of {len(trials)} trials are invalid and left out: {reasons}."
    limited = [trial.load.bottleneck for trial in trials if trial.load and trial.load.bottleneck]
    if limited:
        yield (
            f"In {len(limited)} of {len(trials)} trials the client may have been the limit, and "
            f"they are in no rate: in one, {limited[0].removeprefix(LIMIT).rstrip('.')}."
        )
    machine = results.environment
    if machine.load_average > BUSY * machine.cpus:
        yield (
            f"The machine was not idle before the run: load average {machine.load_average:.2f} on "
            f"{machine.cpus} CPUs."
        )
    sources = list(dict.fromkeys(trial.commit for trial in trials if trial.commit))
    if len(sources) > 1:
        yield f"The source of greeterd changed between trials: {', '.join(sources)}."
    lossy = [one for one in summaries if one.case.fault == "none" and one.lost]
    if lossy:
        worst = max(lossy, key=lambda one: one.lost / one.sent)
        yield (
            f"Clients were lost without a fault in {len(lossy)} cases, at most "
            f"{100 * worst.lost / worst.sent:.3g} % ({approach(worst.case)}, "
            f"{words(scenario_of(worst.case))})."
        )
