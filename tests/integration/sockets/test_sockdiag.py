"""What the kernel tells of a listener: its queue, its losses, the handshakes under way."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from greeterd.sockets import sockdiag
from greeterd.sockets.address import Address
from greeterd.sockets.listener import local_address
from greeterd.sockets.sockdiag import Queue, drops, handshakes, is_under_way, queue_length
from tests.integration.sockets.groups import connected, connecting, group, half_open, hear, shared
from tests.support import until


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Close the test's sockets in reverse order."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_queue_tells_who_waits_and_how_many_may(opened: ExitStack, host: str) -> None:
    listener = shared(opened, Address(host=host, port=0), backlog=7)
    assert queue_length(listener) == Queue(now=0, limit=7)
    clients = [connecting(opened, listener) for _ in range(3)]
    until(lambda: all(map(connected, clients)))
    assert queue_length(listener) == Queue(now=3, limit=7)
    listener.accept()[0].close()
    assert queue_length(listener) == Queue(now=2, limit=7)


def test_a_unix_queue_tells_the_same(opened: ExitStack, tmp_path: Path) -> None:
    listener = shared(opened, Address(path=str(tmp_path / "socket")), backlog=7)
    connecting(opened, listener)
    connecting(opened, listener)
    assert queue_length(listener) == Queue(now=2, limit=7)


def test_a_full_queue_counts_those_it_drops(opened: ExitStack) -> None:
    listener = shared(opened, backlog=1)
    clients = [connecting(opened, listener) for _ in range(2)]
    until(lambda: all(map(connected, clients)))
    assert drops(listener) == 0
    connecting(opened, listener)
    until(lambda: drops(listener) == 1)
    assert queue_length(listener) == Queue(now=2, limit=1)


def test_a_unix_socket_counts_no_drops(opened: ExitStack, tmp_path: Path) -> None:
    listener = shared(opened, Address(path=str(tmp_path / "socket")))
    with pytest.raises(OSError, match="counts no drops"):
        drops(listener)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_handshake_is_half_open_while_the_client_has_not_answered(
    opened: ExitStack, host: str
) -> None:
    listener = shared(opened, Address(host=host, port=0))
    connecting(opened, listener, deaf=True)
    until(lambda: half_open(local_address(listener)) == 1)


def test_a_connection_that_is_made_is_not_half_open(opened: ExitStack) -> None:
    listener = shared(opened)
    client = connecting(opened, listener)
    until(lambda: connected(client))
    assert half_open(local_address(listener)) == 0


def test_a_listener_for_both_families_has_handshakes_of_both(opened: ExitStack) -> None:
    listener = opened.enter_context(
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    port = listener.getsockname()[1]
    connecting(opened, listener, deaf=True)
    connecting(opened, listener, deaf=True, over=("127.0.0.1", port))
    until(lambda: half_open(local_address(listener)) == 2)


def test_handshakes_with_other_addresses_are_not_counted(opened: ExitStack) -> None:
    busy, idle = shared(opened), shared(opened)
    connecting(opened, busy, deaf=True)
    until(lambda: half_open(local_address(busy)) == 1)
    assert half_open(local_address(idle)) == 0
    assert half_open(Address(host="127.0.0.2", port=local_address(busy).port)) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_handshake_is_under_way_until_its_client_answers(opened: ExitStack, host: str) -> None:
    members = group(opened, 2, Address(host=host, port=0))
    address = local_address(members[0])
    early = connecting(opened, members[0], deaf=True)
    [before] = until(lambda: [each for portion in handshakes([address]) for each in portion])
    assert is_under_way(before)
    late = connecting(opened, members[0], deaf=True)
    until(lambda: half_open(address) == 2)
    hear(early)
    until(lambda: connected(early))
    assert not is_under_way(before)
    assert not connected(late)
    assert half_open(address) == 1


def test_a_handshake_over_ipv4_with_a_listener_for_both_can_be_looked_up(opened: ExitStack) -> None:
    listener = opened.enter_context(
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    client = connecting(opened, listener, deaf=True, over=("127.0.0.1", listener.getsockname()[1]))
    address = local_address(listener)
    [found] = until(lambda: [each for portion in handshakes([address]) for each in portion])
    assert is_under_way(found)
    hear(client)
    until(lambda: not is_under_way(found))


def test_one_dump_a_family_answers_for_all_addresses(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    listeners = [shared(opened) for _ in range(8)]
    listeners += [shared(opened, Address(host="::1", port=0)) for _ in range(2)]
    for listener in listeners:
        connecting(opened, listener, deaf=True)
    addresses = [*map(local_address, listeners)]
    until(lambda: half_open(*addresses) == 10)
    asked: list[int] = []
    ask = sockdiag._ask

    def counted(request: bytes, flags: int) -> Iterator[list[bytes]]:
        asked.append(request[0])
        return ask(request, flags)

    monkeypatch.setattr(sockdiag, "_ask", counted)
    assert half_open(*addresses) == 10
    assert half_open(*addresses[:3]) == 3
    assert asked == [socket.AF_INET, socket.AF_INET6, socket.AF_INET]


def test_a_dump_ends_when_nobody_wants_more_of_it(opened: ExitStack) -> None:
    listener = shared(opened)
    for _ in range(3):
        connecting(opened, listener, deaf=True)
    until(lambda: half_open(local_address(listener)) == 3)
    before = [*Path("/proc/self/fd").iterdir()]
    look = handshakes([local_address(listener)])
    assert len(next(look)) == 3
    look.close()
    assert len([*Path("/proc/self/fd").iterdir()]) == len(before)
