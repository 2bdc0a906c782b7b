"""The listeners of a worker and how it waits for them, by real sockets and epoll."""

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from greeterd.sockets.fd_passing import HandoffPair
from greeterd.worker.acceptor import UNNAMED, Acceptor
from tests.integration.worker.loops import FullEpoll


@pytest.fixture
def epoll() -> Iterator[select.epoll]:
    with select.epoll() as made:
        yield made


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        made = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        for sock in made:
            sock.setblocking(False)
        yield made


@pytest.fixture
def clients(listeners: list[socket.socket]) -> Iterator[list[socket.socket]]:
    """Return a client that waits at each listener."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(sock.getsockname())) for sock in listeners
        ]


def made(epoll: select.epoll, wait: str, listeners: list[socket.socket]) -> Acceptor:
    acceptor = Acceptor(epoll, wait)
    for sock in listeners:
        acceptor.add(sock)
    return acceptor


def reported(epoll: select.epoll) -> list[int]:
    return sorted(fd for fd, _ in epoll.poll(0))


class Recorder:
    """An epoll that notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def register(self, fd: int, events: int) -> None:
        """Note it."""
        self.calls.append(("register", fd, events))

    def unregister(self, fd: int) -> None:
        """Note it."""
        self.calls.append(("unregister", fd, 0))


@pytest.mark.parametrize("wait", ["rotate", "exclusive", "epoll"])
def test_listeners_are_reported_while_they_are_watched(
    epoll: select.epoll, listeners: list[socket.socket], clients: list[socket.socket], wait: str
) -> None:
    acceptor = made(epoll, wait, listeners)
    assert reported(epoll) == []
    for _ in range(2):  # the second time it is so already
        acceptor.watch(on=True)
    assert reported(epoll) == sorted(acceptor.sources)
    for _ in range(2):
        acceptor.watch(on=False)
    assert reported(epoll) == []
    assert len(clients) == 2


@pytest.mark.parametrize(
    ("wait", "mask"),
    [
        ("rotate", select.EPOLLIN | select.EPOLLEXCLUSIVE),
        ("exclusive", select.EPOLLIN | select.EPOLLEXCLUSIVE),
        ("epoll", select.EPOLLIN),
        ("blocking", select.EPOLLIN),
    ],
)
def test_a_strategy_waits_exclusively_or_not(
    listeners: list[socket.socket], wait: str, mask: int
) -> None:
    recorder = Recorder()
    acceptor = made(recorder, wait, listeners[:1])  # type: ignore[arg-type]
    acceptor.watch(on=True)
    [fd] = acceptor.sources
    assert recorder.calls == [("register", fd, mask)]


@pytest.mark.parametrize("wait", ["rotate", "exclusive", "epoll"])
def test_only_rotate_goes_to_the_tail_after_some_accepts(
    listeners: list[socket.socket], wait: str
) -> None:
    recorder = Recorder()
    acceptor = made(recorder, wait, listeners[:1])  # type: ignore[arg-type]
    acceptor.watch(on=True)
    [(fd, source)] = acceptor.sources.items()
    del recorder.calls[:]
    found = []
    for taken in (15, 1, 15, 16):
        acceptor.note(fd, source, taken)
        found.append([call for call, _, _ in recorder.calls])
        del recorder.calls[:]
    again = ["unregister", "register"] if wait == "rotate" else []
    assert found == [[], again, [], again]


def test_what_is_not_watched_does_not_rotate(listeners: list[socket.socket]) -> None:
    recorder = Recorder()
    acceptor = made(recorder, "rotate", listeners[:1])  # type: ignore[arg-type]
    [(fd, source)] = acceptor.sources.items()
    acceptor.note(fd, source, 100)
    assert recorder.calls == []


