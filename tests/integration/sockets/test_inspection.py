"""What a worker may change about a shared listener, and that it is found and undone."""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greeterd.sockets import bpf, inspection, steering
from greeterd.sockets.inspection import ListenerTerms, listens, set_right, terms_of

SECOND = struct.pack("@ll", 1, 0)
TCP = ["127.0.0.1", "::1"]


def option(level: int, number: int, value: int | bytes) -> Callable[[socket.socket], object]:
    return lambda sock: sock.setsockopt(level, number, value)


EVERYWHERE: dict[str, Callable[[socket.socket], object]] = {
    "O_NONBLOCK": lambda sock: sock.setblocking(True),
    "SO_RCVTIMEO": option(socket.SOL_SOCKET, socket.SO_RCVTIMEO, SECOND),
    "SO_SNDTIMEO": option(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SECOND),
    "SO_LINGER": option(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0)),
    "SO_RCVLOWAT": option(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100),
    "backlog": lambda sock: sock.listen(1),
}
OVER_TCP: dict[str, Callable[[socket.socket], object]] = {
    **EVERYWHERE,
    "SO_DONTROUTE": option(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1),
    "SO_BINDTOIFINDEX": option(socket.SOL_SOCKET, 62, socket.if_nametoindex("lo")),
    "TCP_DEFER_ACCEPT": option(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5),
    "TCP_CORK": option(socket.IPPROTO_TCP, socket.TCP_CORK, 1),
    "TCP_USER_TIMEOUT": option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000),
    "SO_ATTACH_FILTER": lambda sock: steering._attach(
        sock, steering.SO_ATTACH_FILTER, ((bpf.RETURN, 0, 0, 0),)
    ),
}
V4 = {
    "IP_TTL": option(socket.IPPROTO_IP, socket.IP_TTL, 1),
    "IP_MINTTL": option(socket.IPPROTO_IP, 21, 200),
}
V6 = {
    "IPV6_UNICAST_HOPS": option(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1),
    "IPV6_MINHOPCOUNT": option(socket.IPPROTO_IPV6, 73, 200),
}
CASES = [
    *(("127.0.0.1", name, change) for name, change in (OVER_TCP | V4).items()),
    *(("::1", name, change) for name, change in (OVER_TCP | V6).items()),
    *(("unix", name, change) for name, change in EVERYWHERE.items()),
]


@pytest.fixture
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """Open a listener at the host that the test names, or at a path."""
    family = {"unix": socket.AF_UNIX, "::1": socket.AF_INET6}.get(request.param, socket.AF_INET)
    with socket.socket(family) as sock:
        sock.setblocking(False)
        sock.bind(str(tmp_path / "socket") if family == socket.AF_UNIX else (request.param, 0))
        sock.listen(64)
        yield sock


@pytest.mark.parametrize(
    ("listener", "name", "change"),
    CASES,
    ids=[f"{host}-{name}" for host, name, _ in CASES],
    indirect=["listener"],
)
def test_a_change_is_named_and_undone(
    listener: socket.socket, name: str, change: Callable[[socket.socket], object]
) -> None:
    terms = terms_of(listener)
    assert set_right(listener, terms) == []
    try:
        change(listener)
    except PermissionError:
        pytest.skip(f"this kernel lets only CAP_NET_ADMIN set {name}")
    assert set_right(listener, terms) == [name]
    assert terms_of(listener) == terms
    assert set_right(listener, terms) == []


@pytest.mark.parametrize("listener", ["127.0.0.1"], indirect=True)
def test_a_listener_that_is_to_block_is_made_to(listener: socket.socket) -> None:
    listener.setblocking(True)
    terms = terms_of(listener)
    listener.setblocking(False)
    assert set_right(listener, terms) == ["O_NONBLOCK"]
    assert os.get_blocking(listener.fileno())


@pytest.mark.parametrize("listener", [*TCP, "unix"], indirect=True)
def test_a_listener_that_was_shut_down_takes_no_client(listener: socket.socket) -> None:
    assert listens(listener)
    listener.shutdown(socket.SHUT_RDWR)
    assert not listens(listener)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_socket_that_never_listened_takes_no_client(family: int) -> None:
    with socket.socket(family) as sock:
        assert not listens(sock)


@pytest.mark.parametrize("listener", ["unix"], indirect=True)
def test_an_unknown_backlog_stays_as_it_is(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: socket.socket) -> None:
        raise OSError(errno.ENOENT, "no unix_diag")

    monkeypatch.setattr(inspection, "queue_length", refuse)
    terms = terms_of(listener)
    assert (terms.backlog, terms.blocking) == (None, False)
    assert set_right(listener, terms) == []


@pytest.mark.parametrize("listener", ["127.0.0.1"], indirect=True)
def test_an_option_that_an_older_kernel_has_not_is_left_out(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = errno.ENOPROTOOPT

    class Older(socket.socket):
        def getsockopt(self, level: int, option: int, *size: int) -> int | bytes:  # type: ignore[override]
            if (level, option) == (socket.SOL_SOCKET, 62):
                raise OSError(number, os.strerror(number))
            return super().getsockopt(level, option, *size)

    with Older(fileno=os.dup(listener.fileno())) as older:
        terms: ListenerTerms = terms_of(older)
        assert "SO_BINDTOIFINDEX" not in terms.options
        assert set_right(older, terms) == []
        monkeypatch.setattr(errno, "ENOPROTOOPT", -1)
        with pytest.raises(OSError, match="Protocol not available"):
            terms_of(older)
