"""Steering in the daemon: who gets a connection, by the CPU it comes from, by chance, by the hash.

Over loopback a connection is handled by the CPU that its client runs on.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import until
from tests.system.clients import Load, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon

CPUS = sorted(os.sched_getaffinity(0))
needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")
Configure = Callable[..., None]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a configuration file."""
    return tmp_path / "greeterd.toml"


def configure(file: Path, **settings: object) -> None:
    """Write the configuration."""
    usual = {"mode": "reuseport", "workers": 4, "reply": True}
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in {**usual, **settings}.items()]
    file.write_text("".join(lines))


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Run on this CPU alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def spread(server: Daemon, cpu: int, count: int = 60) -> Counter[int]:
    """Greet from this CPU; return how many each slot has greeted."""
    name = f"from-{cpu}-{len(server.greetings())}"
    with on_cpu(cpu):
        for _ in range(count):
            assert greet(server.address, name) == f"Hello, {name}\n"
    return Counter(one["worker"] for one in server.greetings() if one["name"] == name)


def reload(server: Daemon) -> None:
    """Reload by the signal, and wait until it is done."""
    count = len(server.events("reload done"))
    server.signal(signal.SIGHUP)
    server.wait_event("reload done", count=count + 1)


def even(found: Counter[int], slots: set[int]) -> bool:
    """Tell whether just these slots have greeted, each not much less than the others."""
    # With 60 over 4 a slot has 15, give or take 3.4; it has less than 2 once in 30,000 times.
    return set(found) == slots and min(found.values()) >= 2


@pytest.mark.shows("steering cpu")
@needs_two_cpus
def test_a_connection_goes_to_a_worker_on_its_cpu_and_a_reload_switches_that(
    daemon: StartDaemon, file: Path
) -> None:
    configure(file)
    server = daemon("--config", str(file))
    assert even(spread(server, CPUS[0]), {1, 2, 3, 4})
    configure(file, steering="cpu", cpu_affinity="auto")
    reload(server)
    owners = {cpu: set(range(1, 5)[turn :: len(CPUS)]) for turn, cpu in enumerate(CPUS[:2])}
    for cpu in CPUS[:2]:
        assert even(spread(server, cpu), owners[cpu])
    configure(file, steering="random")
    reload(server)
    assert even(spread(server, CPUS[0]), {1, 2, 3, 4})
    configure(file, steering="cpu")
    reload(server)
    found = [spread(server, cpu, 20) for cpu in CPUS[:2]]
    assert [len(one) for one in found] == [1, 1]
    assert found[0] != found[1]
    configure(file)
    reload(server)
    assert even(spread(server, CPUS[0]), {1, 2, 3, 4})


def test_connections_from_a_cpu_without_workers_are_spread_by_the_hash(
    daemon: StartDaemon, file: Path
) -> None:
    configure(file, steering="cpu", cpu_affinity=str(CPUS[0]), workers=2)
    server = daemon("--config", str(file))
    for cpu in CPUS[:2]:
        assert even(spread(server, cpu), {1, 2})


@pytest.mark.parametrize(("steering", "affinity"), [("cpu", "auto"), ("random", "off")])
def test_scaling_down_fails_nobody_however_connections_are_steered(
    daemon: StartDaemon, file: Path, steering: str, affinity: str
) -> None:
    configure(file, steering=steering, cpu_affinity=affinity)
    server = daemon("--config", str(file))
    with Load(server.address, concurrency=8, timeout=20.0, reply=True) as load:
        load.wait_going()
        for count, workers in enumerate((1, 4, 2, 3, 1), start=1):
            assert server.ctl("scale", str(workers)).returncode == 0
            server.wait_event("scale done", count=count)
        result = load.stop()
    assert result.lost == {}
    until(lambda: len(server.worker_pids()) == 1)
    names = Counter(one["name"] for one in server.greetings())
    assert names == Counter(result.names["ok"])


def test_steering_of_a_shared_listener_is_refused(daemon: StartDaemon) -> None:
    failed = daemon("--steering", "cpu", "--mode", "inherit", wait=False)
    assert failed.wait() == 78
    assert "steering chooses between listeners, and inherit has one" in failed.log_text()
