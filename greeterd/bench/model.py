"""What an experiment is made of, and what it found: the records that are kept and exchanged.

A case is what is served and how it is asked; a comparison is two of them, side by side; a trial is
one short load on one of the two, and two adjacent trials are a pair.  The results are all trials of
one experiment with the machine that they ran on.  All of it is JSON by msgspec: a field may be
added with a default, none changes its meaning.  Rates are per second of wall clock,
CPU times are microseconds per greeting, latencies milliseconds; other units are in the names.
"""

from typing import Final, Literal

from msgspec import Struct

FORMAT: Final = 2
"""Of the results; a reader refuses what it does not know."""

Arrival = Literal["closed", "constant", "poisson", "burst", "seed"]
Fault = Literal["none", "stopped", "killed", "reload"]


class Case(Struct, frozen=True, kw_only=True):
    """One cell of the matrix: what is served, and how it is asked."""

    server: str = "greeterd"
    """`greeterd`, a peer, or the name of a `--command`."""
    build: str = ""
    """Which `--greeterd` runs it; empty where there is one."""
    mode: str = "inherit"
    wait: str = "auto"
    """The wait strategy, as the setting; peers have `auto` only."""
    steering: str = "hash"
    handoff_policy: str = "round-robin"
    """Of mode handoff."""
    rescue: bool = True
    workers: int = 4
    concurrency: int = 16
    """Connections in flight at once, over all client processes; of `seed` and `closed`.  In open
    loop it bounds nothing, and tells how many a burst has."""
    arrival: Arrival = "closed"
    rate: float = 0.0
    """Intended arrivals per second; of `constant` and `poisson`."""
    life: float = 0.0
    """Seconds that a connection is held open before its name is sent."""
    work: int = 0
    """Microseconds, exponential on average, that a greeting keeps its worker; of `threaded`."""
    fault: Fault = "none"
    greetings: int = 2000
    """Sent in one trial."""


class Comparison(Struct, frozen=True, kw_only=True):
    """Two cases that are asked the same, or one by itself."""

    a: Case
    b: Case | None = None
    """What is told of, as against `a`."""

    @property
    def cases(self) -> tuple[Case, ...]:
        """Those that it has."""
        return (self.a,) if self.b is None else (self.a, self.b)


class Latency(Struct, frozen=True, kw_only=True):
    """Milliseconds from a connection's (intended) start to its end.

    All figures are of the greetings that ended in order.  Of the others nothing is known but that
    they would have taken longer, if they took until the timeout: the percentiles of all greetings
    are known up to `known` at most.
    """

    count: int = 0
    missing: int = 0
    """Greetings that have no latency, since they did not end in order; warm-up left out."""
    mean: float = 0.0
    min: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0
    curve: list[tuple[float, float]] = []
    """(percentile 0..100, milliseconds), rising."""
    histogram: str = ""
    """HdrHistogram of microseconds, in its base64 interchange form."""

    @property
    def known(self) -> float:
        """How many percent of the greetings have a latency; 100 when there was none."""
        everyone = self.count + self.missing
        return 100 * self.count / everyone if everyone else 100.0


class LoadReport(Struct, frozen=True, kw_only=True):
    """What one run of the load generator did: what `greeter load --json` prints."""

    address: str
    arrival: Arrival
    processes: int
    concurrency: int
    rate: float = 0.0
    """Intended; 0 in closed loop."""
    seconds: float
    """From the first start to the last end, warm-up left out; of bursts the sum over all of them,
    since the client pauses in between."""
    warmup: int = 0
    """Greetings sent before, which are in `sent`, `ok` and `errors`, and in no rate or latency."""
    sent: int
    """Connections begun."""
    ok: int
    """Ended in order: the server has closed (or answered) after it took the name."""
    uncertain: int = 0
    """The name was sent, and no orderly end was seen: a greeting may be logged, or not."""
    errors: dict[str, int] = {}
    """By kind (refused, reset, timeout, ...): sent == ok + the sum of these."""
    latency: Latency = Latency()
    client_cpu_seconds: float = 0.0
    """User and system time of all client processes."""
    bottleneck: str = ""
    """A sentence that says why the client, not the server, was the limit; empty when it was not."""

    @property
    def greetings_per_second(self) -> float:
        """The rate of orderly ends, warm-up left out; of an open loop it is the client's."""
        return self.latency.count / self.seconds if self.seconds > 0 else 0.0


class Counts(Struct, frozen=True, kw_only=True):
    """One number, counted three times."""

    client: int
    """Orderly ends."""
    uncertain: int = 0
    """Those of which the client does not know."""
    scoreboard: int | None = None
    """Greetings by the server's own counters; None for a server that has none."""
    log: int | None = None
    """Greeting records in its logs; None for a server that writes none."""


