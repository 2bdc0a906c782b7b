"""Decides which comparisons an experiment has, and of which cases.

A matrix has values for each axis; a plan has the cases of it that are possible, and tells of the
others.  An axis that means nothing to a case keeps its default there: no case differs from another
by what has no effect.  Cases that are asked the same are compared with the first of them, or with
the same case of another build.  Pure: nothing is run.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Final

import msgspec
from msgspec import Struct

from greeterd.bench.analysis.paired import LOOKS
from greeterd.bench.labels import Scenario, scenario_of, wait_of
from greeterd.bench.model import Arrival, Case, Comparison, Fault
from greeterd.config.schema import MAX_WORKERS, HandoffPolicy, Mode, Steering, Wait

OPEN_LOOP: Final = frozenset({"constant", "poisson"})
"""Arrivals that have a rate, and come whether the server keeps up or not."""

FAULT_SECONDS: Final = 5.0
"""How long the load of a case with a fault lasts at least: five kills, five reloads."""

DEFAULT: Final = Case()
PEERS: Final = frozenset({"socketserver", "asyncio", "uvloop", "threaded", "bare"})
_OWN: Final = ("wait", "steering", "handoff_policy", "rescue")
CLIENT_TIMEOUT: Final = 10.0
FAULT_TIMEOUT: Final = 2.0
"""Seconds that a client waits; less with a fault, so that a stopped worker bounds its clients."""

PAIRS_WITH_FAULT: Final = 3
"""Of a comparison with a fault, whose trials last FAULT_SECONDS: losses are counts and add up."""

# A guess of how long a trial takes, of two cores.
_OVERHEAD: Final = 0.1
_GREETINGS_PER_SECOND: Final = 10_000.0
_ALONE_PER_SECOND: Final = 5_000.0
_SEEDS_PER_SECOND: Final = 650.0
_SLOW_PER_SECOND: Final = {"socketserver": 350.0, "asyncio": 4_000.0, "uvloop": 7_000.0}
"""Servers that are slower than the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Values for each axis: their product is what is asked for."""

    server: Sequence[str] = ("greeterd",)
    build: Sequence[str] = ("",)
    mode: Sequence[Mode] = ("inherit", "reuseport")
    wait: Sequence[Wait] = ("auto",)
    steering: Sequence[Steering] = ("hash",)
    handoff_policy: Sequence[HandoffPolicy] = ("round-robin",)
    rescue: Sequence[bool] = (True,)
    workers: Sequence[int] = (4,)
    concurrency: Sequence[int] = (16,)
    arrival: Sequence[Arrival] = ("closed",)
    rate: Sequence[float] = ()
    """Only of the arrivals that have one."""
    life: Sequence[float] = (0.0,)
    work: Sequence[int] = (0,)
    fault: Sequence[Fault] = ("none",)
    greetings: Sequence[int] = (2000,)


AXES: Final = tuple(one.name for one in fields(Matrix))


class Command(Struct, frozen=True, kw_only=True):
    """A server that is not greeterd's, as the command line has it."""

    name: str
    command: str
    """With {workers}, {address}, {host}, {port} and {directory} to be filled in."""
    reload_signal: str = "HUP"
    reload_command: str = ""
    """Run in place of the signal; with {pid} too."""


class Pin(Struct, frozen=True, kw_only=True):
    """Which CPUs servers and clients run on; any when empty."""

    server: list[int] = []
    client: list[int] = []


class Plan(Struct, frozen=True, kw_only=True):
    """What is to be run."""

    preset: str = ""
    comparisons: list[Comparison]
    pairs: int | None = None
    """Of each comparison; None to stop when the interval decides."""
    precision: float = 0.05
    max_time: float = 60.0
    """Seconds of all trials but those of faults and of a fixed number of pairs."""
    seed: int = 0
    """Decides the order within pairs, and the arrivals."""
    warmup: int = 400
    """Greetings to each server, as it is started, that are not measured."""
    pin: Pin = Pin()
    builds: dict[str, str] = {}
    """The commands of `--greeterd`, by name, where there are several."""
    commands: list[Command] = []
    request: str | None = None
    expect: str | None = None
    no_half_close: bool = False

    @property
    def cases(self) -> list[Case]:
        """All of them, in order."""
        return list(dict.fromkeys(case for one in self.comparisons for case in one.cases))

    def pairs_of(self, comparison: Comparison) -> int | None:
        """Return how many pairs a comparison has; None to stop when the interval decides."""
        fault = comparison.a.fault != "none"
        return self.pairs or (PAIRS_WITH_FAULT if fault else None)


