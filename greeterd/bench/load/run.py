"""Sends a bounded load to a server and reports what its clients saw: what `greeter load` does.

A `Client` checks first, starts the processes, has a warm-up sent, then the load, and puts together
what the processes did; it can send any number of loads.  It aims at this machine's loopback alone:
a host name is resolved here, once, and the processes are given the numeric addresses that were
looked at.
"""

import ipaddress
import random
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from time import monotonic_ns
from types import TracebackType
from typing import Final, Self

from msgspec.structs import replace as replace_struct

from greeterd.bench.extras import require
from greeterd.bench.load.bottleneck import Effort, find_bottleneck
from greeterd.bench.load.latency import summarise
from greeterd.bench.load.messages import Order, Phase, Tally
from greeterd.bench.load.options import LoadOptions, check
from greeterd.bench.load.places import SPAN, Places, destinations, sources, sources_needed
from greeterd.bench.load.processes import Books, NobodyListens, Processes
from greeterd.bench.load.schedule import NANO, bursts, split
from greeterd.bench.model import LoadReport
from greeterd.client import UnreachableError, resolve
from greeterd.errors import UsageError
from greeterd.sockets.address import Address
from greeterd.system.cpus import usable_cpus

__all__ = ["Client", "LoadInterrupted", "LoadOptions", "run"]

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


class Client:
    """The sending processes of one target, for any number of loads; a context manager."""

    def __init__(
        self,
        options: LoadOptions,
        tell: Callable[[int], None] = lambda _: None,
        *,
        look: Callable[[], None] = lambda: None,
        cpus: Sequence[int] = (),
    ) -> None:
        """Start them; `tell` hears how many greetings have ended, `look` is called all the while.

        `cpus` is where they run; anywhere when it is empty.

        Raises:
            UsageError: the options contradict, the address is not this machine's, or the
                descriptors that are allowed are too few.
            MissingPackageError: hdrhistogram is not installed.
        """
        self._options = options
        self._address = check(options)
        require("hdrh")
        target = _find(options, self._address)
        self._cpus = len(cpus) or usable_cpus()
        processes = _processes(options, self._cpus)
        self._connections = split(options.concurrency, processes)
        _check_descriptors(options, max(self._connections))
        orders = [_order(options, target, cpus, n, processes) for n in range(processes)]
        self._processes = Processes(orders, tell, look)
        self._is_ready = False

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes."""
        self._processes.close()

    def run(
        self,
        greetings: int | None,
        duration: float | None = None,
        *,
        warmup: int = 0,
        seed: int = 0,
    ) -> LoadReport:
        """Send a number of greetings, or for some seconds, and return what came of it (blocking).

        Raises:
            UnreachableError: nobody listens: no process could make its first connection.
            LoadInterrupted: Ctrl-C; the processes have ended.
        """
        books: Books = []
        interrupted = False
        try:
            if not self._is_ready:
                self._processes.await_ready()
                self._is_ready = True
            for phases in _phases(self._options, self._connections, greetings, duration, warmup):
                books += self._processes.run([replace_struct(one, seed=seed) for one in phases])
        except KeyboardInterrupt:
            interrupted = True
            books += self._processes.stop()
        except NobodyListens as error:
            raise _unreachable(self._options, self._address, str(error)) from None
        report = _report(self._options, self._address, books, len(self._connections), self._cpus)
        report = replace_struct(report, warmup=warmup)
        if interrupted:
            raise LoadInterrupted(report)
        return report


def run(options: LoadOptions, tell: Callable[[int], None] = lambda _: None) -> LoadReport:
    """Send the load and return what came of it (blocking); `tell` hears how many have ended.

    Raises: as `Client` and its `run`.
    """
    with Client(options, tell) as client:
        greetings, duration = options.greetings, options.duration
        return client.run(greetings, duration, warmup=options.warmup, seed=options.seed)


def require_possible(options: LoadOptions) -> None:
    """Find out what can be known of a load without a server.

    Raises:
        UsageError: as `run`.
    """
    _find(options, check(options))
    _check_descriptors(options, max(split(options.concurrency, _processes(options, usable_cpus()))))


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


def _processes(options: LoadOptions, cpus: int) -> int:
    """Return the number of processes: each has something to do."""
    wanted = options.processes or cpus
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


def _order(
    options: LoadOptions, target: _Target, cpus: Sequence[int], process: int, processes: int
) -> Order:
    expect = options.expect
    if expect is not None:
        expect = expect.encode(errors="surrogateescape").decode("iso-8859-1")
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
        expect=expect,
        half_close=not options.no_half_close,
        cpus=list(cpus),
    )


def _phases(
    options: LoadOptions,
    connections: Sequence[int],
    greetings: int | None,
    duration: float | None,
    warmup: int,
) -> Iterator[list[Phase]]:
    """Yield what the processes do together, one after the other."""
    processes = len(connections)
    if warmup:
        parts = zip(connections, split(warmup, processes), strict=True)
        yield [_closed(at_once, part, measured=False) for at_once, part in parts]
    until = None if duration is None else round(duration * NANO)
    if options.is_open:
        whole = Phase(
            start_ns=0,
            measured=True,
            is_open=True,
            greetings=greetings,
            until_ns=until,
            rate=options.rate,
        )
        yield [whole] * processes
    elif options.arrival == "burst":
        yield from _bursts(options, processes, greetings, duration)
    else:
        parts = zip(connections, split(greetings or 0, processes), strict=True)
        yield [
            _closed(at_once, None if greetings is None else part, until_ns=until)
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


def _bursts(
    options: LoadOptions, processes: int, total: int | None, duration: float | None
) -> Iterator[list[Phase]]:
    """Yield the bursts, all connections of each at one instant."""
    end = monotonic_ns() + round((duration or 0.0) * NANO)
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


def _lasted(tallies: Sequence[Tally], processes: int) -> int:
    """Return how long the phases lasted, without the pauses in between.

    The tallies are those of all processes for a phase, then those for the next.
    """
    total = 0
    for at in range(0, len(tallies), processes):
        spans = [span for tally in tallies[at : at + processes] for span in tally.spans if span[0]]
        if spans:
            total += max(0, max(last for _, last in spans) - min(first for first, _ in spans))
    return total


def _report(
    options: LoadOptions, address: Address, books: Books, processes: int, cpus: int
) -> LoadReport:
    tallies = [tally for tally, _ in books]
    errors: Counter[str] = Counter()
    for tally in tallies:
        errors.update(tally.errors)
    effort = Effort(
        processes=processes,
        wall=sum(tally.wall_ns for tally in tallies) / NANO,
        cpu=sum(tally.cpu_ns for tally in tallies) / NANO,
        waited=sum(tally.waited_ns for tally in tallies) / NANO,
        starts=sum(tally.starts for tally in tallies),
        late=sum(tally.late for tally in tallies),
        latest=max((tally.latest_ns for tally in tallies), default=0) / NANO,
    )
    return LoadReport(
        address=str(address),
        arrival=options.arrival,
        processes=processes,
        concurrency=options.concurrency,
        rate=options.rate,
        seconds=_lasted(tallies, processes) / NANO,
        sent=sum(tally.sent for tally in tallies),
        ok=sum(tally.ok for tally in tallies),
        uncertain=sum(tally.uncertain for tally in tallies),
        errors=dict(errors.most_common()),
        latency=summarise(
            [latencies for _, latencies in books], sum(tally.missing for tally in tallies)
        ),
        client_cpu_seconds=effort.cpu,
        bottleneck=find_bottleneck(effort, errors, cpus),
    )
