"""Fast clients beside many silent ones: the time that each greeting takes, with and without them.

By hand: `python -m tests.system.silent [--mode MODE] [--silent N] [--rounds N] [--greetings N]`
prints the median and the 99th percentile of both, and their ratios. The rounds take turns, so that
whatever else the machine does meanwhile harms both alike. Times are seconds.
"""

import argparse
import gc
import resource
from dataclasses import dataclass, field
from statistics import quantiles
from time import perf_counter

from tests.support import until
from tests.system.clients import greet, silent_clients
from tests.system.harness import Daemon


@dataclass
class Times:
    """How long each greeting took."""

    without: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)

    def percentile(self, percent: int) -> tuple[float, float]:
        """Return the percentile without and beside silent clients."""
        return tuple(  # type: ignore[return-value]
            quantiles(times, n=100, method="inclusive")[percent - 1]
            for times in (self.without, self.beside)
        )

    def ratio(self, percent: int) -> float:
        """Return how many times longer a percentile is beside silent clients."""
        without, beside = self.percentile(percent)
        return beside / without

    def __str__(self) -> str:
        """Write both in microseconds."""
        return ", ".join(
            f"p{percent} {1e6 * without:.0f} -> {1e6 * beside:.0f} us ({beside / without:.2f}x)"
            for percent in (50, 99)
            for without, beside in [self.percentile(percent)]
        )


def allow_descriptors(count: int) -> None:
    """Raise this process's limit of descriptors for so many connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert hard > count + 100, f"{count} connections need more than {hard} descriptors"


def measure(address: str, count: int) -> list[float]:
    """Greet `count` times, one after the other; return how long each took."""
    times = []
    gc.collect()
    gc.disable()  # a collection would be taken for the daemon's
    try:
        for number in range(count):
            name = f"fast {number}"
            began = perf_counter()
            answer = greet(address, name)
            times.append(perf_counter() - began)
            assert answer == f"Hello, {name}\n"
    finally:
        gc.enable()
    return times


def compare(daemon: Daemon, *, silent: int, rounds: int, greetings: int) -> Times:
    """Measure in turns, alone and beside `silent` clients; the daemon must bear with these."""
    allow_descriptors(silent)
    times = Times()
    measure(daemon.address, greetings)  # the first greetings of all take longest
    for _ in range(rounds):
        times.without += measure(daemon.address, greetings)
        with silent_clients(daemon.address, silent):
            until(lambda: daemon.status()["totals"]["open"] == silent, what="all are accepted")
            times.beside += measure(daemon.address, greetings)
            assert daemon.status()["totals"]["open"] == silent, "they were there all the time"
        until(lambda: daemon.status()["totals"]["open"] == 0, what="all have left")
    return times


def main() -> None:
    """Run as told by the arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=("inherit", "reuseport"), default="inherit")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--silent", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--greetings", type=int, default=1_000, help="of each round")
    options = parser.parse_args()
    arguments = (f"--mode={options.mode}", f"--workers={options.workers}", "--reply")
    with Daemon(*arguments, "--client-timeout=600") as daemon:
        print(options.mode, compare(
            daemon, silent=options.silent, rounds=options.rounds, greetings=options.greetings
        ))  # fmt: skip


if __name__ == "__main__":
    main()
