"""`greeter load` against a real daemon: what it counts is what the daemon has logged."""

import os
import signal
import subprocess
import tempfile
import time

import msgspec
import pytest

from greeterd.bench.model import Arrival, LoadReport
from tests.support import until
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, clean_environment, program

OPEN_RATE = 200
STALLED = OPEN_RATE // 2
"""Connections that queue up while nobody serves: half a second of the schedule."""


def start(*options: str) -> "subprocess.Popen[bytes]":
    """Start a load."""
    return subprocess.Popen(
        [program("greeter"), "load", "--json", *options],
        env=clean_environment({}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(load: "subprocess.Popen[bytes]", code: int = 0) -> LoadReport:
    """Return what a load has measured."""
    said, told = load.communicate(timeout=60)
    assert load.returncode == code, told
    return msgspec.json.decode(said, type=LoadReport)


def logged(daemon: Daemon, name: str) -> int:
    """Return how often a name was logged."""
    return sum(one["name"] == name for one in daemon.greetings())


def queued(daemon: Daemon) -> int:
    """Return how many connections wait in the accept queues."""
    return sum(one["queued"] for one in daemon.status()["listeners"])


@pytest.mark.parametrize("mode", ["inherit", "reuseport"])
def test_every_arrival_style_sends_what_it_says_and_the_daemon_logs_it(
    daemon: StartDaemon, mode: str
) -> None:
    served = daemon(f"--mode={mode}", "--workers=2", "--bind=0.0.0.0:0")
    address = served.address.replace("0.0.0.0", "127.0.0.1")
    styles: list[Arrival] = ["closed", "constant", "poisson", "burst", "seed"]
    for style in styles:
        options = ["--rate=2000"] if style in {"constant", "poisson"} else []
        options += [f"--arrival={style}", "--count=203", "--warmup=7", "--destinations=3"]
        report = finish(start("--address", address, f"--name={style}", *options))
        assert (report.sent, report.ok, report.errors) == (210, 210, {})
        assert report.latency.count == 203
        until(lambda: logged(served, style) == 210, what=f"210 lines of {style}")  # noqa: B023


def test_other_families_are_loaded_alike(daemon: StartDaemon) -> None:
    # Not pytest's tmp_path: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory() as directory:
        served = daemon("--workers=1", "--reply", "--bind=[::1]:0", f"--bind=unix:{directory}/s")
        for address in served.addresses:
            report = finish(start("--address", address, "--count=100", "--end=reply"))
            assert (report.ok, report.address) == (100, address)
        until(lambda: len(served.greetings()) == 200, what="all lines")


def test_a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one(daemon: StartDaemon) -> None:
    served = daemon("--workers=1")
    (worker,) = served.worker_pids()
    where = ("--address", served.address, "--processes=1", "--duration=2.5")
    steady = start(*where, "--arrival=constant", f"--rate={OPEN_RATE}", "--name=open")
    patient = start(*where, "--concurrency=2", "--think=0.005", "--name=closed")
    until(lambda: logged(served, "open") > 5 and logged(served, "closed") > 5, what="both")
    os.kill(worker, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        # A sender that was late catches up in a burst: the queue alone tells nothing of the time.
        until(
            lambda: queued(served) >= STALLED and time.monotonic() - stopped > 0.6,
            what="the queue of a stalled server",
        )
    finally:
        os.kill(worker, signal.SIGCONT)
    opened, closed = finish(steady), finish(patient)
    assert (opened.ok, opened.errors, closed.errors) == (OPEN_RATE * 2.5, {}, {})
    # Both have met the stall, ...
    assert opened.latency.max > 400
    assert closed.latency.max > 400
    # ... but in the closed loop only two connections did: it stopped to ask.
    assert opened.latency.p90 > 100
    assert closed.latency.p90 < 50
