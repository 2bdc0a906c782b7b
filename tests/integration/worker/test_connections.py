"""What a worker does with the connections of one burst, by real sockets."""

import errno
import os
import select
import socket
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from greeterd.sockets.address import Address, parse_address
from greeterd.sockets.fd_passing import HandoffPair, hand_over, taker
from greeterd.sockets.listener import local_address, open_shared
from greeterd.worker import connections, counters
from greeterd.worker.acceptor import Acceptor, Source
from greeterd.worker.connections import FIRST_READ, ConnectionHandler, _close_all
from greeterd.worker.counters import Row, spare_row
from greeterd.worker.greeting_log import open_greeting_log
from tests.integration.worker.loops import FullEpoll, largest_file, minimum_ttl

SHUT = 255


def wait(fd: int, event: int) -> None:
    """Wait until this is so."""
    poll = select.poll()
    poll.register(fd, event)
    assert poll.poll(10_000)


class Office:
    """A connection handler with a listener and a log of its own."""

    def __init__(self, directory: Path, *, address: Address, reply: bool) -> None:
        self._listener = open_shared(address, backlog=100, unix_mode=0o600)
        self._address = local_address(self._listener)
        self._directory = directory
        lock = os.memfd_create("lock")
        self._greetings = open_greeting_log(
            directory, lock=lock, worker=1, generation=1, pid=1, fsync=False
        )
        os.close(lock)
        self.warnings: list[str] = []
        self.epoll = select.epoll()
        self.row = spare_row()
        self.handler = ConnectionHandler(
            max_connections=100,
            max_name_bytes=1000,
            client_timeout=10.0,
            allow_exit=True,
            reply=reply,
            epoll=self.epoll,
            greetings=self._greetings,
            row=self.row,
            warn=lambda event, **_: self.warnings.append(event),
            on_exit=lambda: self.warnings.append("exit"),
        )
        self._acceptor = Acceptor(self.epoll, "epoll")
        self._acceptor.add(self._listener)

    @property
    def source(self) -> Source:
        """The listener as a worker has it."""
        [source] = self._acceptor.sources.values()
        return source

    def connect(self) -> socket.socket:
        """Return a client's end."""
        if self._address.is_unix:
            client = socket.socket(socket.AF_UNIX)
            client.connect(self._address.path)
            return client
        return socket.create_connection((self._address.host, self._address.port))

    def say(self, data: bytes) -> socket.socket:
        """Connect, say it, and half-close."""
        client = self.connect()
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return client

    def burst(self, clients: int, incomplete: Collection[int] = ()) -> list[int]:
        """Serve a burst of so many clients, which have said all but for some, by their places.

        Return the descriptors of their connections.
        """
        taken: list[int] = []

        def accept() -> tuple[int, object]:
            if len(taken) < clients:
                wait(self._listener.fileno(), select.POLLIN)
            fd, peer = self.source.accept()
            if len(taken) < clients and len(taken) not in incomplete:
                wait(fd, select.POLLRDHUP)
            taken.append(fd)
            return fd, peer

        assert self.handler.burst(replace(self.source, accept=accept), 100) == clients
        return taken

    def serve(self) -> None:
        """Turn until nothing is left to serve."""
        assert self.handler.end_turn()
        while not self.handler.idle:
            for ready, _ in self.epoll.poll(10.0):
                assert self.handler.on_event(ready)
            assert self.handler.end_turn()

    def greeted(self) -> list[str]:
        """Return the names in the log."""
        lines = (self._directory / "worker-1.log").read_bytes().splitlines()
        return [msgspec.json.decode(line)["name"] for line in lines]

    def close(self) -> None:
        """Close it all."""
        self._greetings.close()
        self._listener.close()
        self.epoll.close()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with closing(Office(tmp_path, address=parse_address("127.0.0.1:0"), reply=False)) as office:
        yield office


@pytest.fixture
def unix_office(tmp_path: Path) -> Iterator[Office]:
    address = parse_address(f"unix:{tmp_path}/socket")
    with closing(Office(tmp_path, address=address, reply=False)) as office:
        yield office


