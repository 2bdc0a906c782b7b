"""What becomes of clients while the escrow closes a listener."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from greeterd import listener
from greeterd.config import Config
from greeterd.core.events import SlotIndex
from greeterd.escrow import Escrow

CLIENTS = 40


@pytest.fixture
def escrow() -> Iterator[Escrow]:
    config = Config(mode="reuseport", bind=("127.0.0.1:0",))
    with closing(Escrow(config)) as escrow:
        for slot in range(1, 5):
            escrow.admit(SlotIndex(slot), [listener.open_member(escrow.addresses[0]).detach()])
        yield escrow


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
            [sock] = escrow._slots[SlotIndex(slot)]
            escrow._slots[SlotIndex(slot)] = [Watched(fileno=sock.detach())]
            escrow.close_slot(SlotIndex(slot))
            connect_some()
            found = escrow.queued()
            assert sum(found.values()) == 2 * number * CLIENTS, "nobody is reset"
            assert not any(found[SlotIndex(other)] for other in retired), found


def test_the_last_of_all_is_closed_too(escrow: Escrow) -> None:
    for slot in range(1, 5):
        escrow.steer_away(SlotIndex(slot))
    for slot in (2, 4, 1, 3):
        escrow.close_slot(SlotIndex(slot))
    assert escrow.listeners() == []
    where = escrow.addresses[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((where.host, where.port))
