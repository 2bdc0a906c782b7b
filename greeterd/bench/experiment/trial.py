"""Runs trials on servers that are kept up: a load, what the server spent on it, and three counts.

A subject is a server with clients of its own.  It is started once and warmed up; each trial sends
one load.  What the server spends is looked at from outside, while the load runs and right after it.
A trial has a time limit: whatever hangs is killed, the trial is invalid, and the subject is started
afresh for the next one.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from greeterd.bench.experiment import plan as planning
from greeterd.bench.experiment.counting import disagreement
from greeterd.bench.experiment.environment import now
from greeterd.bench.experiment.faults import Injector
from greeterd.bench.experiment.outside import Spent, Watch, listen_drops, queues
from greeterd.bench.experiment.plan import Plan
from greeterd.bench.experiment.servers import Server, Setup, TrialError, running
from greeterd.bench.experiment.waiting import poll
from greeterd.bench.load.options import LoadOptions
from greeterd.bench.load.run import Client
from greeterd.bench.model import Case, Counts, Listener, LoadReport, Process, Trial
from greeterd.control.status import Status
from greeterd.sockets.address import Address

SOURCES: Final = 64
"""Source addresses, so that no trial runs out of ports in TIME_WAIT."""
ENOUGH_TICKS: Final = 100
"""Of a trial: with fewer, the halves of its CPU time are mostly chance."""
BUSIEST: Final = 16
"""Processes of a trial that are kept."""
_SETTLE_TIMEOUT: Final = 10.0
_SLOWEST: Final = 100.0
"""Greetings per second: a load that is slower than that hangs."""
_PATIENCE: Final = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server has counted."""

    status: Status | None
    lines: Mapping[int, int]

    @property
    def logged(self) -> int:
        """Greetings in all logs."""
        return sum(self.lines.values())


@dataclass(slots=True)
class Subject:
    """A server that is up, and its clients."""

    case: Case
    server: Server
    client: Client
    plan: Plan
    look: "Look"

    def run(self, comparison: int, pair: int, order: int, commit: str) -> Trial:
        """Run a trial (blocking).  Raises: GreeterdError: the server or the load has failed."""
        case, server = self.case, self.server
        began, before, drops = now(), self._seen(), listen_drops()
        injector = Injector(server, server.log_bytes())
        self.look.begin(server, injector, _limit(case))
        watch = Watch(server.pid)
        seconds = planning.duration(case)
        greetings = case.greetings if seconds is None else None
        try:
            load = self.client.run(greetings, seconds, seed=self.plan.seed + order)
            spent, at_end = watch.spent(), server.status()
            objection = _objection(case, load) or injector.objection()
        finally:
            injector.end()
            self.look.end()
        if obituary := server.obituary():
            raise TrialError(obituary)
        self._settle(load, before)
        after = self._seen()
        counts = _counts(case, load, before, after)
        listener = Listener(
            queued_max=self.look.longest_queue,
            drops=listen_drops() - drops,
            sockets=self.look.sockets,
        )
        return Trial(
            case=case,
            comparison=comparison,
            pair=pair,
            order=order,
            began=began,
            commit=commit,
            load=load,
            rate=0.0 if load.bottleneck else load.greetings_per_second,
            lost=load.sent - load.ok,
            faults=injector.done,
            counts=counts,
            invalid=objection or disagreement(counts, case.fault),
            **_spent(spent, counts, load),
            **_told(case.workers, before, at_end, after, listener),
        )

    def warm_up(self, greetings: int) -> None:
        """Send greetings that are not measured, so that every page is there."""
        if greetings:
            before = self._seen()
            load = self.client.run(greetings)
            self._settle(load, before)

    def _seen(self) -> Seen:
        return Seen(self.server.status(), self.server.log_lines())

    def _settle(self, load: LoadReport, before: Seen) -> None:
        """Wait until the server has nothing under way."""
        if before.status is None:
            return
        wanted = before.status.totals.greetings + load.ok
        last: Status | None = None

        def quiet() -> Status | None:
            nonlocal last
            now_, previous = self.server.status(), last
            last = now_
            if now_ is None or now_.state != "running" or now_.totals.open:
                return None
            if any(one.queued for one in now_.listeners):
                return None
            done = wanted == now_.totals.greetings and not load.uncertain
            still = previous is not None and previous.totals.connections == now_.totals.connections
            return now_ if done or still else None

        settled = poll(quiet, _SETTLE_TIMEOUT, step=0.05 if self.case.fault == "none" else 0.2)
        if settled is None:
            assert last is not None
            raise TrialError(
                f"not quiet {_SETTLE_TIMEOUT:g} s after the load: {last.state},"
                f" {last.totals.open} connections open"
            )
        if settled.reload is not None and not settled.reload.ok:
            raise TrialError(f"a reload failed: {settled.reload.error}")


