"""What the daemon's status is on the wire, and its sums."""

import dataclasses
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeterd.control.protocol import render_answer
from greeterd.control.status import (
    ListenerStatus,
    ReloadResult,
    SlotCounters,
    Status,
    from_plain,
    total,
)
from greeterd.worker.counters import Counters
from tests.unit.statuses import a_status

COUNTS = st.builds(
    SlotCounters,
    **dict.fromkeys(SlotCounters.__struct_fields__, st.integers(0, 2**64 - 1)),
)


def sent(status: Status) -> Any:
    """Return what a client reads of a status."""
    return json.loads(msgspec.json.encode(status))


def test_json_gives_the_same_status_back() -> None:
    status = a_status(
        listeners=[ListenerStatus(address="127.0.0.1:12345", slot=2, queued=1, limit=4096)],
        reload=ReloadResult(ok=False, generation=3, at=1_700_000_100.0, took=0.5, error="no"),
        config="/etc/greeterd.toml",
    )
    assert from_plain(sent(status)) == status


def test_an_answer_with_a_status_is_one_line() -> None:
    line = render_answer(True, {"status": a_status(last_error="two\nlines")})
    assert line.count(b"\n") == 1


def test_a_newer_daemon_may_tell_more() -> None:
    told = sent(a_status())
    told["more"] = {"than": "this"}
    told["counters"]["1"]["new_cell"] = 5
    assert from_plain(told) == a_status()


@pytest.mark.parametrize("value", [None, "", {}, [], {"pid": "x"}])
def test_what_is_no_status_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is msgspec's
        from_plain(value)


def test_the_counters_are_the_scoreboards_cells() -> None:
    cells = {field.name for field in dataclasses.fields(Counters)}
    assert set(SlotCounters.__struct_fields__) == cells


@settings(deadline=None)
@given(st.lists(COUNTS, max_size=4))
def test_a_total_is_the_sum_but_of_three_gauges(rows: list[SlotCounters]) -> None:
    summed = total(iter(rows))
    for name in SlotCounters.__struct_fields__:
        values = [getattr(row, name) for row in rows]
        combine = max if name in {"heartbeat_ns", "blocked", "log_errno"} else sum
        assert getattr(summed, name) == combine([0, *values]) % 2**64


def test_an_older_daemon_tells_no_longest_queue_and_no_drops() -> None:
    told = {"address": "127.0.0.1:1", "queued": 1, "limit": 8}
    plain = sent(a_status()) | {"listeners": [told]}
    (listener,) = from_plain(plain).listeners
    assert (listener.queued_max, listener.drops) == (0, None)


def test_fields_that_an_older_daemon_does_not_send_have_defaults() -> None:
    required = {
        "version": "1.2.3", "pid": 1, "mode": "inherit", "wait": "rotate", "state": "starting",
        "generation": 1, "since": 1.0, "uptime": 2.0, "addresses": [], "counters": {}, "totals": {},
        "workers": [{"slot": 1, "generation": 1, "state": "ready"}],
    }  # fmt: skip
    status = from_plain(required)
    every = {name: getattr(status, name) for name in Status.__struct_fields__}
    assert {name: value for name, value in every.items() if name not in required} == {
        "passed": False, "dispatcher": [], "handed": SlotCounters(), "listeners": [],
        "restarts_in_window": 0, "max_restarts": 0, "restart_window": 0.0, "longest_stall": 0.0,
        "trouble": None, "last_error": None, "warnings": [], "reload": None, "log_dir": "",
        "run_dir": "", "config": None,
    }  # fmt: skip
    (worker,) = status.workers
    assert sent(a_status(workers=[worker]))["workers"][0] == {
        "slot": 1, "generation": 1, "state": "ready", "pid": None, "age": 0.0,
        "heartbeat_age": None, "restarts": 0, "backoff": None, "lent_to": None, "title": "",
        "leaving": False, "log": None,
    }  # fmt: skip
    assert set(sent(a_status(totals=SlotCounters()))["totals"].values()) == {0}


@pytest.mark.parametrize("state", ["starting", "running", "reloading", "stopping"])
def test_a_daemon_is_in_one_of_four_states(state: str) -> None:
    assert from_plain(sent(a_status()) | {"state": state}).state == state
    with pytest.raises(ValueError, match="state"):
        from_plain(sent(a_status()) | {"state": f"{state}x"})


@pytest.mark.parametrize(
    "value",
    [a_status(), *a_status().workers, SlotCounters(),
     ListenerStatus(address="", queued=0, limit=1),
     ReloadResult(ok=True, generation=1, at=0.0, took=0.0)],
)  # fmt: skip
def test_what_is_sent_cannot_be_changed(value: msgspec.Struct) -> None:
    with pytest.raises(AttributeError):
        setattr(value, value.__struct_fields__[0], None)
    with pytest.raises(TypeError):
        type(value)(*[None] * len(value.__struct_fields__))
