"""The dispatcher of mode handoff, with a real listener and real pairs."""

import errno
import os
import select
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from greeterd.sockets.address import parse_address
from greeterd.sockets.fd_passing import HandoffPair, hand_over, taker, waiting
from greeterd.sockets.listener import local_address, open_shared
from greeterd.worker import counters
from greeterd.worker.acceptor import Acceptor
from greeterd.worker.counters import Row, spare_row
from greeterd.worker.dispatcher import Dispatcher
from tests.integration.sockets.pairs import fill
from tests.integration.worker.loops import minimum_ttl


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    left, right = socket.socketpair()
    with left, right:
        yield left


class Office(NamedTuple):
    """A dispatcher with a listener, and what it works with."""

    dispatcher: Dispatcher
    acceptor: Acceptor
    listener: socket.socket
    row: Row
    """The dispatcher's counters."""
    epoll: select.epoll
    room: list[int]
    """An item for each time that there was room again."""

    def connect(self, count: int) -> list[socket.socket]:
        """Return clients that wait at the listener."""
        where = local_address(self.listener)
        return [socket.create_connection((where.host, where.port)) for _ in range(count)]

    def burst(self, limit: int = 1000) -> int:
        """Have the dispatcher accept."""
        [source] = self.acceptor.sources.values()
        return self.dispatcher.burst(source, limit)


@pytest.fixture
def office(request: pytest.FixtureRequest) -> Iterator[Office]:
    listener = open_shared(parse_address("127.0.0.1:0"), backlog=1000, unix_mode=0)
    listener.setblocking(False)
    row = spare_row()
    room: list[int] = []
    with select.epoll() as epoll:
        dispatcher = Dispatcher(
            policy=getattr(request, "param", "round-robin"),
            epoll=epoll,
            row=row,
            on_room=lambda: room.append(1),
        )
        acceptor = Acceptor(epoll, "epoll")
        acceptor.add(listener)
        yield Office(dispatcher, acceptor, listener, row, epoll, room)
        dispatcher.abandon()
        for slot in list(dispatcher._routes):
            dispatcher._drop(slot)
    listener.close()


@pytest.fixture
def pairs() -> Iterator[list[HandoffPair]]:
    made = [HandoffPair.make() for _ in range(3)]
    yield made
    for each in made:
        each.close()


def copy(pair: HandoffPair) -> HandoffPair:
    return HandoffPair.adopt(*(os.dup(fd) for fd in pair.fds))


