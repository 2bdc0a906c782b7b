"""What faults cost the clients, in sentences."""

from collections.abc import Iterator, Sequence
from typing import Final

from greeterd.bench.effects import Finding, figure
from greeterd.bench.labels import FAULTS, approach, scenario_of, words
from greeterd.bench.stats import Summary

NEAR: Final = (0.5, 1.5)
"""Multiples of 1/N within which a loss is called one of 1/N of the clients."""
NONE_LOST: Final = 0.05
"""The multiple of 1/N up to which a loss is another one: of clients in flight at the fault."""


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
        if bare and NEAR[0] * share <= lost.median <= NEAR[1] * share:
            yield Finding("found", f"{subject}: about 1/N is lost: {told}.")
        elif bare:
            yield Finding(
                "not shown", f"{subject}: this machine does not show a loss of 1/N: {told}."
            )
        elif lost.high == 0:
            yield Finding("found", f"{subject}: no client is lost.")
        elif lost.median <= NONE_LOST * share:
            yield Finding("found", f"{subject}: far less than 1/N is lost: {told}.")
        else:
            yield Finding("not shown", f"{subject}: clients are lost nevertheless: {told}.")


def others(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Tell what kills and reloads cost, by fault."""
    for fault in ("killed", "reload"):
        told = [
            f"{approach(one.case)} {figure(one.figures['lost_percent'], '.2f')} %"
            for one in summaries
            if one.case.fault == fault and "lost_percent" in one.figures
        ]
        if told:
            lost = any(
                one.figures["lost_percent"].high > 0
                for one in summaries
                if one.case.fault == fault and "lost_percent" in one.figures
            )
            said = (
                f"clients lost: {'; '.join(told)}"
                if lost
                else f"no client is lost ({len(told)} {'case' if len(told) == 1 else 'cases'})"
            )
            yield Finding("found", f"With {FAULTS[fault]}, {said}.")