def balance(row: Row) -> Counter[str]:
    """Return how connections have ended; none is missing."""
    ends = ("GREETINGS", "EMPTY", "OVERSIZE", "TIMEOUT", "RESET", "EXIT", "OPEN")
    found = Counter({end.lower(): row[getattr(counters, end)] for end in ends})
    assert found.total() == row[counters.CONNECTIONS]
    return +found


def test_a_gate_is_opened_for_connections_that_were_accepted_before_it_was_known(
    office: Office,
) -> None:
    with office.connect() as client:
        office.burst(1, incomplete={0})
        assert office.handler.end_turn()
        assert balance(office.row) == {"open": 1}
        [fd] = office.handler._unfinished
        minimum_ttl(fd, SHUT)
        office.handler.open_gates()
        assert minimum_ttl(fd) == 0
        client.sendall(b"Alice")
        client.shutdown(socket.SHUT_WR)
        office.serve()
        assert client.recv(1) == b""
    assert office.greeted() == ["Alice"]


def gate_all(office: Office) -> None:
    """Let each connection come with its gate shut, as from a listener that is gated."""
    accept = office.source.accept

    def accept_as_gated() -> tuple[int, object]:
        fd, peer = accept()
        minimum_ttl(fd, SHUT)
        return fd, peer

    office.source.accept = accept_as_gated


@pytest.mark.parametrize("gated", [True, False])
def test_a_gate_is_opened_for_a_connection_that_is_complete_too(
    office: Office, *, gated: bool
) -> None:
    if gated:
        office.handler.open_gates()
    gate_all(office)
    with office.say(b"Alice"):
        office.burst(1)
        [fd] = office.handler._finished
        assert minimum_ttl(fd) == (0 if gated else SHUT)
        office.serve()
    assert office.greeted() == ["Alice"]


@pytest.mark.parametrize("length", [1, FIRST_READ - 1, FIRST_READ, FIRST_READ + 1, 1000])
def test_a_name_of_any_length_is_greeted_whole(office: Office, length: int) -> None:
    with office.say(b"x" * length):
        office.burst(1)
        assert not office.handler._unfinished
        office.serve()
    assert office.greeted() == ["x" * length]


def test_urgent_data_hides_nothing_that_follows(office: Office) -> None:
    with office.connect() as client:
        client.sendall(b"Ali")
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"ce")
        client.shutdown(socket.SHUT_WR)
        office.burst(1)
        office.serve()
    assert office.greeted() == ["Alice"]


def say_with_descriptors(office: Office) -> socket.socket:
    client = office.connect()
    socket.send_fds(client, [b"Ali"], [client.fileno()])
    client.sendall(b"ce")
    client.shutdown(socket.SHUT_WR)
    return client


def test_descriptors_that_come_along_hide_nothing_that_follows(unix_office: Office) -> None:
    with say_with_descriptors(unix_office):
        unix_office.burst(1)
        unix_office.serve()
    assert unix_office.greeted() == ["Alice"]


def test_nor_do_they_when_the_connection_is_handed_over(
    office: Office, unix_office: Office
) -> None:
    pair = HandoffPair.make()
    with closing(pair), say_with_descriptors(unix_office), office.say(b"Bob"):
        for source, family in ((unix_office.source, "unix"), (office.source, "127.0.0.1:1")):
            fd, _ = source.accept()
            hand_over(pair.entry, fd, family)
            os.close(fd)
        taken = Source(pair.exit, taker(pair.exit), str, None, ends=True)
        assert office.handler.burst(taken, 100) == 2
        office.serve()
    assert office.greeted() == ["Alice", "Bob"]


def test_who_has_said_nothing_or_not_all_is_waited_for(office: Office) -> None:
    with office.say(b"Carol"), office.connect() as silent, office.connect() as slow:
        slow.sendall(b"Bo")
        office.burst(3, incomplete={1, 2})
        assert office.handler.end_turn()
        assert office.greeted() == ["Carol"]
        assert balance(office.row) == {"greetings": 1, "open": 2}
        silent.sendall(b"Alice")
        silent.shutdown(socket.SHUT_WR)
        slow.sendall(b"b")
        slow.shutdown(socket.SHUT_WR)
        office.serve()
    assert sorted(office.greeted()) == ["Alice", "Bob", "Carol"]
    assert balance(office.row) == {"greetings": 3}


