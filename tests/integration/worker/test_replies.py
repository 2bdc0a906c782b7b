"""Replies that fit into a socket's buffer, and those that do not: to clients that read slowly."""

import os
import select
import socket
import struct
import threading
from pathlib import Path

import pytest

from greeterd.supervisor.ids import DrainMode
from greeterd.worker import counters
from greeterd.worker.messages import DrainMessage
from tests.integration.worker.conftest import StartLoop
from tests.integration.worker.loops import Clock, FullEpoll, LoopInTest

LONG = b"\xff" * 2**20
"""A name whose reply is four times as long: more than a socket's buffers take."""
REPLY = b"Hello, " + rb"\xff" * 2**20 + b"\n"


@pytest.fixture
def worker(start_loop: StartLoop) -> LoopInTest:
    """Return a worker that replies, and to whose clients little can be sent at a time."""
    made = start_loop(reply=True, max_name_bytes=2**20, client_timeout=5.0, max_connections=2)
    made.listeners[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    return made


def say_long(worker: LoopInTest) -> socket.socket:
    """Say the long name; return when its reply has begun."""
    client = worker.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)

    def say() -> None:
        client.sendall(LONG)
        client.shutdown(socket.SHUT_WR)

    before = worker.row[counters.GREETINGS]
    saying = threading.Thread(target=say)
    saying.start()
    worker.turn_until(lambda: worker.row[counters.GREETINGS] > before)
    saying.join()
    return client


def unsent(worker: LoopInTest) -> int:
    """Return how many bytes of replies are left, by connections."""
    assert worker.loop._connections is not None
    return sum(len(each.data) for each in worker.loop._connections._replies.unsent.values())


def is_idle(worker: LoopInTest) -> bool:
    """Tell whether no connection is left."""
    return worker.loop._handler.idle


def is_drained(worker: LoopInTest) -> bool:
    """Tell whether the worker would leave."""
    return worker.loop._drained


def read_all(client: socket.socket) -> bytes:
    """Read to the end of the stream."""
    with client.makefile("rb") as stream:
        return stream.read()


def test_a_reply_that_does_not_fit_is_sent_whole_to_a_client_that_reads_slowly(
    worker: LoopInTest,
) -> None:
    client = say_long(worker)
    assert 0 < unsent(worker) < len(REPLY)
    assert worker.row[counters.REPLIES] == 0, "part of a reply is none"
    assert worker.counted() == {"connections": 1, "greetings": 1}, "its greeting is written"
    assert not is_idle(worker)
    assert worker.loop._handler.room == 1, "it holds a descriptor"
    found = b""
    while len(found) < len(REPLY):
        assert worker.row[counters.REPLIES] == 0 or unsent(worker) == 0
        found += client.recv(1_000_000)
        worker.turn()
    assert found == REPLY
    assert client.recv(1) == b""
    assert worker.row[counters.REPLIES] == 1
    assert is_idle(worker)
    assert worker.loop._handler.room == 2


def test_a_client_that_does_not_read_delays_no_other(worker: LoopInTest) -> None:
    say_long(worker)
    other = worker.say(b"Bob")
    worker.turn_until(lambda: worker.row[counters.REPLIES])
    assert other.recv(100) == b"Hello, Bob\n"
    assert worker.greeted()[1:] == ["Bob"]


def test_a_client_that_does_not_read_is_closed_when_its_time_is_up(
    worker: LoopInTest, clock: Clock
) -> None:
    client = say_long(worker)
    clock.now += 4.99
    worker.turn(2)
    assert unsent(worker)
    assert worker.loop._next_upkeep == pytest.approx(clock.now + 0.01)
    clock.now += 0.01 + 1e-9
    worker.turn(2)
    assert is_idle(worker)
    assert worker.counted() == {"connections": 1, "greetings": 1}
    assert client.recv(5) == b"Hello", "what was sent arrives"
    assert not worker.loop._handler.on_event(client.fileno())


def test_the_oldest_of_two_replies_times_out_first(worker: LoopInTest, clock: Clock) -> None:
    say_long(worker)
    clock.now += 2.0
    say_long(worker)
    assert worker.loop._connections is not None
    assert worker.loop._connections.deadlines() == [1005.0]
    worker.loop._connections.expire(1005.0)
    assert worker.loop._connections.deadlines() == [1007.0]


