"""What workers say in memory that the master reads, and what it believes of that.

A stranger is a forked process that does what a worker could in which an attacker's code runs.
"""

import ctypes
import faulthandler
import gc
import mmap
import multiprocessing
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.errors import ResourceError, StartError
from greeterd.master.upgrade.serialize import adopt_scoreboard, dump_rows
from greeterd.master.upgrade.state import (
    InheritedListeners,
    InheritedRow,
    InheritedSlot,
    InheritedWorker,
    UpgradeState,
)
from greeterd.supervisor.supervisor import MAX_SLOTS
from greeterd.worker import counters, scoreboard
from greeterd.worker.counters import (
    BLOCKED,
    BLOCKED_BY_LIMIT,
    BLOCKED_BY_LOG,
    CELLS,
    CONNECTIONS,
    GREETINGS,
    HEARTBEAT_NS,
    LEAP,
    LOG_ERRNO,
    NAMES,
    OPEN,
    RESET,
    Counters,
    Row,
    implausible,
)
from greeterd.worker.row import Claim, map_view
from greeterd.worker.scoreboard import Scoreboard

MOST = 2**64 - 1
LIBC = ctypes.CDLL(None, use_errno=True)
COUNTERS = st.builds(Counters, *[st.integers(0, MOST)] * CELLS)
NUMBERS = st.integers(0, MOST) | st.sampled_from([0, 1, LEAP - 1, LEAP, 2**63, MOST - 1, MOST])
ANY_ROW = st.lists(NUMBERS, min_size=CELLS, max_size=CELLS)


def employ(board: Scoreboard, slot: int = 1, place: int = 0) -> Row:
    """Let a worker live in this process; return its row."""
    fd = os.memfd_create("row")
    os.ftruncate(fd, mmap.PAGESIZE)
    board.adopt(slot, place, Claim(fd))
    return memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")[:CELLS]


def say(row: Row, cells: Sequence[int]) -> None:
    """Write a whole row."""
    for cell, value in enumerate(cells):
        row[cell] = value


def unfinished(counted: Counters) -> int:
    """Return how many connections have had no outcome."""
    return counted.connections - counted.finished


# The cells


def test_every_cell_has_a_constant_and_a_field_of_its_name() -> None:
    assert [getattr(counters, name.upper()) for name in NAMES] == list(range(CELLS))


def test_the_books_have_room_for_a_row_as_every_build_has_it() -> None:
    assert scoreboard._ROW_BYTES == 256
    assert CELLS * 8 <= 256


@given(COUNTERS, COUNTERS)
def test_a_sum_adds_each_counter_and_takes_the_greater_heartbeat_and_cause(
    one: Counters, other: Counters
) -> None:
    for name in NAMES:
        mine, theirs = getattr(one, name), getattr(other, name)
        greater = name in {"heartbeat_ns", "blocked", "log_errno"}
        expected = max(mine, theirs) if greater else (mine + theirs) % 2**64
        assert getattr(one + other, name) == expected


@pytest.mark.parametrize(
    "outcome",
    ["greetings", "empty", "oversize", "timeout", "reset", "exit", "handed_over", "open"],
)
def test_a_connection_is_accounted_for_by_its_outcome_or_by_being_open(outcome: str) -> None:
    assert unfinished(Counters(connections=2, **{outcome: 2})) == (2 if outcome == "open" else 0)


@pytest.mark.parametrize("other", ["replies", "rescued", "wakeups", "accept_errors"])
def test_what_is_no_outcome_accounts_for_nothing(other: str) -> None:
    assert unfinished(Counters(connections=1, **{other: 1})) == 1


# The books


def test_a_new_scoreboard_is_all_zero() -> None:
    assert Scoreboard(2).total(2) == Counters()


@pytest.mark.parametrize("place", [(-1, 0), (3, 0), (1, 2), (1, -1)])
def test_a_row_that_does_not_exist_is_refused(place: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match="no row"):
        Scoreboard(2).read(*place)


