"""Real sockets: who may listen where, what a guard finds, and what becomes of a socket file."""

import errno
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from greeterd.errors import ListenError
from greeterd.sockets.address import Address
from greeterd.sockets.listener import (
    effective_backlog,
    guard_address,
    local_address,
    open_member,
    open_shared,
    set_blocking_accept,
)
from greeterd.sockets.sockdiag import queue_length
from greeterd.system import socket_file
from greeterd.system.socket_file import SocketFile, answerer
from tests.integration.sockets.groups import (
    ANY_PORT,
    connected,
    connecting,
    keep_port,
    shared,
    takers,
)
from tests.support import until

NOBODY = 65534
DUAL = "dual"  # [::], taking IPv4 too
OVERLAPS = {
    "127.0.0.1": {"127.0.0.1", "0.0.0.0", DUAL},
    "0.0.0.0": {"127.0.0.1", "0.0.0.0", DUAL},
    "::1": {"::1", "::", DUAL},
    "::": {"::1", "::", DUAL},
}
OPTIONS = {
    "plain": (),
    "reuseaddr": (socket.SO_REUSEADDR,),
    "reuseport": (socket.SO_REUSEPORT,),
    "both": (socket.SO_REUSEADDR, socket.SO_REUSEPORT),
}
PAIRS = [(host, other) for host, others in OVERLAPS.items() for other in sorted(others)]
PAIRS_OF_OURS = [pair for pair in PAIRS if DUAL not in pair]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Close the test's sockets in reverse order."""
    with ExitStack() as stack:
        yield stack


