"""Runs one trial: a fresh server, a warm-up, a measured load, three counts, and an end.

The client is `greeter load`, a process of its own; what the server spends is looked at from
outside.  A trial has a time limit: whatever hangs is killed, and the trial is invalid.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import repeat
from pathlib import Path
from typing import Final

import msgspec

from greeterd.bench.experiment import plan as planning
from greeterd.bench.experiment.counting import disagreement
from greeterd.bench.experiment.environment import now
from greeterd.bench.experiment.faults import Injector
from greeterd.bench.experiment.outside import Spent, Watch, listen_drops, queues
from greeterd.bench.experiment.plan import Plan, Visit
from greeterd.bench.experiment.servers import (
    Server,
    Setup,
    TrialError,
    last_words,
    running,
    started,
)
from greeterd.bench.experiment.waiting import poll
from greeterd.bench.load.options import LoadOptions
from greeterd.bench.model import Case, Counts, Listener, LoadReport, Trial
from greeterd.client import Failure, Order, UnreachableError, send_all
from greeterd.control.status import Status
from greeterd.errors import GreeterdError
from greeterd.sockets.address import Address
from greeterd.system.cpus import usable_cpus

LOAD: Final = (
    sys.executable,
    "-P",
    "-c",
    "import sys; from greeterd.cli.greeter import main; sys.exit(main(['load', *sys.argv[1:]]))",
)
SOURCES: Final = 64
"""Source addresses, so that no trial runs out of ports in TIME_WAIT."""

_STEP: Final = 0.05
"""Seconds between two looks at the queues."""
_ENOUGH_TICKS: Final = 100
"""Of all trials of a case: with fewer, the halves of its CPU time are mostly chance."""
_WARMUP_CONCURRENCY: Final = 8
_SETTLE_TIMEOUT: Final = 10.0
_SLOWEST: Final = 100.0
"""Greetings per second: a load that is slower than that hangs."""
_PATIENCE: Final = 30.0


@dataclass(slots=True)
class Watched:
    """What was seen from outside while the load ran."""

    spent: Spent
    status: Status | None
    """As the client ended.  A stopped worker goes on later, and greets those who waited in vain."""
    sockets: int = 0
    longest_queue: int = 0
    drops: int = 0


@dataclass(slots=True)
class Tally:
    """What the clients know of their greetings, warm-up and load."""

    ok: int = 0
    uncertain: int = 0


@dataclass(slots=True)
class Before:
    """What the server had counted when the load began."""

    status: Status | None
    lines: Mapping[int, int] = field(default_factory=dict)


def run(visit: Visit, plan: Plan, setup: Setup) -> Trial:
    """Run a trial; one that failed is invalid and says why.  Blocks for its whole time."""
    began = now()
    trial = Trial(
        case=visit.case, repeat=visit.repeat, order=visit.order, began=began, commit=setup.commit
    )
    try:
        with running(visit.case, setup) as server:
            return _measure(trial, server, plan)
    except GreeterdError as error:
        return msgspec.structs.replace(trial, invalid=str(error))


def _measure(trial: Trial, server: Server, plan: Plan) -> Trial:
    case = trial.case
    tally = Tally()
    _require_space(server)
    _warm_up(server, plan.warmup, tally)
    before = Before(server.status(), server.log_lines())
    injector = Injector(server, server.log_bytes())
    try:
        load, watched = _load(server, injector, plan.seed + trial.order)
        objection = _objection(case, load, injector)
    finally:
        injector.end()
    tally.ok += load.ok
    tally.uncertain += load.uncertain
    after = _settle(server, tally)
    server.stop()
    lines = server.log_lines()
    counts = _counts(case, tally, after, sum(lines.values()))
    per_worker = _per_worker(case, before, watched.status, lines)
    trial = _with_figures(trial, load, watched, per_worker)
    if watched.spent.ticks * plan.repeats < _ENOUGH_TICKS:
        trial = msgspec.structs.replace(trial, cpu_user_us=None, cpu_system_us=None)
    if before.status is not None and watched.status is not None:
        trial = _with_status(trial, before.status, watched.status)
    return msgspec.structs.replace(
        trial,
        faults=injector.done,
        counts=counts,
        invalid=objection or disagreement(counts, case.fault),
    )


def _counts(case: Case, tally: Tally, after: Status | None, lines: int) -> Counts:
    counts = Counts(client=tally.ok, uncertain=tally.uncertain, log=lines)
    if case.server == "bare":  # it logs nothing and counts
        return msgspec.structs.replace(counts, scoreboard=lines, log=None)
    if after is None:
        return counts
    return msgspec.structs.replace(counts, scoreboard=after.totals.greetings)


def _objection(case: Case, load: LoadReport, injector: Injector) -> str:
    """Return why a load that came to its end says nothing; empty when it says something."""
    if planning.duration(case) is None and load.sent != case.greetings:
        return f"the client sent {load.sent} of {case.greetings}"
    return injector.objection()


def _with_figures(trial: Trial, load: LoadReport, watched: Watched, per_worker: list[int]) -> Trial:
    spent = watched.spent
    greetings = sum(per_worker) or load.ok or 1
    return msgspec.structs.replace(
        trial,
        load=load,
        rate=load.greetings_per_second,
        cpu_total_us=(spent.user_ns + spent.system_ns) / 1e3 / greetings,
        cpu_user_us=spent.user_ns / 1e3 / greetings,
        cpu_system_us=spent.system_ns / 1e3 / greetings,
        switches_voluntary=_each(spent.voluntary, greetings),
        switches_involuntary=_each(spent.involuntary, greetings),
        per_worker=per_worker,
        listener=Listener(
            queued_max=watched.longest_queue, drops=watched.drops, sockets=watched.sockets
        ),
        lost=load.sent - load.ok,
    )


def _each(number: int | None, greetings: int) -> float | None:
    return None if number is None else number / greetings


def _with_status(trial: Trial, before: Status, after: Status) -> Trial:
    """Add what only the server knows."""
    greetings = (after.totals.greetings - before.totals.greetings) or 1
    told = [one.drops for one in after.listeners if one.drops is not None]
    listener = Listener(
        queued_max=max(trial.listener.queued_max, *(one.queued_max for one in after.listeners), 0),
        limit=max((one.limit for one in after.listeners), default=0),
        drops=sum(told) if told else trial.listener.drops,
        sockets=trial.listener.sockets,
    )
    return msgspec.structs.replace(
        trial,
        wakeups=(after.totals.wakeups - before.totals.wakeups) / greetings,
        wasted_wakeups=(after.totals.wasted_wakeups - before.totals.wasted_wakeups) / greetings,
        listener=listener,
    )


def _per_worker(
    case: Case, before: Before, after: Status | None, lines: Mapping[int, int]
) -> list[int]:
    """Return the measured greetings by slot: as counted when the load ended, else as logged."""
    slots = range(1, case.workers + 1)
    if before.status is None or after is None:
        logged = [lines.get(slot, 0) - before.lines.get(slot, 0) for slot in slots]
        return logged if lines else []
    old, new = before.status.counters, after.counters
    return [
        (new[slot].greetings if slot in new else 0) - (old[slot].greetings if slot in old else 0)
        for slot in slots
    ]


def _warm_up(server: Server, greetings: int, tally: Tally) -> None:
    """Send greetings that are counted and not measured, so that every page is there."""
    order = Order(server.address, concurrency=_WARMUP_CONCURRENCY)
    try:
        for result in send_all(repeat(b"warm-up", greetings), order):
            if result.failure is None:
                tally.ok += 1
            elif result.failure is not Failure.REFUSED:
                tally.uncertain += 1
    except UnreachableError as error:
        raise TrialError(server.obituary() or str(error)) from error


def _load(server: Server, injector: Injector, seed: int) -> tuple[LoadReport, Watched]:
    """Run the measured load, watching; blocks until it has ended."""
    place = server.directory / "load"
    place.mkdir()
    drops = listen_drops()
    watch = Watch(server.pid)
    sockets, longest = len(queues(server.address)), 0
    with started(
        [*LOAD, *_flags(load_options(server.case, server.address, seed))], place
    ) as client:
        for now_ in _steps(client, _limit(server.case)):
            longest = max([longest, *queues(server.address)])
            injector.step(now_)
            _require_space(server)
            if obituary := server.obituary():
                raise TrialError(obituary)
        spent = watch.spent()
        code = client.wait()
    if obituary := server.obituary():
        raise TrialError(obituary)
    watched = Watched(spent, server.status(), sockets, longest, listen_drops() - drops)
    return _report(place, code), watched


def _require_space(server: Server) -> None:
    """Find a full disk before it is taken for the server's fault: logs wait, and clients with them.

    Raises:
        TrialError: it is full.
    """
    disk = os.statvfs(server.directory)
    if disk.f_blocks and not disk.f_bavail:
        raise TrialError(f"no space is left in {server.directory.parent}")


def _report(place: Path, code: int) -> LoadReport:
    try:
        return msgspec.json.decode((place / "stdout").read_bytes(), type=LoadReport)
    except msgspec.DecodeError:
        raise TrialError(f"greeter load failed ({code}): {last_words(place)}") from None


def load_options(case: Case, address: Address, seed: int = 0) -> LoadOptions:
    """Return the measured load of a case."""
    processes = case.concurrency if case.arrival == "seed" else min(case.concurrency, usable_cpus())
    seconds = planning.duration(case)
    return LoadOptions(
        address=str(address),
        arrival=case.arrival,
        rate=case.rate,
        processes=processes,
        concurrency=case.concurrency,
        count=case.greetings if seconds is None else None,
        duration=seconds,
        end="reply" if planning.wants_reply(case) else "wait",
        sources=None if address.is_unix or address.is_v6 else SOURCES,
        timeout=planning.timeout(case),
        seed=seed,
    )


def _flags(options: LoadOptions) -> Iterator[str]:
    yield "--json"
    for one in fields(options):
        value = getattr(options, one.name)
        if value != one.default:
            yield f"--{one.name.replace('_', '-')}={value}"


def _limit(case: Case) -> float:
    """Return the seconds after which a load hangs."""
    seconds = planning.duration(case)
    if seconds is None:
        seconds = case.greetings / (case.rate or _SLOWEST)
    return seconds + planning.timeout(case) + _PATIENCE


def _steps(client: subprocess.Popen[bytes], limit: float) -> Iterator[float]:
    """Yield the time until the client has ended.

    Raises:
        TrialError: it has not within its limit.
    """
    deadline = time.monotonic() + limit
    with contextlib.ExitStack() as stack:
        pidfd = os.pidfd_open(client.pid)
        stack.callback(os.close, pidfd)
        while not select.select([pidfd], (), (), _STEP)[0]:
            yield time.monotonic()
            if time.monotonic() > deadline:
                raise TrialError(f"the load had not ended after {limit:.0f} s")


def _settle(server: Server, tally: Tally) -> Status | None:
    """Wait until the server has nothing under way, and return what it has counted."""
    before: Status | None = None

    def quiet() -> Status | None:
        nonlocal before
        now_, last = server.status(), before
        before = now_
        if now_ is None or now_.state != "running" or now_.totals.open:
            return None
        if any(one.queued for one in now_.listeners):
            return None
        done = tally.ok == now_.totals.greetings and not tally.uncertain
        still = last is not None and last.totals.connections == now_.totals.connections
        return now_ if done or still else None

    if server.case.server != "greeterd":
        return None
    settled = poll(quiet, _SETTLE_TIMEOUT, step=0.2)
    if settled is None:
        assert before is not None
        raise TrialError(
            f"not quiet {_SETTLE_TIMEOUT:g} s after the load: {before.state},"
            f" {before.totals.open} connections open"
        )
    if settled.reload is not None and not settled.reload.ok:
        raise TrialError(f"a reload failed: {settled.reload.error}")
    return settled
