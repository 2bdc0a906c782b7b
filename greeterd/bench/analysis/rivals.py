"""Compares within one run: modes with each other, and greeterd with other servers.

All comparisons of a report share one error: each is made at a level by which all of them together
hold, and borrows from the noise of the others, as where two runs are compared.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from greeterd.bench.analysis.effects import (
    TOLD,
    Finding,
    Kind,
    calm_of,
    is_inherit,
    is_reuseport,
    pairs,
    percent,
)
from greeterd.bench.analysis.stats import (
    TIE,
    Asked,
    Comparison,
    Summary,
    compare_all,
    level_of,
    ratio_of,
)
from greeterd.bench.labels import Scenario, approach, scenario_of, words
from greeterd.bench.metrics import METRICS, has_rate


def _interval(found: Comparison) -> str:
    return f"ratio {ratio_of(found)}"


def comparisons(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Compare the modes with each other, and greeterd with other servers."""
    made = [mode_pairs(summaries), handoff_pairs(summaries), peer_pairs(summaries)]
    asked = [pair for some in made for pair in some]
    found = iter(compare_all(asked, level_of(len(asked))))
    both, handed, others = ([(a, b, next(found)) for a, b, _ in some] for some in made)
    yield from modes(both)
    yield from handoff(summaries, handed)
    yield from peers(others)


Told = Sequence[tuple[Summary, Summary, Comparison | None]]


def mode_pairs(summaries: Sequence[Summary]) -> list[Asked]:
    """Return what there is to compare of inherit and reuseport, asked the same."""
    asked = list(pairs(summaries, is_inherit, is_reuseport))
    metrics = (METRICS["rate"], METRICS["cpu_us"])
    return [(a, b, m) for m in metrics for a, b in asked if a.values(m) and b.values(m)]


def modes(compared: Told) -> Iterator[Finding]:
    """Tell of reuseport against inherit."""
    for name, more, less in (("rate", "faster", "slower"), ("cpu_us", "more CPU", "less CPU")):
        title = "rate" if name == "rate" else "CPU per greeting"
        verdicts: Counter[str] = Counter()
        lines = []
        for a, _, found in compared:
            if found is None or found.metric.name != name:
                continue
            kind, verdict = _verdict(found, more, less)
            verdicts[kind if kind != "found" else more if found.ratio > 1 else less] += 1
            where = words(scenario_of(a.case))
            said = f"reuseport against inherit, {title}, {where}: {verdict}, {_interval(found)}."
            lines.append(Finding(kind, said))
        if len(lines) <= TOLD:
            yield from lines
            continue
        told = ", ".join(f"{word} in {count}" for word, count in verdicts.most_common())
        kinds = {line.kind for line in lines}
        order: tuple[Kind, ...] = ("found", "cannot be told", "tie")
        yield Finding(
            next(kind for kind in order if kind in kinds),
            f"reuseport against inherit, {title}: {told} of {len(lines)} scenarios.",
        )


def _verdict(found: Comparison, more: str, less: str) -> tuple[Kind, str]:
    match found.verdict:
        case "tie":
            return "tie", "a tie"
        case "cannot be told":
            return "cannot be told", "whether they differ cannot be told"
        case _:
            return "found", percent(found.ratio, more, less)


def handoff_pairs(summaries: Sequence[Summary]) -> list[Asked]:
    """Return the cases of handoff with the most workers, beside those of another mode."""
    return [(other[1], many, METRICS["rate"]) for _, many, other in _handed(summaries)]


def handoff(summaries: Sequence[Summary], compared: Told) -> Iterator[Finding]:
    """Tell whether the dispatcher limits the rate as workers grow, asked the same otherwise."""
    for (few, many, other), (_, _, beside) in zip(_handed(summaries), compared, strict=True):
        gain, theirs = growth(few, many), growth(*other)
        if gain is None or theirs is None or beside is None:
            continue
        name = approach(many.case)
        figures = (
            f"from {few.case.workers} to {many.case.workers} workers its rate grows "
            f"{gain:.2f} times, that of {approach(other[1].case)} {theirs:.2f} times; "
            f"{words(scenario_of(many.case))}: {_interval(beside)}"
        )
        if beside.verdict == "a better" and theirs > gain * TIE:
            yield Finding("found", f"The dispatcher of {name} is a bottleneck: {figures}.")
        elif beside.verdict == "cannot be told":
            yield Finding("cannot be told", f"Whether {name} is a bottleneck: {figures}.")
        else:
            yield Finding(
                "not shown", f"This machine does not show {name} as a bottleneck: {figures}."
            )


def _handed(
    summaries: Sequence[Summary],
) -> Iterator[tuple[Summary, Summary, tuple[Summary, Summary]]]:
    """Yield handoff with the fewest and with the most workers, and another mode with as many.

    Each group is asked the same but for the workers, and at no pace of the client.
    """
    groups: dict[tuple[str, Scenario], list[Summary]] = {}
    for one in calm_of(summaries, "handoff"):
        if has_rate(one.case) and one.values(METRICS["rate"]):
            key = approach(one.case), scenario_of(one.case)._replace(workers=0)
            groups.setdefault(key, []).append(one)
    for mine in groups.values():
        few, many = (pick(mine, key=lambda one: one.case.workers) for pick in (min, max))
        other = _grown(list(filter(is_inherit, summaries)), few, many) or _grown(
            list(filter(is_reuseport, summaries)), few, many
        )
        if few.case.workers < many.case.workers and other is not None:
            yield few, many, other


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


def peer_pairs(summaries: Sequence[Summary]) -> list[Asked]:
    """Return what there is to compare of greeterd and each other server."""
    found: list[Asked] = []
    for name in dict.fromkeys(one.case.server for one in summaries):
        if name == "greeterd":
            continue

        def is_peer(one: Summary, name: str = name) -> bool:
            return one.case.server == name

        some = list(pairs(summaries, is_inherit, is_peer))
        some = some or list(pairs(summaries, is_reuseport, is_peer))
        found += [(a, b, METRICS["cpu_us"]) for a, b in some[:TOLD]]
    return found


def peers(compared: Told) -> Iterator[Finding]:
    """Tell of the CPU time of other servers against that of greeterd."""
    for a, b, found in compared:
        if found is not None:
            kind, verdict = _verdict(found, "more", "less")
            yield Finding(
                kind,
                f"{approach(b.case)} against greeterd {approach(a.case)}, CPU per greeting, "
                f"{words(scenario_of(b.case))}: {verdict}, {_interval(found)}.",
            )
