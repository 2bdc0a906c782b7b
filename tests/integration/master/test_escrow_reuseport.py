"""The groups of mode reuseport: who is sent where, also while a listener closes or comes back."""

import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest

from greeterd.config.schema import Config
from greeterd.errors import ListenError
from greeterd.master.escrow import Escrow, Place
from greeterd.master.upgrade.state import InheritedListeners
from greeterd.sockets import bpf, listener
from greeterd.sockets.sockdiag import queue_length
from greeterd.supervisor.ids import SlotIndex
from greeterd.system.cpus import cpu_of

CLIENTS = 40
CONFIG = Config(mode="reuseport", bind=("127.0.0.1:0",))
SLOTS = [SlotIndex(number) for number in range(1, 5)]
ONE, TWO, THREE, FOUR = SLOTS


def admit(escrow: Escrow, slot: SlotIndex) -> None:
    """Let a slot's first worker open its listeners."""
    fds = [listener.open_member(address).detach() for address in escrow.addresses]
    assert escrow.groups.flaw_of(fds) == ""
    escrow.groups.admit(slot, fds)


@pytest.fixture
def escrow() -> Iterator[Escrow]:
    """Return an escrow with the listeners of four slots."""
    with closing(Escrow(CONFIG)) as escrow:
        for slot in SLOTS:
            admit(escrow, slot)
        yield escrow


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect_some(escrow: Escrow, clients: ExitStack, count: int = CLIENTS) -> Counter[int | None]:
    """Connect clients; return how many have come to each slot."""
    before = Counter(escrow.queues.by_owner())
    where = escrow.addresses[0]
    for _ in range(count):
        clients.enter_context(socket.create_connection((where.host, where.port), timeout=5.0))
    return Counter({slot: n for slot, n in (escrow.queues.by_owner() - before).items() if n})


@pytest.mark.shows("limit closing a listener in mode reuseport")
@pytest.mark.parametrize("retired", [[2, 3], [3, 2], [1, 2], [2, 3, 4], [4, 3, 2], [3, 4, 2]])
def test_at_no_instant_of_a_closing_is_a_client_sent_to_a_slot_that_retires(
    escrow: Escrow, retired: list[int]
) -> None:
    where = escrow.addresses[0]

    with ExitStack() as clients:

        def connect_some() -> None:
            for _ in range(CLIENTS):
                clients.enter_context(socket.create_connection((where.host, where.port)))

        class Watched(socket.socket):
            """Has clients come right after it has left the group."""

            def shutdown(self, how: int) -> None:
                """Leave the group."""
                super().shutdown(how)
                connect_some()

        for slot in retired:
            escrow.steer_away(SlotIndex(slot))
        for number, slot in enumerate(retired, start=1):
            [sock] = escrow.groups._slots[SlotIndex(slot)]
            escrow.groups._slots[SlotIndex(slot)] = [Watched(fileno=sock.detach())]
            escrow.close_slot(SlotIndex(slot))
            connect_some()
            found = escrow.queues.by_owner()
            assert sum(found.values()) == 2 * number * CLIENTS, "nobody is reset"
            assert not any(found[SlotIndex(other)] for other in retired), found


