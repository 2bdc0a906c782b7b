"""What a load is: the options of `greeter load`, and which of them contradict each other.

Pure but for the file of `--request`.  Every load is bounded, by a count or by a duration.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from greeterd.bench.load.messages import End
from greeterd.bench.model import Arrival
from greeterd.errors import UsageError
from greeterd.sockets.address import Address, parse_address

DEFAULT_COUNT: Final = 10_000
MAX_COUNT: Final = 100_000_000
MAX_SECONDS: Final = 86_400.0
MAX_PROCESSES: Final = 256
MAX_ADDRESSES: Final = 1 << 16
"""Sources, and destinations; far below the 16 million of 127.0.0.0/8."""
MAX_NAME_BYTES: Final = 16 << 20
OPEN: Final = frozenset({"constant", "poisson"})
"""The arrivals whose schedule does not wait for the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The options of `greeter load`."""

    address: Annotated[str, Parameter(name=("--address", "--bind"), env_var="GREETERD_BIND")] = (
        "127.0.0.1:12345"
    )
    """Where the server listens: host:port, [v6]:port or unix:/path; of several the first; this
    machine's loopback only."""

    arrival: Arrival = "closed"
    "When connections begin: see below."

    rate: float = 0.0
    "Arrivals per second over all processes; of constant and poisson."

    processes: int | None = None
    "Sending processes, never more than connections. [default: one for each usable CPU]"

    concurrency: int = 16
    "Connections at once over all processes; of closed, burst and seed."

    count: int | None = None
    "Greetings in all, beside the warm-up. [default: 10000]"

    duration: float | None = None
    "Begin greetings for so many seconds, in place of a count."

    warmup: int = 0
    "Greetings sent before, in closed loop (seed: a process each), that are not measured."

    end: End = "wait"
    """How a greeting ends: half-close and wait for end-of-stream; the same, and there must have
    been a reply; or close as soon as the kernel has the name."""

    life: float = 0.0
    "Seconds that a connection is held open before its name is sent."

    think: float = 0.0
    "Seconds between an end and the next start; of closed, burst and seed."

    name: str | None = None
    "Whom to greet, always. [default: a name of its own for each greeting]"

    name_bytes: int | None = None
    "The size of each name. [default: as it comes]"

    request: str | None = None
    r"""What to send in place of a name: a file's content, or this text, in which \r, \n, \t, \\ and
    \xNN are what they are in C."""

    expect: str | None = None
    "A regular expression that each answer must hold; an answer without it is an error."

    no_half_close: bool = False
    "Send no end-of-stream after the request: the server closes first."

    sources: int | None = None
    """Source addresses out of 127.0.0.0/8, so that ports in TIME_WAIT never run out; 1 is 127.0.0.1
    alone. [default: as many as the greetings of a minute need]"""

    destinations: int = 1
    "Destination addresses, from the given one upwards; the server must listen on 0.0.0.0."

    timeout: float = 10.0
    "Seconds for each greeting, from its connection to its end, beside its life."

    seed: int = 0
    "Of the Poisson arrivals: the same seed is the same schedule."

    i_own_this_server: bool = False
    "Allow an address that is not this machine's loopback."

    @property
    def is_open(self) -> bool:
        """Open loop."""
        return self.arrival in OPEN

    @property
    def greetings(self) -> int | None:
        """How many there are to be measured; None when a duration tells the end."""
        return None if self.duration is not None else self.count or DEFAULT_COUNT

    @property
    def wanted_name(self) -> bytes | None:
        """The name that all greetings have, in bytes."""
        if self.request is not None:
            return request_bytes(self.request)
        return None if self.name is None else self.name.encode(errors="surrogateescape")


_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|[rnt\\])")
_ESCAPED: Final = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\"}


def request_bytes(text: str) -> bytes:
    """Return what `--request` means: the content of a file of this name, else the text.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        if Path(text).is_file():
            return Path(text).read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"--request {text}: {error}") from None

    def plain(found: re.Match[str]) -> str:
        return _ESCAPED.get(found[1]) or chr(int(found[1][1:], 16))

    return _ESCAPE.sub(plain, text).encode(errors="surrogateescape")


def require_pattern(text: str) -> None:
    """Raise UsageError when the text is no regular expression."""
    try:
        re.compile(text.encode(errors="surrogateescape"))
    except re.error as error:
        raise UsageError(f"--expect {text}: {error}") from None


def check(options: LoadOptions) -> Address:
    """Return the address.

    Raises:
        UsageError: an option is out of its range, or two exclude each other.
    """
    for name, value, low, high in (
        ("processes", options.processes, 1, MAX_PROCESSES),
        ("concurrency", options.concurrency, 1, MAX_COUNT),
        ("count", options.count, 1, MAX_COUNT),
        ("warmup", options.warmup, 0, MAX_COUNT),
        ("name-bytes", options.name_bytes, 0, MAX_NAME_BYTES),
        ("sources", options.sources, 1, MAX_ADDRESSES),
        ("destinations", options.destinations, 1, MAX_ADDRESSES),
        ("life", options.life, 0, MAX_SECONDS),
        ("think", options.think, 0, MAX_SECONDS),
        ("rate", options.rate, 0, MAX_COUNT),
    ):
        if value is not None and not low <= value <= high:  # NaN is not within anything
            raise UsageError(f"--{name} must be {low} to {high:g}, not {value}")
    for name, value in (("timeout", options.timeout), ("duration", options.duration)):
        if value is not None and not 0 < value <= MAX_SECONDS:
            raise UsageError(f"--{name} must be more than 0 and at most {MAX_SECONDS:g}")
    _check_together(options)
    try:
        return parse_address(options.address)
    except ValueError as error:
        raise UsageError(f"--address {options.address}: {error}") from None


def _check_together(options: LoadOptions) -> None:
    if options.count is not None and options.duration is not None:
        raise UsageError("--count and --duration exclude each other")
    one_of = ("name", "name_bytes", "request")
    given = [f"--{one.replace('_', '-')}" for one in one_of if getattr(options, one) is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other")
    if options.end == "fire" and (options.expect is not None or options.no_half_close):
        raise UsageError("--end fire waits for no answer: no --expect, no --no-half-close")
    if options.expect is not None:
        require_pattern(options.expect)
    if options.is_open and options.rate <= 0:
        raise UsageError(f"--arrival {options.arrival} needs a --rate")
    if not options.is_open and options.rate > 0:
        raise UsageError(f"--rate is of open loop, and --arrival {options.arrival} is not")
    if options.is_open and options.think > 0:
        raise UsageError("--think is not of open loop: its schedule waits for nothing")
