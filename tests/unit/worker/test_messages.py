"""The messages between master and worker: what is meant is read, and nothing that comes raises."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.worker.messages import (
    MAX_BREACH,
    Breach,
    ClosedMessage,
    DrainMessage,
    ExitMessage,
    FailedMessage,
    GoMessage,
    LeavingMessage,
    LendMessage,
    Message,
    ReadyMessage,
    RefusedMessage,
    ReopenedMessage,
    ReopenMessage,
    ReturnedMessage,
    RoutedMessage,
    RouteMessage,
    TakeBackMessage,
    decode,
    tag_of,
)

MESSAGES: list[Message] = [
    ReadyMessage(),
    FailedMessage(78, "a reason"),
    ExitMessage(),
    LeavingMessage(),
    ClosedMessage(),
    ReopenedMessage(""),
    ReturnedMessage(3),
    RefusedMessage(3, "a reason"),
    RoutedMessage(3),
    GoMessage(),
    DrainMessage("sweep"),
    LendMessage(3),
    TakeBackMessage(3),
    RouteMessage(3),
    ReopenMessage(),
]
ENCODED = [msgspec.json.encode(message) for message in MESSAGES]


@pytest.mark.parametrize("message", MESSAGES, ids=tag_of)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    assert decode(msgspec.json.encode(message)) == message


def test_a_field_of_a_later_version_is_passed_over() -> None:
    assert decode(b'{"type":"lend","slot":3,"more":[1,{"a":2}]}') == LendMessage(3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b'{"type":"nothing of ours"}',
        b'{"type":["ready"]}',
        b'{"slot":1}',
        b'{"type":"returned"}',
        b'{"type":"returned","slot":-1}',
        b'{"type":"returned","slot":1e400}',
        b'{"type":"returned","slot":' + b"9" * 5000 + b"}",
        b'{"type":"failed","code":0,"reason":"to end with 0"}',
        b'{"type":"failed","code":70,"reason":"' + b"x" * 9000 + b'"}',
        b'{"type":"reopened","reason":"\\ud800"}',
        b'{"type":"ready","more":' + b"[" * 60_000,
        b'{"type":"ready"}{"type":"ready"}',
    ],
)
def test_what_is_no_message_is_a_breach_in_few_words(data: bytes) -> None:
    breach = decode(data)
    assert isinstance(breach, Breach)
    assert 0 < len(breach.reason) <= MAX_BREACH + 20


@given(st.binary())
def test_no_bytes_raise(data: bytes) -> None:
    decode(data)


@given(st.sampled_from(ENCODED), st.data())
def test_no_mutation_of_a_message_raises(message: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(message)))
    stop = data.draw(st.integers(start, len(message)))
    decode(message[:start] + data.draw(st.binary(max_size=8)) + message[stop:])