def test_escrow_reuseport_closes_the_last_of_all_too(escrow: Escrow) -> None:
    for slot in SLOTS:
        escrow.steer_away(slot)
    for slot in (TWO, FOUR, ONE, THREE):
        escrow.close_slot(slot)
    assert escrow.listeners() == []
    where = escrow.addresses[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((where.host, where.port))


def test_escrow_reuseport_knows_its_slots(escrow: Escrow) -> None:
    assert escrow.for_slot(SlotIndex(5)) is None, "its worker opens them"
    assert [place.slot for place in escrow.accepting()] == SLOTS
    assert (escrow.groups.highest_slot, escrow.groups.most_slots) == (4, None)
    escrow.close_slot(FOUR)
    assert escrow.groups.highest_slot == 3
    escrow.close_slot(FOUR)  # of a slot that has none: nothing


def test_escrow_reuseport_steers_away_from_a_slot_and_back(
    escrow: Escrow, clients: ExitStack
) -> None:
    for slot in (TWO, THREE):
        escrow.steer_away(slot)
    assert {*connect_some(escrow, clients)} == {ONE, FOUR}
    assert [place.slot for place in escrow.accepting()] == [ONE, FOUR]
    assert escrow.use(TWO) is None
    assert {*connect_some(escrow, clients)} == {ONE, TWO, FOUR}


def test_escrow_reuseport_sends_clients_to_a_new_slot_of_a_number_that_has_retired(
    escrow: Escrow, clients: ExitStack
) -> None:
    escrow.steer_away(TWO)
    escrow.close_slot(TWO)
    admit(escrow, TWO)
    assert {*connect_some(escrow, clients)} == {*SLOTS}


@pytest.mark.parametrize("slot", SLOTS)
def test_escrow_reuseport_opens_a_slots_listeners_anew_and_follows_the_kernels_order(
    escrow: Escrow, clients: ExitStack, slot: SlotIndex
) -> None:
    [place] = [place for place in escrow.accepting() if place.slot == slot]
    place.sock.shutdown(socket.SHUT_RDWR)
    escrow.renew(place, 7, anew=False)
    assert place.sock.fileno() == -1
    assert {*connect_some(escrow, clients)} == {*SLOTS}
    for other in SLOTS:
        escrow.steer_away(other)
        assert {*connect_some(escrow, clients)} <= {*SLOTS} - {other}
        escrow.use(other)


def test_escrow_reuseport_whose_address_is_lost_leaves_the_slot_without_listeners(
    escrow: Escrow, clients: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_address: object) -> socket.socket:
        raise ListenError("taken")

    monkeypatch.setattr(listener, "open_member", refuse)
    [place] = [place for place in escrow.accepting() if place.slot == TWO]
    with pytest.raises(ListenError, match="taken"):
        escrow.renew(place, 7, anew=True)
    assert escrow.for_slot(TWO) is None
    assert {*connect_some(escrow, clients)} == {ONE, THREE, FOUR}


def test_escrow_reuseport_says_what_is_wrong_with_what_a_worker_has_opened(escrow: Escrow) -> None:
    [address] = escrow.addresses
    with listener.open_member(address) as one, socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        assert escrow.groups.flaw_of([]) == "0 listeners for 1 addresses"
        assert escrow.groups.flaw_of([one.fileno()] * 2) == "2 listeners for 1 addresses"
        found = escrow.groups.flaw_of([stranger.fileno()])
        assert found == f"a descriptor that is no listener to be of {address}"


def test_escrow_reuseport_takes_no_listener_that_cannot_listen(escrow: Escrow) -> None:
    where = escrow.addresses[0]
    count = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    connected = socket.create_connection((where.host, where.port))
    fds = [listener.open_member(where).detach(), connected.detach()]
    with pytest.raises(ListenError, match=r"cannot listen on 127\.0\.0\.1:.*: Invalid argument"):
        escrow.groups.admit(SlotIndex(5), fds)
    assert len(os.listdir("/proc/self/fd")) == count  # noqa: PTH208
    assert escrow.for_slot(SlotIndex(5)) is None


@pytest.mark.parametrize("blocking", [False, True])
def test_escrow_reuseport_admits_listeners_that_accept_as_configured(blocking: bool) -> None:
    config = replace(CONFIG, wait="blocking" if blocking else "epoll", backlog=9)
    with closing(Escrow(config)) as escrow:
        admit(escrow, ONE)
        [sock] = escrow.for_slot(ONE) or []
        assert os.get_blocking(sock.fileno()) == blocking
        assert queue_length(sock).limit == 9


def test_escrow_reuseport_steers_as_the_configuration_in_force_says(
    escrow: Escrow, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[int | None], set[int]]] = []

    def choose(steering: str, cpus: list[int | None], avoided: set[int]) -> bpf.Program:
        asked.append((steering, cpus, avoided))
        return bpf.HASH

    monkeypatch.setattr(bpf, "choose", choose)
    escrow.steer_away(TWO)
    assert asked == [("hash", [None] * 4, {1})]
    pinned = replace(CONFIG, steering="cpu", cpu_affinity="auto")
    escrow.groups.steer_as(pinned)
    cpus = [cpu_of(slot, pinned.pinned_cpus) for slot in SLOTS]
    assert None not in cpus
    assert asked[1:] == [("cpu", cpus, {1})]
    escrow.arrange()
    assert asked[2:] == asked[1:2], "what was taken over may be steered otherwise"