def test_a_client_that_resets_its_reply_is_closed(worker: LoopInTest) -> None:
    client = say_long(worker)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert worker.loop._connections is not None
    [fd] = worker.loop._connections._replies.unsent
    client.close()
    poll = select.poll()
    poll.register(fd, 0)
    assert poll.poll(10_000) == [(fd, select.POLLERR | select.POLLHUP)]
    assert worker.loop._handler.on_event(fd), "it was one of ours"
    worker.turn()
    assert is_idle(worker)
    assert worker.counted() == {"connections": 1, "greetings": 1}


def test_a_socket_without_any_room_is_waited_for(
    start_loop: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start_loop(reply=True)
    client = worker.say(b"Alice")
    [fd] = worker.loop._acceptor.sources
    worker.loop._burst(fd, worker.loop._acceptor.sources[fd], 1)
    refused: list[int] = []
    write = os.write

    def refuse_once(fd: int, data: bytes) -> int:
        if data.startswith(b"Hello") and not refused:
            refused.append(fd)
            raise BlockingIOError
        return write(fd, data)

    monkeypatch.setattr(os, "write", refuse_once)
    worker.turn_until(lambda: worker.row[counters.REPLIES])
    assert read_all(client) == b"Hello, Alice\n"
    assert len(refused) == 1


def test_a_report_without_room_sends_nothing_and_waits_on(worker: LoopInTest) -> None:
    say_long(worker)
    assert worker.loop._connections is not None
    [fd] = worker.loop._connections._replies.unsent
    before = 0
    while before != unsent(worker):  # what the kernel takes yet
        before = unsent(worker)
        assert worker.loop._handler.on_event(fd)
    assert before > 0
    assert not is_idle(worker)


def test_a_quick_drain_resets_a_reply_and_counts_its_greeting_only(worker: LoopInTest) -> None:
    client = say_long(worker)
    worker.send(DrainMessage(DrainMode.QUICK.value))
    worker.turn()
    assert is_drained(worker)
    assert worker.counted() == {"connections": 1, "greetings": 1}
    with pytest.raises(ConnectionResetError):
        read_all(client)


def test_a_worker_that_drains_sends_its_replies_whole(worker: LoopInTest) -> None:
    client = say_long(worker)
    worker.send(DrainMessage(DrainMode.HAND_OVER.value))
    worker.turn()
    assert not is_drained(worker)
    found = b""
    while not is_drained(worker):
        found += client.recv(1_000_000)
        worker.turn()
    assert found + read_all(client) == REPLY


def test_a_reply_that_cannot_be_waited_for_is_reset_and_closed_once(
    worker: LoopInTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.loop._connections is not None
    replies = worker.loop._connections._replies
    monkeypatch.setattr(replies, "_epoll", FullEpoll())
    closed: list[int] = []
    monkeypatch.setattr(os, "closerange", lambda low, _high: closed.append(low))
    client = say_long(worker)
    assert closed == [], "it is closed by the reset, and its number may be another's by now"
    assert is_idle(worker)
    assert worker.events() == ["cannot wait for a client"]
    assert worker.counted() == {"connections": 1, "greetings": 1}
    with pytest.raises(ConnectionResetError):
        read_all(client)


def test_a_client_that_is_gone_before_its_reply_is_closed_without_one(
    start_loop: StartLoop, tmp_path: Path
) -> None:
    worker = start_loop(reply=True)
    client = worker.say(b"Alice")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    [fd] = worker.loop._acceptor.sources
    worker.loop._burst(fd, worker.loop._acceptor.sources[fd], 1)
    assert worker.loop._connections is not None
    [(accepted, _)] = worker.loop._connections._replies.due
    client.close()
    poll = select.poll()
    poll.register(accepted, select.POLLIN)
    assert poll.poll(10_000)[0][1] & select.POLLERR
    worker.say(b"Bob")
    worker.turn()
    assert worker.greeted() == ["Alice", "Bob"]
    assert worker.row[counters.REPLIES] == 1
    assert is_idle(worker)
    assert (tmp_path / "worker-1.log").exists()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(accepted)
