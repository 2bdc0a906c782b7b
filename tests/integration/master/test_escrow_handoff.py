"""The pairs of mode handoff: routes, ends, and what waits in them."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from greeterd.config.schema import Config
from greeterd.master.escrow import Escrow
from greeterd.sockets.fd_passing import HandoffPair, hand_over, taker, waiting
from greeterd.supervisor.ids import DISPATCHER, SlotIndex

ONE, TWO = SlotIndex(1), SlotIndex(2)


@pytest.fixture
def escrow(tmp_path: Path) -> Iterator[Escrow]:
    """Return an escrow whose slot 1 is used."""
    with closing(Escrow(Config(mode="handoff", bind=(f"unix:{tmp_path / 'sock'}",)))) as escrow:
        assert escrow.for_slot(ONE)
        escrow.use(ONE)
        yield escrow


def hand(escrow: Escrow, slot: SlotIndex = ONE) -> None:
    """Hand a connection to a slot, as the dispatcher does."""
    with socket.socket() as client:
        hand_over(escrow.pairs.routes[slot].entry, client.fileno(), "a client")


def taken(exit_: socket.socket) -> int:
    """Take what waits for a slot as its worker does, to the end; return how many."""
    take, waits = taker(exit_), waiting(exit_)
    for _ in range(waits):
        fd, client = take()
        os.close(fd)
        assert client == "a client"
    with pytest.raises(OSError, match="the pair has ended"):
        take()
    return waits


def test_escrow_handoff_gives_the_dispatcher_the_listeners_and_each_slot_a_pair(
    escrow: Escrow,
) -> None:
    assert escrow.for_slot(DISPATCHER) == escrow.listeners()
    [one], [two] = escrow.for_slot(ONE) or [], escrow.for_slot(TWO) or []
    assert one is not two
    assert escrow.for_slot(ONE) == [one], "the same for the slot's next worker"
    assert [place.slot for place in escrow.accepting()] == [DISPATCHER]
    hand(escrow)
    assert escrow.queues.by_owner() == {DISPATCHER: 0, ONE: 1, TWO: 0}
    assert escrow.pairs.left_over == 1


def test_escrow_handoff_routes_a_slot_once(escrow: Escrow) -> None:
    assert escrow.use(ONE) is None, "the dispatchers have it"
    assert escrow.use(TWO) is None, "no worker has been started there"
    escrow.for_slot(TWO)
    pair = escrow.use(TWO)
    assert pair is not None
    assert [*escrow.pairs.routes] == [ONE, TWO]
    escrow.pairs.unroute(TWO)
    assert [*escrow.pairs.routes] == [ONE]
    assert escrow.use(TWO) is pair, "another try"


def test_escrow_handoff_lets_a_slot_that_retires_take_what_waits(escrow: Escrow) -> None:
    hand(escrow)
    pair = escrow.pairs.routes[ONE]
    escrow.steer_away(ONE)
    assert (pair.closed, escrow.pairs.routes) == (True, {})
    assert taken(pair.exit) == 1
    escrow.close_slot(ONE)
    assert pair.exit.fileno() == pair.entry.fileno() == -1
    assert escrow.queues.by_owner() == {DISPATCHER: 0}


def test_escrow_handoff_ends_the_worker_of_a_slot_that_was_never_routed(escrow: Escrow) -> None:
    [two] = escrow.for_slot(TWO) or []
    for slot in (ONE, TWO, SlotIndex(3)):
        escrow.pairs.shut_unused(slot)
    assert taken(two) == 0
    assert not escrow.pairs.routes[ONE].closed


def test_escrow_handoff_leaves_what_waits_to_its_worker_when_the_dispatcher_is_no_more(
    escrow: Escrow,
) -> None:
    pair = escrow.pairs.routes[ONE]
    hand(escrow)
    escrow.close_slot(DISPATCHER)
    assert escrow.pairs.renew() == {}
    assert waiting(pair.exit) == 1
    assert (escrow.pairs.routes, taken(pair.exit)) == ({}, 1)


def test_escrow_handoff_does_not_look_at_a_pair_that_is_closed_before_it_was_served(
    escrow: Escrow,
) -> None:
    escrow.close_slot(ONE)
    assert escrow.pairs.renew() == {}
    assert escrow.pairs.routes == {}


@pytest.mark.parametrize(
    ("spoil", "how"),
    [
        (lambda pair: pair.entry.shutdown(socket.SHUT_WR), "shut down"),
        (lambda pair: pair.exit.shutdown(socket.SHUT_RD), "shut down"),
        (lambda pair: pair.exit.setblocking(True), "changed: O_NONBLOCK"),
    ],
)
def test_escrow_handoff_replaces_a_pair_that_a_worker_has_spoiled(
    escrow: Escrow, spoil: Callable[[HandoffPair], None], how: str
) -> None:
    escrow.for_slot(TWO)
    other = escrow.use(TWO)
    assert escrow.pairs.renew() == {}
    old = escrow.pairs.routes[ONE]
    hand(escrow)
    with old.entry.dup() as of_dispatcher, old.exit.dup(), socket.socket() as client:
        spoil(old)
        assert escrow.pairs.renew() == {ONE: how}
        with pytest.raises(BrokenPipeError):
            hand_over(of_dispatcher, client.fileno(), "a client")
    assert old.entry.fileno() == old.exit.fileno() == -1
    assert escrow.pairs.routes == {TWO: other}, "not before a worker has the new one"
    pair = escrow.use(ONE)
    assert pair is not None
    assert escrow.pairs.renew() == {}
    assert waiting(pair.exit) == 1


def test_escrow_handoff_is_taken_over_as_it_is(escrow: Escrow, tmp_path: Path) -> None:
    escrow.for_slot(TWO)
    hand(escrow)
    state = escrow.dump()
    assert (sorted(state.pairs), state.routed) == ([1, 2], [1])
    config = Config(mode="handoff", bind=(f"unix:{tmp_path / 'sock'}",))
    successor = Escrow(config, state)
    assert successor.dump() == state
    assert [*successor.pairs.routes] == [ONE]
    hand(successor)
    assert successor.pairs.left_over == 2
    for sock in escrow.listeners():
        sock.detach()
    for pair in escrow.pairs._pairs.values():
        pair.entry.detach()
        pair.exit.detach()
    ends = [end for pair in successor.pairs._pairs.values() for end in (pair.entry, pair.exit)]
    successor.close()
    assert {end.fileno() for end in ends} == {-1}