@contextmanager
def another_user() -> Iterator[None]:
    """Be nobody for a while, without capabilities."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def stranger(
    opened: ExitStack, host: str, *options: int, listens: bool, port: int = 0
) -> socket.socket:
    """Bind as a program that is not ours."""
    family = socket.AF_INET if "." in host else socket.AF_INET6
    sock = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != DUAL)
    for option in options:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    sock.bind(("::" if host == DUAL else host, port))
    if listens:
        sock.listen()
    return sock


def leave_connection(opened: ExitStack, listener: socket.socket) -> None:
    """Leave a connection behind, as a run that ended does.

    It stays open: to bind() that is the same as TIME_WAIT, which a busy machine may not grant.
    """
    opened.enter_context(socket.create_connection(listener.getsockname()[:2]))
    opened.enter_context(listener.accept()[0])


def guarded(opened: ExitStack, host: str, *, fixed: bool) -> socket.socket:
    """Guard a port that the kernel picks for the guard, or one that is given."""
    if not fixed:
        return opened.enter_context(guard_address(Address(host=host, port=0)))
    with ExitStack() as until_then:
        return opened.enter_context(guard_address(keep_port(until_then, host)))


def port_of(sock: socket.socket) -> int:
    """Return the port that the socket is bound to."""
    return local_address(sock).port


# Shared listeners


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])
def test_port_0_becomes_a_port_that_clients_reach(opened: ExitStack, host: str) -> None:
    listener = shared(opened, Address(host=host, port=0))
    assert port_of(listener) > 0
    client = connecting(opened, listener)
    until(lambda: connected(client))


def test_a_listener_is_non_blocking_and_closed_on_exec(opened: ExitStack) -> None:
    listener = shared(opened)
    assert not os.get_blocking(listener.fileno())
    assert not listener.get_inheritable()
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_one_port_serves_both_families_by_two_listeners(opened: ExitStack) -> None:
    over_v4 = shared(opened, Address(host="0.0.0.0", port=0))
    over_v6 = shared(opened, Address(host="::", port=port_of(over_v4)))
    assert port_of(over_v4) == port_of(over_v6)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_an_address_in_use_is_refused_by_name(opened: ExitStack, option: tuple[int, ...]) -> None:
    port = port_of(stranger(opened, "127.0.0.1", *option, listens=True))
    with pytest.raises(ListenError) as refusal:
        shared(opened, Address(host="0.0.0.0", port=port))
    expected = f"cannot listen on 0.0.0.0:{port}: another process uses this address"
    assert str(refusal.value) == expected


def test_connections_of_an_earlier_run_do_not_refuse_the_address(opened: ExitStack) -> None:
    with shared(opened) as listener:
        address = local_address(listener)
        leave_connection(opened, listener)
    with pytest.raises(OSError, match="in use"):  # they would refuse it to others
        stranger(opened, address.host, listens=True, port=address.port)
    shared(opened, address)


def test_an_address_of_another_machine_is_refused(opened: ExitStack) -> None:
    with pytest.raises(ListenError, match=r"^cannot listen on 192\.0\.2\.1:0: no interface"):
        shared(opened, Address(host="192.0.2.1", port=0))  # RFC 5737: nobody's


def test_a_host_that_does_not_resolve_is_refused(opened: ExitStack) -> None:
    with pytest.raises(ListenError, match="cannot be resolved"):
        shared(opened, Address(host="::1%no-such-interface", port=0))


@as_root
def test_a_privileged_port_is_refused_to_others(opened: ExitStack) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 1024:
        pytest.skip("every port is free to everyone here")
    with another_user(), pytest.raises(ListenError, match="denied: a port below 1024 needs root"):
        shared(opened, Address(host="127.0.0.1", port=1023))


def test_the_backlog_is_what_the_kernel_makes_of_it(opened: ExitStack) -> None:
    for backlog in (5, 2**31 - 1):
        assert queue_length(shared(opened, backlog=backlog)).limit == effective_backlog(backlog)
    assert effective_backlog(5) == 5


def test_a_blocking_accept_waits_for_a_connection_or_for_its_limit(opened: ExitStack) -> None:
    listener = shared(opened)
    set_blocking_accept(listener, 0.05)
    assert any(listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))  # or wait forever
    start = time.monotonic()
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert 0.05 <= time.monotonic() - start < 5
    client = connecting(opened, listener)
    taken = opened.enter_context(listener.accept()[0])
    assert taken.getpeername() == client.getsockname()


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_a_blocking_accept_without_a_limit_is_refused(opened: ExitStack, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout of 0"):
        set_blocking_accept(shared(opened), timeout)


# Guards


@pytest.mark.parametrize(("host", "other"), PAIRS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_guard_finds_every_listening_stranger_in_its_way(
    opened: ExitStack, host: str, other: str, options: tuple[int, ...]
) -> None:
    address = Address(host=host, port=port_of(stranger(opened, other, *options, listens=True)))
    expected = f"^cannot listen on {re.escape(str(address))}: another process uses"
    with pytest.raises(ListenError, match=expected):
        guard_address(address)


@pytest.mark.parametrize(("host", "other"), PAIRS)
@pytest.mark.parametrize("option", ["plain", "reuseport"])
def test_a_guard_finds_a_stranger_that_has_only_bound(
    opened: ExitStack, host: str, other: str, option: str
) -> None:
    port = port_of(stranger(opened, other, *OPTIONS[option], listens=False))
    with pytest.raises(ListenError, match="another process uses"):
        guard_address(Address(host=host, port=port))


@pytest.mark.shows("limit an address in use")
@pytest.mark.parametrize("option", ["reuseaddr", "both"])
def test_a_stranger_that_has_only_bound_with_reuseaddr_is_overlooked_and_cannot_listen(
    opened: ExitStack, option: str
) -> None:
    other = stranger(opened, "127.0.0.1", *OPTIONS[option], listens=False)
    guard = opened.enter_context(guard_address(local_address(other)))
    if option == "reuseaddr":
        with pytest.raises(OSError, match="in use"):
            other.listen()
    opened.enter_context(open_member(local_address(guard))).listen()


@pytest.mark.parametrize("host", OVERLAPS)
def test_a_guard_does_not_mind_the_other_family(opened: ExitStack, host: str) -> None:
    # The port is chosen in IPv4, where a busy machine's clients have taken most of them.
    if ":" in host:
        address = Address(host=host, port=port_of(stranger(opened, "0.0.0.0", listens=True)))
    else:
        address = keep_port(opened, host)
        stranger(opened, "::", listens=True, port=address.port)
    opened.enter_context(guard_address(address))


@pytest.mark.parametrize(("host", "other"), PAIRS_OF_OURS)
@pytest.mark.parametrize("fixed", [False, True], ids=["port 0", "fixed port"])
def test_a_guard_is_found_by_other_daemons(
    opened: ExitStack, host: str, other: str, fixed: bool
) -> None:
    guard = guarded(opened, host, fixed=fixed)
    rival = Address(host=other, port=port_of(guard))
    for members in (0, 2):
        for _ in range(members):
            opened.enter_context(open_member(local_address(guard))).listen()
        with pytest.raises(ListenError, match="another process uses"):
            guard_address(rival)
        with pytest.raises(ListenError, match="another process uses"):
            shared(opened, rival)


@pytest.mark.parametrize("fixed", [False, True], ids=["port 0", "fixed port"])
def test_a_guard_takes_no_connection_and_its_members_take_all(
    opened: ExitStack, fixed: bool
) -> None:
    guard = guarded(opened, "127.0.0.1", fixed=fixed)
    client = connecting(opened, guard)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    members = [opened.enter_context(open_member(local_address(guard))) for _ in range(2)]
    for member in members:
        member.listen()
    assert set(takers(members, 100)) == {0, 1}


@pytest.mark.parametrize("fixed", [False, True], ids=["port 0", "fixed port"])
def test_a_guard_keeps_the_port_when_all_members_are_gone(opened: ExitStack, fixed: bool) -> None:
    address = local_address(guarded(opened, "127.0.0.1", fixed=fixed))
    member = open_member(address)
    member.listen()
    member.close()
    with pytest.raises(OSError, match="in use"):
        stranger(opened, address.host, socket.SO_REUSEADDR, listens=True, port=address.port)


def test_connections_of_an_earlier_run_in_either_mode_refuse_neither(opened: ExitStack) -> None:
    with shared(opened) as listener:
        address = local_address(listener)
        leave_connection(opened, listener)
    for _ in range(2):
        with guard_address(address), open_member(address) as member:
            member.listen()
            leave_connection(opened, member)
    with shared(opened, address) as listener:
        leave_connection(opened, listener)
    with pytest.raises(OSError, match="in use"):  # they would refuse it to others
        stranger(opened, address.host, listens=True, port=address.port)


def test_a_guard_of_a_unix_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="does not balance unix sockets"):
        guard_address(Address(path=str(tmp_path / "socket")))


def test_a_member_is_bound_non_blocking_and_not_yet_listening(opened: ExitStack) -> None:
    guard = opened.enter_context(guard_address(ANY_PORT))
    member = opened.enter_context(open_member(local_address(guard)))
    assert local_address(member) == local_address(guard)
    assert not os.get_blocking(member.fileno())
    assert member.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


@as_root
def test_members_of_another_user_need_the_guard_to_be_theirs(opened: ExitStack) -> None:
    guard = opened.enter_context(guard_address(ANY_PORT))
    address = local_address(guard)
    with another_user(), pytest.raises(ListenError, match="another process"):
        open_member(address)
    os.fchown(guard.fileno(), NOBODY, -1)
    with another_user():
        opened.enter_context(open_member(address)).listen()


# Unix sockets


@pytest.fixture
def unix(tmp_path: Path) -> Address:
    """Return a path for a unix socket."""
    return Address(path=str(tmp_path / "socket"))


def leave_stale(address: Address) -> None:
    """Bind and close: the file of a daemon that died."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(address.path)
        dead.listen()


