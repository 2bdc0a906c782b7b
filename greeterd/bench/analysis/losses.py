"""What faults cost the clients, in sentences."""

from collections.abc import Iterator, Sequence
from typing import Final

from greeterd.bench.analysis.effects import Finding, figure
from greeterd.bench.analysis.stats import Summary
from greeterd.bench.labels import FAULTS, approach, scenario_of, words

NEAR: Final = (0.5, 1.5)
"""Multiples of 1/N within which a loss is called one of 1/N of the clients."""
NONE_LOST: Final = 0.05
"""The multiple of 1/N up to which a loss is another one: of clients in flight at the fault."""

OPEN_LOOP: Final = frozenset({"constant", "poisson"})
"""The arrivals that go on while other clients wait."""
RULE_OF_THREE: Final = 3


def fair_share(one: Summary) -> float:
    """Return 1/N in percent."""
    return 100 / one.case.workers


def stopped(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Tell what one stopped worker costs, and whether rescue or a shared listener avert it."""
    for one in summaries:
        if one.case.fault != "stopped" or "lost_percent" not in one.figures:
            continue
        lost, share = one.figures["lost_percent"], fair_share(one)
        bare = one.case.mode == "reuseport" and not one.case.rescue
        subject = f"{approach(one.case)}, {words(scenario_of(one.case))}"
        shown = figure(lost, ".1f" if lost.median >= 1 else ".3f")
        told = f"{shown} % of the clients lost, 1/N is {share:.1f} %"
        low, high = (near * share for near in NEAR)
        if one.case.arrival not in OPEN_LOOP and (bare or lost.high > 0):
            yield Finding(
                "cannot be told",
                f"{subject}: {told}. Here a client that waits in vain sends no other one, so that "
                "the share is no worker's; see open loop.",
            )
        elif bare and low <= lost.low and lost.high <= high:
            yield Finding("found", f"{subject}: about 1/N is lost: {told}.")
        elif bare and low <= lost.high and lost.low <= high:
            yield Finding("cannot be told", f"{subject}: whether about 1/N is lost: {told}.")
        elif bare:
            yield Finding(
                "not shown", f"{subject}: this machine does not show a loss of 1/N: {told}."
            )
        elif lost.high == 0:
            yield Finding("found", f"{subject}: none of {_clients(one):,} clients is lost.")
        elif lost.high <= NONE_LOST * share:
            yield Finding("found", f"{subject}: far less than 1/N is lost: {told}.")
        else:
            yield Finding("not shown", f"{subject}: clients are lost nevertheless: {told}.")


def others(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Tell what kills and reloads cost, by fault."""
    for fault in ("killed", "reload"):
        told = [_of_each(one) for one in summaries if one.case.fault == fault]
        if told:
            yield Finding("found", f"With {FAULTS[fault]}: {'; '.join(told)}.")


def _of_each(one: Summary) -> str:
    """Return what the faults of a case cost, each of them if it is known how many there were."""
    lost = sum(trial.lost for trial in one.trials)
    faults = sum(trial.faults for trial in one.trials)
    said = f"{approach(one.case)}, {words(scenario_of(one.case)._replace(fault='none'))}: "
    said += f"{lost or 'none'} of {_clients(one):,} clients lost"
    if not faults:
        return said
    if not lost:
        # Of n that all went well, with 95 % (J. Hanley and A. Lippman-Hand, 1983).
        return f"{said} in {faults} faults, less than {RULE_OF_THREE / faults:.2g} a fault"
    return f"{said} in {faults} faults, {lost / faults:.2g} a fault"


def _clients(one: Summary) -> int:
    return sum(trial.load.sent for trial in one.trials if trial.load)
