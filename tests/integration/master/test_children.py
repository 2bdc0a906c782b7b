"""What the master does with what comes from a worker's channel, whatever it is."""

import os
import resource
import signal
import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeterd.master import children
from greeterd.master.children import MAX_STACK_BYTES, RECORDS_A_TURN
from greeterd.sockets import rights
from greeterd.supervisor.ids import WorkerId
from greeterd.worker.messages import (
    ExitMessage,
    FailedMessage,
    GoMessage,
    LeavingMessage,
    ReadyMessage,
    ReopenedMessage,
    ReopenMessage,
)
from tests.integration.master.ward import WORKER, ward
from tests.integration.sockets.test_rights import lingering, room_for
from tests.unit.worker.test_messages import ENCODED

# What is due


def test_what_is_due_is_heard() -> None:
    with ward() as one:
        for message in (ExitMessage(), LeavingMessage()):
            one.channel.send(message)
        one.turn()
        assert (one.heard, one.reason) == ([(ExitMessage(), 0), (LeavingMessage(), 0)], "")


def test_an_answer_is_due_once_it_was_asked_for_and_sent() -> None:
    with ward() as one:
        assert one.broadcast(ReopenMessage()) == [WORKER]
        one.channel.send(ReopenedMessage(""))
        one.turn()
        assert (one.heard, one.reason) == ([(ReopenedMessage(""), 0)], "")


def test_what_could_not_be_sent_is_told_and_needs_no_answer() -> None:
    with ward() as one:
        while not (reason := one.send(WORKER, ReopenMessage())):
            pass
        assert reason == "Resource temporarily unavailable"
        assert one.broadcast(ReopenMessage()) == []
        assert one.send(WorkerId(1), GoMessage()) == "", "who is gone needs nothing"


def test_listeners_come_with_ready_and_with_nothing_else() -> None:
    with ward(listeners=2, ready=False) as one:
        one.channel.send(ReadyMessage(), [0, 0])
        one.turn()
        assert (one.heard, one.reason) == ([(ReadyMessage(), 2)], "")
    with ward(listeners=2, ready=False) as one:
        one.channel.send(FailedMessage(70, "no"), [0, 0])
        one.turn()
        assert one.reason == "protocol error: 'failed' with 2 descriptors"


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (1, "protocol error: 'ready' with 1 descriptors"),
        (3, "the master has no descriptors free for its listeners"),
    ],
)
def test_other_listeners_than_are_due_are_none(sent: int, reason: str) -> None:
    with ward(listeners=2, ready=False) as one:
        one.channel.send(ReadyMessage(), [0] * sent)
        one.turn()
        assert (one.heard, one.reason) == ([], reason)


def test_listeners_that_find_no_descriptor_free_end_the_start_with_71() -> None:
    with ward(listeners=2, ready=False) as one:
        one.channel.send(ReadyMessage(), [0, 0])
        with room_for(1):
            one.turn()
        assert one.child.failure == FailedMessage(
            71, "the master has no descriptors free for its listeners"
        )
        assert one.heard == []


# What is not


def test_a_breach_ends_the_worker_once_and_nothing_more_is_read() -> None:
    with ward() as one:
        for data in (b"garbage", b'{"type":"leaving"}', b"garbage"):
            rights.send(one.theirs, data)
        one.turn()
        one.turn()
        assert (one.killed, one.heard) == ([signal.SIGKILL], [])
        assert one.reason == "protocol error: not JSON"
        assert one.mute() == [one.child]


@pytest.mark.parametrize("data", [b'{"type":"leaving"}', b"", b"x" * 100_000])
def test_descriptors_that_nobody_asked_for_are_never_open_here(data: bytes) -> None:
    with ward() as one:
        rights.send(one.theirs, data, [0] * rights.MAX_FDS)
        with room_for(0):
            one.turn()
        assert (one.reason, one.heard) == ("protocol error: descriptors that are not due", [])


def test_descriptors_that_linger_hold_nobody_up() -> None:
    with ward() as one:
        began = time.monotonic()
        for _ in range(3):
            with lingering() as fd:
                rights.send(one.theirs, b'{"type":"leaving"}', [fd])
                os.close(fd)
        one.turn()
        assert one.reason == "protocol error: descriptors that are not due"
        assert time.monotonic() - began < 30.0


def test_a_turn_reads_so_many_records_at_most() -> None:
    with ward() as one:
        for _ in range(RECORDS_A_TURN + 1):
            one.channel.send(ExitMessage())
        one.turn()
        assert len(one.heard) == RECORDS_A_TURN
        one.turn()
        assert len(one.heard) == RECORDS_A_TURN + 1


@pytest.mark.parametrize("how", ["close", "shutdown", "empty"])
def test_a_channel_that_is_closed_is_noted(how: str) -> None:
    with ward() as one:
        assert one.mute() == []
        if how == "close":
            one.theirs.close()
        elif how == "shutdown":
            one.theirs.shutdown(socket.SHUT_WR)
        else:
            one.theirs.send(b"")
        one.turn()
        assert (one.mute(), one.reason) == ([one.child], "")
        assert one.send(WORKER, GoMessage()) == "", "it hears nothing, and is not waited for"


Fds = st.lists(st.sampled_from([0, 1, 2]), max_size=4)


@given(
    st.lists(
        st.tuples(st.one_of(st.binary(max_size=50), st.sampled_from(ENCODED)), Fds), max_size=6
    ),
    st.integers(0, 2),
    st.booleans(),
)
@settings(max_examples=300)
def test_no_records_raise_or_leave_anything_behind(
    records: list[tuple[bytes, list[int]]], listeners: int, ready: bool
) -> None:
    with ward(listeners=listeners, ready=ready) as one:
        for data, fds in records:
            rights.send(one.theirs, data, fds)
        for _ in range(3):
            one.turn()
        assert len(one.killed) <= 1
        assert all(count in {0, listeners} for _, count in one.heard)


@given(st.sampled_from(ENCODED), st.data())
@settings(max_examples=200)
def test_no_mutation_of_a_message_raises(message: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(message)))
    stop = data.draw(st.integers(start, len(message)))
    record = message[:start] + data.draw(st.binary(max_size=8)) + message[stop:]
    with ward(listeners=1, ready=data.draw(st.booleans())) as one:
        rights.send(one.theirs, record, data.draw(Fds))
        one.turn()
        one.turn()


# The stack


def test_a_stack_is_read_up_to_its_end() -> None:
    fd = children._open_stack()
    os.write(fd, b"Fatal Python error: Aborted\n\x1b[2J")
    assert children._read_stack(fd) == "Fatal Python error: Aborted\n\\x1b[2J"
    os.close(fd)


def test_a_stack_that_nobody_wrote_is_empty() -> None:
    fd = children._open_stack()
    assert children._read_stack(fd) == ""
    os.close(fd)


def test_the_file_of_a_stack_does_not_grow() -> None:
    fd = children._open_stack()
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 2**45)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", MAX_STACK_BYTES)
    os.close(fd)


def test_of_a_file_of_32_tib_little_is_read() -> None:
    fd = os.memfd_create("as of the version before")
    os.ftruncate(fd, 2**45)
    os.pwrite(fd, b"\xff" * 2 * MAX_STACK_BYTES, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(children._read_stack(fd)) == MAX_STACK_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024
    os.close(fd)