def compared(cases: Sequence[Case]) -> list[Comparison]:
    """Return each case beside the first that is asked the same, or beside the first build."""
    first = next((case.build for case in cases), "")
    base: dict[Case | Scenario, Case] = {}
    if len({case.build for case in cases}) > 1:
        keys = [msgspec.structs.replace(case, build=first) for case in cases]
    else:
        keys = [scenario_of(case) for case in cases]  # type: ignore[misc]
    alone = Counter(keys)
    found = []
    for case, key in zip(cases, keys, strict=True):
        if key not in base:
            base[key] = case
        else:
            found.append(Comparison(a=base[key], b=case))
    return found + [Comparison(a=base[key]) for key, count in alone.items() if count == 1]


def groups(comparisons: Sequence[Comparison]) -> list[list[int]]:
    """Return which comparisons are run at a time, by place: those that are asked the same."""
    found: dict[Scenario, list[int]] = {}
    for index, one in enumerate(comparisons):
        found.setdefault(scenario_of(one.a), []).append(index)
    return list(found.values())


@dataclass(slots=True)
class Choice:
    """The possible cases of a matrix, in its order, and why the others are none."""

    cases: list[Case] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """How many cases were left out, by reason."""

    def __add__(self, other: "Choice") -> "Choice":
        """Join two; a case that both have is one."""
        reasons = self.left_out.keys() | other.left_out.keys()
        return Choice(
            list(dict.fromkeys([*self.cases, *other.cases])),
            {
                one: self.left_out.get(one, 0) + other.left_out.get(one, 0)
                for one in sorted(reasons)
            },
        )


def choose(matrix: Matrix) -> Choice:
    """Return the cases of a matrix, each once."""
    found: dict[Case, None] = {}
    left_out: dict[str, int] = {}
    for case in _product(matrix):
        reason = impossible(case)
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            found[_long_enough(_settled(case))] = None
    return Choice(list(found), left_out)


def join(matrices: Iterable[Matrix]) -> Choice:
    """Return the cases of several matrices, each once."""
    return sum(map(choose, matrices), Choice())


def _product(matrix: Matrix) -> Iterator[Case]:
    names = [name for name in AXES if name != "rate"]
    for values in itertools.product(*(getattr(matrix, name) for name in names)):
        case = msgspec.convert(dict(zip(names, values, strict=True)), Case)
        if case.arrival not in OPEN_LOOP:
            yield case
            continue
        for rate in matrix.rate or (0.0,):
            yield msgspec.structs.replace(case, rate=rate)


def impossible(case: Case) -> str:
    """Return why there is no such case; empty when there is."""
    reasons = (_impossible_server, _impossible_setting, _impossible_load, _impossible_fault)
    return next(filter(None, (reason(case) for reason in reasons)), "")


def _impossible_server(case: Case) -> str:
    if case.server == "greeterd":
        return ""
    if case.server not in PEERS:  # a command, which has what it has
        other = [name for name in _OWN if getattr(case, name) != getattr(DEFAULT, name)]
        return f"{other[0]} is of greeterd: say it in the command" if other else ""
    if case.mode not in {"inherit", "reuseport"}:
        return f"mode {case.mode} is of greeterd only"
    own = (*_OWN, "build", "fault")
    other = [name for name in own if getattr(case, name) != getattr(DEFAULT, name)]
    return f"{other[0]} {_show(getattr(case, other[0]))} is of greeterd only" if other else ""


