"""Names cases for people: short, and unique within one report."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from greeterd.bench.model import Case

DEFAULT_WAIT: Final = {"inherit": "rotate", "reuseport": "epoll"}
"""What the wait strategy `auto` stands for in a mode."""
FAULTS: Final = {
    "none": "no fault",
    "stopped": "one worker stopped",
    "killed": "a worker killed each second",
    "reload": "a reload each second",
}


class Scenario(NamedTuple):
    """What is asked of a server, whichever it is: cases that share it can be compared."""

    workers: int
    concurrency: int
    arrival: str
    rate: float
    life: float
    work: int
    fault: str


def scenario_of(case: Case) -> Scenario:
    """Return what is asked in a case."""
    return Scenario(*(getattr(case, name) for name in Scenario._fields))


def wait_of(case: Case) -> str:
    """Return the wait strategy that is in force."""
    return DEFAULT_WAIT.get(case.mode, case.wait) if case.wait == "auto" else case.wait


def approach(case: Case) -> str:
    """Return what serves: a mode of greeterd with its variant, or another server."""
    if case.server != "greeterd":
        return case.server if case.mode == "inherit" else f"{case.server} {case.mode}"
    parts = [case.mode]
    if case.mode == "handoff":
        parts += [case.handoff_policy] * (case.handoff_policy != "round-robin")
    elif wait_of(case) != DEFAULT_WAIT.get(case.mode):
        parts.append(wait_of(case))
    if case.mode == "reuseport":
        parts += [f"{case.steering} steering"] * (case.steering != "hash")
    if case.mode != "inherit":
        parts += ["without rescue"] * (not case.rescue)
    parts += [f"of build {case.build}"] * bool(case.build)
    return " ".join(parts)


def place(case: Case) -> tuple[object, ...]:
    """Return where a case stands in a report: beside those that are asked the same."""
    return (
        list(FAULTS).index(case.fault),
        case.arrival,
        case.rate,
        case.concurrency,
        case.workers,
        case.life,
        case.work,
        case.server != "greeterd",
        case.server,
        case.mode,
        DEFAULT_WAIT.get(case.mode) != wait_of(case),
        case.wait,
        case.steering,
        case.handoff_policy,
        not case.rescue,
        case.build,
        case.greetings,
    )


def describe(scenario: Scenario) -> list[str]:
    """Return the parts of a scenario in words, in a fixed order."""
    match scenario.arrival:
        case "closed":
            load = f"{scenario.concurrency} in flight"
        case "seed":
            load = f"a process each, {scenario.concurrency} at once"
        case "burst":
            load = f"bursts of {scenario.concurrency}"
        case _:
            load = f"{scenario.arrival} {scenario.rate:,.0f}/s"
    if scenario.life:
        load += f", held {scenario.life:g} s"
    if scenario.work:
        load += f", work of {scenario.work:,} us"
    workers = "1 worker" if scenario.workers == 1 else f"{scenario.workers} workers"
    return [workers, load, FAULTS[scenario.fault]]


def words(scenario: Scenario) -> str:
    """Return a scenario in words, without the lack of a fault."""
    return ", ".join(part for part in describe(scenario) if part != FAULTS["none"])


def varying(scenarios: Iterable[Scenario]) -> dict[Scenario, str]:
    """Return for each scenario in words what differs between them."""
    parts = {scenario: describe(scenario) for scenario in scenarios}
    found = {}
    for scenario, mine in parts.items():
        differ = [
            mine[index]
            for index in range(len(mine))
            if len({part[index] for part in parts.values()}) > 1 and mine[index] != FAULTS["none"]
        ]
        found[scenario] = ", ".join(differ)
    return found


def names(cases: Sequence[Case]) -> dict[Case, str]:
    """Return a name for each case: what serves, and what differs between the cases beside that."""
    asked = varying(map(scenario_of, cases))
    called = {
        case: ", ".join(filter(None, [approach(case), asked[scenario_of(case)]])) for case in cases
    }
    return _unique(called)


def common(cases: Iterable[Case]) -> list[str]:
    """Return the parts of the scenario that all cases share."""
    parts = [describe(scenario_of(case)) for case in cases]
    return [column[0] for column in zip(*parts, strict=True) if len(set(column)) == 1]


def _unique(found: dict[Case, str]) -> dict[Case, str]:
    """Return the names with the settings added that a name leaves out, where two are equal."""
    groups: dict[str, list[Case]] = {}
    for case, name in found.items():
        groups.setdefault(name, []).append(case)
    return {
        case: f"{name} [{_settings(case, groups[name])}]" if len(groups[name]) > 1 else name
        for case, name in found.items()
    }


def _settings(case: Case, others: Sequence[Case]) -> str:
    """Return the settings in which cases differ."""
    told = []
    for name in Case.__struct_fields__:
        if len({getattr(one, name) for one in others}) > 1:
            value = getattr(case, name)
            word = ("on" if value else "off") if isinstance(value, bool) else value
            told.append(f"{name.replace('_', ' ')} {word}")
    return ", ".join(told)
