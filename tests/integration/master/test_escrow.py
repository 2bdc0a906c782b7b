"""What becomes of clients while the escrow closes a listener."""

import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from greeterd.config.schema import Config
from greeterd.errors import ListenError
from greeterd.master.escrow import Escrow
from greeterd.sockets import listener
from greeterd.sockets.fd_passing import hand_over, waiting
from greeterd.supervisor.ids import DISPATCHER, SlotIndex
from greeterd.system.socket_file import file_at

CLIENTS = 40


@pytest.fixture
def escrow() -> Iterator[Escrow]:
    config = Config(mode="reuseport", bind=("127.0.0.1:0",))
    with closing(Escrow(config)) as escrow:
        for slot in range(1, 5):
            escrow.groups.admit(
                SlotIndex(slot), [listener.open_member(escrow.addresses[0]).detach()]
            )
        yield escrow


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


def test_the_last_of_all_is_closed_too(escrow: Escrow) -> None:
    for slot in range(1, 5):
        escrow.steer_away(SlotIndex(slot))
    for slot in (2, 4, 1, 3):
        escrow.close_slot(SlotIndex(slot))
    assert escrow.listeners() == []
    where = escrow.addresses[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((where.host, where.port))


def test_a_unix_listener_is_opened_anew_at_its_path_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    bind = ("127.0.0.1:0", f"unix:{tmp_path}//socket")
    with closing(Escrow(Config(mode="inherit", bind=bind, unix_mode=0o640))) as escrow:
        before = list(escrow.listeners())
        path.unlink()
        escrow.shared.reopen(path)
        after = escrow.listeners()
        assert after[0] is before[0]
        assert (before[1].fileno(), stat.S_IMODE(path.stat().st_mode)) == (-1, 0o640)
        assert escrow.shared.unix_files == {path: file_at(path)}
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


def test_a_unix_listener_that_cannot_be_opened_anew_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(Escrow(Config(mode="inherit", bind=(f"unix:{path}",)))) as escrow:
        before = list(escrow.listeners())
        path.unlink()
        path.mkdir()
        with pytest.raises(ListenError, match="is not a socket"):
            escrow.shared.reopen(path)
        assert escrow.listeners() == before
    assert path.is_dir()


@pytest.fixture
def handed(tmp_path: Path) -> Iterator[Escrow]:
    """Return an escrow of mode handoff, whose slot 1 is used."""
    with closing(Escrow(Config(mode="handoff", bind=(f"unix:{tmp_path / 'sock'}",)))) as escrow:
        assert escrow.for_slot(SlotIndex(1))
        escrow.use(SlotIndex(1))
        yield escrow


def test_what_waits_for_a_worker_stays_its_own_when_the_dispatcher_is_no_more(
    handed: Escrow,
) -> None:
    pair = handed.pairs.routes[SlotIndex(1)]
    with socket.socket() as client:
        hand_over(pair.entry, client.fileno(), "a client")
    handed.close_slot(DISPATCHER)
    assert handed.pairs.renew() == {}
    assert waiting(pair.exit) == 1


def test_a_pair_of_a_slot_that_is_closed_before_it_was_served_is_looked_at_no_more(
    handed: Escrow,
) -> None:
    handed.close_slot(SlotIndex(1))
    assert handed.pairs.renew() == {}
    assert handed.pairs.routes == {}