def test_a_scoreboard_of_no_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Scoreboard(0)


def test_memory_that_cannot_be_had_is_told_in_one_line() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ResourceError, match=r"scoreboard of \d+ bytes: File too large"):
            Scoreboard(512)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_worker_says_stands_in_the_books_under_its_name() -> None:
    board = Scoreboard(1)
    say(employ(board), range(100, 100 + CELLS))
    assert board.read(1, 0) == board.worker(1, 0) == Counters(*range(100, 100 + CELLS))
    assert board.read(1, 1) == Counters()


def test_no_two_rows_share_a_cell() -> None:
    board = Scoreboard(3)
    places = list(product((0, 1, 2, 3), (0, 1)))
    for number, place in enumerate(places, start=1):
        say(employ(board, *place), [number] * CELLS)
    for number, place in enumerate(places, start=1):
        assert board.read(*place) == Counters(*[number] * CELLS)


def test_a_slot_totals_both_of_its_workers() -> None:
    board = Scoreboard(1)
    serving, leaving = employ(board, 1, 0), employ(board, 1, 1)
    serving[GREETINGS], leaving[GREETINGS] = 5, 7
    serving[HEARTBEAT_NS], leaving[HEARTBEAT_NS] = 900, 800
    leaving[BLOCKED] = BLOCKED_BY_LOG
    total = board.total(1)
    assert (total.greetings, total.heartbeat_ns, total.blocked) == (12, 900, 1)


def test_the_open_connections_of_a_dead_worker_count_as_reset() -> None:
    board = Scoreboard(1)
    row = employ(board)
    row[CONNECTIONS], row[GREETINGS], row[RESET] = 10, 6, 1
    row[OPEN] = 2  # one more was counted in, and the worker killed before it was open
    row[BLOCKED], row[HEARTBEAT_NS] = BLOCKED_BY_LIMIT, 99
    assert board.settle(1, 0) == 3
    assert board.read(1, 0) == Counters(connections=10, greetings=6, reset=4)
    assert unfinished(board.read(1, 0)) == 0
    assert board.settle(1, 0) == 0


def test_the_next_worker_of_a_place_counts_from_zero_and_the_books_go_on() -> None:
    board = Scoreboard(1)
    employ(board)[GREETINGS] = 5
    board.settle(1, 0)
    employ(board)[GREETINGS] = 2
    assert board.read(1, 0).greetings == 7
    assert board.worker(1, 0).greetings == 2


def test_a_worker_that_nobody_has_buried_is_settled_when_its_place_is_taken() -> None:
    board = Scoreboard(1)
    row = employ(board)
    row[CONNECTIONS], row[OPEN] = 5, 5
    fd = board.row_fd(1, 0)
    assert fd is not None
    file = os.fstat(fd).st_ino
    with board.open_row(1, 0):
        assert os.fstat(fd).st_ino != file, "closed, and taken for the next"
    assert board.read(1, 0) == Counters(connections=5, reset=5)


@pytest.mark.parametrize(("before", "after"), [(MOST, 2), (2**63, 2**63 + 3)])
def test_books_that_are_full_go_on_from_zero(before: int, after: int) -> None:
    board = Scoreboard(1)
    say(board._entry(1, 0), [before] * CELLS)
    employ(board)[GREETINGS] = 3
    assert board.read(1, 0).greetings == after


# What is believed