def answers(address: Address) -> bool:
    """Whether somebody listens on the path."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(address.path) == 0


@pytest.mark.parametrize("mode", [0o666, 0o600, 0o660])
def test_a_socket_file_has_the_mode_that_was_asked_for(
    opened: ExitStack, unix: Address, mode: int
) -> None:
    before = os.umask(0o027)
    try:
        opened.enter_context(open_shared(unix, backlog=5, unix_mode=mode))
        assert os.umask(0o027) == 0o027  # as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path(unix.path).stat().st_mode) == mode
    assert answers(unix)


def test_a_unix_listener_tells_its_path(opened: ExitStack, unix: Address) -> None:
    assert local_address(shared(opened, unix)) == unix


def test_the_file_of_a_dead_daemon_is_replaced(opened: ExitStack, unix: Address) -> None:
    leave_stale(unix)
    shared(opened, unix)
    assert answers(unix)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_the_file_of_a_living_process_is_left_alone(
    opened: ExitStack, unix: Address, kind: int
) -> None:
    other = opened.enter_context(socket.socket(socket.AF_UNIX, kind))
    other.bind(unix.path)
    if kind != socket.SOCK_DGRAM:
        other.listen()
    before = Path(unix.path).stat()
    with pytest.raises(ListenError, match=f"^cannot listen on {unix}: another process uses"):
        shared(opened, unix)
    assert Path(unix.path).stat() == before


def test_a_living_process_with_a_full_queue_is_left_alone(opened: ExitStack, unix: Address) -> None:
    listener = shared(opened, unix, backlog=0)
    connecting(opened, listener)
    with pytest.raises(ListenError, match="another process uses"):
        shared(opened, unix)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_what_is_not_a_socket_is_left_alone(opened: ExitStack, unix: Address, kind: str) -> None:
    path = Path(unix.path)
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        target = Address(path=unix.path + ".target")
        if kind == "link":
            leave_stale(target)
        path.symlink_to(target.path)
    before = path.lstat()
    with pytest.raises(ListenError, match="the path exists and is not a socket"):
        shared(opened, unix)
    assert path.lstat() == before


def test_a_path_that_is_too_long_is_refused(opened: ExitStack, tmp_path: Path) -> None:
    longest = str(tmp_path / "s").ljust(107, "s")
    shared(opened, Address(path=longest))
    with pytest.raises(ListenError, match="longer than 107 bytes"):
        shared(opened, Address(path=longest + "s"))


@pytest.mark.parametrize(
    ("path", "reason"), [("none/s", "directory does not exist"), ("file/s", "not a directory")]
)
def test_a_path_without_a_directory_is_refused(
    opened: ExitStack, tmp_path: Path, path: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ListenError, match=reason):
        shared(opened, Address(path=str(tmp_path / path)))


@as_root
def test_a_directory_of_others_is_refused_without_words_about_ports(unix: Address) -> None:
    with another_user(), pytest.raises(ListenError, match=r"permission denied$"):
        open_shared(unix, backlog=5, unix_mode=0o666)


# A directory that another may lead elsewhere


@pytest.fixture
def swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a directory that becomes a link to another once it was looked at, and the other."""
    shown, other = tmp_path / "shown", tmp_path / "other"
    shown.mkdir()
    other.mkdir()
    clear = SocketFile.clear

    def clear_and_swap(place: SocketFile) -> None:
        clear(place)
        if not shown.is_symlink():
            shown.rename(tmp_path / "away")
            shown.symlink_to(other)

    def swap_and_ask(path: Path) -> None:
        shown.rename(tmp_path / "away")
        shown.symlink_to(other)
        answerer(path)

    monkeypatch.setattr(SocketFile, "clear", clear_and_swap)
    monkeypatch.setattr(socket_file, "answerer", swap_and_ask)
    return shown, other


def test_a_directory_that_is_replaced_before_the_bind_is_refused(
    swapped: tuple[Path, Path],
) -> None:
    shown, _ = swapped
    with pytest.raises(ListenError, match="the directory was replaced meanwhile"):
        open_shared(Address(path=str(shown / "s")), backlog=5, unix_mode=0o666)


def test_what_a_replaced_directory_holds_is_not_removed(swapped: tuple[Path, Path]) -> None:
    shown, other = swapped
    leave_stale(Address(path=str(shown / "s")))
    leave_stale(Address(path=str(other / "s")))
    with pytest.raises(ListenError, match="another process uses this address"):
        open_shared(Address(path=str(shown / "s")), backlog=5, unix_mode=0o666)
    assert (other / "s").is_socket()
