"""The locks among the writers of one log, by real files."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from greeterd.worker import file_locks
from greeterd.worker.file_locks import (
    EXCLUSIVE,
    PATIENCE,
    is_marked,
    mark,
    open_writer_lock,
    wait_for_writer_lock,
)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Return a log that two processes have opened."""
    fds = [os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)


QUARTER = PATIENCE / 4.01


class Time:
    """A clock that goes on with each look, and a lock that is held for some tries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step: float, tries: int) -> None:
        self.now = 100.0
        self.step = step
        self.tries = tries
        self.yields = 0
        monkeypatch.setattr(file_locks, "monotonic", self._look)
        monkeypatch.setattr(file_locks, "flock", self._flock)
        monkeypatch.setattr(os, "sched_yield", self._yield)

    def _look(self) -> float:
        self.now += self.step
        return self.now

    def _flock(self, _fd: int, kind: int) -> None:
        assert kind == EXCLUSIVE
        if self.tries:
            self.tries -= 1
            raise BlockingIOError

    def _yield(self) -> None:
        self.yields += 1


def test_a_lock_that_is_given_back_in_time_is_taken(
    monkeypatch: pytest.MonkeyPatch, lock: int
) -> None:
    time = Time(monkeypatch, step=QUARTER, tries=4)
    wait_for_writer_lock(lock)
    assert time.tries == 0
    assert time.yields == 4


def test_a_lock_that_is_not_given_back_is_waited_for_so_long(
    monkeypatch: pytest.MonkeyPatch, lock: int
) -> None:
    time = Time(monkeypatch, step=QUARTER, tries=1000)
    with pytest.raises(BlockingIOError, match="locked by the slot's other worker"):
        wait_for_writer_lock(lock)
    assert time.yields == 1000 - time.tries - 1 == 4
    assert 0.01 <= PATIENCE <= 0.1, "a turn of the loop waits for it"


def test_a_free_lock_is_taken_at_once(monkeypatch: pytest.MonkeyPatch, lock: int) -> None:
    time = Time(monkeypatch, step=1.0, tries=0)
    wait_for_writer_lock(lock)
    assert time.yields == 0


def test_a_writer_has_a_lock_of_its_own(lock: int) -> None:
    ours, theirs = open_writer_lock(lock), open_writer_lock(lock)
    wait_for_writer_lock(ours)
    for other in (theirs, lock):
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, EXCLUSIVE)
    assert not os.get_inheritable(ours)
    os.write(ours, b"x")  # opened for writing, as a lock may have to be
    os.close(ours)
    fcntl.flock(theirs, EXCLUSIVE)
    os.close(theirs)


def test_without_proc_a_writer_shares_the_lock(monkeypatch: pytest.MonkeyPatch, lock: int) -> None:
    def refuse(path: str, _flags: int) -> int:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "open", refuse)
    ours = open_writer_lock(lock)
    monkeypatch.undo()
    assert os.fstat(ours).st_ino == os.fstat(lock).st_ino
    fcntl.flock(ours, EXCLUSIVE)
    fcntl.flock(lock, EXCLUSIVE)
    os.close(ours)


def test_a_mark_is_seen_by_others_until_it_is_removed(log: tuple[int, int]) -> None:
    ours, theirs = log
    assert not is_marked(theirs)
    mark(ours, on=True)
    assert is_marked(theirs)
    assert not is_marked(ours), "it is our own"
    with pytest.raises(BlockingIOError):
        fcntl.flock(theirs, EXCLUSIVE)  # what workers of an older version look at
    mark(ours, on=False)
    assert not is_marked(theirs)
    fcntl.flock(theirs, EXCLUSIVE)


def test_a_readers_lock_is_no_mark(log: tuple[int, int], tmp_path: Path) -> None:
    ours, theirs = log
    reader = os.open(tmp_path / "log", os.O_RDONLY)
    fcntl.fcntl(reader, fcntl.F_OFD_SETLK, file_locks._flock(fcntl.F_RDLCK))
    fcntl.flock(reader, fcntl.LOCK_EX)
    assert not is_marked(ours)
    mark(ours, on=True)  # refused, and no error
    assert not is_marked(theirs)
    os.close(reader)
    mark(ours, on=True)
    assert is_marked(theirs)


def test_a_file_system_without_locks_has_no_marks(
    monkeypatch: pytest.MonkeyPatch, log: tuple[int, int]
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError

    mark(log[0], on=True)
    assert is_marked(log[1])
    monkeypatch.setattr(file_locks, "fcntl", refuse)
    mark(log[0], on=False)
    assert not is_marked(log[1])
