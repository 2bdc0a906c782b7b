"""logrotate's own program, with the configuration that is shipped, while clients are greeted."""

import gzip
import shutil
import time
from pathlib import Path

import pytest

from tests.support import until
from tests.system.books import assert_gap_free
from tests.system.conftest import StartUnit
from tests.system.harness import ROOT, records
from tests.system.unit import LOG_DIR, Unit

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


def test_no_line_is_lost_or_torn_by_rotations_under_load(unit: StartUnit) -> None:
    server = unit('workers = 2\nreply = true\nmode = "reuseport"\n')
    shipped = str(ROOT / "conf" / "greeterd.logrotate")
    server.container.run("install", "-m", "644", shipped, CONFIGURATION)
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