HONEST = Counters(connections=9, greetings=7, open=2, turns=4, heartbeat_ns=10**9)
LIES = {
    "back": (replace(HONEST, greetings=6), "greetings went back from 7 to 6"),
    "a turn back": (replace(HONEST, turns=3), "turns went back from 4 to 3"),
    "an older heartbeat": (replace(HONEST, heartbeat_ns=1), "heartbeat_ns went back from"),
    "a heartbeat to come": (replace(HONEST, heartbeat_ns=MOST), "heartbeat_ns is .* s ahead"),
    "a leap": (replace(HONEST, replies=LEAP), "replies leapt from 0 to 4294967296"),
    "the most there is": (replace(HONEST, exit=MOST), "exit leapt from 0 to"),
    "too many open": (replace(HONEST, open=MOST), "open is 18446744073709551615"),
    "no reason": (replace(HONEST, blocked=LEAP), "blocked is 4294967296"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_is_told_and_the_books_keep_what_was_believed(lie: str) -> None:
    said, reason = LIES[lie]
    board = Scoreboard(1)
    row = employ(board)
    say(row, counters.cells_of(HONEST))
    assert board.look(1, 0) == ""
    say(row, counters.cells_of(said))
    found = board.look(1, 0)
    assert re.match(reason, found)
    assert board.read(1, 0) == HONEST
    say(row, counters.cells_of(replace(HONEST, greetings=8, heartbeat_ns=2 * 10**9)))
    assert board.look(1, 0) == found, "who has lied once is not believed again"
    assert board.settle(1, 0) == 2
    assert board.read(1, 0) == Counters(connections=9, greetings=7, reset=2, turns=4)
    employ(board)[GREETINGS] = 1
    assert (board.look(1, 0), board.read(1, 0).greetings) == ("", 8)


@given(st.lists(ANY_ROW, min_size=1, max_size=5), ANY_ROW)
def test_whatever_a_row_says_nothing_raises_and_no_counter_goes_back(
    rows: list[list[int]], books: list[int]
) -> None:
    board = Scoreboard(1)
    say(board._entry(1, 0), books)
    row = employ(board)
    doubts: list[str] = []
    seen: list[list[int]] = []
    for cells in rows:
        say(row, cells)
        doubts.append(board.look(1, 0))
        seen.append(board._entry(1, 0).tolist())
        assert msgspec.json.decode(msgspec.json.encode(board.total(1)))
        assert board.worker(1, 0) == Counters(*board._claims[1, 0].believed)
    for (before, after), found in zip(pairwise(seen), doubts[1:], strict=True):
        if found:
            assert after == before
    for former, latter in pairwise(doubts):
        assert not former or latter == former
    lost = board.settle(1, 0)
    assert 0 <= lost < LEAP
    next_one = employ(board)
    next_one[GREETINGS] += 1
    assert board.look(1, 0) == ""
    board.settle(1, 0)


@given(st.lists(st.lists(st.integers(0, LEAP - 1), min_size=CELLS, max_size=CELLS), max_size=5))
def test_who_only_counts_on_is_believed(growth: list[list[int]]) -> None:
    says = [0] * CELLS
    for more in growth:
        before, says = says, [was + grown for was, grown in zip(says, more, strict=True)]
        for gauge in (OPEN, BLOCKED, LOG_ERRNO):
            says[gauge] = more[gauge] % 4096
        assert implausible(before, says, says[HEARTBEAT_NS]) == ""


# What a stranger can do


RECENT = tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (5, 1)
sealed = pytest.mark.skipif(not RECENT, reason="F_SEAL_FUTURE_WRITE needs Linux 5.1")


def in_child(
    board: Scoreboard, deed: Callable[[Row, dict[int, Row]], object], slots: Sequence[int] = (2, 3)
) -> int | None:
    """Do it in a forked dispatcher, which can read the slots' rows; return how it has ended."""
    with board.open_row(0, 0) as row, board.views(slots) as views:
        child = multiprocessing.get_context("fork").Process(target=deed, args=(row, views))
        child.start()
    child.join(10.0)
    code = child.exitcode
    child.close()
    return code


def mapped(name: str = "greeterd-") -> list[tuple[int, str]]:
    """Return where this process maps memory of ours, and how."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return [
        (int(line[0].partition("-")[0], 16), line[1])
        for line in lines
        if line[-1] == "(deleted)" and line[-2].startswith(f"/memfd:{name}")
    ]


def die_quietly() -> None:
    """Let the signal that ends this process be told by its exit code only."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def place_of(row: Row) -> int:
    """Return where a row that can be written is mapped."""
    return ctypes.addressof(ctypes.c_char.from_buffer(row))


@pytest.fixture
def board() -> Scoreboard:
    """Return a scoreboard whose slot 2 has a worker that has greeted once, and is not buried."""

    def greet(row: Row, _views: object) -> None:
        row[GREETINGS] += 1

    board = Scoreboard(3)
    with board.open_row(1, 0):
        pass
    with board.open_row(2, 0) as row:
        child = multiprocessing.get_context("fork").Process(target=greet, args=(row, {}))
        child.start()
    child.join(10.0)
    child.close()
    assert board.read(2, 0) == Counters(greetings=1)
    return board


def test_what_a_forked_process_counts_is_seen_here(board: Scoreboard) -> None:
    def count(row: Row, views: dict[int, Row]) -> None:
        assert row.tolist() == [0] * CELLS
        row[CONNECTIONS] += 3
        row[GREETINGS] += 3 * views[2][GREETINGS]

    assert in_child(board, count) == 0
    assert board.read(0, 0) == Counters(connections=3, greetings=3)
    assert board.total(1) == Counters()


def test_a_child_maps_its_own_row_and_those_it_may_read_and_this_process_none_writable(
    board: Scoreboard,
) -> None:
    def look(row: Row, views: dict[int, Row]) -> None:
        assert sorted(how for _, how in mapped()) == ["r--s", "rw-s"]
        assert place_of(row) in [where for where, how in mapped() if how == "rw-s"]
        assert list(views) == [2]
        with pytest.raises(TypeError):
            views[2][GREETINGS] = 1

    def look_alone(_row: Row, views: dict[int, Row]) -> None:
        assert [how for _, how in mapped()] == ["rw-s"]
        assert views == {}

    assert in_child(board, look) == 0
    assert in_child(board, look_alone, slots=()) == 0
    assert in_child(board, look) == 0, "again, since each has left something here"
    assert {how for _, how in mapped("greeterd-row")} == {"r--s"}


@sealed
def test_a_row_that_is_to_be_read_cannot_be_written(board: Scoreboard) -> None:
    def write(_row: Row, _views: object) -> None:
        [where] = [where for where, how in mapped() if how == "r--s"]
        read_write = mmap.PROT_READ | mmap.PROT_WRITE
        assert LIBC.mprotect(ctypes.c_void_p(where), mmap.PAGESIZE, read_write) == -1
        memory = os.open("/proc/self/mem", os.O_RDWR)
        with pytest.raises(OSError, match="Input/output error"):
            os.pwrite(memory, b"forged", where)
        die_quietly()
        ctypes.memset(where, 255, 8)

    assert in_child(board, write) == -signal.SIGSEGV
    assert board.read(2, 0) == Counters(greetings=1)


@sealed
def test_a_descriptor_of_a_row_that_is_left_over_does_not_help(board: Scoreboard) -> None:
    def write(_row: Row, _views: object) -> None:
        fds = [fd for fd in descriptors() if is_row(fd)]
        assert fds
        for fd in fds:
            for each in (fd, os.open(f"/proc/self/fd/{fd}", os.O_RDWR)):
                with pytest.raises(PermissionError):
                    mmap.mmap(each, mmap.PAGESIZE)
                with pytest.raises(PermissionError):
                    os.pwrite(each, b"forged", 0)
                for size in (0, 2 * mmap.PAGESIZE):
                    with pytest.raises(PermissionError):
                        os.ftruncate(each, size)

    assert in_child(board, write) == 0
    assert board.read(2, 0) == Counters(greetings=1)


def descriptors() -> list[int]:
    """Return every descriptor of this process."""
    return sorted(int(path.name) for path in Path("/proc/self/fd").iterdir())


def is_row(fd: int) -> bool:
    """Tell the file of a row."""
    try:
        return Path(f"/proc/self/fd/{fd}").readlink().name.startswith("memfd:greeterd-row")
    except FileNotFoundError:
        return False


def test_what_is_mapped_leads_to_no_other_row(board: Scoreboard) -> None:
    def stretch(row: Row, _views: object) -> None:
        LIBC.mremap.restype = ctypes.c_void_p
        where = ctypes.c_void_p(place_of(row))
        may_move = 1
        found = LIBC.mremap(where, mmap.PAGESIZE, 4 * mmap.PAGESIZE, may_move)
        die_quietly()
        ctypes.memset(found + mmap.PAGESIZE, 255, 8)

    assert in_child(board, stretch) == -signal.SIGBUS
    assert board.read(2, 0) == Counters(greetings=1)


def test_a_view_that_came_by_message_is_read_only_and_one_that_is_none_is_refused(
    board: Scoreboard,
) -> None:
    fd = board.row_fd(2, 0)
    assert fd is not None
    view = map_view(os.dup(fd))
    assert view is not None
    assert (view[GREETINGS], view.readonly) == (1, True)
    for stranger in (os.open(os.devnull, os.O_RDWR), os.memfd_create("empty")):
        assert map_view(stranger) is None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(stranger)


def test_a_fork_that_fails_leaves_nothing(board: Scoreboard) -> None:
    gc.collect()  # what other tests have left
    before = descriptors(), sorted(how for _, how in mapped())
    with pytest.raises(BlockingIOError), board.open_row(3, 0):
        raise BlockingIOError
    assert (descriptors(), sorted(how for _, how in mapped())) == before
    assert board.row_fd(3, 0) is None


# Upgrades


def upgrade_state(
    board_fd: int, workers: Sequence[tuple[int, int]], rows: list[InheritedRow] | None = None
) -> UpgradeState:
    """Return an upgrade state with these workers by slot and place, as it comes out of its JSON."""
    slots = [
        InheritedSlot(
            index=slot, generation=1, served=True, failures=0, restarts=0, retry_at=0.0,
            served_since=0.0, unserved_since=0.0,
            workers=[
                InheritedWorker(
                    worker=number, pid=1, place=place, generation=1, life="ready", since=0.0,
                    channel_fd=0, stack_fd=0,
                )
            ],
        )
        for number, (slot, place) in enumerate(workers, start=1)
    ]  # fmt: skip
    found = UpgradeState(
        program="0", fixed={}, listeners=InheritedListeners(), slots=slots, board_fd=board_fd,
        lock_fd=0, control_fd=0, generation=1, last_generation=1, last_worker=1, since=0.0,
        started=0.0, rows=rows,
    )  # fmt: skip
    return msgspec.json.decode(msgspec.json.encode(found), type=UpgradeState)


class OldBoard:
    """The scoreboard as builds up to 0.1 have it: all rows in one memory that all workers write."""

    SIZE = 513 * 2 * 256
    CELLS = 19

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("old") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, self.SIZE)
        self._cells = memoryview(mmap.mmap(self.fd, self.SIZE)).cast("Q")

    def row(self, slot: int, place: int) -> Row:
        """Return the live row."""
        start = (slot * 2 + place) * 32
        return self._cells[start : start + self.CELLS]


def test_an_older_builds_books_go_on_with_its_workers() -> None:
    old = OldBoard()
    gone, living = old.row(512, 0), old.row(1, 1)
    gone[GREETINGS] = gone[CONNECTIONS] = 100
    living[GREETINGS], living[CONNECTIONS] = 40, 41
    board = adopt_scoreboard(upgrade_state(os.dup(old.fd), [(1, 1)]))
    assert (board.total(512).greetings, board.total(1).greetings) == (100, 40)
    living[GREETINGS] += 2
    living[CONNECTIONS] += 2
    gone[GREETINGS] = 7  # no worker is there: so somebody else writes where nothing is theirs
    assert (board.total(512).greetings, board.total(1).greetings) == (100, 42)
    assert board.worker(1, 1).greetings == 2, "since the upgrade: what was before is not known"
    with board.views([1]) as views:
        assert (board.row_fd(1, 1), views) == (None, {}), "it cannot be read without all others"
    assert board.settle(1, 1) == 1
    assert board.total(1) == Counters(connections=43, greetings=42, reset=1)


def test_an_older_builds_memory_is_closed_with_its_last_worker() -> None:
    old = OldBoard()
    fd = os.dup(old.fd)
    board = adopt_scoreboard(upgrade_state(fd, [(1, 0), (2, 1)]))
    board.settle(1, 0)
    os.fstat(fd)
    board.settle(2, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    fd = os.dup(old.fd)
    adopt_scoreboard(upgrade_state(fd, []))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@given(ANY_ROW, ANY_ROW)
def test_an_older_build_may_leave_anything(before: list[int], after: list[int]) -> None:
    old = OldBoard()
    say(old.row(1, 0), before[: old.CELLS])
    board = adopt_scoreboard(upgrade_state(os.dup(old.fd), [(1, 0)]))
    say(old.row(1, 0), after[: old.CELLS])
    board.look(1, 0)
    assert msgspec.json.encode(board.total(1))
    assert 0 <= board.settle(1, 0) < LEAP
    os.close(old.fd)
    os.close(board.fd)


def test_two_upgrades_lose_no_count_of_a_worker_that_outlives_both() -> None:
    old = OldBoard()
    first = adopt_scoreboard(upgrade_state(os.dup(old.fd), [(1, 0)]))
    new = employ(first, 2, 0)
    old.row(1, 0)[GREETINGS], new[GREETINGS] = 3, 5
    first.look(2, 0)
    for _ in range(2):
        rows = dump_rows(first)
        second = adopt_scoreboard(upgrade_state(first.fd, [(1, 0), (2, 0)], rows=rows))
        assert [second.total(slot).greetings for slot in (1, 2)] == [
            old.row(1, 0)[GREETINGS], new[GREETINGS],
        ]  # fmt: skip
        old.row(1, 0)[GREETINGS] += 10
        new[GREETINGS] += 10
        first = second
    assert [first.total(slot).greetings for slot in (1, 2)] == [23, 25]
    assert [first.worker(slot, 0).greetings for slot in (1, 2)] == [23, 25]
    new[GREETINGS] -= 1
    assert first.look(2, 0) == "greetings went back from 25 to 24"


def test_a_build_that_knows_the_books_only_finds_all_counts_and_nobody_hung() -> None:
    board = Scoreboard(MAX_SLOTS)
    row = employ(board, 3, 1)
    row[CONNECTIONS], row[GREETINGS], row[OPEN], row[HEARTBEAT_NS] = 9, 8, 1, 1
    dump_rows(board)
    found = OldBoard(board.fd).row(3, 1)
    assert Counters(*found) == replace(
        Counters(connections=9, greetings=8, open=1), heartbeat_ns=found[HEARTBEAT_NS]
    )
    assert found[HEARTBEAT_NS] > time.monotonic_ns() + 60 * 10**9
    assert board.total(3).heartbeat_ns == 1, "who goes on here sees what is so"


def test_memory_that_is_no_scoreboard_is_refused_in_words() -> None:
    small = os.memfd_create("small")
    os.ftruncate(small, 100)
    with pytest.raises(StartError, match="the predecessor's scoreboard: "):
        adopt_scoreboard(upgrade_state(small, []))
    row = InheritedRow(slot=1, place=0, fd=small, believed=[])
    with pytest.raises(StartError, match="the predecessor's scoreboard: "):
        adopt_scoreboard(upgrade_state(Scoreboard(MAX_SLOTS).fd, [(1, 0)], rows=[row]))


def test_no_error_number_is_believed_that_the_kernel_has_not() -> None:
    silent = [0] * CELLS
    for number, believed in ((4095, True), (4096, False), (2**31, False)):
        says = silent.copy()
        says[LOG_ERRNO] = number
        assert (implausible(silent, says, 0) == "") == believed
