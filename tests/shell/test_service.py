"""What a worker does with the connections of one burst, by real sockets."""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest
import structlog

from greeterd.core.address import Address, parse_address
from greeterd.greetings import open_greeting_log
from greeterd.intake import Intake, Source
from greeterd.listener import local_address, open_shared
from greeterd.scoreboard import OPEN, Scoreboard
from greeterd.service import FIRST_READ, Service

IP_MINTTL = 21  # linux/in.h
SHUT = 255


def ignore(event: str, **fields: object) -> None:
    """Be warned of something."""
    del event, fields


class Office:
    """A service with a listener and a log of its own."""

    def __init__(self, directory: Path, *, address: Address, reply: bool) -> None:
        self._listener = open_shared(address, backlog=100, unix_mode=0o600)
        self._address = local_address(self._listener)
        self._directory = directory
        self._greetings = open_greeting_log(directory, worker=1, generation=1, pid=1, fsync=False)
        self.epoll = select.epoll()
        self.row = Scoreboard(1).row(1, 0)
        self.service = Service(
            max_connections=100,
            max_name_bytes=1000,
            client_timeout=10.0,
            allow_exit=False,
            reply=reply,
            epoll=self.epoll,
            greetings=self._greetings,
            row=self.row,
            log=structlog.get_logger(),
            warn=ignore,
            on_exit=lambda: None,
        )
        self._intake = Intake(self.epoll, "epoll")
        self._intake.add(self._listener)

    @property
    def source(self) -> Source:
        """The listener as a worker has it."""
        [source] = self._intake.sources.values()
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

    def serve(self) -> None:
        """Turn until nothing is left to serve."""
        assert self.service.end_turn()
        while not self.service.idle:
            for ready, _ in self.epoll.poll(10.0):
                assert self.service.handle(ready)
            assert self.service.end_turn()

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


def minimum_ttl(fd: int, value: int | None = None) -> int:
    """Look at what a gate leaves on a connection, or set it as a connection would inherit it."""
    with socket.socket(fileno=os.dup(fd)) as accepted:
        if value is not None:
            accepted.setsockopt(socket.IPPROTO_IP, IP_MINTTL, value)
        return accepted.getsockopt(socket.IPPROTO_IP, IP_MINTTL)


def test_a_gate_is_opened_for_connections_that_were_accepted_before_it_was_known(
    office: Office,
) -> None:
    with office.connect() as client:
        assert office.service.burst(office.source, 1) == 1
        assert office.service.end_turn()
        assert office.row[OPEN] == 1
        [fd] = office.service._unfinished
        minimum_ttl(fd, SHUT)
        office.service.open_gates()
        assert minimum_ttl(fd) == 0
        client.sendall(b"Alice")
        client.shutdown(socket.SHUT_WR)
        office.serve()
        assert client.recv(1) == b""
    assert office.greeted() == ["Alice"]


@pytest.mark.parametrize("gated", [True, False])
def test_a_gate_is_opened_for_a_connection_that_is_complete_too(
    office: Office, *, gated: bool
) -> None:
    if gated:
        office.service.open_gates()
    accept = office.source.accept

    def accept_as_gated() -> tuple[int, object]:
        fd, peer = accept()
        minimum_ttl(fd, SHUT)
        return fd, peer

    office.source.accept = accept_as_gated
    with office.say(b"Alice"):
        assert office.service.burst(office.source, 1) == 1
        [fd] = office.service._finished
        assert minimum_ttl(fd) == (0 if gated else SHUT)
        office.serve()
    assert office.greeted() == ["Alice"]


@pytest.mark.parametrize("length", [1, FIRST_READ - 1, FIRST_READ, FIRST_READ + 1, 1000])
def test_a_name_of_any_length_is_greeted_whole(office: Office, length: int) -> None:
    with office.say(b"x" * length):
        assert office.service.burst(office.source, 1) == 1
        assert office.service.open == 0
        office.serve()
    assert office.greeted() == ["x" * length]


def test_urgent_data_hides_nothing_that_follows(office: Office) -> None:
    with office.connect() as client:
        client.sendall(b"Ali")
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"ce")
        client.shutdown(socket.SHUT_WR)
        assert office.service.burst(office.source, 1) == 1
        office.serve()
    assert office.greeted() == ["Alice"]


def test_descriptors_that_come_along_hide_nothing_that_follows(unix_office: Office) -> None:
    with unix_office.connect() as client:
        socket.send_fds(client, [b"Ali"], [client.fileno()])
        client.sendall(b"ce")
        client.shutdown(socket.SHUT_WR)
        assert unix_office.service.burst(unix_office.source, 1) == 1
        unix_office.serve()
    assert unix_office.greeted() == ["Alice"]


def test_who_has_said_nothing_or_not_all_is_waited_for(office: Office) -> None:
    with office.connect() as silent, office.connect() as slow, office.say(b"Carol"):
        slow.sendall(b"Bo")
        assert office.service.burst(office.source, 100) == 3
        assert office.service.end_turn()
        assert office.greeted() == ["Carol"]
        assert office.row[OPEN] == 2
        silent.sendall(b"Alice")
        silent.shutdown(socket.SHUT_WR)
        slow.sendall(b"b")
        slow.shutdown(socket.SHUT_WR)
        office.serve()
    assert sorted(office.greeted()) == ["Alice", "Bob", "Carol"]


def test_connections_are_closed_run_by_run_around_those_that_stay(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[int, int]] = []

    def close_range(low: int, high: int) -> None:
        runs.append((low, high))
        for fd in range(low, high):
            os.close(fd)

    monkeypatch.setattr(os, "closerange", close_range)
    with ExitStack() as fillers:
        for _ in range(64):  # no gap of this process's descriptors is left below
            fillers.callback(os.close, os.dup(office.epoll.fileno()))
        with office.say(b"Alice"), office.say(b"Bob"), office.connect(), office.say(b"Carol"):
            assert office.service.burst(office.source, 100) == 4
            [stays] = office.service._unfinished
            assert office.service.end_turn()
        assert runs == [(stays - 2, stays), (stays + 1, stays + 2)]
        os.fstat(stays)
        office.serve()
    assert office.greeted() == ["Alice", "Bob", "Carol"]


def test_a_reply_does_not_wait_for_room(tmp_path: Path) -> None:
    address = parse_address("127.0.0.1:0")
    with (
        closing(Office(tmp_path, address=address, reply=True)) as office,
        office.say(b"Alice") as client,
    ):
        assert office.service.burst(office.source, 1) == 1
        [(fd, name)] = office.service._replies
        assert (os.get_blocking(fd), name) == (False, "Alice")
        office.serve()
        assert client.makefile("rb").read() == b"Hello, Alice\n"
