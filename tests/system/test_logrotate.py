"""logrotate's own program, with the configuration that is shipped, while clients are greeted."""

import gzip
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import until
from tests.system.books import assert_gap_free
from tests.system.conftest import StartUnit
from tests.system.container import Container
from tests.system.harness import ROOT, records
from tests.system.unit import LOG_DIR, Unit, install_programs

ROTATIONS = 3
CLOCK_REALTIME_COARSE = 5  # linux/time.h; the clock of time(2), some milliseconds late
CONFIGURATION = "/etc/logrotate.d/greeterd"

pytestmark = pytest.mark.skipif(shutil.which("logrotate") is None, reason="logrotate is missing")


def files(server: Unit) -> list[Path]:
    """Return all files of the log directory, the oldest of each slot first."""
    directory = server.container.path(LOG_DIR)
    return sorted(directory.iterdir(), key=lambda path: (path.suffix == ".log", path.name))


def text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def is_written(server: Unit, slot: int) -> bool:
    """Tell whether a slot's log is there and has lines."""
    log = server.container.path(f"{LOG_DIR}/worker-{slot}.log")
    return log.exists() and log.stat().st_size > 0


def install(container: Container) -> None:
    """Install the shipped configuration as its head says."""
    shipped = str(ROOT / "conf" / "greeterd.logrotate")
    container.run("install", "-m", "644", shipped, CONFIGURATION)


def test_no_line_is_lost_or_torn_by_rotations_under_load(unit: StartUnit) -> None:
    server = unit('workers = 2\nreply = true\nmode = "reuseport"\n')
    install(server.container)
    server.start()
    with server.load(concurrency=8, reply=True) as load:
        load.wait_going()
        for _ in range(ROTATIONS):
            # What is missing or empty is not rotated.
            until(lambda: all(is_written(server, slot) for slot in (1, 2)))
            done = server.container.run("logrotate", "--force", CONFIGURATION)
            assert (done.stdout, done.stderr) == ("", "")
            # The names of rotated files tell the second, this one at the latest.
            second = int(time.clock_gettime(time.CLOCK_REALTIME))
            until(lambda: int(time.clock_gettime(CLOCK_REALTIME_COARSE)) > second)  # noqa: B023
        result = load.stop()
    assert not result.lost
    server.ctl("stop", "greeterd")

    found = files(server)
    assert sorted(path.name for path in found if path.match("worker-*.log")) == [
        "worker-1.log",
        "worker-2.log",
    ]
    for slot in (1, 2):
        rotated = [path for path in found if path.name.startswith(f"worker-{slot}.log-")]
        packed = [path.suffix == ".gz" for path in rotated]
        assert packed == [True] * (ROTATIONS - 1) + [False], "the latest may still be written"
    lines = [line for path in found for line in text(path).splitlines(keepends=True)]
    assert all(line.endswith("}\n") for line in lines)
    greetings = records("".join(lines))
    assert len(greetings) == len(lines) == result.counts["ok"]
    assert sorted(one["name"] for one in greetings) == sorted(result.names["ok"])
    for slot in (1, 2):
        assert_gap_free(one for one in greetings if one["worker"] == slot)
    assert len(server.events("logs reopened")) == ROTATIONS


@pytest.fixture
def detached(container: Container) -> Iterator[Container]:
    """Start a daemon that is no unit, as root does, in the container."""
    install_programs(container)
    install(container)
    container.run("rm", "-rf", LOG_DIR)
    container.run("/opt/greeterd/bin/greeterd", "--daemonize", "--user", "nobody",
                  "--workers", "1", "--bind", "127.0.0.1:0", "--log-dir", LOG_DIR)  # fmt: skip
    yield container
    container.run("/opt/greeterd/bin/greeterctl", "stop", "--now")
    container.run("rm", "-rf", LOG_DIR)


def rotate(container: Container) -> None:
    done = container.run("logrotate", "--force", CONFIGURATION)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_detached_daemon_is_told_and_goes_on_in_a_new_log(detached: Container) -> None:
    log = detached.path(f"{LOG_DIR}/greeterd.log")
    rotate(detached)
    until(lambda: log.exists() and "logs reopened" in log.read_text())
    (rotated,) = log.parent.glob("greeterd.log-*")
    assert "ready" in [one["event"] for one in records(rotated.read_text())]
    # It may have noticed by itself before it was told.
    told = rotated.read_text() + log.read_text()
    assert "signal" in [one["event"] for one in records(told)]


def test_no_process_but_a_daemon_is_signalled_whatever_a_pid_file_says(
    detached: Container,
) -> None:
    file = detached.path("/run/greeterd/greeterd.pid")
    said = file.read_text()
    stranger = detached.run("bash", "-c", "sleep 100 >&- 2>&- & echo $!").stdout
    file.write_text(stranger)
    log = detached.path(f"{LOG_DIR}/greeterd.log")
    rotate(detached)
    file.write_text(said)
    assert detached.path(f"/proc/{stranger.strip()}").exists()
    # Not told, the daemon notices by itself.
    until(lambda: log.exists() and "log reopened" in log.read_text())
    detached.run("kill", stranger.strip())
