"""The shape of a greeting record."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greeterd.worker.record import render_turn

NOON = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)

names = st.binary(min_size=1, max_size=60).map(lambda b: b.decode("utf-8", "backslashreplace"))


MOST_BYTES_A_NAME_BYTE = 12
"""As the record format says: a control character is six bytes of JSON, in each of two fields."""
MOST_OTHER_BYTES = 300


def turn(batch: list[tuple[str, str]], *, seq: int = 17, at: datetime = NOON) -> dict[str, Any]:
    return {
        "timestamp": at,
        "level": "info",
        "event": "greeting",
        "worker": 1,
        "generation": 1,
        "pid": 4242,
        "seq": seq,
        "batch": batch,
    }


def test_a_record_is_exactly_this_line() -> None:
    assert render_turn(turn([("Alice", "127.0.0.1:53422")])) == (
        b'{"timestamp":"2026-01-01T12:00:00.123456Z","level":"info","event":"greeting",'
        b'"greeting":"Hello, Alice","name":"Alice","worker":1,"generation":1,"pid":4242,"seq":17,'
        b'"client":"127.0.0.1:53422"}\n'
    )


@pytest.mark.parametrize("microsecond", [0, 1, 100000])
def test_a_timestamp_always_has_six_decimals(microsecond: int) -> None:
    line = render_turn(turn([("Alice", "c")], at=NOON.replace(microsecond=microsecond)))
    assert json.loads(line)["timestamp"] == f"2026-01-01T12:00:00.{microsecond:06}Z"


@given(st.binary(min_size=1, max_size=60))
@example(b"\x00" * 4096)
@example(b"\x7f" * 4096)
@example(b"\xff" * 4096)
@example("\x9b".encode() * 2048)
@example("\U000e0001".encode() * 1024)
def test_a_record_has_no_more_bytes_than_is_said(sent: bytes) -> None:
    name = sent.decode("utf-8", "backslashreplace")
    widest = "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535"
    event = turn([(name, widest)], seq=2**64 - 1) | {
        "worker": 512, "generation": 2**32, "pid": 2**22,
    }  # fmt: skip
    assert len(render_turn(event)) <= MOST_BYTES_A_NAME_BYTE * len(sent) + MOST_OTHER_BYTES


def test_no_smaller_bound_would_hold_for_control_characters() -> None:
    longer, shorter = (render_turn(turn([("\x01" * count, "c")])) for count in (2, 1))
    assert len(longer) - len(shorter) == MOST_BYTES_A_NAME_BYTE


def test_a_turn_is_numbered_upwards() -> None:
    lines = render_turn(turn([("a", "x"), ("b", "y"), ("é\x7f", "z")], seq=5)).splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [5, 6, 7]


def test_printable_names_are_not_escaped() -> None:
    assert '"name":"Zoë 😀 文"'.encode() in render_turn(turn([("Zoë 😀 文", "c")]))


def test_only_the_fields_that_need_it_are_escaped_beyond_json() -> None:
    line = render_turn(turn([("\x9b", "c"), ("Zoë", "c")]))
    assert b'"greeting":"Hello, \\u009b","name":"\\u009b"' in line
    assert '"name":"Zoë"'.encode() in line


@given(st.lists(st.tuples(names, names), max_size=5))
@example([("\x7f", "c")])
@example([("a\u2028b", "c")])
@example([("\u202egnp.exe", "c")])
@example([("\x85\x9b31m", "c")])
@example([("Alice", "\x7f")])
@example([("\U000e0001", "\ud800")])
def test_every_name_is_one_printable_line_that_parses_back(batch: list[tuple[str, str]]) -> None:
    lines = render_turn(turn(batch)).decode()
    assert lines.count("\n") == len(batch)
    for line, (name, client) in zip(lines.split("\n"), [*batch, ("", "")], strict=True):
        assert line.isprintable()
        if line:
            record = json.loads(line)
            assert record["name"] == name
            assert record["greeting"] == f"Hello, {name}"
            assert record["client"] == client
