"""What a worker does with connections that a gate may have made deaf."""

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from greeterd.core.address import parse_address
from greeterd.greetings import open_greeting_log
from greeterd.intake import Intake
from greeterd.listener import local_address, open_shared
from greeterd.scoreboard import OPEN, Scoreboard
from greeterd.service import Service

IP_MINTTL = 21  # linux/in.h
SHUT = 255


def ignore(event: str, **fields: object) -> None:
    """Be warned of something."""
    del event, fields


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    sock = open_shared(parse_address("127.0.0.1:0"), backlog=10, unix_mode=0)
    yield sock
    sock.close()


def test_a_gate_is_opened_for_connections_that_were_accepted_before_it_was_known(
    tmp_path: Path, listener: socket.socket
) -> None:
    row = Scoreboard(1).row(1, 0)
    greetings = open_greeting_log(tmp_path, worker=1, generation=1, pid=1, fsync=False)
    where = local_address(listener)
    with select.epoll() as epoll, socket.create_connection((where.host, where.port)) as client:
        service = Service(
            max_connections=10,
            max_name_bytes=100,
            client_timeout=10.0,
            allow_exit=False,
            reply=False,
            epoll=epoll,
            greetings=greetings,
            row=row,
            log=structlog.get_logger(),
            warn=ignore,
            on_exit=lambda: None,
        )
        intake = Intake(epoll, "epoll")
        intake.add(listener)
        [source] = intake.sources.values()
        assert service.burst(source, 1) == 1
        assert service.end_turn()
        assert row[OPEN] == 1
        [fd] = service._unfinished
        with socket.socket(fileno=fd) as accepted:
            accepted.setsockopt(socket.IPPROTO_IP, IP_MINTTL, SHUT)  # as it would have inherited
            service.open_gates()
            assert accepted.getsockopt(socket.IPPROTO_IP, IP_MINTTL) == 0
            accepted.detach()
        client.sendall(b"Alice")
        client.shutdown(socket.SHUT_WR)
        while not service.idle:
            for ready, _ in epoll.poll(10.0):
                service.handle(ready)
            assert service.end_turn()
        assert client.recv(1) == b""
    greetings.close()
    assert (tmp_path / "worker-1.log").read_text().count("Hello, Alice") == 1