class Look:
    """Looks at a server while a load runs on it; between two loads it does nothing."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._injector: Injector | None = None
        self._deadline = 0.0
        self.sockets = self.longest_queue = 0

    def begin(self, server: Server, injector: Injector, limit: float) -> None:
        """Look from now on, and for `limit` seconds at most."""
        self._server, self._injector = server, injector
        self._deadline = time.monotonic() + limit
        self.sockets, self.longest_queue = len(queues(server.address)), 0

    def end(self) -> None:
        """Look no longer."""
        self._server = self._injector = None

    def __call__(self) -> None:
        """Look once.

        Raises:
            TrialError: the server has died, its disk is full, or the load hangs.
        """
        server, now_ = self._server, time.monotonic()
        if server is None or self._injector is None:
            return
        self.longest_queue = max([self.longest_queue, *queues(server.address)])
        self._injector.step(now_)
        require_space(server)
        if obituary := server.obituary():
            raise TrialError(obituary)
        if now_ > self._deadline:
            raise TrialError("the load had not ended in time")


@contextlib.contextmanager
def subject(case: Case, plan: Plan, setup: Setup) -> Iterator[Subject]:
    """Start a server with its clients, warmed up, and leave nothing of it behind.

    At the end the server is stopped in order, and what it has logged must be what was counted.

    Raises:
        TrialError: it did not start, or did not end as it should.
    """
    look = Look()
    with running(case, setup) as server:
        require_space(server)
        options = load_options(case, server.address, plan)
        with Client(options, look=look, cpus=plan.pin.client) as client:
            found = Subject(case, server, client, plan, look)
            found.warm_up(plan.warmup)
            yield found
            before = found._seen()  # noqa: SLF001 - of this module
        server.stop()
        logged = sum(server.log_lines(afresh=True).values())
        if logged != before.logged:
            raise TrialError(f"{before.logged} greetings were logged, and {logged} at its end")


def require_space(server: Server) -> None:
    """Find a full disk before it is taken for the server's fault: logs wait, and clients with them.

    Raises:
        TrialError: it is full.
    """
    disk = os.statvfs(server.directory)
    if disk.f_blocks and not disk.f_bavail:
        raise TrialError(f"no space is left in {server.directory.parent}")


def load_options(case: Case, address: Address, plan: Plan) -> LoadOptions:
    """Return the load of a case."""
    is_command = any(case.server == one.name for one in plan.commands)
    reply = planning.wants_reply(case) and not is_command
    return LoadOptions(
        address=str(address),
        arrival=case.arrival,
        rate=case.rate,
        processes=case.concurrency if case.arrival == "seed" else None,
        concurrency=case.concurrency,
        end="reply" if reply else "wait",
        life=case.life,
        request=plan.request,
        expect=plan.expect,
        no_half_close=plan.no_half_close,
        sources=None if address.is_unix or address.is_v6 else SOURCES,
        timeout=planning.timeout(case),
    )


def _limit(case: Case) -> float:
    """Return the seconds after which a load hangs."""
    seconds = planning.duration(case)
    if seconds is None:
        seconds = case.greetings / (case.rate or _SLOWEST)
    return seconds + case.life + planning.timeout(case) + _PATIENCE


def _objection(case: Case, load: LoadReport) -> str:
    """Return why a load that came to its end says nothing; empty when it says something."""
    if planning.duration(case) is None and load.sent != case.greetings:
        return f"the client sent {load.sent} of {case.greetings}"
    return ""


def _counts(case: Case, load: LoadReport, before: Seen, after: Seen) -> Counts:
    counts = Counts(client=load.ok, uncertain=load.uncertain)
    logged = after.logged - before.logged
    if case.server == "bare":  # it logs nothing and counts
        return msgspec.structs.replace(counts, scoreboard=logged)
    if before.status is None or after.status is None:
        return msgspec.structs.replace(counts, log=logged) if after.lines else counts
    board = after.status.totals.greetings - before.status.totals.greetings
    return msgspec.structs.replace(counts, scoreboard=board, log=logged)


def _spent(spent: Spent, counts: Counts, load: LoadReport) -> dict[str, Any]:
    """Return the fields of a trial that say what the server spent."""
    # A server that greets more than the client knows of has spent on those, too.
    greetings = max(load.ok, counts.scoreboard or 0) or 1
    enough = spent.ticks >= ENOUGH_TICKS

    def each(number: int | None) -> float | None:
        return None if number is None else number / greetings

    return {
        "cpu_total_us": (spent.user_ns + spent.system_ns) / 1e3 / greetings,
        "cpu_user_us": spent.user_ns / 1e3 / greetings if enough else None,
        "cpu_system_us": spent.system_ns / 1e3 / greetings if enough else None,
        "switches_voluntary": each(spent.voluntary),
        "switches_involuntary": each(spent.involuntary),
        "processes": [
            Process(pid=pid, cpu_us=ns / 1e3 / greetings)
            for pid, ns in list(spent.by_pid.items())[:BUSIEST]
        ],
    }


def _told(
    workers: int, before: Seen, at_end: Status | None, after: Seen, seen: Listener
) -> dict[str, Any]:
    """Return the fields of a trial that say what the server did, and what its queues were."""
    slots = range(1, workers + 1)
    if before.status is None or at_end is None:
        lines = [after.lines.get(slot, 0) - before.lines.get(slot, 0) for slot in slots]
        return {"listener": seen, "per_worker": lines if after.lines else []}
    # As the last client ended: a worker that was stopped has not gone on then.
    old, new = before.status, at_end
    greetings = (new.totals.greetings - old.totals.greetings) or 1
    told = [one.drops for one in new.listeners if one.drops is not None]
    earlier = [one.drops for one in old.listeners if one.drops is not None]
    return {
        "wakeups": (new.totals.wakeups - old.totals.wakeups) / greetings,
        "wasted_wakeups": (new.totals.wasted_wakeups - old.totals.wasted_wakeups) / greetings,
        "listener": msgspec.structs.replace(
            seen,
            limit=max((one.limit for one in new.listeners), default=0),
            drops=max(0, sum(told) - sum(earlier)) if told else seen.drops,
        ),
        "per_worker": [_greetings(new, slot) - _greetings(old, slot) for slot in slots],
    }


def _greetings(status: Status, slot: int) -> int:
    return status.counters[slot].greetings if slot in status.counters else 0
