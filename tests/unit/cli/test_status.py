"""A status as text: the heading, the cells of the table, what is out of the ordinary."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeterd.cli.status import (
    BLOCKED,
    COLUMNS,
    footing,
    heading,
    notes,
    percent,
    share,
    table_rows,
)
from greeterd.control.status import (
    BACK_OFF,
    ListenerStatus,
    ReloadResult,
    SlotCounters,
    Status,
    WorkerStatus,
)
from greeterd.screen import duration
from tests.unit.statuses import a_status


def cells(status: Status, row: int) -> dict[str, str]:
    return dict(zip(COLUMNS, table_rows(status)[row], strict=True))


def test_a_share_of_nothing_is_unknown() -> None:
    assert share(0, 0) is None
    assert share(1, 4) == 0.25
    assert [percent(each) for each in (None, 0.25, 1.0)] == ["-", "25.0%", "100.0%"]


def test_a_row_has_the_slots_facts() -> None:
    assert cells(a_status(), 1) == {
        "slot": "2", "pid": "12", "gen": "3", "state": "ready", "age": "5s", "conns": "10",
        "greeted": "6", "share": "25.0%", "queue": "-", "open": "2", "restarts": "2", "beat": "-",
        "note": "",
    }  # fmt: skip
    assert cells(a_status(), 0)["beat"] == "0.0s"


def test_totals_close_the_table_of_several_slots() -> None:
    row = cells(a_status(), -1)
    assert (row["slot"], row["conns"], row["greeted"], row["share"]) == (
        "all",
        "40",
        "35",
        "100.0%",
    )
    assert (row["open"], row["restarts"]) == ("2", "2")


def test_a_single_slot_needs_no_totals() -> None:
    status = a_status(workers=[WorkerStatus(slot=1, pid=11, generation=3, state="ready")])
    assert [row[0] for row in table_rows(status)] == ["1"]


def test_a_slots_counters_stand_once_although_two_workers_have_it() -> None:
    status = a_status(
        workers=[
            WorkerStatus(slot=2, pid=13, generation=4, state="ready", restarts=1),
            WorkerStatus(slot=2, pid=12, generation=3, state="draining", restarts=1, leaving=True),
        ],
        counters={2: SlotCounters(connections=40, log_errors=1)},
    )
    serving, leaving = (cells(status, row) for row in (0, 1))
    assert (serving["conns"], serving["restarts"], serving["note"]) == ("40", "1", "1 log errors")
    assert (leaving["conns"], leaving["restarts"], leaving["note"]) == ("", "", "leaving")
    assert len(table_rows(status)) == 2


def test_a_slot_in_back_off_is_a_row_without_a_process() -> None:
    status = a_status(
        workers=[
            WorkerStatus(slot=1, generation=3, state=BACK_OFF, backoff=1.2, lent_to=2, restarts=3)
        ]
    )
    row = cells(status, 0)
    assert (row["pid"], row["state"], row["conns"]) == ("-", "back-off", "30")
    assert row["note"] == "back-off 1.2 s, lent to 2"


def test_a_slot_that_has_counted_nothing_yet_is_shown_with_zeroes() -> None:
    row = cells(a_status(counters={}, totals=SlotCounters()), 0)
    assert (row["conns"], row["greeted"], row["share"]) == ("0", "0", "-")


def test_a_slots_queue_is_the_sum_of_its_own_listeners() -> None:
    listeners = [
        ListenerStatus(address="127.0.0.1:1", slot=2, queued=3, limit=128),
        ListenerStatus(address="[::1]:1", slot=2, queued=4, limit=128),
        ListenerStatus(address="127.0.0.1:1", slot=1, queued=50, limit=128),
    ]
    assert cells(a_status(listeners=listeners), 1)["queue"] == "7"


@pytest.mark.parametrize(
    ("blocked", "words"),
    [
        (1, "log cannot be written"),
        (2, "out of descriptors"),
        (3, "at max_connections"),
        (9, "not accepting: 9"),
    ],
)
def test_a_worker_that_does_not_accept_says_why(blocked: int, words: str) -> None:
    worker = WorkerStatus(slot=1, pid=1, generation=1, state="ready")
    (note,) = notes(worker, SlotCounters(blocked=blocked), ())
    assert note.startswith("not accepting")
    assert words in note


def test_the_most_urgent_note_comes_first() -> None:
    worker = WorkerStatus(
        slot=1, generation=1, state="draining", backoff=0.25, lent_to=3, leaving=True, log="log: x"
    )
    counters = SlotCounters(blocked=1, rescued=34, accept_errors=5, log_errors=6)
    full = ListenerStatus(address="", slot=1, queued=0, queued_max=9, limit=8, drops=7)
    assert notes(worker, counters, [full]) == [
        BLOCKED[1], "log: x", "back-off 0.2 s", "lent to 3", "leaving", "queue was full",
        "7 dropped", "34 rescued", "5 accept errors", "6 log errors",
    ]  # fmt: skip


def test_a_heading_names_the_daemon_and_its_addresses() -> None:
    assert heading(a_status(addresses=["127.0.0.1:80", "[::1]:80"])) == [
        "greeterd 1.2.3: running, inherit (rotate), pid 4242, up 1h02m, generation 3",
        "listening on 127.0.0.1:80, [::1]:80",
    ]


def test_a_shared_listeners_queue_stands_beside_its_address() -> None:
    shared = ListenerStatus(address="127.0.0.1:12345", queued=7, limit=4096)
    assert heading(a_status(listeners=[shared]))[1] == (
        "listening on 127.0.0.1:12345 (queue 7 of 4096)"
    )


def test_the_longest_queue_and_the_drops_of_a_shared_listener_stand_beside_it() -> None:
    shared = ListenerStatus(
        address="127.0.0.1:12345", queued=7, queued_max=4097, limit=4096, drops=12
    )
    assert heading(a_status(listeners=[shared]))[1] == (
        "listening on 127.0.0.1:12345 (queue 7 of 4096, 4097 at most, 12 dropped)"
    )


def test_a_slots_listeners_are_out_of_the_ordinary_when_full_or_when_they_dropped() -> None:
    listeners = [
        ListenerStatus(address="127.0.0.1:1", slot=1, queued=0, queued_max=8, limit=8, drops=0),
        ListenerStatus(address="127.0.0.1:1", slot=2, queued=0, queued_max=9, limit=8, drops=1),
        ListenerStatus(address="[::1]:1", slot=2, queued=0, queued_max=0, limit=8, drops=2),
    ]
    status = a_status(listeners=listeners)
    assert cells(status, 0)["note"] == ""
    assert cells(status, 1)["note"] == "queue was full, 3 dropped"


def test_a_heading_tells_of_restarts_the_last_reload_and_the_last_error() -> None:
    failed = ReloadResult(ok=False, generation=3, at=1_700_000_000.0 + 3605, took=0.5, error="bad")
    status = a_status(
        restarts_in_window=3, max_restarts=8, restart_window=60.0, reload=failed,
        last_error="worker 2 died",
    )  # fmt: skip
    assert heading(status)[2:] == [
        "restarts: 3 in the last 1m00s, 8 are allowed to each worker",
        "last reload: 2m00s ago, failed: bad",
        "last error: worker 2 died",
    ]


def test_a_heading_tells_which_address_does_not_accept() -> None:
    trouble = "127.0.0.1:80 does not accept: another process uses this address"
    assert heading(a_status(trouble=trouble))[2:] == [f"trouble: {trouble}"]


def test_a_reload_that_worked_is_told_too() -> None:
    done = ReloadResult(ok=True, generation=3, at=1_700_000_000.0 + 3725, took=0.5)
    assert heading(a_status(reload=done))[2:] == ["last reload: 0s ago, done"]


def test_what_was_accepted_and_not_greeted_is_told_by_its_kinds() -> None:
    assert footing(a_status()) == ["not greeted: 1 empty, 2 timeout"]
    assert footing(a_status(totals=SlotCounters(connections=5, greetings=5))) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (86399, "23h59m"),
     (86400, "1d00h"), (1e7, "115d17h"), (-1, "0s")],
)  # fmt: skip
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@settings(deadline=None)
@given(st.floats(0, 99 * 86400))
def test_a_duration_below_a_hundred_days_has_six_characters_at_most(seconds: float) -> None:
    assert len(duration(seconds)) <= 6