def _impossible_setting(case: Case) -> str:
    if case.wait in {"rotate", "exclusive"} and case.mode != "inherit":
        return f"wait {case.wait} is for workers that share a listener: inherit only"
    if case.wait == "blocking" and case.mode == "handoff":
        return "wait blocking is for several accepting workers, not for mode handoff"
    if case.steering != "hash" and case.mode != "reuseport":
        return f"steering {case.steering} chooses between listeners: reuseport only"
    if case.handoff_policy != "round-robin" and case.mode != "handoff":
        return f"handoff_policy {case.handoff_policy} is the dispatcher's: handoff only"
    if not 1 <= case.workers <= MAX_WORKERS:
        return f"{case.workers} workers: 1 to {MAX_WORKERS} are possible"
    return ""


def _impossible_load(case: Case) -> str:
    if case.concurrency < 1 or case.greetings < 1:
        return "concurrency and greetings are at least 1"
    if case.arrival in OPEN_LOOP and not case.rate > 0:
        return f"arrival {case.arrival} needs a rate"
    if case.life < 0 or case.work < 0:
        return "life and work are 0 or more"
    if case.work and case.server != "threaded":
        return "work is of threaded only"
    if case.arrival == "burst" and case.fault != "none":
        return "a burst is over before a fault matters"
    return ""


def _impossible_fault(case: Case) -> str:
    if not case.rescue and case.fault != "stopped":
        return "without rescue differs only when a worker is stopped"
    if case.fault == "stopped" and case.workers == 1:
        return "with the only worker stopped nobody serves"
    return ""


def _settled(case: Case) -> Case:
    """Return the case with what is in force, so that two names make one case.

    In mode inherit no worker has a listener of its own, so that there is nothing to rescue.
    """
    if case.server != "greeterd":
        greetings = min(case.greetings, round(_SLOW_PER_SECOND.get(case.server, case.greetings)))
        mode = case.mode if case.server in PEERS else DEFAULT.mode
        return msgspec.structs.replace(case, greetings=greetings, mode=mode)
    wait = "auto" if case.mode == "handoff" else wait_of(case)
    rescue = case.rescue or case.mode == "inherit"
    return msgspec.structs.replace(case, wait=wait, rescue=rescue)


def _long_enough(case: Case) -> Case:
    """Return the case with as many greetings as a fault needs at its rate."""
    if case.fault == "none" or case.arrival not in OPEN_LOOP:
        return case
    return msgspec.structs.replace(
        case, greetings=max(case.greetings, round(case.rate * FAULT_SECONDS))
    )


def duration(case: Case) -> float | None:
    """Return the seconds that a load lasts where no number of greetings ends it.

    In closed loop each client that meets a stopped worker waits for its timeout: a number of
    greetings could take minutes.
    """
    return FAULT_SECONDS if case.fault != "none" and case.arrival not in OPEN_LOOP else None


def timeout(case: Case) -> float:
    """Return the seconds that a client waits for a greeting's end."""
    return CLIENT_TIMEOUT if case.fault == "none" else FAULT_TIMEOUT


def wants_reply(case: Case) -> bool:
    """Tell whether clients wait for the reply, and the server answers.

    A worker that is killed after it has read a name closes its connection in order, like one that
    has logged it: then only a reply proves that a greeting was recorded.
    """
    return case.fault == "killed"


def expected(case: Case) -> float:
    """Return a guess of the seconds that a trial takes."""
    fixed = duration(case)
    if fixed is not None:
        return _OVERHEAD + fixed + (timeout(case) if case.fault == "stopped" else 0.0)
    speed = _GREETINGS_PER_SECOND
    if case.arrival in OPEN_LOOP:
        speed = case.rate
    elif case.arrival == "seed":
        speed = _SEEDS_PER_SECOND
    elif case.concurrency == 1:
        speed = _ALONE_PER_SECOND
    if case.life and case.arrival not in OPEN_LOOP:
        speed = min(speed, case.concurrency / case.life)
    if case.work:
        speed = min(speed, 1e6 * case.workers / case.work)
    speed = min(speed, _SLOW_PER_SECOND.get(case.server, speed))
    return _OVERHEAD + case.greetings / speed


def _show(value: object) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def least_seconds(plan: Plan) -> float:
    """Return a guess of how long an experiment takes at least."""
    return sum(
        (plan.pairs_of(one) or LOOKS[0]) * sum(map(expected, one.cases)) for one in plan.comparisons
    )
