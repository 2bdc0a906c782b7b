"""The socketpair by which connections are handed over."""

import errno
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from greeterd.sockets.fd_passing import QUEUE_LIMIT, HandoffPair, hand_over, is_exit, taker, waiting
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


def test_an_exit_is_told_from_a_listener(pair: HandoffPair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_exit(listener)
    assert is_exit(pair.exit)