@pytest.mark.parametrize("awaited", [True, False])
def test_every_connection_of_a_burst_is_counted_once(office: Office, *, awaited: bool) -> None:
    said = [b"Alice", b"", b"\n", b"exit", b"y" * 1001, b"z" * 3000, b"Bob\r\n"]
    with ExitStack() as clients:
        for data in said:
            clients.enter_context(office.say(data))
        if awaited:
            office.handler.open_gates()  # all take the way of those that are not complete
        office.burst(len(said))
        office.serve()
    assert office.greeted() == ["Alice", "Bob"]
    assert balance(office.row) == {"greetings": 2, "empty": 2, "exit": 1, "oversize": 2}
    assert sorted(office.warnings) == ["exit", "name too long", "name too long"]


def test_who_says_too_much_is_refused_before_the_end(office: Office) -> None:
    with office.connect() as client:
        client.sendall(b"y" * 3000)
        office.burst(1, incomplete={0})
        office.serve()
        assert balance(office.row) == {"oversize": 1}
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_who_resets_is_counted_and_closed(office: Office) -> None:
    clients = [office.connect() for _ in range(2)]
    for client in clients:
        client.sendall(b"Ali")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    clients[0].close()
    connections = office.burst(2, incomplete={1})
    clients[1].close()
    office.serve()
    assert balance(office.row) == {"reset": 2}
    for fd in connections:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_what_was_accepted_before_an_error_is_served(office: Office) -> None:
    accept = office.source.accept
    left = [accept, accept]

    def accept_twice() -> tuple[int, object]:
        if not left:
            raise OSError(errno.EMFILE, "too many")
        return left.pop()()

    office.source.accept = accept_twice
    with office.say(b"Alice"), office.say(b"Bob"), office.say(b"Carol"):
        assert office.handler.burst(office.source, 100) == 2
        assert office.handler.accept_error == errno.EMFILE
        office.serve()
        assert office.greeted() == ["Alice", "Bob"]
        office.source.accept = accept
        office.burst(1)
        office.serve()
    assert office.greeted() == ["Alice", "Bob", "Carol"]
    assert balance(office.row) == {"greetings": 3}


def test_who_cannot_be_waited_for_is_reset_and_counted(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(office.handler, "_epoll", FullEpoll())
    with office.say(b"Alice"), office.connect() as silent:
        _, refused = office.burst(2, incomplete={1})
        # It is closed by the reset: its number may be another's when the turn ends.
        assert refused not in office.handler._finished
        assert refused not in office.handler._unfinished
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(refused)
        office.serve()
        with pytest.raises(ConnectionResetError):
            silent.recv(1)
    assert office.greeted() == ["Alice"]
    assert balance(office.row) == {"greetings": 1, "reset": 1}
    assert office.warnings == ["cannot wait for a client"]


def test_connections_are_closed_run_by_run(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(os, "closerange", lambda low, high: closed.append((low, high)))
    _close_all([12, 7, 8, 9, 20, 11])
    _close_all([5])
    assert closed == [(7, 10), (11, 13), (20, 21), (5, 6)]


def test_a_connection_that_stays_is_not_closed_with_those_around(office: Office) -> None:
    with office.say(b"Alice"), office.say(b"Bob"), office.connect() as stays, office.say(b"Carol"):
        office.burst(4, incomplete={2})
        assert office.handler.end_turn()
        assert balance(office.row) == {"greetings": 3, "open": 1}
        stays.sendall(b"Dave")
        stays.shutdown(socket.SHUT_WR)
        office.serve()
    assert office.greeted() == ["Alice", "Bob", "Carol", "Dave"]


def test_a_reply_does_not_wait_for_room(tmp_path: Path) -> None:
    address = parse_address("127.0.0.1:0")
    with (
        closing(Office(tmp_path, address=address, reply=True)) as office,
        office.say(b"Alice") as client,
    ):
        office.burst(1)
        [(fd, name)] = office.handler._replies.due
        assert (os.get_blocking(fd), name) == (False, "Alice")
        office.serve()
        assert client.makefile("rb").read() == b"Hello, Alice\n"


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EMFILE, None])
def test_an_error_of_accept_is_counted_unless_it_is_the_end_of_a_pair(
    office: Office, number: int | None, *, ends: bool
) -> None:
    def accept() -> tuple[int, object]:
        raise OSError("no number") if number is None else OSError(number, os.strerror(number))

    assert office.handler.burst(replace(office.source, accept=accept, ends=ends), 10) == 0
    assert office.handler.accept_error == (number or errno.EIO)
    expected = number != errno.EINVAL or not ends
    assert office.row[counters.ACCEPT_ERRORS] == expected
    assert office.handler.burst(office.source, 10) == 0
    assert office.handler.accept_error == 0


