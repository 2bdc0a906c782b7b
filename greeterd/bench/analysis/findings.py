"""Says in sentences what was found, and what was not.

A known effect that the figures do not show is called "not shown"; one whose case was not run is
not claimed, but listed as not measured.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from greeterd.bench.analysis import losses
from greeterd.bench.analysis.effects import (
    TOLD,
    Finding,
    calm_of,
    exclusive,
    fairness,
    herd,
    is_epoll,
    is_exclusive,
    is_inherit,
    is_rescued,
    is_reuseport,
    pairs,
)
from greeterd.bench.analysis.rivals import comparisons
from greeterd.bench.analysis.stats import Summary
from greeterd.bench.labels import approach, scenario_of, words
from greeterd.bench.model import Results

LIMIT: Final = "the client was the limit: "
"""How the sentence of a load begins."""
SURE: Final = 6
"""The trials from which on the interval of a median holds it in 95 % of cases."""
BUSY: Final = 0.5
"""The load average per CPU before a run from which on its figures are doubtful."""


def find(results: Results, summaries: Sequence[Summary]) -> list[Finding]:
    """Return what the results say, the main question first and the cautions last."""
    told = [one for one in summaries if one.trials]
    effects = (comparisons, herd, exclusive, fairness, losses.stopped, losses.others)
    return [
        *(finding for effect in effects for finding in effect(told)),
        *_cautions(results, told),
    ]


def not_measured(summaries: Sequence[Summary]) -> list[str]:
    """Return the known effects of which no valid trial was run."""
    told = [one for one in summaries if one.trials]
    stopped = [one for one in told if one.case.fault == "stopped"]
    known: dict[str, bool] = {
        "inherit against reuseport": any(True for _ in pairs(told, is_inherit, is_reuseport)),
        "the herd of epoll": any(map(is_epoll, told)),
        "the imbalance of exclusive": any(map(is_exclusive, told)),
        "the handoff bottleneck": any(calm_of(told, "handoff")),
        "a stopped worker without rescue": any(not one.case.rescue for one in stopped),
        "a stopped worker with rescue": any(map(is_rescued, stopped)),
    }
    return [name for name, measured in known.items() if not measured]


def _cautions(results: Results, told: Sequence[Summary]) -> Iterator[Finding]:
    """Tell what makes the figures doubtful."""
    trials = results.trials
    if len(trials) < results.planned:
        yield Finding(
            "caution", f"The run was not finished: {len(trials)} of {results.planned} trials."
        )
    invalid = Counter(trial.invalid for trial in trials if trial.invalid)
    if invalid:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in invalid.most_common(TOLD))
        yield Finding(
            "caution",
            f"{invalid.total()} of {len(trials)} trials are invalid and left out: {reasons}.",
        )
    limited = [t for one in told for t in one.trials if t.load and t.load.bottleneck]
    if limited and limited[0].load:
        yield Finding(
            "caution",
            f"In {len(limited)} of {len(trials)} trials the client, not the server, may have been "
            f"the limit; in one, {limited[0].load.bottleneck.removeprefix(LIMIT).rstrip('.')}.",
        )
    machine = results.environment
    if machine.load_average > BUSY * machine.cpus:
        yield Finding(
            "caution",
            f"The machine was not idle before the run: load average {machine.load_average:.2f} on "
            f"{machine.cpus} CPUs.",
        )
    sources = list(dict.fromkeys(trial.commit for trial in trials if trial.commit))
    if len(sources) > 1:
        yield Finding(
            "caution", f"The source of greeterd changed between trials: {', '.join(sources)}."
        )
    yield from _lossy(told)
    few = [one for one in told if one.valid < SURE]
    if few:
        least = min(one.valid for one in few)
        noun = "trial" if least == 1 else "trials"
        share = 100 * (1 - 2.0 ** (1 - least))
        what = f"their intervals are ranges, and hold the median in {share:.0f} % of cases or more"
        if least == 1:
            what = "their intervals are ranges, and one trial alone tells nothing of its noise"
        yield Finding(
            "caution",
            f"{len(few)} of {len(told)} cases have fewer than {SURE} valid trials (at least "
            f"{least} {noun}): {what}.",
        )


def _lossy(told: Sequence[Summary]) -> Iterator[Finding]:
    """Tell where clients were lost though nothing was done to the server."""
    lossy = [one for one in told if one.case.fault == "none" and one.lost]
    if not lossy:
        return
    worst = max(lossy, key=lambda one: one.lost)
    yield Finding(
        "caution",
        f"Clients were lost without a fault in {len(lossy)} of {len(told)} cases, at most "
        f"{100 * worst.lost:.3g} % ({approach(worst.case)}, {words(scenario_of(worst.case))}): "
        "rates and CPU time are of those that were served.",
    )
