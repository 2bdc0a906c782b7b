"""The known effects of serving with several processes, each looked for in the figures.

Each function yields sentences of what was run, and none of what was not: "found" when the figures
show the effect by the thresholds below, "not shown" when they do not, and "cannot be told" when
their intervals hold both.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from greeterd.bench.analysis.spread import Spread
from greeterd.bench.analysis.stats import (
    Figure,
    Summary,
)
from greeterd.bench.labels import Scenario, approach, scenario_of, wait_of, words

HERD: Final = 0.1
"""Wasted wake-ups per greeting from which on there is a herd: one connection in ten wakes one too
many; without a herd it is the odd race."""
UNEVEN: Final = 0.9
"""The Jain index below which some workers are favoured: of four, one has 1.58 times its share when
the others share the rest evenly."""
FAIR: Final = 0.99
"""The Jain index from which on a spread is fair for all that matters: of four, one is 17 % off."""
TOLD: Final = 3
"""Scenarios that get a sentence each; more are counted."""
TWICE: Final = 2.0
"""The ratio from which on it is told as a multiple, not in percent."""

Kind = Literal["found", "not shown", "tie", "cannot be told", "caution"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence, and what sort of thing it says."""

    kind: Kind
    text: str


def is_inherit(one: Summary) -> bool:
    """Tell whether it is greeterd with a shared listener, as by default."""
    return approach(one.case) == "inherit"


def is_reuseport(one: Summary) -> bool:
    """Tell whether it is greeterd with a listener for each worker, as by default."""
    return approach(one.case) == "reuseport"


def is_epoll(one: Summary) -> bool:
    """Tell whether its workers wait for one listener by plain epoll."""
    return calm(one) and one.case.mode == "inherit" and wait_of(one.case) == "epoll"


def is_exclusive(one: Summary) -> bool:
    """Tell whether its workers wait for one listener by EPOLLEXCLUSIVE."""
    return calm(one) and one.case.mode == "inherit" and wait_of(one.case) == "exclusive"


def is_rescued(one: Summary) -> bool:
    """Tell whether the listener of a stopped worker is lent."""
    return one.case.mode == "reuseport" and one.case.rescue


def calm(one: Summary) -> bool:
    """Tell whether it is greeterd, with several workers and without a fault."""
    return one.case.server == "greeterd" and one.case.fault == "none" and one.case.workers > 1


def calm_of(summaries: Sequence[Summary], mode: str) -> list[Summary]:
    """Return the cases of one mode of greeterd without a fault."""
    return [
        one
        for one in summaries
        if one.case.server == "greeterd" and one.case.mode == mode and one.case.fault == "none"
    ]


def pairs(
    summaries: Sequence[Summary], left: Callable[[Summary], bool], right: Callable[[Summary], bool]
) -> Iterator[tuple[Summary, Summary]]:
    """Yield the pairs that are asked the same, and have no fault."""
    first: dict[Scenario, Summary] = {}
    for one in summaries:
        if left(one) and one.case.fault == "none":
            first.setdefault(scenario_of(one.case), one)
    for one in summaries:
        if right(one) and scenario_of(one.case) in first:
            yield first[scenario_of(one.case)], one


def percent(ratio: float, more: str, less: str) -> str:
    """Return a ratio in words: `12 % more`, `2.5 times less`."""
    factor, word = (ratio, more) if ratio >= 1 else (1 / max(ratio, 1e-9), less)
    return (
        f"{abs(ratio - 1) * 100:.0f} % {word}" if factor < TWICE else f"{factor:.1f} times {word}"
    )


def figure(found: Figure, form: str) -> str:
    """Return a median with its interval."""
    return f"{found.median:{form}} [{found.low:{form}}, {found.high:{form}}]"