def test_the_oldest_connection_times_out_first(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = []
    for now in (100.0, 103.0):
        monkeypatch.setattr(connections, "monotonic", lambda now=now: now)
        clients.append(office.connect())
        office.burst(1, incomplete={0})
        assert office.handler.end_turn()
    assert office.handler.deadlines() == [110.0]
    assert office.handler.room == 98
    office.handler.expire(109.999)
    assert balance(office.row) == {"open": 2}
    office.handler.expire(110.0)
    assert office.handler.room == 98, "the one is to be closed yet"
    assert office.handler.end_turn()
    assert balance(office.row) == {"timeout": 1, "open": 1}
    assert clients[0].recv(1) == b""
    assert office.handler.deadlines() == [113.0]
    office.handler.expire(113.0)
    assert office.handler.end_turn()
    assert (office.handler.deadlines(), office.handler.idle) == ([], True)
    for client in clients:
        client.close()


def test_a_quick_end_resets_and_counts_every_unfinished_connection(office: Office) -> None:
    with office.connect() as one, office.connect() as other, office.say(b"Alice"):
        office.burst(3, incomplete={0, 1})
        office.handler.abandon()
        for client in (one, other):
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert not office.handler.idle, "what is greeted is written yet"
        office.serve()
    assert balance(office.row) == {"greetings": 1, "reset": 2}
    assert office.greeted() == ["Alice"]


def test_a_connection_is_open_until_its_line_is_written(office: Office) -> None:
    with office.say(b"Alice"), office.connect():
        office.burst(2, incomplete={1})
        with largest_file(0):
            for errors in (1, 2):
                assert not office.handler.end_turn()
                assert office.row[counters.LOG_ERRORS] == errors
                assert balance(office.row) == {"open": 2}
                assert not office.handler.idle
                assert office.handler.room == 98
        assert office.handler.end_turn()
        assert balance(office.row) == {"greetings": 1, "open": 1}
        assert office.row[counters.LOG_ERRORS] == 2
    assert office.greeted() == ["Alice"]


def test_a_name_is_limited_by_its_bytes_however_it_comes(office: Office) -> None:
    with office.connect() as client:
        office.burst(1, incomplete={0})
        client.sendall(b"x" * 1000)
        client.sendall(b"\r\n")
        client.shutdown(socket.SHUT_WR)
        office.serve()
    with office.connect() as client:
        office.burst(1, incomplete={0})
        client.sendall(b"x" * 1003)
        office.serve()
        assert balance(office.row) == {"greetings": 1, "oversize": 1}
    assert office.greeted() == ["x" * 1000]


def test_what_reads_more_than_it_may_is_no_connection_of_ours(office: Office) -> None:
    assert not office.handler.on_event(office._listener.fileno())


@pytest.mark.parametrize("gated", [True, False])
def test_the_gate_of_an_unfinished_connection_is_opened_while_there_are_gates(
    office: Office, *, gated: bool
) -> None:
    gate_all(office)
    office.handler.open_gates()
    if not gated:
        office.handler.stop_opening_gates()
    with office.connect():
        [fd] = office.burst(1, incomplete={0})
        assert not os.get_blocking(fd), "a read must not wait for the client"
        assert minimum_ttl(fd) == (0 if gated else SHUT)
        office.handler.abandon()


def test_an_exit_is_reported_and_closed_without_a_reply(tmp_path: Path) -> None:
    address = parse_address("127.0.0.1:0")
    with (
        closing(Office(tmp_path, address=address, reply=True)) as office,
        office.say(b"exit") as client,
    ):
        office.burst(1)
        assert office.warnings == ["exit"]
        office.serve()
        assert client.recv(1) == b""
        assert balance(office.row) == {"exit": 1}
