"""Sends a bounded load to a server and reports what its clients saw: what `greeter load` does.

`run` checks first, starts the processes, has the warm-up sent, then the load, and puts together
what the processes did.  It aims at this machine's loopback alone: a host name is resolved here,
once, and the processes are given the numeric addresses that were looked at.
"""

import ipaddress
import random
import resource
import socket
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat, zip_longest
from time import monotonic_ns
from typing import Final

from greeterd.bench.extras import require
from greeterd.bench.load.bottleneck import Effort, find_bottleneck
from greeterd.bench.load.latency import summarise
from greeterd.bench.load.messages import Order, Phase, Tally
from greeterd.bench.load.options import LoadOptions, check
from greeterd.bench.load.places import SPAN, Places, destinations, sources, sources_needed
from greeterd.bench.load.processes import Crew, NobodyListens
from greeterd.bench.load.schedule import NANO, bursts, split
from greeterd.bench.model import LoadReport
from greeterd.client import UnreachableError, resolve
from greeterd.errors import UsageError
from greeterd.sockets.address import Address
from greeterd.system.cpus import usable_cpus

__all__ = ["LoadInterrupted", "LoadOptions", "run"]

SPARE_DESCRIPTORS: Final = 32


class LoadInterrupted(KeyboardInterrupt):
    """Ctrl-C; `report` holds what was measured until then."""

    def __init__(self, report: LoadReport) -> None:
        super().__init__("interrupted")
        self.report = report


@dataclass(frozen=True, slots=True)
class _Target:
    """Where to, as the processes are told it."""

    family: int
    hosts: list[str]
    port: int = 0
    scope: int = 0
    places: Places = field(default_factory=Places)


def run(options: LoadOptions, tell: Callable[[int], None] = lambda _: None) -> LoadReport:
    """Send the load and return what came of it (blocking); `tell` hears how many have ended.

    Raises:
        UsageError: the options contradict, the address is not this machine's, or the descriptors
            that are allowed are too few.
        MissingPackageError: hdrhistogram is not installed.
        UnreachableError: nobody listens: no process could make its first connection.
        LoadInterrupted: Ctrl-C.
    """
    address = check(options)
    require("hdrh")
    target = _find(options, address)
    processes = _processes(options)
    connections = split(options.concurrency, processes)
    _check_descriptors(options, max(connections))
    orders = [_order(options, target, number, processes) for number in range(processes)]
    interrupted = False
    with Crew(orders, tell) as crew:
        try:
            crew.await_ready()
            for phases in _phases(options, connections):
                crew.run(phases)
        except KeyboardInterrupt:
            interrupted = True
        except NobodyListens as error:
            raise _unreachable(options, address, str(error)) from None
        tallies, latencies = crew.finish()
    report = _report(options, address, tallies, latencies)
    if interrupted:
        raise LoadInterrupted(report)
    return report


def require_possible(options: LoadOptions) -> None:
    """Find out what can be known of a load without a server.

    Raises:
        UsageError: as `run`.
    """
    _find(options, check(options))
    _check_descriptors(options, max(split(options.concurrency, _processes(options))))


