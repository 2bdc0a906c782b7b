"""The lock of a greeting log is held by its slot's workers, and by nobody else."""

import contextlib
import signal
from pathlib import Path

from tests.support import until
from tests.system.clients import greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon

NAME = "/memfd:greeterd-log-lock (deleted)"


def locks(pid: int) -> set[int]:
    """Return the inodes of the locks that a process has open."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed since it was listed
            if str(each.readlink()) == NAME:
                found.add(each.stat().st_ino)
    return found


def locks_by_slot(one: Daemon) -> dict[int, set[int]]:
    """Return the locks of each slot's ready worker, each of which has one."""
    workers = [each for each in one.status()["workers"] if each["state"] == "ready"]
    found = {each["slot"]: locks(each["pid"]) for each in workers}
    assert all(len(each) == 1 for each in found.values())
    return found


def generation_is(one: Daemon, wanted: int) -> bool:
    """Tell whether all workers are of this generation."""
    return {each["generation"] for each in one.status()["workers"]} == {wanted}


def test_a_slots_workers_share_a_lock_that_no_other_process_has(daemon: StartDaemon) -> None:
    one = daemon("--mode=reuseport", "--workers=3", "--reply")
    first = locks_by_slot(one)
    assert len(set().union(*first.values())) == 3
    # While one worker replaces the other, both have the slot's lock; so has the new image.
    for wanted, number in enumerate((signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP), start=2):
        one.signal(number)
        until(lambda: generation_is(one, wanted), what="the new generation")  # noqa: B023
        assert locks_by_slot(one) == first
        assert locks(one.pid) == set().union(*first.values())
    assert one.ctl("scale", "2").returncode == 0
    until(lambda: len(one.status()["workers"]) == 2)
    assert locks(one.pid) == first[1] | first[2], "that of the slot which is gone is closed"
    assert one.ctl("scale", "3").returncode == 0
    assert not locks_by_slot(one)[3] & (first[1] | first[2])
    assert greet(one.address, "Alice") == "Hello, Alice\n"
