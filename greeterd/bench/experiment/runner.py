"""Runs the trials of a plan that are missing, one after the other, and keeps each as it comes."""

import ipaddress
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from greeterd.bench.experiment import trial
from greeterd.bench.experiment.plan import expected
from greeterd.bench.experiment.servers import Setup, is_taken
from greeterd.bench.experiment.store import Store
from greeterd.bench.extras import require
from greeterd.bench.load.run import require_possible
from greeterd.bench.model import Case, Server, Trial
from greeterd.bench.peers.compiled import COMPILED, build
from greeterd.errors import GreeterdError, ListenError, UsageError
from greeterd.sockets.address import Address, parse_address


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an experiment is."""

    done: int
    """Trials that are kept, also of earlier runs."""
    total: int
    left: float
    """Seconds until the end, as far as one knows."""
    trial: Trial | None = None
    """The one that has just ended; None before the first."""
    next: Case | None = None
    """What is run now; None at the end."""


def run(store: Store, setup: Setup, tell: Callable[[Progress], None]) -> None:
    """Run what is missing (blocking); `tell` hears of each trial that has ended.

    Raises:
        StoreError: a trial cannot be kept.
        KeyboardInterrupt: as it came; what has ended is kept, and nothing is left running.
    """
    visits = store.missing()
    total = store.header.plan.trials
    estimate = Estimate([expected(visit.case) for visit in visits])
    upcoming: list[Case | None] = [*(visit.case for visit in visits), None]
    tell(Progress(total - len(visits), total, estimate.left, None, upcoming[0]))
    for at, visit in enumerate(visits):
        began = monotonic()
        ended = trial.run(visit, store.header.plan, setup)
        store.append(ended)
        estimate.add(monotonic() - began)
        done = total - len(visits) + at + 1
        tell(Progress(done, total, estimate.left, ended, upcoming[at + 1]))


class Estimate:
    """Knows how long the rest takes: as expected, corrected by what trials have taken so far."""

    def __init__(self, expectations: Sequence[float]) -> None:
        self._expectations = expectations
        self._taken: list[float] = []

    def add(self, seconds: float) -> None:
        """Note what the next trial has taken."""
        self._taken.append(seconds)

    @property
    def left(self) -> float:
        """Seconds until the end."""
        done = len(self._taken)
        before = math.fsum(self._expectations[:done])
        factor = math.fsum(self._taken) / before if before else 1.0
        return factor * math.fsum(self._expectations[done:])


def require_address(bind: str) -> None:
    """Make sure that servers can listen, and clients connect.

    Raises:
        UsageError: it is no address, or not this machine's loopback.
        ListenError: it is taken.
    """
    try:
        address = parse_address(bind)
    except ValueError as error:
        raise UsageError(f"--bind {bind}: {error}") from None
    if not address.is_unix and not _is_loopback(address):
        raise UsageError(f"--bind {bind}: must be this machine's loopback: 127.0.0.1 or [::1]")
    if reason := is_taken(address):
        raise ListenError(f"--bind {bind}: {reason}")


def _is_loopback(address: Address) -> bool:
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def require_cases(cases: Sequence[Case], bind: str) -> None:
    """Make sure that each case can be run here, as far as it can be known before.

    Raises:
        UsageError: one cannot.
    """
    own, other = parse_address(bind), parse_address(Setup().bind)
    for case in cases:
        if own.is_unix and case.server == "greeterd" and case.mode == "reuseport":
            raise UsageError(f"--bind {bind}: mode reuseport has no unix sockets")
        require_possible(trial.load_options(case, own if case.server == "greeterd" else other))


def without_unbuildable(cases: Sequence[Case], setup: Setup) -> tuple[list[Case], dict[str, str]]:
    """Return the cases whose server can be had here, and why the other servers cannot.

    Compiles what is to be compiled.  Raises: MissingPackageError as `require`.
    """
    servers: list[Server] = list(dict.fromkeys(case.server for case in cases))
    reasons: dict[str, str] = {}
    for server in servers:
        if server == "uvloop":
            require("uvloop")
        if server in COMPILED:
            assert setup.build_dir is not None
            try:
                build(server, setup.build_dir)
            except GreeterdError as error:
                reasons[server] = str(error)
    return [case for case in cases if case.server not in reasons], reasons