def _find(options: LoadOptions, address: Address) -> _Target:
    """Return where the address is, if it is here."""
    family, place = resolve(address)
    if isinstance(place, str):
        return _Target(family, [place])
    host, scope = str(place[0]), place[3] if len(place) > 3 else 0  # noqa: PLR2004 - (host, port, flow, scope)
    ip = ipaddress.ip_address(host.partition("%")[0])
    here = (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
    if not here and not options.i_own_this_server:
        raise UsageError(
            f"{address} is {host}, which is not this machine's loopback;"
            " a load on a server that is yours takes --i-own-this-server"
        )
    if family != socket.AF_INET or not here:
        if options.sources is not None or options.destinations > 1:
            raise UsageError("--sources and --destinations spread over 127.0.0.0/8 alone")
        return _Target(family, [host], address.port, int(str(scope)))
    hosts = _destinations(host, options.destinations)
    return _Target(family, hosts, address.port, places=_places(options))


def _destinations(host: str, number: int) -> list[str]:
    last = ipaddress.IPv4Address(host) + (number - 1)
    if not last.is_loopback:
        raise UsageError(f"--destinations {number}: from {host} they lead out of 127.0.0.0/8")
    return destinations(host, number)


def _places(options: LoadOptions) -> Places:
    wanted = options.sources
    if wanted is None:
        rate = options.rate if options.is_open else 0.0
        wanted = sources_needed(options.greetings, options.duration, rate)
    elif wanted == 1:
        return Places()
    # Not by the seed: a run that is repeated at once must not meet its own ports again.
    return Places(random.SystemRandom().randrange(SPAN), wanted)


def _processes(options: LoadOptions) -> int:
    """Return the number of processes: each has something to do."""
    wanted = options.processes or usable_cpus()
    limits = [wanted] if options.is_open else [wanted, options.concurrency]
    if options.greetings is not None:
        limits.append(options.greetings)
    return min(limits)


def _check_descriptors(options: LoadOptions, connections: int) -> None:
    """Refuse what the hard limit cannot hold; the processes raise their soft limits themselves."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if options.arrival in ("closed", "burst") and hard != resource.RLIM_INFINITY:
        room = hard - SPARE_DESCRIPTORS
        if connections > room:
            raise UsageError(
                f"--concurrency {options.concurrency}: {connections} connections for a process,"
                f" and {hard} descriptors allowed (ulimit -Hn); more --processes help"
            )


def _order(options: LoadOptions, target: _Target, process: int, processes: int) -> Order:
    return Order(
        process=process,
        processes=processes,
        arrival=options.arrival,
        family=target.family,
        hosts=target.hosts,
        port=target.port,
        scope=target.scope,
        sources=sources(target.places),
        end=options.end,
        life=options.life,
        think=options.think,
        timeout=options.timeout,
        name=options.wanted_name,
        name_bytes=options.name_bytes,
        rate=options.rate,
        seed=options.seed,
    )


def _phases(options: LoadOptions, connections: Sequence[int]) -> Iterator[list[Phase]]:
    """Yield what the processes do together, one after the other."""
    processes = len(connections)
    if options.warmup:
        parts = zip(connections, split(options.warmup, processes), strict=True)
        yield [_closed(at_once, part, measured=False) for at_once, part in parts]
    total = options.greetings
    until = None if options.duration is None else round(options.duration * NANO)
    if options.is_open:
        whole = Phase(start_ns=0, measured=True, is_open=True, greetings=total, until_ns=until)
        yield [whole] * processes
    elif options.arrival == "burst":
        yield from _bursts(options, processes)
    else:
        parts = zip(connections, split(total or 0, processes), strict=True)
        yield [
            _closed(at_once, None if total is None else part, until_ns=until)
            for at_once, part in parts
        ]


def _closed(
    connections: int,
    greetings: int | None,
    *,
    measured: bool = True,
    until_ns: int | None = None,
) -> Phase:
    return Phase(
        start_ns=0,
        measured=measured,
        connections=connections,
        greetings=greetings,
        until_ns=until_ns,
    )


def _bursts(options: LoadOptions, processes: int) -> Iterator[list[Phase]]:
    """Yield the bursts, all connections of each at one instant."""
    total = options.greetings
    end = monotonic_ns() + round((options.duration or 0.0) * NANO)
    sizes = repeat(options.concurrency) if total is None else bursts(total, options.concurrency)
    pause = 0
    for size in sizes:
        if total is None and monotonic_ns() >= end:
            return
        yield [
            Phase(
                start_ns=pause, measured=True, connections=part, greetings=part, common_start=True
            )
            for part in split(size, processes)
        ]
        pause = round(options.think * NANO)


def _unreachable(options: LoadOptions, address: Address, reason: str) -> UnreachableError:
    hint = ""
    if options.destinations > 1:
        hint = " (for --destinations the server must listen on 0.0.0.0)"
    if reason.startswith("refused"):
        return UnreachableError(f"nobody listens on {address}{hint}")
    return UnreachableError(f"cannot connect to {address}: {reason}{hint}")


def _lasted(spans: Sequence[Sequence[tuple[int, int]]]) -> int:
    """Return how long the phases of all processes lasted, without the pauses in between."""
    total = 0
    for phase in zip_longest(*spans, fillvalue=(0, 0)):
        begun = [(first, last) for first, last in phase if first]
        if begun:
            total += max(0, max(last for _, last in begun) - min(first for first, _ in begun))
    return total


def _report(
    options: LoadOptions,
    address: Address,
    tallies: Sequence[Tally],
    latencies: Sequence["array[int]"],
) -> LoadReport:
    errors: Counter[str] = Counter()
    for tally in tallies:
        errors.update(tally.errors)
    effort = Effort(
        processes=len(tallies),
        wall=sum(tally.wall_ns for tally in tallies) / NANO,
        cpu=sum(tally.cpu_ns for tally in tallies) / NANO,
        waited=sum(tally.waited_ns for tally in tallies) / NANO,
        starts=sum(tally.starts for tally in tallies),
        late=sum(tally.late for tally in tallies),
        latest=max(tally.latest_ns for tally in tallies) / NANO,
    )
    return LoadReport(
        address=str(address),
        arrival=options.arrival,
        processes=len(tallies),
        concurrency=options.concurrency,
        rate=options.rate,
        seconds=_lasted([tally.spans for tally in tallies]) / NANO,
        warmup=options.warmup,
        sent=sum(tally.sent for tally in tallies),
        ok=sum(tally.ok for tally in tallies),
        uncertain=sum(tally.uncertain for tally in tallies),
        errors=dict(errors.most_common()),
        latency=summarise(latencies, sum(tally.missing for tally in tallies)),
        client_cpu_seconds=effort.cpu,
        bottleneck=find_bottleneck(effort, errors, usable_cpus()),
    )
