"""The known effects of serving with several processes, each looked for in the figures.

Each function yields sentences of what was run, and none of what was not: "found" when the figures
show the effect by the thresholds below, "not shown" when they do not.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from greeterd.bench.labels import Scenario, approach, scenario_of, wait_of, words
from greeterd.bench.stats import (
    METRICS,
    TIE,
    Comparison,
    Figure,
    Metric,
    Summary,
    compare_cases,
)
from greeterd.core.balance import Balance

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

Kind = Literal["found", "not shown", "tie", "caution"]


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


def _interval(found: Comparison) -> str:
    return f"ratio {found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"


def modes(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Compare reuseport with inherit, where both were asked the same."""
    asked = list(pairs(summaries, is_inherit, is_reuseport))
    for name, more, less in (("rate", "faster", "slower"), ("cpu_us", "more CPU", "less CPU")):
        title = "rate" if name == "rate" else "CPU per greeting"
        verdicts: Counter[str] = Counter()
        lines = []
        for a, b in asked:
            found = compare_cases(a, b, METRICS[name])
            if found is None:
                continue
            where = words(scenario_of(a.case))
            tie = found.verdict == "tie"
            verdict = "a tie" if tie else percent(found.ratio, more, less)
            verdicts["tie" if tie else (more if found.ratio > 1 else less)] += 1
            lines.append(
                Finding(
                    "tie" if tie else "found",
                    f"reuseport against inherit, {title}, {where}: {verdict}, {_interval(found)}.",
                )
            )
        if len(lines) <= TOLD:
            yield from lines
        else:
            told = ", ".join(f"{word} in {count}" for word, count in verdicts.most_common())
            yield Finding(
                "found" if set(verdicts) != {"tie"} else "tie",
                f"reuseport against inherit, {title}: {told} of {len(lines)} scenarios.",
            )


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
    if wasted.low >= HERD:
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
    uneven = [one for one in summaries if is_exclusive(one) and "jain" in one.figures]
    if not uneven:
        return
    worst = min(uneven, key=lambda one: one.figures["jain"].median)
    index, where = worst.figures["jain"], words(scenario_of(worst.case))
    said = f": {worst.balance.sentence}" if worst.balance else ""
    if index.high < UNEVEN:
        yield Finding(
            "found", f"exclusive favours workers, {where}: Jain {figure(index, '.3f')}{said}."
        )
    else:
        yield Finding(
            "not shown",
            f"This machine does not show the imbalance of exclusive: Jain {figure(index, '.3f')} "
            f"at worst, {where}.",
        )


def fairness(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Tell whether rotate, blocking and reuseport are as even as chance."""
    groups: dict[str, list[Summary]] = {}
    for one in summaries:
        fair = one.case.mode == "reuseport" or wait_of(one.case) in {"rotate", "blocking"}
        if calm(one) and fair and one.case.mode != "handoff" and one.balance is not None:
            groups.setdefault(approach(one.case), []).append(one)
    for name, members in groups.items():
        told = [(one, one.balance) for one in members if one.balance is not None]
        outside = [(one, b) for one, b in told if not b.even]
        within = f"in {len(told) - len(outside)} of {len(told)} cases" if len(told) > 1 else ""
        if not outside:
            yield Finding(
                "found",
                f"{name} is as even as chance or more {within}".rstrip() + f": {_jain(told)}.",
            )
            continue
        worst = min(balance.found.jain for _, balance in outside)
        fair = worst >= FAIR
        verdict = "fair, if less even than chance" if fair else "less even than chance"
        yield Finding(
            "found" if fair else "not shown",
            f"{name} is {verdict} in {len(outside)} of {len(told)} cases: {_jain(outside)}.",
        )


def _jain(told: Sequence[tuple[Summary, Balance]]) -> str:
    """Return the Jain index of one case, or the least of several, beside that of chance."""
    one, least = min(told, key=lambda pair: pair[1].found.jain)
    where = words(scenario_of(one.case))
    return (
        f"Jain {least.found.jain:.4f}, where chance stays above {least.chance.jain:.4f} in 95 of "
        f"100 cases ({where})"
    )


def handoff(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Tell whether the dispatcher limits the rate as workers grow."""
    handed = calm_of(summaries, "handoff")
    for name in dict.fromkeys(approach(one.case) for one in handed):
        mine = [one for one in handed if approach(one.case) == name]
        few, many = (pick(mine, key=lambda one: one.case.workers) for pick in (min, max))
        if few.case.workers == many.case.workers:
            continue
        other = _grown(list(filter(is_inherit, summaries)), few, many) or _grown(
            list(filter(is_reuseport, summaries)), few, many
        )
        if other is None:
            continue
        gain, theirs = growth(few, many), growth(*other)
        beside = compare_cases(other[1], many, METRICS["rate"])
        if gain is None or theirs is None or beside is None:
            continue
        figures = (
            f"from {few.case.workers} to {many.case.workers} workers its rate grows "
            f"{gain:.2f} times, that of {approach(other[1].case)} {theirs:.2f} times; at "
            f"{many.case.workers} workers {_interval(beside)}"
        )
        if beside.verdict == "a better" and theirs > gain * TIE:
            yield Finding("found", f"The dispatcher of {name} is a bottleneck: {figures}.")
        else:
            yield Finding(
                "not shown", f"This machine does not show {name} as a bottleneck: {figures}."
            )


def _grown(
    summaries: Sequence[Summary], few: Summary, many: Summary
) -> tuple[Summary, Summary] | None:
    """Return the cases of one approach that are asked the same as `few` and as `many`."""
    for low in summaries:
        for high in summaries:
            same = approach(low.case) == approach(high.case)
            if (
                same
                and scenario_of(low.case) == scenario_of(few.case)
                and scenario_of(high.case) == scenario_of(many.case)
            ):
                return low, high
    return None


def growth(few: Summary, many: Summary) -> float | None:
    """Return by what the median rate grows."""
    low, high = few.median("rate"), many.median("rate")
    return high / low if low and high else None


def peers(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Compare the CPU time of greeterd with that of each other server."""
    metric: Metric = METRICS["cpu_us"]
    for name in dict.fromkeys(one.case.server for one in summaries):
        if name == "greeterd":
            continue

        def is_peer(one: Summary, name: str = name) -> bool:
            return one.case.server == name

        pairs_of = list(pairs(summaries, is_inherit, is_peer))
        pairs_of = pairs_of or list(pairs(summaries, is_reuseport, is_peer))
        for a, b in pairs_of[:TOLD]:
            found = compare_cases(a, b, metric)
            if found is None:
                continue
            tie = found.verdict == "tie"
            verdict = "a tie" if tie else percent(found.ratio, "more", "less")
            yield Finding(
                "tie" if tie else "found",
                f"{approach(b.case)} against greeterd {approach(a.case)}, CPU per greeting, "
                f"{words(scenario_of(b.case))}: {verdict}, {_interval(found)}.",
            )
