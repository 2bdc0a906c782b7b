"""Measure what a greeting costs: greeterd against a threaded server and a bare acceptor, both in C.

Run by hand: python -m tests.perf.speed [--help]

- *drain*: the clients send and close while the server is stopped, then the server is let go; no
  client competes with it.
- *fire*: the clients send and close while the server runs.
- *closed*: 4 client processes with 16 greetings outstanding each; half-close, wait for the end.

A cell is a pattern, a mode and a number of workers. Each round visits every cell, and in it every
server, in random order; each server is started afresh and warmed up. CPU is user + system of all
its processes. Ratios are taken between runs of the same round and cell. A run is void unless the
server finished exactly the greetings that were sent, without an error or the loss of a process.

drain and fire come in batches that fit the accept queues, else a dropped SYN would be sent again
after a second. A full table of TIME_WAIT sockets was found to make no difference.
"""

import argparse
import os
import platform
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import track

from greeterd import __version__
from tests.perf.load import Load, run_load
from tests.perf.servers import GREETERD, Server, built, cpu_ns, poll, run_program, running
from tests.perf.verdict import Cell, Sample, judge, to_table

PATTERNS = ("drain", "fire", "closed")
MODES = ("inherit", "reuseport")
SERVERS = ("greeterd", "threaded", "bare")
WARM_UP = 200  # greetings per worker
BATCH = 3600  # per listener: below the backlog of 4096 also where hashing spreads it unevenly
FIRE_PROCESSES = 2
CLOSED_PROCESSES, CLOSED_OUTSTANDING = 4, 16
DONE_TIMEOUT = 10.0


@dataclass(frozen=True)
class Options:
    """What was asked for, and where the compiled programs are."""

    patterns: list[str]
    modes: list[str]
    workers: list[int]
    servers: list[str]
    rounds: int
    greetings: int
    json: Path | None
    greeterd: list[str]
    programs: Path | None = None


def settle(pids: Sequence[int]) -> None:
    """Wait until the server is idle: the last log line precedes the last close."""
    before = 0

    def idle() -> bool:
        nonlocal before
        last, before = before, cpu_ns(pids)
        return before - last < 100_000

    poll(idle, timeout=1.0, step=0.01)


def wait_until_done(server: Server, greetings: int) -> None:
    """Wait for the server's count; one that never comes is found by the check after the run."""
    poll(lambda: server.done() >= greetings, timeout=DONE_TIMEOUT, step=0.002)


def closed(server: Server, greetings: int, programs: Path | None) -> tuple[float, Load]:
    """Run the closed loop; seconds that it took, what the clients saw."""
    sent = server.done() + greetings
    load = run_load(
        programs,
        "closed",
        server.port,
        greetings,
        processes=CLOSED_PROCESSES,
        outstanding=CLOSED_OUTSTANDING,
    )
    wait_until_done(server, sent - load.errors)
    return load.seconds, load


def fire(
    server: Server, greetings: int, programs: Path | None, *, batch: int, drain: bool
) -> tuple[float, Load]:
    """Send and close in batches; with `drain` the server is stopped while they are sent.

    Returns the seconds that the server had for the work, and what the clients saw.
    """
    sent = server.done()
    seconds = 0.0
    loads = []
    for first in range(0, greetings, batch):
        count = min(batch, greetings - first)
        if drain:
            server.stop()
        start = time.monotonic()
        loads.append(run_load(programs, "fire", server.port, count, processes=FIRE_PROCESSES))
        if drain:
            start = time.monotonic()
            server.go()
        sent += loads[-1].done
        wait_until_done(server, sent)
        seconds += time.monotonic() - start
    return seconds, Load.sum(loads)


