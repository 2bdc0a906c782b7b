"""Counters in memory that processes share."""

import multiprocessing
import resource
from dataclasses import fields
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd import scoreboard
from greeterd.errors import StartError
from greeterd.scoreboard import CELLS, Counters, Scoreboard

NAMES = [field.name for field in fields(Counters)]
COUNTERS = st.builds(Counters, *[st.integers(0, 2**63)] * len(NAMES))


def test_every_cell_has_a_constant_and_a_field_of_its_name() -> None:
    constants = [getattr(scoreboard, name.upper()) for name in NAMES]
    assert constants == list(range(CELLS))


def test_a_new_scoreboard_is_all_zero() -> None:
    assert Scoreboard(2).total(2) == Counters()


def test_a_cell_is_read_back_under_its_name() -> None:
    board = Scoreboard(1)
    row = board.row(1, 0)
    for index in range(CELLS):
        row[index] = 100 + index
    assert board.read(1, 0) == Counters(*range(100, 100 + CELLS))


def test_no_two_rows_share_a_cell() -> None:
    board = Scoreboard(3)
    places = list(product((1, 2, 3), (0, 1)))
    for number, place in enumerate(places, start=1):
        for index in range(CELLS):
            board.row(*place)[index] = number
    for number, place in enumerate(places, start=1):
        assert board.read(*place) == Counters(*[number] * CELLS)


def test_no_two_rows_share_a_cache_line() -> None:
    assert scoreboard._ROW_BYTES % 64 == 0
    assert scoreboard._ROW_BYTES >= 8 * CELLS


@pytest.mark.parametrize("place", [(-1, 0), (3, 0), (1, 2), (1, -1)])
def test_a_row_that_does_not_exist_is_refused(place: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match="no row"):
        Scoreboard(2).row(*place)


def test_a_scoreboard_of_no_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Scoreboard(0)


def test_a_row_holds_its_own_cells_only() -> None:
    row = Scoreboard(1).row(1, 0)
    with pytest.raises(IndexError):
        row[CELLS] = 1


def test_what_a_forked_process_counts_is_seen_here() -> None:
    board = Scoreboard(2)

    def count() -> None:
        row = board.row(2, 1)
        row[scoreboard.CONNECTIONS] += 3
        row[scoreboard.GREETINGS] += 3

    child = multiprocessing.get_context("fork").Process(target=count)
    child.start()
    child.join(10.0)
    assert child.exitcode == 0
    child.close()
    assert board.read(2, 1) == Counters(connections=3, greetings=3)
    assert board.total(1) == Counters()


def test_a_slot_totals_both_of_its_workers() -> None:
    board = Scoreboard(1)
    serving, leaving = board.row(1, 0), board.row(1, 1)
    serving[scoreboard.GREETINGS], leaving[scoreboard.GREETINGS] = 5, 7
    serving[scoreboard.HEARTBEAT_NS], leaving[scoreboard.HEARTBEAT_NS] = 900, 800
    leaving[scoreboard.BLOCKED] = scoreboard.BLOCKED_BY_LOG
    total = board.total(1)
    assert (total.greetings, total.heartbeat_ns, total.blocked) == (12, 900, 1)


@given(COUNTERS, COUNTERS)
def test_a_sum_adds_each_counter_and_takes_the_greater_heartbeat_and_cause(
    one: Counters, other: Counters
) -> None:
    for name in NAMES:
        combine = max if name in {"heartbeat_ns", "blocked", "log_errno"} else int.__add__
        expected = combine(getattr(one, name), getattr(other, name))
        assert getattr(one + other, name) == expected


@pytest.mark.parametrize(
    "outcome", ["greetings", "empty", "oversize", "timeout", "reset", "exit", "open"]
)
def test_a_connection_is_accounted_for_by_its_outcome_or_by_being_open(outcome: str) -> None:
    assert Counters(connections=2, **{outcome: 2}).consistent
    assert not Counters(connections=2, **{outcome: 1}).consistent


@pytest.mark.parametrize("other", ["replies", "rescued", "wakeups", "accept_errors"])
def test_what_is_no_outcome_accounts_for_nothing(other: str) -> None:
    assert not Counters(connections=1, **{other: 1}).consistent


def test_the_open_connections_of_a_dead_worker_count_as_reset() -> None:
    board = Scoreboard(1)
    row = board.row(1, 0)
    row[scoreboard.CONNECTIONS] = 10
    row[scoreboard.GREETINGS] = 6
    row[scoreboard.RESET] = 1
    row[scoreboard.OPEN] = 2  # one more was counted in, and the worker killed before it was open
    row[scoreboard.BLOCKED] = scoreboard.BLOCKED_BY_LIMIT
    row[scoreboard.HEARTBEAT_NS] = 99
    assert board.settle(1, 0) == 3
    assert board.read(1, 0) == Counters(connections=10, greetings=6, reset=4)
    assert board.read(1, 0).consistent
    assert board.settle(1, 0) == 0


def test_memory_that_cannot_be_had_is_told_in_one_line() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StartError, match=r"scoreboard of \d+ bytes: File too large"):
            Scoreboard(512)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
