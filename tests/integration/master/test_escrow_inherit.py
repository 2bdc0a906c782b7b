"""The listeners of mode inherit: opened once, mended, gated, handed on."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from greeterd.config.schema import Config
from greeterd.errors import ListenError
from greeterd.master.escrow import BLOCKING_TIMEOUT, Escrow
from greeterd.master.upgrade.state import InheritedListeners
from greeterd.sockets.listener import local_address, open_shared
from greeterd.sockets.sockdiag import queue_length
from greeterd.supervisor.ids import SlotIndex
from greeterd.system.socket_file import file_at
from tests.integration.sockets.groups import ANY_PORT

TCP = Config(mode="inherit", bind=("127.0.0.1:0",), backlog=10)


@pytest.fixture
def escrow() -> Iterator[Escrow]:
    with closing(Escrow(TCP)) as escrow:
        yield escrow


def connect(escrow: Escrow, timeout: float = 5.0) -> socket.socket:
    """Connect to the first address."""
    where = escrow.addresses[0]
    return socket.create_connection((where.host, where.port), timeout=timeout)


def is_refused(escrow: Escrow) -> bool:
    """Tell whether nothing listens at the first address."""
    try:
        connect(escrow).close()
    except ConnectionRefusedError:
        return True
    return False


def test_escrow_inherit_gives_every_slot_the_same_listeners(escrow: Escrow) -> None:
    [sock] = escrow.for_slot(SlotIndex(1)) or []
    assert escrow.for_slot(SlotIndex(2)) == [sock] == escrow.listeners()
    assert not os.get_blocking(sock.fileno())
    assert [(place.slot, place.address) for place in escrow.accepting()] == [(None, 0)]
    assert (escrow.groups.most_slots, escrow.groups.highest_slot) == (None, 0)
    assert (escrow.use(SlotIndex(1)), escrow.pairs.routes, escrow.pairs.left_over) == (None, {}, 0)
    assert escrow.queues.longest(sock) == 0, "not looked at yet"
    with connect(escrow):
        assert escrow.queues.by_owner() == {None: 1}


def test_escrow_inherit_remembers_the_longest_queue_of_each_listener(escrow: Escrow) -> None:
    [sock] = escrow.listeners()
    for _ in range(2):
        with connect(escrow), connect(escrow):
            escrow.queues.look()
        while escrow.queues.by_owner()[None]:
            sock.accept()[0].close()
    assert escrow.queues.longest(sock) == 2


@pytest.mark.parametrize("blocking", [False, True])
def test_escrow_inherit_accepts_as_the_wait_strategy_says(blocking: bool) -> None:
    config = replace(TCP, wait="blocking" if blocking else "epoll")
    with closing(Escrow(config)) as escrow:
        [sock] = escrow.listeners()
        assert os.get_blocking(sock.fileno()) == blocking
        seconds = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
        assert bool(int.from_bytes(seconds[8:], "little")) == blocking
        sock.setblocking(not blocking)
        escrow.arrange()
        assert os.get_blocking(sock.fileno()) == blocking
    assert 0 < BLOCKING_TIMEOUT < 1


def test_escrow_inherit_that_cannot_open_an_address_leaves_none_open(tmp_path: Path) -> None:
    taken, path = tmp_path / "taken", tmp_path / "socket"
    taken.mkdir()
    count = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(ListenError):
        Escrow(replace(TCP, bind=("127.0.0.1:0", f"unix:{path}", f"unix:{taken}")))
    assert len(os.listdir("/proc/self/fd")) == count  # noqa: PTH208
    assert not path.exists()


def test_escrow_inherit_gates_every_listener_and_takes_its_unix_file_away(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(Escrow(replace(TCP, bind=("127.0.0.1:0", f"unix:{path}")))) as escrow:
        with connect(escrow):
            escrow.gate()
            assert escrow.queues.by_owner()[None] == 1, "who is there is not sent away"
            with pytest.raises(TimeoutError):
                connect(escrow, timeout=0.2)
        assert not path.exists()
        assert escrow.shared.unix_files == {}, "its name is not looked after any more"
        assert escrow.accepting() == []
        assert len(escrow.listeners()) == 2


def test_escrow_inherit_leaves_a_file_that_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    escrow = Escrow(replace(TCP, bind=(f"unix:{path}",)))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        escrow.close()
        assert path.is_socket()


# What a worker has spoilt


def test_escrow_inherit_listens_again_with_the_same_socket(escrow: Escrow) -> None:
    [place] = escrow.accepting()
    address = escrow.addresses[0]
    place.sock.shutdown(socket.SHUT_RDWR)
    assert is_refused(escrow)
    escrow.renew(place, 7, anew=False)
    assert escrow.listeners() == [place.sock]
    assert queue_length(place.sock).limit == 7
    assert escrow.addresses == [address]
    connect(escrow).close()


def test_escrow_inherit_renews_by_another_socket_at_the_same_address(escrow: Escrow) -> None:
    [place] = escrow.accepting()
    with socket.socket(fileno=os.dup(place.sock.fileno())) as of_a_worker:
        escrow.renew(place, 7, anew=True)
        [fresh] = escrow.listeners()
        assert fresh is not place.sock
        assert place.sock.fileno() == -1
        assert local_address(fresh) == escrow.addresses[0]
        with connect(escrow):
            assert queue_length(fresh).now == 1
        assert not of_a_worker.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_escrow_inherit_renews_a_unix_listener_by_another_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(Escrow(replace(TCP, bind=(f"unix:{path}",)))) as escrow:
        [place] = escrow.accepting()
        before = file_at(path)
        place.sock.shutdown(socket.SHUT_RDWR)
        escrow.renew(place, 7, anew=False)
        assert before != file_at(path) == escrow.shared.unix_files[path]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_escrow_inherit_opens_a_unix_listener_anew_at_its_path_however_it_is_written(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "socket", tmp_path / "other"
    bind = ("127.0.0.1:0", f"unix:{tmp_path}//socket", f"unix:{other}")
    with closing(Escrow(Config(mode="inherit", bind=bind, unix_mode=0o640))) as escrow:
        before = list(escrow.listeners())
        path.unlink()
        escrow.shared.reopen(path)
        after = escrow.listeners()
        assert (after[0], after[2]) == (before[0], before[2])
        assert (before[1].fileno(), stat.S_IMODE(path.stat().st_mode)) == (-1, 0o640)
        assert escrow.shared.unix_files == {path: file_at(path), other: file_at(other)}
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


def test_escrow_inherit_keeps_a_unix_listener_that_cannot_be_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(Escrow(Config(mode="inherit", bind=(f"unix:{path}",)))) as escrow:
        before = list(escrow.listeners())
        path.unlink()
        path.mkdir()
        with pytest.raises(ListenError, match="is not a socket"):
            escrow.shared.reopen(path)
        assert escrow.listeners() == before
    assert path.is_dir()


# Who takes them over


def test_escrow_inherit_is_taken_over_as_it_is(tmp_path: Path) -> None:
    config = replace(TCP, bind=("127.0.0.1:0", f"unix:{tmp_path / 'socket'}"))
    escrow = Escrow(config)
    state = escrow.dump()
    successor = Escrow(config, state)
    assert successor.dump() == state
    assert successor.addresses == escrow.addresses
    assert (successor.passed, successor.gated) == (False, False)
    for sock in escrow.listeners():
        sock.detach()
    successor.close()
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize("passed", [False, True])
def test_escrow_inherit_sets_the_backlog_of_what_was_taken_over_unless_it_is_a_units(
    passed: bool,
) -> None:
    with open_shared(ANY_PORT, backlog=5, unix_mode=0o600) as theirs:
        where = f"127.0.0.1:{theirs.getsockname()[1]}"
        given = InheritedListeners(shared=[os.dup(theirs.fileno())], passed=passed)
        with closing(Escrow(replace(TCP, bind=(where,)), given)) as escrow:
            assert queue_length(theirs).limit == 5, "workers may serve it"
            escrow.arrange()
            assert queue_length(theirs).limit == (5 if passed else TCP.backlog)


def test_escrow_inherit_opens_what_was_not_taken_over() -> None:
    with open_shared(ANY_PORT, backlog=5, unix_mode=0o600) as theirs:
        where = f"127.0.0.1:{theirs.getsockname()[1]}"
        given = InheritedListeners(shared=[None, os.dup(theirs.fileno())])
        with closing(Escrow(replace(TCP, bind=("127.0.0.1:0", where)), given)) as escrow:
            assert str(escrow.addresses[1]) == where
            connect(escrow).close()


def test_escrow_inherit_holds_its_listeners_by_the_entries_of_bind(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(Escrow(replace(TCP, bind=("127.0.0.1:0", f"unix:{path}")))) as escrow:
        tcp, unix = escrow.holdings()
        assert tcp == "escrow/shared/127.0.0.1%3A0"
        assert unix.startswith("escrow/shared-{}-{}/unix".format(*(file_at(path) or ())))
        assert [*escrow.holdings().values()] == [sock.fileno() for sock in escrow.listeners()]


def test_escrow_inherit_does_not_renew_what_only_the_socket_unit_can_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        where = f"127.0.0.1:{theirs.getsockname()[1]}"
        given = InheritedListeners(shared=[os.dup(theirs.fileno())], passed=True)
        with closing(Escrow(replace(TCP, bind=(where,)), given)) as escrow:
            [place] = escrow.accepting()
            assert escrow.holdings() == {}
            with pytest.raises(PermissionError, match="only the socket unit"):
                escrow.renew(place, 7, anew=True)
            theirs.shutdown(socket.SHUT_RDWR)
            escrow.renew(place, 7, anew=False)
            connect(escrow).close()
            escrow.gate()
            connect(escrow).close()
        with suppress(OSError):
            theirs.shutdown(socket.SHUT_RDWR)