def herd(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Tell whether one connection wakes several workers that wait by epoll."""
    herds = [one for one in summaries if is_epoll(one) and "wasted_wakeups" in one.figures]
    if not herds:
        return
    worst = max(herds, key=lambda one: one.figures["wasted_wakeups"].median)
    wasted, where = worst.figures["wasted_wakeups"], words(scenario_of(worst.case))
    beside = [
        f"{approach(one.case)} {one.figures['wasted_wakeups'].median:.2f}"
        for one in summaries
        if scenario_of(one.case) == scenario_of(worst.case)
        and not is_epoll(one)
        and one.case.server == "greeterd"
        and "wasted_wakeups" in one.figures
    ]
    other = f"; {', '.join(beside)}" if beside else ""
    if wasted.low < HERD <= wasted.high:
        yield Finding(
            "cannot be told",
            f"The herd of epoll: {figure(wasted, '.2f')} wasted wake-ups per greeting, "
            f"{where}{other}.",
        )
    elif wasted.low >= HERD:
        yield Finding(
            "found",
            f"A herd with epoll: {figure(wasted, '.2f')} wasted wake-ups per greeting, "
            f"{where}{other}.",
        )
    else:
        yield Finding(
            "not shown",
            f"This machine does not show the herd of epoll: {figure(wasted, '.2f')} wasted "
            f"wake-ups per greeting at most, {where}{other}.",
        )


def exclusive(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Tell whether EPOLLEXCLUSIVE favours workers."""
    told = [
        (one, spread)
        for one in summaries
        if is_exclusive(one) and (spread := one.spread) is not None and not spread.few
    ]
    if not told:
        return
    worst, spread = min(told, key=lambda pair: pair[0].figures["jain"].median)
    index, where = worst.figures["jain"], words(scenario_of(worst.case))
    jain = f"Jain {figure(index, '.3f')}"
    if spread.even or index.low >= UNEVEN:
        yield Finding(
            "not shown",
            f"This machine does not show the imbalance of exclusive: {jain} at worst, {where}.",
        )
    elif index.high < UNEVEN:
        yield Finding(
            "found",
            f"exclusive favours workers, {where}: {jain}; in a typical trial {spread.sentence}.",
        )
    else:
        yield Finding("cannot be told", f"The imbalance of exclusive: {jain} at worst, {where}.")


def fairness(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Tell whether rotate, blocking and reuseport are as even as chance."""
    groups: dict[str, list[tuple[Summary, Spread]]] = {}
    for one in summaries:
        if is_fair(one) and one.spread is not None and not one.spread.few:
            groups.setdefault(approach(one.case), []).append((one, one.spread))
    for name, told in groups.items():
        outside = [(one, spread) for one, spread in told if not spread.even]
        within = f"in {len(told)} of {len(told)} cases" if len(told) > 1 else ""
        if not outside:
            yield Finding(
                "found",
                f"{name} is as even as chance or more {within}".rstrip() + f": {_jain(told)}.",
            )
            continue
        fair = min(one.figures["jain"].median for one, _ in outside) >= FAIR
        verdict = "fair, if less even than chance" if fair else "less even than chance"
        yield Finding(
            "found" if fair else "not shown",
            f"{name} is {verdict} in {len(outside)} of {len(told)} cases: {_jain(outside)}.",
        )


def is_fair(one: Summary) -> bool:
    """Tell whether its spread is promised to be even."""
    by_hash = one.case.mode == "reuseport" and one.case.steering == "hash"
    by_turns = one.case.mode == "inherit" and wait_of(one.case) in {"rotate", "blocking"}
    return calm(one) and (by_hash or by_turns)


def _jain(told: Sequence[tuple[Summary, Spread]]) -> str:
    """Return the Jain index of one case, or the least of several, and what chance says to it."""
    one, least = min(told, key=lambda pair: pair[0].figures["jain"].median)
    p_value = "below 0.0001" if least.p_value < 0.0001 else f"{least.p_value:.4f}"  # noqa: PLR2004
    return (
        f"Jain {figure(one.figures['jain'], '.4f')}, p {p_value} ({words(scenario_of(one.case))})"
    )
