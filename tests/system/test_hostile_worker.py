"""A worker that runs an attacker's code costs itself: not the master, its siblings or the clients.

Each harm of `hostile` is done by a worker of each mode, and by the dispatcher, at its first turn
and after HONEST greetings. One daemon a mode suffers them all, under load.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from greeterd.control import ask
from greeterd.master.mender import WARNING_PERIOD
from tests.support import until
from tests.system.clients import Load, fire, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, Record, records
from tests.system.hostile import COMMAND, HARMS, Orders, given_orders
from tests.system.sizes import sized

if os.geteuid() != 0:
    pytest.skip("needs root, to have workers of another user", allow_module_level=True)

PROMPT = 1.0
"""Seconds within which the master answers, whatever a worker does."""
MORE_BYTES = 5 * 2**20
MORE_FDS = 10
MORE_LOG_BYTES = 256 * 1024
CONCURRENCY = 4
HONEST = sized(1000, 100)
"""How many connections a worker has had that turns hostile later."""

OPTIONS = (
    "--workers=2", "--reply", "--user=nobody", "--log-format=json", "--worker-timeout=2",
    # What is shown is each harm by itself, not the back-off.
    "--max-restarts=1000000", "--restart-window=0.001",
)  # fmt: skip


class Stage:
    """A daemon under load, one of whose slots is the villain's."""

    def __init__(self, daemon: Daemon, orders: Orders, slot: int) -> None:
        self.daemon = daemon
        self.slot = slot
        self.harms = 0
        self.outages = 0
        self.slowest_ping = 0.0
        self.orders = orders
        self.warned: dict[str, float] = {}
        """When the latest warning was seen, by its reason."""

    def ping(self) -> None:
        """Have the master answer."""
        began = time.monotonic()
        assert ask(self.daemon.run_dir / "control.sock", "ping", 10.0)["ok"]
        took = time.monotonic() - began
        self.slowest_ping = max(self.slowest_ping, took)
        assert took < PROMPT

    def log_bytes(self) -> int:
        """Return how much the daemon has told so far."""
        return self.daemon.stderr.stat().st_size

    def told(self, mark: int, event: str) -> list[Record]:
        """Return what has been told since of the slot's workers, or of what they share."""
        with self.daemon.stderr.open("rb") as log:
            log.seek(mark)
            told = records(log.read().decode(errors="replace"))
        return [
            one
            for one in told
            if one["event"] == event and one.get("worker", self.slot) == self.slot
        ]

    def master(self) -> tuple[int, int]:
        """Return the master's memory and its descriptors."""
        process = psutil.Process(self.daemon.pid)
        return process.memory_info().rss, process.num_fds()

    def worker(self) -> int:
        """Return the pid of the slot's worker, 0 while none is ready."""
        status = self.daemon.status()
        found = [
            one["pid"]
            for one in [*status["workers"], *status["dispatcher"]]
            if one["slot"] == self.slot and one["state"] == "ready"
        ]
        return int(found[0]) if len(found) == 1 else 0

    def serves(self) -> bool:
        """Tell whether the slot has a ready worker, and who comes is greeted."""
        with contextlib.suppress(ConnectionError):
            return self.worker() != 0 and all(
                greet(self.daemon.address, "honest") == "Hello, honest\n" for _ in range(8)
            )
        return False


@pytest.fixture(scope="module", params=["inherit", "reuseport", "handoff", "dispatcher"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    mode = request.param
    slot = 0 if mode == "dispatcher" else 1
    mode = "handoff" if mode == "dispatcher" else mode
    with given_orders() as orders:
        options = [*OPTIONS, f"--mode={mode}"]
        with (
            Daemon(*options, command=COMMAND, environment=orders.environment) as daemon,
            Load(
                daemon.address, processes=1, concurrency=CONCURRENCY, interval=0.02, reply=True
            ) as load,
        ):  # fmt: skip
            load.wait_going()
            one = Stage(daemon, orders, slot)
            yield one
            result = load.stop()
            began = time.monotonic()
            assert daemon.stop() == 0
            print(f"{result.counts}, {one.harms} harms, ping {one.slowest_ping:.3f} s at most")
            print(f"stopped within {time.monotonic() - began:.1f} s")
            # Who is ended, or killed to make room for a villain, takes what it had accepted. While
            # a listener is shut, whoever comes is refused.
            lost = sum(result.lost.values()) - (result.lost.get("refused", 0) if one.outages else 0)
            assert lost <= 2 * CONCURRENCY * one.harms
            assert "timeout" not in result.lost


@pytest.mark.shows("when a worker sends what the master did not ask for")
@pytest.mark.parametrize("name", HARMS)
@pytest.mark.parametrize("after", [0, HONEST], ids=["first-turn", "later"])
def test_a_hostile_worker_costs_itself(stage: Stage, name: str, after: int) -> None:
    harm = HARMS[name]
    until(stage.worker, what="an honest worker")
    # A warning that was written is not written again within its period.
    quiet = stage.warned.get(harm.reason, -WARNING_PERIOD) + WARNING_PERIOD
    until(lambda: time.monotonic() > quiet, timeout=2 * WARNING_PERIOD, what="the end of a period")
    before, mark = stage.master(), stage.log_bytes()
    stage.harms += 1
    stage.outages += name == "shut-listener"
    stage.orders.give(stage.slot, name, after=after)
    if not after:
        os.kill(stage.worker(), signal.SIGKILL)
    ends = harm.event == "worker exited"

    def told() -> list[Record]:
        """Return what was told of it: not the end of the honest worker."""
        stage.ping()
        for _ in range(0 if stage.orders.taken(stage.slot) else 50):
            with contextlib.suppress(*() if ends else (ConnectionError,)):
                fire(stage.daemon.address, "honest")
        if not stage.orders.taken(stage.slot):
            return []
        return stage.told(mark, harm.event)[ends and not after :]

    until(told, timeout=30.0, what=f"{harm.event}: {harm.reason}")
    until(stage.serves, what="another worker, and siblings that serve")
    stage.ping()
    [one] = told()
    assert harm.reason in one["reason" if ends else "what"]
    if not ends:
        stage.warned[harm.reason] = time.monotonic()
    memory, fds = stage.master()
    assert memory - before[0] < MORE_BYTES
    assert fds - before[1] < MORE_FDS
    assert stage.log_bytes() - mark < MORE_LOG_BYTES


@pytest.mark.shows("when a worker sends what the master did not ask for")
@pytest.mark.parametrize(
    "name",
    ["flood", "descriptors-that-linger-behind-a-breach", "closed-channel", "descriptors-unasked"],
)
def test_a_stop_in_the_midst_of_it_is_a_stop(daemon: StartDaemon, name: str) -> None:
    with given_orders() as orders:
        for slot in (1, 2):
            orders.give(slot, name, after=0)
        one = daemon(*OPTIONS, command=COMMAND, environment=orders.environment)
        until(lambda: any(map(orders.taken, (1, 2))), what="a harm")
        began = time.monotonic()
        assert one.stop() == 0
        assert time.monotonic() - began < 10.0