def measure(number: int, cell: Cell, kind: str, server: Server, options: Options) -> Sample:
    """Warm one server up, load it, and judge whether the run counts."""
    programs = options.programs
    batch = BATCH * (cell.workers if cell.mode == "reuseport" else 1)
    fire(server, WARM_UP * cell.workers, programs, batch=batch, drain=False)
    pids, base = server.pids(), server.done()
    settle(pids)
    before = cpu_ns(pids)
    if cell.pattern == "closed":
        seconds, load = closed(server, options.greetings, programs)
    else:
        drain = cell.pattern == "drain"
        seconds, load = fire(server, options.greetings, programs, batch=batch, drain=drain)
    faults = [f"{load.errors} client errors"] if load.errors else []
    try:
        settle(pids)
        spent_ns = cpu_ns(pids) - before
    except OSError:
        spent_ns = 0
    if spent_ns == 0 or server.pids() != pids:
        faults.append("a process ended")
    done = server.done() - base
    if done != options.greetings:
        faults.append(f"{done} of {options.greetings} greetings")
    return Sample(
        round=number,
        cell=cell,
        server=kind,
        cpu_us=spent_ns / options.greetings / 1e3,
        rate=done / seconds,
        p50_us=load.p50_us,
        p99_us=load.p99_us,
        late=load.late,
        fault=", ".join(faults),
    )


def visits(options: Options) -> Iterator[tuple[int, Cell, str]]:
    """Every round visits all cells, and in each all servers, in random order."""
    cells = [
        Cell(pattern, mode, workers)
        for pattern in options.patterns
        for mode in options.modes
        for workers in options.workers
    ]
    for number in range(1, options.rounds + 1):
        for cell in random.sample(cells, len(cells)):
            for kind in random.sample(options.servers, len(options.servers)):
                yield number, cell, kind


def run(options: Options, console: Console) -> list[Sample]:
    """Start, measure and end one server after the other."""
    samples = []
    plan = list(visits(options))
    for number, cell, kind in track(plan, "measuring", console=console, transient=True):
        command = options.greeterd
        with running(
            kind, cell.mode, cell.workers, programs=options.programs, greeterd=command
        ) as server:
            samples.append(measure(number, cell, kind, server, options))
    return samples


def environment() -> dict[str, str]:
    """Where and when this is measured."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": f"{models[0] if models else platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} usable",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "greeterd": __version__,
        "somaxconn": Path("/proc/sys/net/core/somaxconn").read_text().strip(),
    }


def parse() -> Options:
    """Read the command line."""

    def words(*known: str) -> Callable[[str], list[str]]:
        def parse_words(text: str) -> list[str]:
            if unknown := set(text.split(",")) - set(known):
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(known)}")
            return text.split(",")

        return parse_words

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m tests.perf.speed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--patterns", type=words(*PATTERNS), default=list(PATTERNS))
    parser.add_argument("--modes", type=words(*MODES), default=list(MODES))
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4])
    parser.add_argument("--servers", type=words(*SERVERS), default=list(SERVERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--greetings", type=int, default=20_000, help="per run")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    parser.add_argument(
        "--greeterd", type=shlex.split, default=list(GREETERD), help="the command that runs it"
    )
    return Options(**vars(parser.parse_args()))


def main() -> int:
    """Return 0 when every run counts and no target is missed."""
    options = parse()
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    facts = environment()
    for name, fact in facts.items():
        console.print(f"{name:10} {fact}")
    with built() as programs:
        if programs is None:
            console.print("no cc: greeterd alone, with a slower load generator in Python")
            options = replace(options, servers=["greeterd"])
        samples = run(replace(options, programs=programs), console)
    cells = sorted({sample.cell for sample in samples})
    console.print(to_table(samples, cells, options.servers))
    for sample in samples:
        where = f"round {sample.round} {sample.server} {' '.join(map(str, sample.cell))}"
        if sample.fault:
            console.print(f"void: {where}: {sample.fault}")
        if sample.late:
            console.print(f"late: {where}: {sample.late} connects waited for a retried SYN")
    verdicts = list(judge(samples, cells, options.servers))
    for line, _ in verdicts:
        console.print(line)
    if options.json:
        report = {"environment": facts, "greetings": options.greetings, "samples": samples}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return int(any(s.fault for s in samples) or any(word == "missed" for _, word in verdicts))


if __name__ == "__main__":
    run_program(main)
