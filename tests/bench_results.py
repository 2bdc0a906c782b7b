"""Results as an experiment might have: made up from a model of the effects, with a fixed seed."""

import math
from random import Random

from msgspec.structs import replace

from greeterd.bench.experiment.plan import compared
from greeterd.bench.model import (
    Case,
    Comparison,
    Counts,
    Environment,
    Latency,
    Listener,
    LoadReport,
    Results,
    Trial,
)

ENVIRONMENT = Environment(
    date="2026-01-01T12:00:00Z",
    kernel="6.18.0",
    machine="x86_64",
    cpu="A CPU <of> some & kind",
    cpus=4,
    memory_mib=8192,
    python="3.11.2",
    greeterd="0.1.0",
    commit="0123456789ab+",
    sysctls={"net.core.somaxconn": "4096", "net.ipv4.tcp_abort_on_overflow": "0"},
    packages={"structlog": "25.1.0", "msgspec": "0.20.0"},
    load_average=0.4,
)


def spread(case: Case, total: int, random: Random) -> list[int]:
    """Deal the greetings out to the workers as the way of waiting does."""
    if case.wait == "exclusive":
        weights = [0.9, *[0.1 / max(1, case.workers - 1)] * (case.workers - 1)]
    elif case.wait == "epoll" and case.mode == "inherit":
        weights = [1 + 0.1 * slot for slot in range(case.workers)]
    else:
        weights = [1.0] * case.workers
    counts = [0] * case.workers
    for slot in random.choices(range(case.workers), weights, k=total):
        counts[slot] += 1
    return counts


def latency(middle_ms: float, count: int) -> Latency:
    """Return a lognormal latency, with a curve and no histogram."""
    steps = [100 * (1 - 2 ** (-step / 4)) for step in range(4 * math.ceil(math.log2(count)) + 1)]
    curve = [(p, middle_ms * (1 / (1 - p / 100)) ** 0.45) for p in steps]

    def at(percentile: float) -> float:
        return middle_ms * math.pow(1 / (1 - percentile / 100), 0.45)

    return Latency(
        count=count,
        mean=middle_ms * 1.8,
        min=middle_ms * 0.4,
        p50=at(50),
        p90=at(90),
        p99=at(99),
        p999=at(99.9),
        max=at(100 * (1 - 1 / count)),
        curve=curve,
    )


def lost_share(case: Case) -> float:
    """Return the share of clients that the fault costs."""
    if case.fault == "stopped" and case.mode == "reuseport":
        return 0.0 if case.rescue else 1 / case.workers
    return 0.0005 if case.fault == "killed" else 0.0


def make_trial(
    case: Case,
    place: tuple[int, int],
    random: Random,
    *,
    slowdown: float = 1.0,
    noise: float = 0.05,
) -> Trial:
    """Return a trial of a comparison and pair; `slowdown` multiplies CPU, `noise` is relative."""

    def noisy(value: float) -> float:
        return float(value * math.exp(random.gauss(0, noise)))

    slower = {"greeterd": 1, "socketserver": 18, "asyncio": 4, "uvloop": 2.2}.get(case.server, 0.9)
    scale = min(case.workers, 2 if case.mode == "handoff" else 4) ** 0.8
    rate = noisy(20_000 * scale / slower / slowdown)
    if case.arrival in {"constant", "poisson"}:
        rate = case.rate
    lost = round(case.greetings * noisy(lost_share(case)))
    done = case.greetings - lost
    herd = case.wait == "epoll" and case.mode == "inherit"
    seconds = case.greetings / rate + (10 if lost > 10 else 0)
    load = LoadReport(
        address="127.0.0.1:40001",
        arrival=case.arrival,
        processes=2,
        concurrency=case.concurrency,
        rate=case.rate,
        seconds=seconds,
        sent=case.greetings,
        ok=done,
        errors={"timeout": lost} if lost else {},
        latency=replace(
            latency(noisy(0.3 * slower * slowdown * (2 if herd else 1)), max(1, done)), missing=lost
        ),
    )
    per_worker = spread(case, done, random) if case.server == "greeterd" else []
    return Trial(
        case=case,
        comparison=place[0],
        pair=place[1],
        order=0,
        began="2026-01-01T12:00:00Z",
        load=load,
        rate=done / seconds,
        cpu_user_us=noisy(6 * slower * slowdown),
        cpu_system_us=noisy(16 * slower**0.4 * slowdown * (1.5 if herd else 1)),
        switches_voluntary=noisy(1.2 if herd else 0.4),
        switches_involuntary=noisy(0.02),
        per_worker=per_worker,
        wakeups=noisy(2.1 if herd else 0.9),
        wasted_wakeups=noisy(1.2 if herd else 0.01),
        listener=Listener(queued_max=random.randrange(3, 40), limit=4096),
        lost=lost,
        counts=Counts(client=done, scoreboard=done, log=done),
    )


def make_results(
    cases: list[Case],
    pairs: int = 5,
    *,
    seed: int = 1,
    slowdown: float = 1.0,
    noise: float = 0.05,
    preset: str = "",
) -> Results:
    """Return results of some cases; a pair shares what drifts, which is more than its noise."""
    random = Random(seed)
    comparisons = compared(cases)
    found = []
    for pair in range(pairs):
        for index, one in enumerate(comparisons):
            drift = math.exp(random.gauss(0, 0.1))
            found += [
                make_trial(case, (index, pair), random, slowdown=slowdown * drift, noise=noise)
                for case in one.cases
            ]
    return of_trials(found, comparisons, seed=seed, preset=preset)


def of_trials(
    trials: list[Trial], comparisons: list[Comparison], *, seed: int = 1, preset: str = ""
) -> Results:
    """Return results of trials that there are."""
    return Results(
        environment=ENVIRONMENT, preset=preset, seed=seed, pairs=1, comparisons=comparisons,
        trials=[replace(trial, order=order) for order, trial in enumerate(trials)],
    )  # fmt: skip


ARTICLE = [
    Case(mode=mode, arrival="seed", concurrency=4, greetings=4000)
    for mode in ("inherit", "reuseport")
]
WIDE = [
    *(Case(wait=wait, concurrency=c) for wait in ("auto", "exclusive", "epoll") for c in (1, 16)),
    Case(wait="blocking"),
    *(Case(mode="reuseport", workers=workers) for workers in (1, 2, 4, 8)),
    *(Case(workers=workers) for workers in (1, 2, 8)),
    *(Case(mode="handoff", workers=workers) for workers in (1, 2, 4, 8)),
    *(Case(mode=mode, arrival="poisson", rate=5000) for mode in ("inherit", "reuseport")),
    *(Case(fault="stopped", mode=mode) for mode in ("inherit", "reuseport")),
    Case(fault="stopped", mode="reuseport", rescue=False),
    *(Case(fault="killed", mode=mode) for mode in ("inherit", "reuseport")),
    *(Case(fault="reload", mode=mode) for mode in ("inherit", "reuseport")),
    Case(server="asyncio", mode="reuseport"),
    Case(server="uvloop"),
    Case(server="socketserver"),
]
"""A case of every sort."""
