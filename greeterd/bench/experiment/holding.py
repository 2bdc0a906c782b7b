"""Says who gets the connections of a server that does not tell: by a census of held ones.

Two ways.  All at once: every connection is attributed, so the counts are exact; it takes a server
that accepts connections that it does not serve yet.  In turns: so many probes as the case has
connections in flight, or one where the server does not accept so many, attributed and closed again,
over and over; that is a sample of who accepts.  What nobody has accepted after PATIENCE seconds is
counted as queued, and no process has it.
"""

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Final

from greeterd.bench import census
from greeterd.bench.experiment.outside import tree
from greeterd.bench.experiment.servers import Server
from greeterd.bench.experiment.waiting import poll
from greeterd.bench.model import Held

PROBES: Final = 400
"""Connections that are held in all."""
PATIENCE: Final = 0.25
STUCK: Final = 0.1
"""The share that may be queued; with more, the server does not accept what it cannot serve."""


def hold(server: Server, probes: int = PROBES) -> Iterator[Held]:
    """Yield who has connections that are held all at once, and in turns (blocking)."""
    case = server.case
    whole = _attributed(server, probes)
    if whole.queued <= STUCK * probes:
        yield Held(case=case, kind="held", per_process=whole.workers, queued=whole.queued)
    at_once = case.concurrency
    if at_once > 1 and _attributed(server, at_once).queued > STUCK * at_once:
        at_once = 1
    counts: Counter[int] = Counter()
    queued = done = 0
    while done < probes:
        part = _attributed(server, min(at_once, probes - done))
        counts.update(part.workers)
        queued += part.queued
        done += at_once
    yield Held(case=case, kind="sample", at_once=at_once, per_process=dict(counts), queued=queued)


def _attributed(server: Server, number: int) -> census.Census:
    """Open connections, in parts as the case has them in flight, and say who has them."""
    address, pids = server.address, tree(server.pid)
    with contextlib.ExitStack() as stack:
        for at in range(0, number, server.case.concurrency):
            for _ in range(min(server.case.concurrency, number - at)):
                stack.enter_context(socket.create_connection((address.host, address.port), 5.0))
            poll(lambda: not _queued(address.port) or None, PATIENCE, step=0.002)
        # Accepted and its descriptor seen are two moments.
        found = poll(lambda: _complete(address.port, pids), PATIENCE, step=0.005)
        return found or census.take(address.port, pids)


def _queued(port: int) -> int:
    return sum(one.queued for one in census.listening(port))


def _complete(port: int, pids: list[int]) -> census.Census | None:
    found = census.take(port, pids)
    return None if found.queued or found.unseen else found
