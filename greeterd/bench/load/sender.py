"""What both kinds of sending share: the names, the addresses, and the book of what has ended."""

import errno
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from greeterd.bench.load.messages import Order, Phase, Said, Tally
from greeterd.client import Failure, explain

IP_BIND_ADDRESS_NO_PORT: Final = 24
"""ip(7): bind() chooses no port, connect() does, where only the whole four-tuple must be free.  The
socket module has it from Python 3.12 on."""
STDIN: Final = 0
MAX_REPLY_BYTES: Final = 1 << 20
LATE_NS: Final = 1_000_000
"""An arrival that began so much after its time is late: above what a timer and the scheduler of an
idle machine take, below what is usually asked of a latency."""

NO_DESCRIPTOR: Final = "no descriptor"
INTERRUPTED: Final = "interrupted"
CLOSED_EARLY: Final = "closed early"
UNEXPECTED: Final = "unexpected answer"

_TELL_NS: Final = 200_000_000
_NOBODY: Final = frozenset({Failure.REFUSED, Failure.NO_PORT, Failure.ERROR})


@dataclass(slots=True, eq=False)
class Sending:
    """One process's part of a load."""

    order: Order
    tell: Callable[[Said], None]
    ask: Callable[[], bytes] = lambda: b""
    tally: Tally = field(default_factory=Tally)
    latencies: "array[int]" = field(default_factory=lambda: array("Q"))
    number: int = 0
    earlier: int = 0
    """Greetings that ended in phases before this one."""
    reached: bool = False
    unreached: str = ""
    stopped: bool = False
    """The parent has answered with the end, instead of by its next line."""
    _told_ns: int = 0
    _pattern: re.Pattern[bytes] | None = None

    def __post_init__(self) -> None:
        if self.order.expect is not None:
            self._pattern = re.compile(self.order.expect.encode("iso-8859-1"))

    def is_expected(self, answer: bytes | bytearray) -> bool:
        """Tell whether an answer holds what it must."""
        return self._pattern is None or self._pattern.search(answer) is not None

    def name(self, number: int) -> bytes:
        """Return the name of a greeting: its own, unless one for all was given."""
        if self.order.name is not None:
            return self.order.name
        name = b"load-%d-%d" % (self.order.process, number)
        size = self.order.name_bytes
        # Of a name that does not fit its end is what tells it from the others.
        return name if size is None else name[max(0, len(name) - size) :].rjust(size, b"x")

    def target(self, number: int) -> str | tuple[str, int] | tuple[str, int, int, int]:
        """Return a greeting's destination as connect() takes it."""
        order = self.order
        host = order.hosts[number % len(order.hosts)]
        if order.port == 0:
            return host
        return (host, order.port, 0, order.scope) if ":" in host else (host, order.port)

    def source(self, number: int) -> str | None:
        """Return a greeting's source; None leaves it to the kernel."""
        order = self.order
        if not order.sources:
            return None
        # Once round the destinations before the next source, so that every pair is met.
        at = number // len(order.hosts) + order.process * len(order.sources) // order.processes
        return order.sources[at % len(order.sources)]

    def begin(self) -> int:
        """Count a start; return the greeting's number."""
        number = self.number
        self.number += 1
        self.tally.sent += 1
        return number

    def note_start(self, due_ns: int, now_ns: int) -> None:
        """Count how late an arrival of a schedule began."""
        behind = now_ns - due_ns
        self.tally.starts += 1
        if behind > LATE_NS:
            self.tally.late += 1
        self.tally.latest_ns = max(self.tally.latest_ns, behind)

    def note_reached(self) -> None:
        """Take note that a connection stands, and tell of the first one."""
        if not self.reached:
            self.reached = True
            self.tell(self.said())

    def note_failure(self, error: OSError, *, connecting: bool, uncertain: bool = False) -> None:
        """Count a failure, and tell when it is the first sign that nobody listens."""
        failure, reason = explain(error)
        full = error.errno in (errno.EMFILE, errno.ENFILE)
        self.tally.fail(NO_DESCRIPTOR if full else failure.value, uncertain=uncertain)
        first = connecting and not (full or self.reached or self.unreached)
        if first and failure in _NOBODY:
            self.unreached = reason
            self.tell(self.said())
            # Whether somebody listens is for all processes to know: until then nothing more is
            # sent to an address that may be a wrong one.
            self.stopped = not self.ask()

    def said(self, *, ready: bool = False) -> Said:
        """Return what there is to say now."""
        return Said(
            ready=ready,
            ended=self.earlier + self.tally.ended,
            reached=self.reached,
            unreached=self.unreached,
        )

    def take_book(self) -> "tuple[Said, array[int]]":
        """Return what is said at the end of a phase, and its latencies; begin a new book."""
        said, latencies = self.said(ready=True), self.latencies
        said = msgspec.structs.replace(said, tally=self.tally, latencies=len(latencies))
        self.earlier += self.tally.ended
        self.tally, self.latencies = Tally(), array("Q")
        return said, latencies

    def tell_progress(self, now_ns: int) -> None:
        """Say how far it is, from time to time."""
        if now_ns - self._told_ns > _TELL_NS:
            self._told_ns = now_ns
            self.tell(self.said())

    def note_end(self, phase: Phase, start_ns: int, end_ns: int) -> None:
        """Count an orderly end; `start_ns` is the intended one."""
        self.tally.ok += 1
        if phase.measured:
            self.latencies.append(max(0, end_ns - start_ns))

    def note_span(self, phase: Phase, first_ns: int, last_ns: int) -> None:
        """Take the first start and the last end of a phase into the book."""
        if phase.measured:
            self.tally.spans.append((first_ns, last_ns))
