"""The socketpair by which connections are handed over."""

import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from greeterd.sockets import bpf, steering
from greeterd.sockets.fd_passing import (
    QUEUE_LIMIT,
    HandoffPair,
    hand_over,
    has_filter,
    is_exit,
    receives_no_more,
    taker,
    waiting,
)
from tests.integration.sockets.pairs import fill


@pytest.fixture
def pair() -> Iterator[HandoffPair]:
    made = HandoffPair.make()
    yield made
    made.close()


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    left, right = socket.socketpair()
    with left, right:
        yield left


# The pair


def test_a_connection_comes_out_with_its_clients_name(pair: HandoffPair) -> None:
    left, right = socket.socketpair()
    hand_over(pair.entry, left.fileno(), "[fe80::1234:5678:9abc:def0%eth0]:65535")
    left.close()
    fd, name = taker(pair.exit)()
    assert name == "[fe80::1234:5678:9abc:def0%eth0]:65535"
    assert not os.get_inheritable(fd)
    os.write(fd, b"it is this one")
    assert right.recv(100) == b"it is this one"
    os.close(fd)
    right.close()


def test_what_waits_is_counted(pair: HandoffPair, connection: socket.socket) -> None:
    assert waiting(pair.exit) == 0
    for _ in range(3):
        hand_over(pair.entry, connection.fileno(), "someone")
    assert waiting(pair.exit) == 3
    os.close(taker(pair.exit)()[0])
    assert waiting(pair.exit) == 2


def test_a_pair_takes_about_as_many_as_it_is_to_take(
    pair: HandoffPair, connection: socket.socket
) -> None:
    count = fill(pair, connection)
    assert waiting(pair.exit) == count
    assert 0.9 * QUEUE_LIMIT < count < 1.5 * QUEUE_LIMIT


@pytest.mark.parametrize("number", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM])
def test_a_shortage_of_the_kernel_is_a_pair_that_is_full(number: int) -> None:
    class Short(socket.socket):
        def sendmsg(self, *_: object, **__: object) -> int:
            raise OSError(number, os.strerror(number))

    with Short(socket.AF_UNIX, socket.SOCK_SEQPACKET) as entry:
        with pytest.raises(BlockingIOError) as full:
            hand_over(entry, 0, "a client")
        assert full.value.errno == number


def test_any_other_error_of_handing_over_stays_what_it_is(connection: socket.socket) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unconnected,
        pytest.raises(OSError, match="not connected") as refused,
    ):
        hand_over(unconnected, connection.fileno(), "a client")
    assert not isinstance(refused.value, BlockingIOError)


def test_what_waits_moves_to_another_pair_as_far_as_that_has_room(
    pair: HandoffPair, connection: socket.socket
) -> None:
    other = HandoffPair.make()
    for number in range(3):
        hand_over(pair.entry, connection.fileno(), f"client {number}")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    pair.pour_into(other)
    assert (waiting(pair.exit), waiting(other.exit)) == (0, 3)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    take = taker(other.exit)
    for number in range(3):
        fd, client = take()
        os.close(fd)
        assert client == f"client {number}"
    hand_over(pair.entry, connection.fileno(), "too late")
    other.close_entry()
    pair.pour_into(other)
    other.close()


def test_an_empty_pair_is_told_from_one_at_its_end(
    pair: HandoffPair, connection: socket.socket
) -> None:
    take = taker(pair.exit)
    with pytest.raises(BlockingIOError):
        take()
    hand_over(pair.entry, connection.fileno(), "the last one")
    pair.close_entry()
    with pytest.raises(BrokenPipeError):
        hand_over(pair.entry, connection.fileno(), "too late")
    fd, name = take()
    os.close(fd)
    assert name == "the last one"
    with pytest.raises(OSError, match="has ended") as ended:
        take()
    assert ended.value.errno == errno.EINVAL


def test_a_connection_that_finds_no_descriptor_is_told(
    pair: HandoffPair, connection: socket.socket
) -> None:
    hand_over(pair.entry, connection.fileno(), "someone")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(connection.fileno())
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as failed:
            taker(pair.exit)()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert failed.value.errno == errno.EMFILE


def test_a_pair_goes_on_by_its_descriptors(pair: HandoffPair, connection: socket.socket) -> None:
    assert pair.fds == (pair.entry.fileno(), pair.exit.fileno())
    hand_over(pair.entry, connection.fileno(), "f\u00fcr sie")
    adopted = HandoffPair.adopt(*map(os.dup, pair.fds))
    fd, client = taker(adopted.exit)()
    assert client == "f?r sie"
    os.close(fd)
    adopted.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(adopted.fds[0])


def test_both_ends_are_non_blocking_and_close_on_exec(pair: HandoffPair) -> None:
    assert [os.get_blocking(fd) for fd in pair.fds] == [False, False]
    assert [os.get_inheritable(fd) for fd in pair.fds] == [False, False]


def block(sock: socket.socket) -> None:
    sock.setblocking(True)


def pass_credentials(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def pass_label(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSSEC, 1)


@pytest.mark.parametrize(
    ("end", "name", "spoil"),
    [
        ("entry", "O_NONBLOCK", block),
        ("exit", "O_NONBLOCK", block),
        ("exit", "SO_PASSCRED", pass_credentials),
        ("exit", "SO_PASSSEC", pass_label),
    ],
)
def test_what_a_worker_has_changed_is_named_and_undone(
    pair: HandoffPair, end: str, name: str, spoil: Callable[[socket.socket], None]
) -> None:
    assert pair.spoiled == ""
    spoil(getattr(pair, end))
    assert pair.spoiled == f"changed: {name}"
    pair.set_right()
    assert pair.spoiled == ""


def test_a_filter_and_a_shutdown_are_seen_and_stay(pair: HandoffPair) -> None:
    steering._attach(pair.exit, steering.SO_ATTACH_FILTER, ((bpf.RETURN, 0, 0, 0),))
    assert pair.spoiled == "changed: SO_ATTACH_FILTER"
    pair.set_right()
    assert has_filter(pair.exit)
    assert not has_filter(pair.entry)
    pair.exit.shutdown(socket.SHUT_RD)
    assert pair.spoiled == "shut down"


def test_an_end_that_was_closed_takes_nothing_more(pair: HandoffPair) -> None:
    def ended() -> tuple[bool, bool]:
        return pair.closed, receives_no_more(pair.exit)

    assert ended() == (False, False)
    pair.close_entry()
    assert ended() == (True, True)


def test_an_exit_is_told_from_a_listener(pair: HandoffPair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_exit(listener)
    assert is_exit(pair.exit)
