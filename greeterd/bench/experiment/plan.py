"""Decides which trials an experiment has, and in which order they are run.

A matrix has values for each axis; a plan has the cases of it that are possible, and tells of the
others.  An axis that means nothing to a case keeps its default there: no case differs from another
by what has no effect.  Pure: nothing is run, and the order follows from the seed.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Final

import msgspec
from msgspec import Struct

from greeterd.bench.labels import wait_of
from greeterd.bench.model import Arrival, Case, Fault, Server
from greeterd.config.schema import MAX_WORKERS, HandoffPolicy, Mode, Steering, Wait

OPEN_LOOP: Final = frozenset({"constant", "poisson"})
"""Arrivals that have a rate, and come whether the server keeps up or not."""

FAULT_SECONDS: Final = 5.0
"""How long the load of a case with a fault lasts at least: five kills, five reloads."""

DEFAULT: Final = Case()
CLIENT_TIMEOUT: Final = 10.0
FAULT_TIMEOUT: Final = 2.0
"""Seconds that a client waits; less with a fault, so that a stopped worker bounds its clients."""

# A first guess of how long a trial takes, of two cores; what is measured goes before it.
_OVERHEAD: Final = 0.7
_GREETINGS_PER_SECOND: Final = 10_000.0
_ALONE_PER_SECOND: Final = 5_000.0
_SEEDS_PER_SECOND: Final = 650.0
_SLOW_PER_SECOND: Final = {"socketserver": 350.0, "asyncio": 4_000.0, "uvloop": 7_000.0}
"""Servers that are slower than the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Values for each axis: their product is what is asked for."""

    server: Sequence[Server] = ("greeterd",)
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
    fault: Sequence[Fault] = ("none",)
    greetings: Sequence[int] = (10_000,)


AXES: Final = tuple(one.name for one in fields(Matrix))


class Plan(Struct, frozen=True, kw_only=True):
    """What is to be run: the cases, how often each, and in which order."""

    preset: str = ""
    cases: list[Case]
    repeats: int = 3
    seed: int = 0
    warmup: int = 400
    """Greetings before each trial that are not measured."""

    @property
    def trials(self) -> int:
        """How many trials there are."""
        return len(self.cases) * self.repeats


@dataclass(frozen=True, slots=True)
class Visit:
    """One trial that is to be run."""

    case: Case
    repeat: int
    order: int

    @property
    def key(self) -> tuple[str, int]:
        """What tells this trial from every other of the plan."""
        return key(self.case), self.repeat


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
    if case.mode not in {"inherit", "reuseport"}:
        return f"mode {case.mode} is of greeterd only"
    own = ("wait", "steering", "handoff_policy", "rescue", "fault")
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
        return case
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
    speed = min(speed, _SLOW_PER_SECOND.get(case.server, speed))
    return _OVERHEAD + case.greetings / speed


def schedule(plan: Plan) -> list[Visit]:
    """Return the trials in the order in which they are run.

    Each block has every case once, in an order of its own: an interrupted run has each case about
    equally often, and a slow drift of the machine meets all cases alike.
    """
    chance = random.Random(plan.seed)  # noqa: S311  an order that can be repeated
    visits: list[Visit] = []
    for repeat in range(plan.repeats):
        block = chance.sample(plan.cases, len(plan.cases))
        visits += [Visit(case, repeat, len(visits) + at) for at, case in enumerate(block)]
    return visits


def key(case: Case) -> str:
    """Return all that makes a case, as `axis=value` in the order of the fields."""
    return " ".join(f"{name}={_show(getattr(case, name))}" for name in Case.__struct_fields__)


def _show(value: object) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:g}"
        case _:
            return str(value)