def test_a_listener_that_comes_later_is_watched_as_the_others_are(
    epoll: select.epoll, listeners: list[socket.socket], clients: list[socket.socket]
) -> None:
    acceptor = made(epoll, "epoll", listeners[:1])
    acceptor.watch(on=True)
    acceptor.add(listeners[1], 7)
    assert reported(epoll) == sorted(sock.fileno() for sock in listeners)
    assert acceptor.lent_from(7) == [listeners[1].fileno()]
    assert acceptor.lent_from(8) == []
    masters_copy = listeners[1].dup()  # the kernel watches a description until its last copy closes
    acceptor.close(acceptor.lent_from(7))
    assert listeners[1].fileno() == -1
    assert reported(epoll) == [listeners[0].fileno()]
    masters_copy.close()
    acceptor.watch(on=False)
    acceptor.close([listeners[0].fileno()])
    assert acceptor.sources == {}
    assert len(clients) == 2


def test_a_listener_that_epoll_refuses_is_closed(listeners: list[socket.socket]) -> None:
    acceptor = made(FullEpoll(), "epoll", [])  # type: ignore[arg-type]
    acceptor.watch(on=True)
    with pytest.raises(OSError, match="No space left"):
        acceptor.add(listeners[0])
    assert listeners[0].fileno() == -1
    assert acceptor.sources == {}


@pytest.mark.parametrize(
    ("wait", "watched", "found"),
    [
        ("rotate", True, True),
        ("exclusive", True, True),
        ("exclusive", False, False),
        ("epoll", True, False),
    ],
)
def test_who_waits_exclusively_looks_for_what_it_was_not_woken_for(  # noqa: PLR0917
    epoll: select.epoll,
    listeners: list[socket.socket],
    clients: list[socket.socket],
    wait: str,
    watched: bool,
    found: bool,
) -> None:
    acceptor = made(epoll, wait, listeners)
    acceptor.watch(on=watched)
    assert sorted(acceptor.overlooked()) == (sorted(acceptor.sources) if found else [])
    if found:
        for sock in listeners:
            sock.accept()[0].close()
        assert acceptor.overlooked() == []
    assert len(clients) == 2


def test_a_blocking_accept_waits_for_one_listener_only(
    epoll: select.epoll, listeners: list[socket.socket]
) -> None:
    assert made(epoll, "blocking", []).blocking_source is None
    one = made(epoll, "blocking", listeners[:1])
    assert one.blocking_source is one.sources[listeners[0].fileno()]
    assert made(epoll, "blocking", listeners).blocking_source is None
    assert made(epoll, "epoll", listeners[:1]).blocking_source is None


def test_peers_are_named_by_their_family(
    epoll: select.epoll, listeners: list[socket.socket]
) -> None:
    pair = HandoffPair.make()
    acceptor = made(epoll, "epoll", listeners[:1])
    with socket.socket(socket.AF_INET6) as v6, socket.socket(socket.AF_UNIX) as unix:
        for sock in (v6, unix, pair.exit):
            acceptor.add(sock)
        names = [source.name_peer for source in acceptor.sources.values()]
        assert names[0](("192.0.2.1", 5)) == "192.0.2.1:5"
        assert names[1](("2001:db8::1", 5, 0, 0)) == "[2001:db8::1]:5"
        assert names[2]("") == UNNAMED == "unix"
        assert names[3]("192.0.2.2:6") == "192.0.2.2:6"
        assert [source.ends for source in acceptor.sources.values()] == [False] * 3 + [True]
        sources = acceptor.sources.values()
        assert {(source.lender, source.taken) for source in sources} == {(None, 0)}
    pair.close()


def test_a_source_accepts_raw_descriptors_with_their_peers(
    epoll: select.epoll, listeners: list[socket.socket], clients: list[socket.socket]
) -> None:
    acceptor = made(epoll, "epoll", listeners[:1])
    [source] = acceptor.sources.values()
    fd, peer = source.accept()
    socket.socket(fileno=fd).close()
    assert source.name_peer(peer) == "{}:{}".format(*clients[0].getsockname())
    with pytest.raises(BlockingIOError):
        source.accept()
