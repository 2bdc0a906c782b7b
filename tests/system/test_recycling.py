"""Workers that have served for long enough are replaced: by greetings, age and memory."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import until
from tests.system.books import worker_of
from tests.system.clients import Load, connect, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon
from tests.system.obstacles import clear, obstruct
from tests.system.sizes import sized

MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])
MIB = 2**20
PAGE_BYTES = 4096


def rss_mib(pid: int) -> float:
    """Return the process's resident memory, shared pages included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / MIB


@pytest.mark.shows("when a worker has served for long enough")
@MODES
def test_workers_are_recycled_under_load_and_nobody_is_failed(
    daemon: StartDaemon, mode: str
) -> None:
    most = 200
    server = daemon("--mode", mode, "--workers", "3", "--reply", "--max-greetings", str(most))
    with Load(server.address, concurrency=16, timeout=20.0, reply=True) as load:
        server.wait_event("recycle done", count=sized(50, 12), timeout=120.0)
        result = load.stop()
    print(f"served {result.total}, slowest {result.slowest:.2f} s")
    assert result.lost == {}
    greetings = server.greetings()
    assert Counter(one["name"] for one in greetings) == Counter(result.names["ok"])
    assert server.events("recycle failed") == []
    assert server.events("worker died") == []

    story = [(one["event"], one["worker"]) for one in server.events() if "worker" in one]
    steps = [step for step in story if step[0] in {"worker is recycled", "worker exited"}]
    for before, after in zip(steps[0::2], steps[1::2], strict=False):
        assert before == ("worker is recycled", after[1]), "one slot at a time"
        assert after[0] == "worker exited"
    greeted = Counter(one["pid"] for one in greetings)
    replaced = [one["worker_pid"] for one in server.events("worker exited")]
    assert all(greeted[pid] >= 0.9 * most for pid in replaced), "not before its time"
    assert {one["worker"] for one in server.events("worker is recycled")} == {1, 2, 3}


@MODES
def test_an_idle_worker_is_replaced_at_its_age_and_its_generation_stays(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--max-age", "1.5")
    before = set(server.worker_pids())
    server.wait_event("recycle done", count=2)
    until(lambda: not before & set(server.worker_pids()))
    assert {one["generation"] for one in server.status()["workers"]} == {1}
    assert server.status()["restarts_in_window"] == 0
    reasons = [one["reason"] for one in server.events("worker is recycled")]
    assert all(reason.endswith(" s old") and float(reason[:3]) >= 1.3 for reason in reasons)


@contextmanager
def half_names(address: str, count: int) -> Iterator[ExitStack]:
    """Hold clients that have sent all but the end of a name of a mebibyte."""
    with ExitStack() as clients:
        for _ in range(count):
            clients.enter_context(connect(address, timeout=20.0)).sendall(b"x" * (MIB - 1))
        yield clients


def test_a_worker_is_replaced_for_its_memory(daemon: StartDaemon, tmp_path: Path) -> None:
    file = tmp_path / "greeterd.toml"
    usual = {"workers": 1, "max_name_bytes": MIB, "client_timeout": 60.0}

    def configure(**settings: object) -> None:
        both = {**usual, **settings}.items()
        file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in both))

    configure()
    server = daemon("--config", str(file))
    configure(max_rss=round(rss_mib(worker_of(server, 1))) + 8)
    assert server.ctl("reload").returncode == 0
    before = worker_of(server, 1)
    with half_names(server.address, 24):
        until(lambda: worker_of(server, 1) not in {0, before}, what="a replacement")
    told = server.events("worker is recycled")
    assert [one["worker"] for one in told] == [1]
    assert told[0]["reason"].endswith(" MiB resident")


def test_a_limit_below_the_memory_of_a_new_worker_recycles_nobody(daemon: StartDaemon) -> None:
    server = daemon("--workers", "2", "--max-rss", "1")
    before = server.worker_pids()
    told = server.wait_event("max_rss is out of reach")
    assert told["rss_mib"] > told["max_rss_mib"] == 1
    ticks = server.status()["totals"]["turns"] + 4
    until(lambda: server.status()["totals"]["turns"] >= ticks)
    assert server.worker_pids() == before
    assert len(server.events("max_rss is out of reach")) == 1


@pytest.mark.shows("when a worker has served for long enough")
@MODES
def test_a_recycling_that_fails_leaves_the_worker_and_is_tried_again(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "1", "--reply", "--max-greetings", "5")
    (before,) = server.worker_pids()
    log = server.log_dir / "worker-1.log"
    greet(server.address, "Alice")
    until(lambda: server.log_lines(1))
    obstruct(log)
    for _ in range(5):
        assert greet(server.address, "Alice") == "Hello, Alice\n"
    failed = server.wait_event("recycle failed", count=2)
    assert "worker 1 did not start" in failed["reason"]
    assert failed["reason"] in server.status()["last_error"]
    assert server.worker_pids() == [before]
    assert server.status()["restarts_in_window"] == 0
    clear(log)
    server.wait_event("recycle done", timeout=20.0)
    until(lambda: before not in server.worker_pids())
    assert greet(server.address, "Alice") == "Hello, Alice\n"


def test_greetings_count_from_the_start_of_each_worker(daemon: StartDaemon) -> None:
    server: Daemon = daemon("--workers", "1", "--reply", "--max-greetings", "10")
    for turn in range(1, 3):
        for _ in range(10):
            greet(server.address, "Alice")
        server.wait_event("recycle done", count=turn)
    for _ in range(8):
        greet(server.address, "Alice")
    assert server.ctl("restart").returncode == 0
    assert len(server.events("worker is recycled")) == 2