def test_escrow_reuseport_is_taken_over_as_it_is(escrow: Escrow, clients: ExitStack) -> None:
    escrow.close_slot(ONE)
    escrow.steer_away(THREE)
    state = escrow.dump()
    assert (state.order, state.avoided, len(state.guards)) == ([4, 2, 3], [3], 1)
    successor = Escrow(CONFIG, state)
    assert successor.dump() == state
    assert successor.addresses == escrow.addresses
    admit(successor, ONE)
    assert {*connect_some(successor, clients)} == {ONE, TWO, FOUR}, "steered as before"
    for sock in [*escrow.listeners(), *escrow.groups._guards]:
        sock.detach()
    every = [*successor.listeners(), *successor.groups._guards]
    successor.close()
    assert {sock.fileno() for sock in every} == {-1}


def test_escrow_reuseport_holds_guards_and_listeners_with_their_index(escrow: Escrow) -> None:
    escrow.close_slot(ONE)
    label = "127.0.0.1%3A0"
    assert [*escrow.holdings()] == [
        f"escrow/guard/{label}",
        f"escrow/slot-4-index-0/{label}",
        f"escrow/slot-2-index-1/{label}",
        f"escrow/slot-3-index-2/{label}",
    ]
    assert {*escrow.holdings().values()} >= {sock.fileno() for sock in escrow.listeners()}


def test_escrow_reuseport_gates_all(escrow: Escrow) -> None:
    escrow.gate()
    assert escrow.accepting() == []
    where = escrow.addresses[0]
    with pytest.raises(TimeoutError):
        socket.create_connection((where.host, where.port), timeout=0.2)


# Of a socket unit


@pytest.fixture
def passed(clients: ExitStack) -> Iterator[Escrow]:
    """Return an escrow of two sockets that a socket unit has opened."""
    first = clients.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
    second = clients.enter_context(socket.create_server(first.getsockname(), reuse_port=True))
    given = InheritedListeners(
        slots={1: [os.dup(first.fileno())], 2: [os.dup(second.fileno())]}, order=[1, 2], passed=True
    )
    config = replace(CONFIG, bind=("{}:{}".format(*first.getsockname()),), workers=2)
    with closing(Escrow(config, given)) as escrow:
        escrow.arrange()
        yield escrow


def place_of(escrow: Escrow, slot: SlotIndex) -> Place:
    [place] = [place for place in escrow.accepting() if place.slot == slot]
    return place


def test_escrow_reuseport_of_passed_sockets_has_as_many_slots(passed: Escrow) -> None:
    assert (passed.groups.most_slots, passed.holdings(), passed.groups._guards) == (2, {}, [])
    passed.steer_away(TWO)
    passed.close_slot(TWO)
    assert passed.for_slot(TWO), "not ours to close"
    assert passed.groups.most_slots == 2


def test_escrow_reuseport_follows_a_passed_socket_that_listens_again(
    passed: Escrow, clients: ExitStack
) -> None:
    place = place_of(passed, ONE)
    place.sock.shutdown(socket.SHUT_RDWR)
    passed.renew(place, 64, anew=False)
    assert passed.dump().order == [2, 1]
    assert place_of(passed, ONE).sock is place.sock
    assert queue_length(place.sock).limit == 64
    assert {*connect_some(passed, clients)} == {ONE, TWO}
    passed.steer_away(TWO)
    assert {*connect_some(passed, clients, 20)} == {ONE}


def test_escrow_reuseport_leaves_no_steering_on_passed_sockets(
    passed: Escrow, clients: ExitStack
) -> None:
    passed.steer_away(TWO)
    where = passed.addresses[0]
    theirs = [clients.enter_context(sock.dup()) for sock in passed.listeners()]
    passed.close()
    for _ in range(CLIENTS):
        clients.enter_context(socket.create_connection((where.host, where.port), timeout=5.0))
    assert all(queue_length(sock).now for sock in theirs), "the kernel's hash again"


def test_escrow_reuseport_opens_no_passed_socket_anew(passed: Escrow) -> None:
    with pytest.raises(PermissionError, match="only the socket unit"):
        passed.renew(place_of(passed, ONE), 7, anew=True)
    assert passed.dump().order == [1, 2]
