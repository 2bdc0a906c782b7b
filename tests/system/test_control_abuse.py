"""Clients of a real daemon's control socket that are slow, huge or broken: cut off, and no more."""

import contextlib
import json
import socket
import time

import pytest

from greeterd.control import connect
from greeterd.control.protocol import MAX_REQUEST_BYTES
from greeterd.control.server import MAX_CONNECTIONS, REQUEST_TIMEOUT
from tests.support import until
from tests.system.clients import greet
from tests.system.conftest import StartDaemon
from tests.system.footprint import Footprint
from tests.system.harness import Daemon, Record

PING = b'{"version":1,"command":"ping"}\n'


def control(server: Daemon) -> socket.socket:
    """Return a connection to the control socket."""
    sock = connect(server.run_dir / "control.sock", time.monotonic() + 30.0)
    sock.settimeout(30.0)
    return sock


def line_of(sock: socket.socket) -> Record:
    """Return the next answer."""
    data = b""
    while not data.endswith(b"\n"):
        piece = sock.recv(65536)
        assert piece, f"end of stream after {data!r}"
        data += piece
    answer: Record = json.loads(data)
    return answer


@pytest.mark.parametrize(
    ("request_made", "reason"),
    [
        (b"hello\n", "broken JSON"),
        (b"\n", "broken JSON"),
        (b"\xff\xfe\x00\n", "broken JSON"),
        (b'{"version":1,' * 5000 + b"\n", "broken JSON"),
        (b"[" * 5000 + b"\n", "wrong request"),
        (b"{}\n", "wrong request"),
        (b'{"version":2,"command":"ping"}\n', "version 2 of the protocol is not supported"),
        (b'{"version":1,"command":"dance"}\n', "unknown command"),
        (b'{"version":1,"command":"scale"}\n', "wrong request"),
        (b'{"version":1,"command":"scale","arguments":{"workers":0}}\n', "wrong request"),
        (b'{"version":1,"command":"stop","arguments":{"soon":true}}\n', "wrong request"),
    ],
)
def test_a_broken_request_is_refused_in_words_and_the_next_is_served(
    daemon: StartDaemon, request_made: bytes, reason: str
) -> None:
    server = daemon("--workers", "1")
    with control(server) as sock:
        sock.sendall(request_made)
        answer = line_of(sock)
        assert (answer["ok"], answer["code"], reason in answer["error"]) == (False, 2, True)
        sock.sendall(PING)
        assert line_of(sock)["ok"]
    assert reason in server.wait_event("control request refused")["reason"]


def test_a_huge_request_is_cut_off(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    with control(server) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                sock.sendall(b"x" * MAX_REQUEST_BYTES)
        assert line_of(sock)["error"] == f"a request has at most {MAX_REQUEST_BYTES} bytes"
    assert server.ctl("ping").returncode == 0


def test_a_slow_request_is_cut_off_and_delays_nobody(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1", "--reply")
    began = time.monotonic()  # before the connections, whose time it is
    with control(server) as slow, control(server) as idle:
        for number in range(len(PING)):
            slow.sendall(PING[number : number + 1])
            with control(server) as quick:
                quick.sendall(PING)
                assert line_of(quick)["ok"]
            if number == len(PING) // 2:
                break
        assert greet(server.address, "Alice") == "Hello, Alice\n"
        answer = line_of(slow)
        assert (answer["code"], "did not arrive within" in answer["error"]) == (75, True)
        assert slow.recv(1) == b""
        assert idle.recv(1) == b""
        assert REQUEST_TIMEOUT <= time.monotonic() - began < REQUEST_TIMEOUT + 5.0


def test_a_client_that_takes_no_answer_is_dropped_and_delays_nobody(daemon: StartDaemon) -> None:
    server = daemon("--workers", "4")
    before = Footprint.of(server)
    with control(server) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(0.5)
        with contextlib.suppress(TimeoutError, BrokenPipeError):
            for _ in range(10_000):
                deaf.sendall(b'{"version":1,"command":"status"}\n' * 10)
        began = time.monotonic()
        assert server.status()["state"] == "running"
        assert time.monotonic() - began < 2.0
        before.is_left_by(server, timeout=REQUEST_TIMEOUT + 10.0)
    assert server.status()["longest_stall"] < 0.5


def test_a_crowd_that_says_nothing_makes_room_for_who_has_something_to_say(
    daemon: StartDaemon,
) -> None:
    server = daemon("--workers", "1")
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(control(server)) for _ in range(3 * MAX_CONNECTIONS)]
        began = time.monotonic()
        assert server.status()["state"] == "running"
        assert time.monotonic() - began < REQUEST_TIMEOUT
        assert crowd[0].recv(1) == b""
    until(lambda: server.ctl("ping").returncode == 0)


def test_a_client_that_goes_away_takes_nothing_with_it(daemon: StartDaemon) -> None:
    server = daemon("--workers", "2")
    before = Footprint.of(server)
    for generation in range(2, 7):
        with control(server) as sock:
            sock.sendall(b'{"version":1,"command":"reload"}\n')
        server.wait_event("reload done", count=generation - 1)
        assert server.status()["generation"] == generation
    before.is_left_by(server)