class Listener(Struct, frozen=True, kw_only=True):
    """The accept queues of a trial, over all listeners."""

    queued_max: int = 0
    """The longest queue that was seen."""
    limit: int = 0
    """Its backlog."""
    drops: int = 0
    """Connections that the kernel dropped at the listeners."""
    sockets: int = 0
    """How many sockets listen at the address; 0 is not known."""


class Process(Struct, frozen=True, kw_only=True):
    """What one process of a server used in a trial."""

    pid: int
    cpu_us: float
    """User and system time per greeting of the whole server."""


class Trial(Struct, frozen=True, kw_only=True, tag="trial"):
    """One load on one case."""

    case: Case
    comparison: int
    """Which comparison it belongs to, by its place in the plan."""
    pair: int
    """Which pair of the comparison, from 0."""
    order: int
    """Which of all, from 0."""
    began: str
    """UTC, ISO 8601."""
    load: LoadReport | None = None
    """None when the trial failed before its end."""
    rate: float = 0.0
    """Greetings per second: the client's, not the server's, of `constant` and `poisson`."""
    cpu_total_us: float = 0.0
    """User and system time of the whole server (master, workers, dispatcher) per greeting."""
    cpu_user_us: float | None = 0.0
    cpu_system_us: float | None = 0.0
    """The parts of it; None when the kernel's ticks were too few to tell them apart."""
    switches_voluntary: float | None = 0.0
    switches_involuntary: float | None = 0.0
    """Context switches per greeting; None when a process has died, and they with it."""
    per_worker: list[int] = []
    """Greetings by slot, in the order of slots, when the last client had ended: a stopped worker
    has not gone on then.  Empty for a server that does not tell."""
    wakeups: float = 0.0
    wasted_wakeups: float = 0.0
    """Per greeting."""
    listener: Listener = Listener()
    processes: list[Process] = []
    """The busiest first."""
    lost: int = 0
    """Clients that were not served in order."""
    faults: int = 0
    """How many faults there were: workers stopped or killed, reloads asked for."""
    counts: Counts = Counts(client=0)
    commit: str = ""
    """As `Environment.commit`, when this trial was run."""
    invalid: str = ""
    """Why this trial says nothing; empty when it is valid."""

    @property
    def cpu_us(self) -> float:
        """User and system time per greeting."""
        return self.cpu_total_us or (self.cpu_user_us or 0.0) + (self.cpu_system_us or 0.0)

    @property
    def switches(self) -> float | None:
        """Context switches per greeting; None when they are not known."""
        if self.switches_voluntary is None or self.switches_involuntary is None:
            return None
        return self.switches_voluntary + self.switches_involuntary


class Objection(Struct, frozen=True, kw_only=True, tag="objection"):
    """Why nothing of a case is believed, found at its end."""

    case: Case
    reason: str


class Held(Struct, frozen=True, kw_only=True, tag="held"):
    """Connections that were held open, each attributed to the process that has it."""

    case: Case
    kind: Literal["held", "sample"]
    """All at once, and exact; or a sample of probes."""
    at_once: int = 0
    """Probes of a sample."""
    per_process: dict[int, int] = {}
    """By pid; a process that listens and has none is there with 0."""
    queued: int = 0
    """Nobody had accepted them."""


class Environment(Struct, frozen=True, kw_only=True):
    """The machine and the programs."""

    date: str
    """UTC, ISO 8601."""
    kernel: str
    machine: str
    """The architecture."""
    cpu: str
    cpus: int
    """Usable ones."""
    memory_mib: int = 0
    python: str = ""
    greeterd: str = ""
    command: str = ""
    """What ran the daemon; empty is the installation that measured."""
    commit: str = ""
    """Of the source, with `+` when it has changes; empty when it is no checkout, or not known."""
    sysctls: dict[str, str] = {}
    packages: dict[str, str] = {}
    load_average: float = 0.0
    """Of one minute, before the first trial."""
    pin: str = ""
    """Which CPUs servers and clients had; empty when any."""
    request: str = ""
    """What was sent in place of names, and expected."""


class Results(Struct, frozen=True, kw_only=True):
    """One experiment."""

    format: int = FORMAT
    environment: Environment
    preset: str = ""
    seed: int = 0
    precision: float = 0.05
    """The ratio, less 1, within which two cases are the same for what is asked."""
    pairs: int | None = None
    """How many each comparison was to have; None when it ended as soon as it was decided."""
    comparisons: list[Comparison] = []
    trials: list[Trial] = []
    held: list[Held] = []
    objections: list[Objection] = []
    finished: bool = True
