"""Classic BPF in the kernel: steering within an SO_REUSEPORT group, and the SYN gate."""

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import pytest

from greeterd.sockets import steering
from greeterd.sockets.address import Address
from greeterd.sockets.bpf import HASH, Program, choose, cpu_over, cpu_table, random_over
from greeterd.sockets.listener import local_address
from greeterd.sockets.sockdiag import drops, queue_length
from greeterd.sockets.steering import (
    gate_syn,
    is_gated_by_ttl,
    open_gate,
    ungate,
)
from tests.integration.sockets.groups import (
    connected,
    connecting,
    group,
    half_open,
    hear,
    keep_port,
    shared,
    takers,
    unanswered,
)
from tests.support import until

LOOPBACKS = [Address(host="127.0.0.1", port=0), Address(host="::1", port=0)]


def steer(member: socket.socket, indexes: Iterable[int] | None) -> None:
    """Spread new connections over these indexes; None: by the hash."""
    steering.steer(member, None if indexes is None else random_over(indexes))


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Close the test's sockets in reverse order."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.shows("steering random")
@pytest.mark.parametrize("address", LOOPBACKS, ids=str)
def test_steering_spreads_over_the_given_indexes_alone(opened: ExitStack, address: Address) -> None:
    members = group(opened, 4, address)
    steer(members[0], [0, 1, 3])
    count = takers(members, 300)
    assert set(count) == {0, 1, 3}
    assert min(count.values()) > 50  # 100 each, give or take 8; 50 is six deviations away


def test_a_listener_that_lost_new_connections_keeps_the_queued_ones(opened: ExitStack) -> None:
    members = group(opened, 2)
    steer(members[0], [0])
    connecting(opened, members[0])
    until(lambda: queue_length(members[0]).now == 1)
    steer(members[0], [1])
    assert takers(members[1:], 20) == {0: 20}
    assert queue_length(members[0]).now == 1


def test_a_handshake_ends_at_the_listener_that_was_chosen_for_its_syn(opened: ExitStack) -> None:
    members = group(opened, 2)
    steer(members[0], [0])
    client = connecting(opened, members[0], deaf=True)
    until(lambda: half_open(local_address(members[0])) == 1)
    steer(members[0], [1])
    hear(client)
    until(lambda: connected(client))
    assert [queue_length(member).now for member in members] == [1, 0]


def test_any_member_may_steer_and_the_last_program_holds(opened: ExitStack) -> None:
    members = group(opened, 3)
    steer(members[1], [1])
    steer(members[2], [2])
    assert takers(members, 20) == {2: 20}


def test_indexes_are_the_order_of_the_listen_calls(opened: ExitStack) -> None:
    members = group(opened, 1)
    late, early = (opened.enter_context(socket.socket()) for _ in range(2))
    for sock in (late, early):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(members[0].getsockname())
    early.listen()
    late.listen()
    steer(members[0], [1])
    assert takers([early, late], 20) == {0: 20}


def test_the_last_listener_moves_into_the_place_of_a_closed_one(opened: ExitStack) -> None:
    members = group(opened, 4)
    steer(members[0], [1])
    members[1].close()
    del members[1]
    assert takers(members, 20) == {2: 20}


@pytest.mark.shows("steering hash")
def test_without_a_program_the_hash_is_back(opened: ExitStack) -> None:
    members = group(opened, 2)
    steer(members[0], [1])
    steer(members[0], None)
    assert set(takers(members, 100)) == {0, 1}


def test_a_group_without_a_program_can_be_given_back_to_the_hash(opened: ExitStack) -> None:
    members = group(opened, 1)
    steer(members[0], None)
    assert takers(members, 1) == {0: 1}


def test_a_kernel_that_cannot_detach_gives_back_to_the_hash(opened: ExitStack) -> None:
    class Old(socket.socket):
        def setsockopt(self, level: int, option: int, value: object) -> None:  # type: ignore[override]
            if option == steering.SO_DETACH_REUSEPORT_BPF:
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            super().setsockopt(level, option, value)  # type: ignore[call-overload]

    members = group(opened, 2)
    steer(members[0], [1])
    steer(opened.enter_context(Old(fileno=os.dup(members[0].fileno()))), None)
    assert set(takers(members, 100)) == {0, 1}


def test_an_index_that_nobody_has_falls_back_to_the_hash(opened: ExitStack) -> None:
    members = group(opened, 2)
    steer(members[0], [2])
    assert set(takers(members, 100)) == {0, 1}


def test_a_program_for_512_listeners_with_every_other_left_out_is_taken(opened: ExitStack) -> None:
    members = group(opened, 2)
    steer(members[0], range(1, 512, 2))
    assert takers(members, 20).total() == 20


def test_a_listener_of_no_group_cannot_be_steered(opened: ExitStack) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        steer(shared(opened), [0])


