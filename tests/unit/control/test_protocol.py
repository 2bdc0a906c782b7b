"""The control protocol's lines: what is understood; everything else is refused in words."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeterd.config.schema import MAX_WORKERS as MOST_CONFIGURED
from greeterd.control.protocol import (
    COMMANDS,
    MAX_REQUEST_BYTES,
    MAX_WORKERS,
    NOT_UNDERSTOOD,
    Command,
    Inbox,
    Refused,
    parse_answer,
    parse_request,
    render_answer,
    render_refusal,
    render_request,
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    "scale": {"workers": 4},
    "restart": {"slot": 2},
    "stop": {"now": True},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_reads_what_a_client_writes(name: str) -> None:
    arguments = ARGUMENTS.get(name, {})
    assert parse_request(render_request(name, arguments)) == Command(name, arguments)


def test_an_argument_that_is_not_given_has_its_default() -> None:
    assert parse_request(b'{"version":1,"command":"stop"}') == Command("stop", {"now": False})
    assert parse_request(b'{"version":1,"command":"restart"}') == Command("restart", {"slot": None})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "broken JSON"),
        (b"{", "broken JSON"),
        (b"hello", "broken JSON"),
        (b'{"version":1,"command":"ping"} x', "broken JSON"),
        (b'{"version":1,"command":"\xff"}', "broken JSON"),
        (b"[" * 60_000, "wrong request"),
        (b'{"x":' * 10_000, "nested too deeply"),
        (b'{"version":1,"command":"ping","arguments":' + b"[" * 60_000, "nested too deeply"),
        (b"[]", "wrong request"),
        (b"{}", "missing required field `version`"),
        (b'{"version":1}', "missing required field `command`"),
        (b'{"version":"1","command":"ping"}', "Expected `int`"),
        (b'{"version":' + b"9" * 5000 + b"}", "out of range"),
        (b'{"version":2,"do":"ping"}', "version 2 of the protocol is not supported, 1 is"),
        (b'{"version":1,"command":"dance"}', "unknown command 'dance'; known are ping, status"),
        (b'{"version":1,"command":"ping","then":1}', "unknown field `then`"),
        (b'{"version":1,"command":"ping","arguments":{"a":1}}', "unknown field `a`"),
        (b'{"version":1,"command":"scale"}', "missing required field `workers`"),
        (b'{"version":1,"command":"scale","arguments":{"workers":0}}', ">= 1"),
        (b'{"version":1,"command":"scale","arguments":{"workers":513}}', "<= 512"),
        (b'{"version":1,"command":"scale","arguments":{"workers":"4"}}', "Expected `int`"),
        (b'{"version":1,"command":"scale","arguments":{"workers":true}}', "Expected `int`"),
        (b'{"version":1,"command":"restart","arguments":{"slot":-1}}', ">= 0"),
        (b'{"version":1,"command":"stop","arguments":{"now":1}}', "Expected `bool`"),
        (b'{"version":1,"command":"ping","arguments":[]}', "Expected `object`"),
    ],
)
def test_what_is_not_understood_is_refused_in_words(line: bytes, reason: str) -> None:
    refused = parse_request(line)
    assert isinstance(refused, Refused)
    assert reason in refused.reason
    assert refused.code == NOT_UNDERSTOOD


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NEAR_MISSES = st.fixed_dictionaries(
    {"version": st.just(1) | JSON, "command": st.sampled_from(list(COMMANDS)) | JSON},
    optional={"arguments": st.dictionaries(st.sampled_from(["workers", "slot", "now"]), JSON)},
)


@settings(deadline=None)
@given(st.binary() | NEAR_MISSES.map(lambda value: json.dumps(value).encode()))
def test_no_line_raises_and_what_is_understood_has_its_arguments(line: bytes) -> None:
    read = parse_request(line)
    if isinstance(read, Command):
        assert set(read.arguments) == set(COMMANDS[read.name].__struct_fields__)
    else:
        assert read.reason


def test_as_many_workers_can_be_asked_for_as_configured() -> None:
    assert MAX_WORKERS == MOST_CONFIGURED


LINE = st.binary(max_size=30).map(lambda data: data.replace(b"\n", b""))


@settings(deadline=None)
@given(st.lists(LINE), LINE, st.lists(st.integers(0, 200)))
def test_lines_are_the_same_however_the_stream_was_cut(
    lines: list[bytes], rest: bytes, cuts: list[int]
) -> None:
    stream = b"".join(line + b"\n" for line in lines) + rest
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges) if a < b]
    inbox = Inbox()
    taken: list[bytes | Refused] = []
    for piece in [*pieces, b""]:
        inbox.feed(piece)
        while (line := inbox.take()) is not None:
            taken.append(line)
    assert taken == [*lines, rest] if rest else taken == lines
    assert inbox.ended
    assert not inbox


def test_half_a_line_waits_for_its_end() -> None:
    inbox = Inbox()
    inbox.feed(b"abc")
    assert inbox.take() is None
    assert inbox
    inbox.feed(b"d\n")
    assert inbox.take() == b"abcd"


def test_a_request_of_the_limit_is_taken_and_one_byte_more_is_refused() -> None:
    inbox = Inbox()
    inbox.feed(b"x" * MAX_REQUEST_BYTES + b"\n")
    assert inbox.take() == b"x" * MAX_REQUEST_BYTES
    inbox.feed(b"x" * MAX_REQUEST_BYTES)
    assert inbox.take() is None
    inbox.feed(b"x")
    assert isinstance(inbox.take(), Refused)


def test_a_whole_line_above_the_limit_is_refused() -> None:
    inbox = Inbox()
    inbox.feed(b"x" * (MAX_REQUEST_BYTES + 1) + b"\n")
    assert isinstance(inbox.take(), Refused)


def test_an_answer_is_one_line_with_its_fields() -> None:
    line = render_answer(True, {"generation": 3, "text": "two\nlines"})
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert parse_answer(line) == {
        "version": 1, "ok": True, "generation": 3, "text": "two\nlines",
    }  # fmt: skip


def test_a_failure_always_has_a_reason_and_a_code() -> None:
    assert parse_answer(render_answer(False, {})) == {
        "version": 1, "ok": False, "error": "no reason given", "code": 1,
    }  # fmt: skip
    refusal = parse_answer(render_refusal(Refused("why", 77)))
    assert (refusal["ok"], refusal["error"], refusal["code"]) == (False, "why", 77)


@pytest.mark.parametrize(
    "line",
    [b"", b"x", b"[]", b"{}", b'{"version":2,"ok":true}', b'{"version":1,"ok":1}', b'{"a":' * 9999],
)
def test_what_is_no_answer_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is msgspec's
        parse_answer(line)


def test_a_path_with_undecodable_bytes_has_no_json() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        render_answer(True, {"run_dir": "/tmp/\udcff"})
    assert issubclass(msgspec.DecodeError, ValueError)
