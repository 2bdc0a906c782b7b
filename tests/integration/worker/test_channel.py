"""The socketpair between master and worker: what is sent, what comes, and what is refused."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from greeterd.worker.channel import Channel, Received
from greeterd.worker.messages import (
    MAX_MESSAGE_BYTES,
    Breach,
    ExitMessage,
    GoMessage,
    LendMessage,
    ReopenMessage,
)
from tests.integration.sockets.test_rights import room_for

Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = Channel.pair()
    yield left, right
    left.close()
    right.close()


def open_fds() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_messages_come_in_order_each_once(pair: Pair) -> None:
    left, right = pair
    assert right.receive() is None
    for message in (GoMessage(), LendMessage(3)):
        assert left.send(message) == ""
    assert right.receive() == Received(GoMessage())
    assert right.receive() == Received(LendMessage(3))
    assert right.receive() is None


def test_neither_end_blocks_or_is_inherited(pair: Pair) -> None:
    for each in pair:
        assert not os.get_blocking(each.fileno())
        assert not os.get_inheritable(each.fileno())


def test_a_channel_carries_descriptors(pair: Pair) -> None:
    left, right = pair
    with socket.socket() as one, socket.socket() as other:
        assert left.send(LendMessage(3), [one.fileno(), other.fileno()]) == ""
        received = right.receive()
        assert received is not None
        assert [os.fstat(fd).st_ino for fd in received.take()] == [
            os.fstat(one.fileno()).st_ino, os.fstat(other.fileno()).st_ino,
        ]  # fmt: skip
        for fd in received.fds:
            os.close(fd)


def test_descriptors_that_found_no_room_are_told_as_lost(pair: Pair) -> None:
    left, right = pair
    assert left.send(LendMessage(3), [0, 1]) == ""
    with room_for(1):
        received = right.receive()
    assert received == Received(LendMessage(3), [], lost=True)
    with pytest.raises(OSError, match="Too many open files") as raised:
        received.take()
    assert raised.value.errno == errno.EMFILE


def test_the_end_of_the_other_side_is_a_message(pair: Pair) -> None:
    left, right = pair
    left.send(GoMessage())
    left.close()
    assert left.fileno() == -1
    assert right.receive() == Received(GoMessage())
    assert right.receive() == Received(None)
    assert right.send(GoMessage()) == os.strerror(errno.EPIPE)


def test_an_end_that_left_something_unread_is_the_end_too(pair: Pair) -> None:
    left, right = pair
    right.send(ExitMessage())
    left.close()
    assert right.receive() == Received(None)


def test_a_channel_that_is_not_read_does_not_block_who_sends(pair: Pair) -> None:
    left, _ = pair
    reason = ""
    while not reason:
        reason = left.send(ReopenMessage())
    assert reason == os.strerror(errno.EAGAIN)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff", "not JSON"),
        (b'{"type":"nothing"}', "not a message: Invalid value 'nothing' - at `$.type`"),
        (b'{"type":"go"}' + b" " * MAX_MESSAGE_BYTES, "too long a message"),
    ],
)
def test_a_breach_is_told_and_its_descriptors_closed(pair: Pair, data: bytes, reason: str) -> None:
    left, right = pair
    socket.send_fds(left._socket, [data], [0, 1])
    before = open_fds()
    assert right.receive() == Received(Breach(reason))
    assert open_fds() == before


def test_the_longest_message_is_none_too_long(pair: Pair) -> None:
    left, right = pair
    data = b'{"type":"go"}'
    left._socket.send(data + b" " * (MAX_MESSAGE_BYTES - len(data)))
    assert right.receive() == Received(GoMessage())


def test_an_empty_record_with_descriptors_is_an_end_that_opens_nothing(pair: Pair) -> None:
    left, right = pair
    socket.send_fds(left._socket, [b""], [0])
    before = open_fds()
    assert right.receive() == Received(None)
    assert open_fds() == before


@pytest.mark.parametrize("peeked", [False, True])
def test_where_no_descriptors_are_due_none_is_taken(pair: Pair, *, peeked: bool) -> None:
    left, right = pair
    left.send(GoMessage(), [0] if peeked else [])
    before = open_fds()
    received = right.receive(0)
    if peeked:
        assert received == Received(Breach("descriptors that are not due"))
        assert right._socket.recv(100, socket.MSG_PEEK), "it was left where it is"
    else:
        assert received == Received(GoMessage())
        assert right.receive(0) is None
    assert open_fds() == before


def test_more_descriptors_than_are_due_are_none(pair: Pair) -> None:
    left, right = pair
    left.send(GoMessage(), [0, 1])
    before = open_fds()
    assert right.receive(1) == Received(GoMessage(), [], lost=True)
    assert open_fds() == before
