"""Count how greeterd's workers share the connections, by mode and wait strategy.

Run by hand: python -m tests.perf.balance [--help]

One client keeps 1 or 32 connections in flight (half-close, wait for the end). Shown are the
greetings of each worker, the Jain index (1 = even, 1/N = one worker does all), and max/min beside
its 95th percentile where every connection chooses its worker by chance alone.
"""

import argparse
import random
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.perf.load import run_load
from tests.perf.servers import GREETERD, built, poll, run_program, running

STRATEGIES = (
    ("inherit", "rotate"),
    ("inherit", "exclusive"),
    ("inherit", "epoll"),
    ("inherit", "blocking"),
    ("reuseport", "epoll"),
    ("reuseport", "blocking"),
)
IN_FLIGHT = (1, 32)
TRIALS = 200


def to_jain(counts: Sequence[int]) -> float:
    """Jain, Chiu and Hawe 1984: the fairness index of an allocation."""
    return sum(counts) ** 2 / (len(counts) * sum(count**2 for count in counts))


def to_max_min(counts: Sequence[int]) -> float:
    """How many times the busiest worker's share is the idlest one's."""
    return max(counts) / min(counts) if min(counts) else float("inf")


def chance_max_min(connections: int, workers: int) -> float:
    """Return the 95th percentile of max/min when each connection draws its worker uniformly."""
    ratios = []
    for _ in range(TRIALS):
        drawn = Counter(random.choices(range(workers), k=connections))
        ratios.append(to_max_min([drawn[worker] for worker in range(workers)]))
    return sorted(ratios)[TRIALS * 95 // 100]


def count(
    strategy: tuple[str, str], in_flight: int, asked: argparse.Namespace, programs: Path | None
) -> list[int]:
    """Count the greetings of each worker, by slot; SystemExit when one is lost."""
    mode, wait = strategy
    command = [*asked.greeterd, "--wait", wait]
    with running("greeterd", mode, asked.workers, programs=programs, greeterd=command) as server:
        load = run_load(programs, "closed", server.port, asked.connections, outstanding=in_flight)
        poll(lambda: server.done() >= load.done, timeout=10.0)
        lines = server.lines()
    if load.errors or sum(lines.values()) != asked.connections:
        raise SystemExit(f"{mode} {wait}: {load}, {sum(lines.values())} greetings")
    return [lines.get(f"worker-{slot}", 0) for slot in range(1, asked.workers + 1)]


def main() -> int:
    """Print one row per strategy and number of connections in flight."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf.balance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument(
        "--greeterd", type=shlex.split, default=list(GREETERD), help="the command that runs it"
    )
    asked = parser.parse_args()
    chance = chance_max_min(asked.connections, asked.workers)
    table = Table(title=f"{asked.connections} connections, {asked.workers} workers")
    for column in ("mode", "wait", "in flight", "per worker"):
        table.add_column(column)
    for column in ("Jain", "max/min", "by chance, 95 %"):
        table.add_column(column, justify="right")
    with built() as programs:
        for strategy in STRATEGIES:
            for in_flight in IN_FLIGHT:
                counts = count(strategy, in_flight, asked, programs)
                figures = (to_jain(counts), to_max_min(counts), chance)
                row = (*strategy, str(in_flight), " ".join(map(str, counts)))
                table.add_row(*row, *(f"{figure:.3f}" for figure in figures))
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    return 0


if __name__ == "__main__":
    run_program(main)