@pytest.fixture
def cpu() -> Iterator[int]:
    """Run on one CPU, whose softirq then handles what is sent over loopback."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield max(before)
    os.sched_setaffinity(0, before)


def test_cpus_dealt_out_by_turns_give_a_connection_to_its_cpu(opened: ExitStack, cpu: int) -> None:
    members = group(opened, cpu + 2)
    steering.steer(members[0], cpu_over(range(len(members))))
    assert takers(members, 20) == {cpu: 20}


@pytest.mark.parametrize("address", LOOPBACKS, ids=str)
def test_a_table_gives_a_connection_to_an_owner_of_its_cpu(
    opened: ExitStack, cpu: int, address: Address
) -> None:
    members = group(opened, 4, address)
    steering.steer(members[0], cpu_table({cpu + 1: [1], cpu: [0, 3], cpu + 2: [2]}, HASH))
    count = takers(members, 100)
    assert set(count) == {0, 3}
    assert min(count.values()) > 20  # 50 each, give or take 5; 20 is six deviations away


def test_a_cpu_that_nobody_owns_is_left_to_the_hash(opened: ExitStack, cpu: int) -> None:
    members = group(opened, 2)
    steering.steer(members[0], cpu_table({cpu + 1: [1]}, HASH))
    assert set(takers(members, 100)) == {0, 1}


@pytest.mark.parametrize("how", ["hash", "cpu", "random"])
@pytest.mark.parametrize("pinned", ["here", "elsewhere", "nowhere"])
def test_a_listener_that_is_avoided_gets_nothing(
    opened: ExitStack, cpu: int, how: str, pinned: str
) -> None:
    members = group(opened, 3)
    where = {"here": cpu, "elsewhere": cpu + 1, "nowhere": None}[pinned]
    steering.steer(members[0], choose(how, [where] * 3, [1]))
    assert takers(members, 50)[1] == 0


@pytest.mark.parametrize("cpus", [1, 2, 512])
def test_the_kernel_takes_any_table_of_512_listeners(opened: ExitStack, cpus: int) -> None:
    """Its size counts after the kernel's own translation, against net.core.optmem_max."""
    members = group(opened, 2)
    order = sorted(range(512), key=lambda slot: slot % 7)
    steering.steer(members[0], choose("cpu", [slot % cpus for slot in order], [5]))
    assert takers(members, 20).total() == 20


@pytest.mark.parametrize("address", LOOPBACKS, ids=str)
def test_a_gate_leaves_new_connections_unanswered(opened: ExitStack, address: Address) -> None:
    listener = shared(opened, address)
    gate_syn(listener)
    client = connecting(opened, listener)
    until(lambda: drops(listener) == 1)
    assert unanswered(client)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert half_open(local_address(listener)) == 0


@pytest.fixture(params=["by a filter", "by the TTL"])
def _gate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have both kinds of gate, whatever this kernel lets this user do."""
    if request.param == "by the TTL":

        def refuse() -> Program:
            raise PermissionError

        monkeypatch.setattr(steering, "drop_syn", refuse)


@pytest.mark.usefixtures("_gate")
@pytest.mark.parametrize("address", LOOPBACKS, ids=str)
def test_a_gated_listener_finishes_what_had_begun(opened: ExitStack, address: Address) -> None:
    listener = shared(opened, address)
    queued = connecting(opened, listener)
    until(lambda: connected(queued))
    under_way = connecting(opened, listener, deaf=True)
    until(lambda: half_open(local_address(listener)) == 1)
    gate_syn(listener)
    hear(under_way)
    until(lambda: connected(under_way))
    assert half_open(local_address(listener)) == 0
    for client in (queued, under_way):
        taken = opened.enter_context(listener.accept()[0])
        if is_gated_by_ttl(listener):
            open_gate(taken.fileno())
        assert taken.getpeername() == client.getsockname()
        client.send(b"Alice")
        taken.settimeout(10.0)
        assert taken.recv(100) == b"Alice"


@pytest.mark.usefixtures("_gate")
@pytest.mark.parametrize("address", LOOPBACKS, ids=str)
def test_a_listener_without_its_gate_takes_new_connections(
    opened: ExitStack, address: Address
) -> None:
    listener = shared(opened, address)
    assert not ungate(listener)
    gate_syn(listener)
    by_ttl = is_gated_by_ttl(listener)
    assert ungate(listener) == by_ttl
    assert not is_gated_by_ttl(listener)
    assert not ungate(listener)
    client = connecting(opened, listener)
    until(lambda: connected(client))
    taken = opened.enter_context(listener.accept()[0])
    assert not is_gated_by_ttl(taken)


def test_a_unix_socket_has_no_gate(opened: ExitStack) -> None:
    left, right = map(opened.enter_context, socket.socketpair())
    assert (ungate(left), is_gated_by_ttl(right)) == (False, False)
    open_gate(left.fileno())
    left.send(b"Alice")
    assert right.recv(100) == b"Alice"


@pytest.mark.shows("limit the gate at the final stop")
@pytest.mark.usefixtures("_gate")
def test_a_client_at_the_gate_finds_the_successor(opened: ExitStack) -> None:
    address = keep_port(opened, "127.0.0.1")
    with shared(opened, address) as listener:
        gate_syn(listener)
        client = connecting(opened, listener)
        until(lambda: drops(listener) == 1)
    successor = shared(opened, address)
    until(lambda: connected(client))
    taken = opened.enter_context(successor.accept()[0])
    assert taken.getpeername() == client.getsockname()