def close_all(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def drain(pair: HandoffPair) -> list[str]:
    """Take all that waits; return the clients' names."""
    take, names = taker(pair.exit), []
    while waiting(pair.exit):
        fd, name = take()
        os.close(fd)
        names.append(name)
    return names


@pytest.mark.shows("handoff_policy round-robin")
def test_slots_take_turns_from_one_burst_to_the_next(
    office: Office, pairs: list[HandoffPair]
) -> None:
    for slot, pair in enumerate(pairs, start=1):
        office.dispatcher.add_route(slot, copy(pair))
    clients = office.connect(8)
    names = ["{}:{}".format(*client.getsockname()) for client in clients]
    assert (office.burst(2), office.burst()) == (2, 6)
    assert [drain(pair) for pair in pairs] == [names[0::3], names[1::3], names[2::3]]
    assert office.row[counters.CONNECTIONS] == office.row[counters.HANDED_OVER] == 8
    close_all(clients)


@pytest.mark.shows("handoff_policy least-busy")
@pytest.mark.parametrize("office", ["least-busy"], indirect=True)
def test_who_has_least_before_it_is_next(office: Office, pairs: list[HandoffPair]) -> None:
    for slot, pair in enumerate(pairs, start=1):
        row = spare_row()
        row[counters.OPEN] = 3 if slot == 1 else 0
        office.dispatcher.add_route(slot, copy(pair), row)
    clients = office.connect(7)
    office.burst(4)
    assert [waiting(pair.exit) for pair in pairs] == [0, 2, 2]
    drain(pairs[1])
    office.burst(3)
    assert [waiting(pair.exit) for pair in pairs] == [0, 2, 3], "of equals by turns"
    close_all(clients)


@pytest.mark.parametrize("office", ["round-robin", "least-busy"], indirect=True)
@pytest.mark.parametrize("lie", [2**64 - 1, 2**63, 0])
def test_what_the_workers_say_of_themselves_stops_nobody(
    office: Office, pairs: list[HandoffPair], lie: int
) -> None:
    for slot, pair in enumerate(pairs, start=1):
        row = spare_row()
        row[counters.OPEN] = row[counters.BLOCKED] = lie
        office.dispatcher.add_route(slot, copy(pair), row)
    clients = office.connect(6)
    assert office.burst() == 6
    assert [waiting(pair.exit) for pair in pairs] == [2, 2, 2]
    close_all(clients)


def test_a_slot_that_retires_is_passed_over(office: Office, pairs: list[HandoffPair]) -> None:
    for slot, pair in enumerate(pairs[:2], start=1):
        office.dispatcher.add_route(slot, copy(pair))
    pairs[0].close_entry()
    clients = office.connect(4)
    assert office.burst() == 4
    assert [waiting(pair.exit) for pair in pairs[:2]] == [0, 4]
    close_all(clients)


def test_a_pair_that_has_ended_is_given_up_though_nothing_comes(
    office: Office, pairs: list[HandoffPair]
) -> None:
    office.dispatcher.add_route(1, copy(pairs[0]))
    assert office.epoll.poll(0) == []
    pairs[0].close_entry()
    [(fd, _)] = office.epoll.poll(1.0)
    assert office.dispatcher.on_event(fd)
    assert office.epoll.poll(0) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("office", ["round-robin", "least-busy"], indirect=True)
def test_a_slot_whose_worker_has_paused_comes_last(
    office: Office, pairs: list[HandoffPair]
) -> None:
    rows = {1: spare_row(), 2: spare_row()}
    for slot, pair in enumerate(pairs[:2], start=1):
        office.dispatcher.add_route(slot, copy(pair), rows[slot])
    rows[1][counters.BLOCKED] = counters.BLOCKED_BY_LIMIT
    clients = office.connect(4)
    office.burst()
    assert [waiting(pair.exit) for pair in pairs[:2]] == [0, 4]
    rows[1][counters.BLOCKED] = counters.NOT_BLOCKED
    close_all(clients)
    clients = office.connect(2)
    office.burst()
    assert waiting(pairs[0].exit) > 0
    close_all(clients)


def test_a_slot_that_is_full_is_passed_over(
    office: Office, pairs: list[HandoffPair], connection: socket.socket
) -> None:
    for slot, pair in enumerate(pairs[:2], start=1):
        office.dispatcher.add_route(slot, copy(pair))
    full = fill(pairs[0], connection)
    clients = office.connect(4)
    assert office.burst() == 4
    assert [waiting(pair.exit) for pair in pairs[:2]] == [full, 4]
    close_all(clients)


def test_one_is_held_while_nobody_has_room_and_goes_on_as_soon_as_there_is(
    office: Office, pairs: list[HandoffPair], connection: socket.socket
) -> None:
    office.dispatcher.add_route(1, copy(pairs[0]))
    fill(pairs[0], connection)
    clients = office.connect(3)
    assert (office.burst(), office.burst()) == (1, 0)
    assert office.dispatcher.room == 0
    assert not office.dispatcher.idle
    assert office.row[counters.HANDED_OVER] == 0
    office.epoll.poll(0)
    drain(pairs[0])
    [(fd, _)] = office.epoll.poll(1.0)
    assert office.dispatcher.on_event(fd)
    assert (office.dispatcher.idle, office.room) == (True, [1])
    assert office.burst() == 2
    assert office.row[counters.CONNECTIONS] == office.row[counters.HANDED_OVER] == 3
    assert [fd for fd, _ in office.epoll.poll(0) if fd != office.listener.fileno()] == []
    close_all(clients)


def test_a_new_route_takes_what_was_held_for_want_of_any(
    office: Office, pairs: list[HandoffPair]
) -> None:
    clients = office.connect(1)
    assert (office.burst(), office.dispatcher.idle) == (1, False)
    office.dispatcher.add_route(3, copy(pairs[2]))
    assert (office.dispatcher.idle, waiting(pairs[2].exit)) == (True, 1)
    close_all(clients)


def test_what_is_held_is_reset_by_a_quick_end(office: Office) -> None:
    [client] = office.connect(1)
    office.burst()
    office.dispatcher.abandon()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
    assert office.dispatcher.idle
    assert office.row[counters.RESET] == 1


def test_the_gate_of_a_held_connection_is_opened_when_it_is_known(office: Office) -> None:
    office.dispatcher.open_gates()  # with none held
    office.dispatcher.stop_opening_gates()
    clients = office.connect(1)
    office.burst()
    assert office.dispatcher._held is not None
    fd, _ = office.dispatcher._held
    minimum_ttl(fd, 255)
    office.dispatcher.open_gates()
    assert minimum_ttl(fd) == 0
    close_all(clients)


@pytest.mark.parametrize("gated", [True, False])
def test_the_gate_of_each_connection_is_opened_while_there_are_gates(
    office: Office, pairs: list[HandoffPair], *, gated: bool
) -> None:
    [source] = office.acceptor.sources.values()
    accept = source.accept

    def accept_as_gated() -> tuple[int, object]:
        fd, peer = accept()
        minimum_ttl(fd, 255)
        return fd, peer

    source.accept = accept_as_gated
    office.dispatcher.open_gates()
    if not gated:
        office.dispatcher.stop_opening_gates()
    office.dispatcher.add_route(1, copy(pairs[0]))
    clients = office.connect(1)
    office.burst()
    fd, _ = taker(pairs[0].exit)()
    assert minimum_ttl(fd) == (0 if gated else 255)
    os.close(fd)
    close_all(clients)


@pytest.mark.parametrize(("error", "number"), [(errno.EMFILE, errno.EMFILE), (None, errno.EIO)])
def test_an_error_of_accept_is_counted_and_what_came_before_is_handed_on(
    office: Office, pairs: list[HandoffPair], error: int | None, number: int
) -> None:
    [source] = office.acceptor.sources.values()
    accepts = [source.accept]

    def accept_once() -> tuple[int, object]:
        if accepts:
            return accepts.pop()()
        raise OSError("no number") if error is None else OSError(error, os.strerror(error))

    source.accept = accept_once
    office.dispatcher.add_route(1, copy(pairs[0]))
    clients = office.connect(2)
    assert office.burst() == 1
    assert office.dispatcher.accept_error == number
    assert office.row[counters.ACCEPT_ERRORS] == 1
    assert office.row[counters.CONNECTIONS] == office.row[counters.HANDED_OVER] == 1
    accepts.append(lambda: (_ for _ in ()).throw(BlockingIOError))
    assert office.burst() == 0
    assert office.dispatcher.accept_error == 0
    close_all(clients)


def test_a_held_connection_is_counted_as_open_until_it_is_handed_on(
    office: Office, pairs: list[HandoffPair]
) -> None:
    clients = office.connect(1)
    office.burst()
    assert office.dispatcher.room == 0
    assert office.dispatcher.end_turn()
    assert office.row[counters.OPEN] == 1
    assert (office.burst(), office.dispatcher.accept_error) == (0, 0)
    office.dispatcher.add_route(1, copy(pairs[0]))
    assert office.dispatcher.end_turn()
    assert office.row[counters.OPEN] == 0
    assert office.dispatcher.room > 10**9
    assert office.room == [1]
    close_all(clients)


def test_a_turn_tries_again_what_is_held(
    office: Office, pairs: list[HandoffPair], connection: socket.socket
) -> None:
    office.dispatcher.add_route(1, copy(pairs[0]))
    fill(pairs[0], connection)
    clients = office.connect(1)
    office.burst()
    drain(pairs[0])
    assert office.dispatcher.end_turn()
    assert drain(pairs[0]) == ["{}:{}".format(*clients[0].getsockname())]
    assert office.row[counters.HANDED_OVER] == 1
    close_all(clients)


def test_a_new_pair_takes_the_place_of_a_slots_former_one(
    office: Office, pairs: list[HandoffPair]
) -> None:
    former = copy(pairs[0])
    office.dispatcher.add_route(1, former)
    office.dispatcher.add_route(1, copy(pairs[1]))
    assert former.entry.fileno() == -1
    clients = office.connect(2)
    office.burst()
    assert [waiting(pair.exit) for pair in pairs[:2]] == [0, 2]
    assert len(office.dispatcher._slots) == len(office.dispatcher._turns) == 1
    close_all(clients)


def test_a_descriptor_of_no_pair_is_not_handled(office: Office) -> None:
    assert not office.dispatcher.on_event(office.listener.fileno())


def test_a_pair_that_lives_is_kept_when_it_is_reported(
    office: Office, pairs: list[HandoffPair]
) -> None:
    office.dispatcher.add_route(1, copy(pairs[0]))
    [fd] = office.dispatcher._slots
    assert office.dispatcher.on_event(fd)
    assert list(office.dispatcher._routes) == [1]


@pytest.mark.parametrize("office", ["least-busy"], indirect=True)
def test_the_load_of_a_slot_is_its_queue_and_what_its_worker_has_open(
    office: Office, pairs: list[HandoffPair], connection: socket.socket
) -> None:
    row = spare_row()
    row[counters.OPEN] = 2
    office.dispatcher.add_route(1, copy(pairs[0]), row)
    hand_over(pairs[0].entry, connection.fileno(), "someone")
    office.dispatcher.add_route(2, copy(pairs[1]))
    routes = office.dispatcher._routes
    assert [routes[slot].load() for slot in (1, 2)] == [3, 0]
    assert not routes[2].paused
    clients = office.connect(4)
    office.burst()
    assert [waiting(pair.exit) for pair in pairs[:2]] == [2, 3], "3 to 3: slot 2 has had its turn"
    close_all(clients)


def test_a_dispatcher_without_a_connection_abandons_nothing(office: Office) -> None:
    office.dispatcher.abandon()
    assert office.row[counters.RESET] == 0
