"""Descriptors between processes: all of a record or none, close-on-exec, closed in bounded time."""

import array
import contextlib
import os
import re
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greeterd.sockets import rights
from greeterd.system.signals import SignalPipe, prodded

PACKAGE = Path(rights.__file__).parent
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.setblocking(False)
    with left, right:
        yield left, right


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """Leave so many descriptors to be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def lingering() -> Iterator[int]:
    """Give a connection whose last close(2) takes a minute."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
        listener.accept()[0],
    ):
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(b"x" * 65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        yield sock.detach()


@pytest.mark.parametrize("count", [0, 1, 2, rights.MAX_FDS])
def test_a_record_has_its_descriptors(pair: Pair, count: int) -> None:
    ours, theirs = pair
    rights.send(theirs, b"data", [0] * count)
    parcel = rights.receive(ours, 100)
    assert (parcel.data, len(parcel.fds), parcel.cut, parcel.lost) == (b"data", count, False, False)
    assert not any(map(os.get_inheritable, parcel.fds))
    rights.close_all(parcel.fds)


def test_the_kernel_takes_no_more_descriptors_in_a_record(pair: Pair) -> None:
    _, theirs = pair
    with pytest.raises(OSError, match="Invalid argument"):
        rights.send(theirs, b"data", [0] * (rights.MAX_FDS + 1))


@pytest.mark.parametrize("sent", [1, 2, 3, 4, 253])
@pytest.mark.parametrize("most", [0, 1, 2])
def test_more_than_are_taken_are_none(pair: Pair, sent: int, most: int) -> None:
    ours, theirs = pair
    before = open_fds()
    rights.send(theirs, b"data", [0] * sent)
    parcel = rights.receive(ours, 100, most)
    assert parcel.lost == (sent > most)
    assert len(parcel.fds) == (0 if parcel.lost else sent)
    rights.close_all(parcel.fds)
    assert open_fds() == before


def test_credentials_are_not_taken_for_descriptors(pair: Pair) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    rights.send(theirs, b"data", [0])
    parcel = rights.receive(ours, 100)
    assert (parcel.data, len(parcel.fds), parcel.lost) == (b"data", 1, False)
    rights.close_all(parcel.fds)
    theirs.send(b"none")
    assert rights.receive(ours, 100) == rights.Parcel(b"none", [], cut=False, lost=False)


@pytest.mark.parametrize("room", [0, 1, 4])
def test_those_that_find_no_room_take_the_others_with_them(pair: Pair, room: int) -> None:
    ours, theirs = pair
    before = open_fds()
    rights.send(theirs, b"data", [0] * 5)
    with room_for(room):
        parcel = rights.receive(ours, 100)
    assert (parcel.data, parcel.fds, parcel.lost) == (b"data", [], True)
    assert open_fds() == before


def test_a_record_that_is_too_long_is_told_as_such(pair: Pair) -> None:
    ours, theirs = pair
    rights.send(theirs, b"x" * 101)
    assert rights.peek(ours, 100).cut
    assert rights.receive(ours, 100).cut


def test_a_look_opens_nothing_and_closes_nothing(pair: Pair) -> None:
    ours, theirs = pair
    before = open_fds()
    with lingering() as fd:
        rights.send(theirs, b"data", [fd])
        os.close(fd)
        began = time.monotonic()
        for _ in range(3):
            parcel = rights.peek(ours, 100)
            assert (parcel.data, parcel.fds, parcel.lost) == (b"data", [], True)
        assert time.monotonic() - began < 30.0
        assert open_fds() >= before
        with prodded():
            ours.close()


def test_nothing_waits_and_the_end_are_told_apart(pair: Pair) -> None:
    ours, theirs = pair
    for look in (rights.peek, rights.receive):
        with pytest.raises(BlockingIOError):
            look(ours, 100)
    theirs.close()
    assert (rights.peek(ours, 100).data, rights.receive(ours, 100).data) == (b"", b"")


@pytest.mark.parametrize("sent", [1, 2, 253])
def test_the_one_descriptor_of_a_record_is_the_first(pair: Pair, sent: int) -> None:
    ours, theirs = pair
    before = open_fds()
    rights.send(theirs, b"data", [1] + [0] * (sent - 1))
    data, fd = rights.receiver_of_one(ours, 100)()
    assert data == b"data"
    assert fd is not None
    assert os.path.sameopenfile(fd, 1)
    os.close(fd)
    assert open_fds() == before


def test_a_record_without_its_one_descriptor_is_told(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendmsg([b"data"])
    assert rights.receiver_of_one(ours, 100)() == (b"data", None)


def test_what_would_linger_is_closed_at_once(pair: Pair) -> None:
    _, theirs = pair
    fds = []
    with contextlib.ExitStack() as peers:
        for _ in range(5):
            fds.append(peers.enter_context(lingering()))
            rights.send(theirs, b"one", [fds[-1]])
        began = time.monotonic()
        rights.close_all(fds)
        with prodded():
            pair[0].close()  # and with it what is on its way
        assert time.monotonic() - began < 30.0


def test_what_is_closed_already_is_no_error() -> None:
    fd = os.dup(0)
    os.close(fd)
    rights.close_all([fd])


def test_the_prod_is_no_signal_of_the_daemon() -> None:
    before = signal.getsignal(signal.SIGALRM)
    pipe = SignalPipe(())
    try:
        with prodded():
            signal.pause()
        assert pipe.read() == []
    finally:
        pipe.close()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_descriptors_are_received_here_and_nowhere_else() -> None:
    word = re.compile(r"\brecvmsg\b|\brecv_fds\b|\brecvmsg_into\b")
    found = {path.name for path in PACKAGE.rglob("*.py") if word.search(path.read_text())}
    assert found == {"rights.py"}


def test_all_of_several_lists_arrive(pair: Pair) -> None:
    ours, theirs = pair
    one = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))
    theirs.sendmsg([b"data"], [one, one])
    parcel = rights.receive(ours, 100)
    assert len(parcel.fds) == 4
    rights.close_all(parcel.fds)
