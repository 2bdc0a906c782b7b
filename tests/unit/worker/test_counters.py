"""The cells of a row: which values can follow which, and their sums."""

import pytest

from greeterd.worker import counters
from greeterd.worker.counters import (
    AHEAD_NS,
    CELL_BYTES,
    CELLS,
    GAUGES,
    HEARTBEAT_NS,
    LEAP,
    LOG_ERRNO,
    NAMES,
    WRAP,
    Counters,
    cells_of,
    implausible,
    spare_row,
)

ORDER = (
    "connections", "greetings", "empty", "oversize", "timeout", "reset", "exit", "replies",
    "accept_errors", "accepts_paused", "log_errors", "wakeups", "wasted_wakeups", "turns",
    "heartbeat_ns", "open", "rescued", "blocked", "handed_over", "log_errno",
)  # fmt: skip
"""As every version has it: a worker of one is read by a master of another."""
REASONS = {
    "NOT_BLOCKED": 0, "BLOCKED_BY_LOG": 1, "BLOCKED_BY_DESCRIPTORS": 2, "BLOCKED_BY_LIMIT": 3,
    "BLOCKED_BY_WORKERS": 4,
}  # fmt: skip
COUNTING = [cell for cell in range(CELLS) if cell not in GAUGES and cell != HEARTBEAT_NS]


def row(**cells: int) -> list[int]:
    """Return the cells of a row."""
    return list(cells_of(Counters(**cells)))


def test_the_cells_and_the_reasons_are_those_of_every_version() -> None:
    assert ORDER == NAMES
    assert [getattr(counters, name.upper()) for name in ORDER] == list(range(CELLS))
    assert {name: getattr(counters, name) for name in REASONS} == REASONS
    assert CELL_BYTES * 8 == 64
    assert WRAP == 2**64 - 1


@pytest.mark.parametrize("cell", COUNTING)
def test_a_counter_grows_by_less_than_a_leap(cell: int) -> None:
    before, after = [7] * CELLS, [7] * CELLS
    for value, reason in (
        (7, ""),
        (8, ""),
        (7 + LEAP - 1, ""),
        (7 + LEAP, f"{NAMES[cell]} leapt from 7 to {7 + LEAP}"),
        (6, f"{NAMES[cell]} went back from 7 to 6"),
    ):
        after[cell] = value
        assert implausible(before, after, 7) == reason


@pytest.mark.parametrize("gauge", sorted(GAUGES))
def test_a_gauge_may_fall_and_has_a_limit(gauge: int) -> None:
    limit = 4096 if gauge == LOG_ERRNO else LEAP
    for value, reason in ((0, ""), (limit - 1, ""), (limit, f"{NAMES[gauge]} is {limit}")):
        after = row()
        after[gauge] = value
        before = row()
        before[gauge] = 5
        assert implausible(before, after, 0) == reason


def test_a_heartbeat_is_of_now_and_no_older_than_the_last() -> None:
    now = 50 * 10**9
    for value, reason in (
        (10, ""),
        (now, ""),
        (now + AHEAD_NS, ""),
        (now + AHEAD_NS + 10**8, "heartbeat_ns is 1.1 s ahead"),
        (9, "heartbeat_ns went back from 10 to 9"),
    ):
        assert implausible(row(heartbeat_ns=10), row(heartbeat_ns=value), now) == reason


def test_the_limits_are_far_from_what_a_worker_can_do_in_a_second() -> None:
    assert LEAP == 2**32
    assert AHEAD_NS == 10**9


def test_sums_wrap() -> None:
    assert (Counters(turns=WRAP) + Counters(turns=3)).turns == 2
    assert (Counters(open=1) + Counters(open=2)).open == 3


def test_a_spare_row_is_written_as_any_other() -> None:
    spare = spare_row()
    assert spare.tolist() == [0] * CELLS
    spare[CELLS - 1] = WRAP
    assert spare[CELLS - 1] == WRAP
