"""What a worker writes in its row is a claim: one that cannot be ends the worker, and nobody else.

A worker is made hostile by an image of the package whose loop runs what a file says, once.
"""

import re
from pathlib import Path

import pytest

from tests.support import until
from tests.system import proc
from tests.system.books import quiet_totals, worker_of
from tests.system.clients import greet, run_load
from tests.system.conftest import StartDaemon
from tests.system.image import Image

MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])
FORGERIES = {
    "a heartbeat to come": (
        "row[counters.HEARTBEAT_NS] = 2**63",
        r"heartbeat_ns is \d+\.\d s ahead",
    ),
    "the most there is": (
        "for cell in range(counters.CELLS): row[cell] = 2**64 - 1",
        r"connections leapt from \d+ to 18446744073709551615",
    ),
    "back to nothing": (
        "for cell in range(counters.CELLS): row[cell] = 0",
        r"\w+ went back from \d+ to 0",
    ),
    "too many open": ("row[counters.OPEN] = 2**64 - 1", "open is 18446744073709551615"),
}
# The loop goes on, but what it says stays.
HANG = "; __import__('signal').pause()"


def infect(image: Image) -> Path:
    """Return the file whose content the next worker of slot 1 runs in its loop, once."""
    deed = image.package.parent / "deed"
    image.spoil(
        "worker/loop.py",
        r"(        row\[counters\.TURNS\] \+= 1\n)",
        r"\1        _run(self, row)\n",
    )
    image.spoil(
        "worker/loop.py",
        r"(\nBURST: Final)",
        rf"""
def _run(self, row):
    try:
        with open({str(deed)!r}) as file:
            text = file.read()
        if self._context.slot == 1:
            os.rename({str(deed)!r}, {str(deed)!r} + ".done")
            exec(text)
    except FileNotFoundError:
        pass

\1""",
    )
    return deed


def commit(deed: Path, text: str) -> None:
    """Let the worker do it, all at once."""
    before = deed.with_suffix(".part")
    before.write_text(text)
    before.rename(deed)


def writable(pid: int) -> list[str]:
    """Return the names of what a process maps shared and writable."""
    lines = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [line[5] for line in lines if line[1].startswith("rw") and line[1].endswith("s")]


@pytest.mark.shows("when a worker writes impossible counters")
@MODES
def test_a_worker_maps_its_own_row_writable_and_no_other_memory_that_is_shared(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "3")
    assert server.ctl("reload").returncode == 0
    assert server.ctl("scale", "4").returncode == 0
    for pid in server.worker_pids():
        assert writable(pid) == ["/memfd:greeterd-row (deleted)"]
        assert not [each for each in proc.links(pid) if "greeterd-scoreboard" in each]
    rows = [Path(f"/proc/{pid}/maps").read_text() for pid in server.worker_pids()]
    inodes = [re.findall(r"rw-s .* (\d+) +/memfd:greeterd-row", text) for text in rows]
    assert len({inode for [inode] in inodes}) == len(inodes), "each has a file of its own"


@pytest.mark.shows("when a worker writes impossible counters")
@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("mode", ["inherit", "handoff"])
def test_a_worker_that_forges_its_row_is_ended_with_the_reason_and_replaced(
    daemon: StartDaemon, image: Image, mode: str, forgery: str
) -> None:
    text, reason = FORGERIES[forgery]
    deed = infect(image)
    server = daemon("--mode", mode, "--workers", "2", "--reply", environment=image.environment)
    run_load(server.address, count=50, reply=True)
    before, hostile = quiet_totals(server, connections=50), worker_of(server, 1)
    commit(deed, text + HANG)
    until(lambda: worker_of(server, 1) not in {0, hostile})
    [ended] = server.events("worker is ended")
    assert (ended["worker"], ended["worker_pid"], ended["level"]) == (1, hostile, "warning")
    assert re.fullmatch(f"its counters cannot be: {reason}", ended["reason"])
    [exited] = server.events("worker exited")
    assert exited["reason"] == ended["reason"]
    status = server.status()
    assert status["last_error"] == f"worker 1: {ended['reason']}"
    totals = status["totals"]
    assert all(totals[name] == before[name] for name in ("connections", "greetings", "reset"))
    result = run_load(server.address, count=50, reply=True)
    assert result.lost == {}
    quiet_totals(server, connections=100)
    assert server.ctl("status").returncode == 0
    assert worker_of(server, 1) not in {0, hostile}, "the next one of the slot serves"


@pytest.mark.shows("when a worker reports that it is well, and accepts nothing")
def test_a_worker_whose_heart_beats_and_that_accepts_nothing_is_helped_out(
    daemon: StartDaemon, image: Image
) -> None:
    deed = infect(image)
    server = daemon(
        *("--mode", "reuseport", "--workers", "2", "--reply"), environment=image.environment
    )
    commit(
        deed,
        "import select\n"
        "while True:\n"
        "    row[counters.TURNS] += 1\n"
        "    row[counters.HEARTBEAT_NS] = int(monotonic() * 1e9)\n"
        "    select.select([], [], [], 0.05)\n",
    )
    until(deed.with_suffix(".done").exists)
    result = run_load(server.address, count=40, reply=True)
    assert result.lost == {}
    assert server.wait_event("listener lent")["worker"] == 1
    assert greet(server.address, "Alice") == "Hello, Alice\n"
