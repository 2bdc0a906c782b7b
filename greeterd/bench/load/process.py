"""One sending process of a load: takes its orders from standard input, answers on standard output.

Run by `greeterd.bench.load.run` and of no use alone.  SIGINT is held back by the parent: the parent
alone decides when a load ends, and tells so; a parent that has gone is told by the end of input.
"""

import gc
import os
import resource
import sys
from pathlib import Path
from time import monotonic_ns
from typing import Final

import msgspec

from greeterd.bench.load.loop import Loop
from greeterd.bench.load.messages import Order, Phase, Said
from greeterd.bench.load.seed import Sower
from greeterd.bench.load.sender import Sending

STDIN: Final = 0
STDOUT: Final = 1


class Parent:
    """The two pipes."""

    def __init__(self) -> None:
        self._buffer = b""

    def ask(self) -> bytes:
        """Return the next line; empty when there is no more to do."""
        while b"\n" not in self._buffer:
            piece = os.read(STDIN, 65536)
            if not piece:
                return b""
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def tell(self, said: Said) -> None:
        """Write one line."""
        _write(msgspec.json.encode(said) + b"\n")


def _write(data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(STDOUT, rest) :]


def _waited_ns() -> int:
    """Return how long this process was ready and had no CPU (sched-stats.rst)."""
    try:
        return int(Path("/proc/self/schedstat").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0  # a kernel without CONFIG_SCHED_INFO


def _cpu_ns() -> int:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(usage.ru_utime + usage.ru_stime for usage in usages) * 1e9)


def _run(runner: Loop | Sower, phase: Phase, sending: Sending) -> None:
    tally = sending.tally
    before = monotonic_ns(), _cpu_ns(), _waited_ns()
    runner.run(phase)
    if phase.measured:
        tally.missing = tally.sent - len(sending.latencies)
        tally.wall_ns = max(0, monotonic_ns() - max(before[0], phase.start_ns))
        tally.cpu_ns = _cpu_ns() - before[1]
        tally.waited_ns = _waited_ns() - before[2]


def main() -> int:
    """Serve phases until the parent has no more of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return _serve(Parent())
    except BrokenPipeError:
        return 1  # the parent has gone, or wants no more


def _serve(parent: Parent) -> int:
    line = parent.ask()
    if not line:
        return 0
    sending = Sending(msgspec.json.decode(line, type=Order), parent.tell, parent.ask)
    if sending.order.cpus:
        os.sched_setaffinity(0, sending.order.cpus)
    runner = Sower(sending) if sending.order.arrival == "seed" else Loop(sending)
    gc.freeze()
    gc.disable()  # nothing here makes cycles, and a collection is a pause of the client's own
    parent.tell(Said(ready=True))
    while not sending.stopped and (line := parent.ask()):
        _run(runner, msgspec.json.decode(line, type=Phase), sending)
        said, latencies = sending.take_book()
        parent.tell(said)
        _write(memoryview(latencies).cast("B"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
