"""What the load's parent and its sending processes say to each other: JSON lines over two pipes.

Down: one `Order`, then a `Phase` whenever the last one is done; an empty line ends it, at any time,
and so does the end of the stream (the parent has gone).  A process whose first connection is
refused says so and waits for an answer, which is any line to go on.
Up: `Said` lines.  The one that ends a phase holds its `Tally`, and as many latencies follow it as
it says, as native 64-bit nanoseconds.
Instants are CLOCK_MONOTONIC in nanoseconds, which all processes share.
"""

from typing import Literal

from msgspec import Struct, field

from greeterd.bench.model import Arrival

End = Literal["wait", "reply", "fire"]


class Order(Struct, frozen=True, kw_only=True):
    """What holds for the whole load, for one process."""

    process: int
    processes: int
    arrival: Arrival
    family: int
    hosts: list[str]
    """Numeric destinations, by turns; a unix socket's path is the only one."""
    port: int = 0
    scope: int = 0
    """Of a link-local IPv6 address."""
    sources: list[str] = []
    """To bind to, by turns."""
    end: End = "wait"
    life: float = 0.0
    think: float = 0.0
    timeout: float = 10.0
    name: bytes | None = None
    name_bytes: int | None = None
    expect: str | None = None
    """A regular expression that an answer must hold, in ISO 8859-1: each byte is a character."""
    half_close: bool = True
    cpus: list[int] = []
    """Where to run; anywhere when empty."""


class Phase(Struct, frozen=True, kw_only=True):
    """A part of the load that all processes begin together: the warm-up, all of it, or a burst."""

    start_ns: int
    measured: bool
    is_open: bool = False
    """By the order's schedule; otherwise `connections` at once, and one more for each that ends."""
    connections: int = 0
    greetings: int | None = None
    """This process's; of a schedule all processes'."""
    until_ns: int | None = None
    """No greeting begins from here on."""
    common_start: bool = False
    """Latencies count from `start_ns`: a burst."""
    rate: float = 0.0
    seed: int = 0
    """Of a schedule."""


class Tally(Struct, kw_only=True):
    """What one process has done in a phase; the times are of a measured one."""

    sent: int = 0
    ok: int = 0
    uncertain: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    """Of the measured ones, those that have no latency."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """The first start and the last end of each measured phase; 0 where nothing was begun."""
    wall_ns: int = 0
    cpu_ns: int = 0
    """User and system, its greeting processes included."""
    waited_ns: int = 0
    """Ready to run, without a CPU."""
    starts: int = 0
    late: int = 0
    """Starts of an open loop that came after their time by more than the limit."""
    latest_ns: int = 0

    @property
    def ended(self) -> int:
        """Greetings that have ended, in whatever way."""
        return self.ok + sum(self.errors.values())

    def fail(self, kind: str, *, uncertain: bool) -> None:
        """Count one that did not end in order."""
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.uncertain += uncertain


class Said(Struct, frozen=True, kw_only=True):
    """One line of a process."""

    ready: bool = False
    """It waits for a phase."""
    ended: int = 0
    reached: bool = False
    """A connection has succeeded."""
    unreached: str = ""
    """Why the first connection failed, while none has succeeded."""
    tally: Tally | None = None
    """Of the phase that has ended."""
    latencies: int = 0
    """How many follow this line."""
