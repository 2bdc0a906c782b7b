"""Both directions of the service manager's protocol, on real sockets and descriptors."""

import array
import gc
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greeterd.errors import ConfigError
from greeterd.system import sd_daemon


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            sock.bind(str(tmp_path / "notify"))
        else:
            sock.bind("\0" + str(tmp_path))
        sock.setblocking(False)
        yield sock


def open_descriptors() -> set[Path]:
    gc.collect()  # what earlier tests have left would be closed at any moment
    return set(Path("/proc/self/fd").iterdir())


def environment(manager: socket.socket) -> dict[str, str]:
    name = manager.getsockname()
    return {"NOTIFY_SOCKET": name if isinstance(name, str) else "@" + os.fsdecode(name[1:])}


def receive_fds(manager: socket.socket) -> tuple[bytes, list[int]]:
    data, rights, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(4 * 300), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for _, _, raw in rights:
        fds.frombytes(raw)
    return data, list(fds)


def test_assignments_arrive_in_one_datagram(manager: socket.socket) -> None:
    assert sd_daemon.notify("READY=1", "STATUS=4 workers", environ=environment(manager))
    assert manager.recv(4096) == b"READY=1\nSTATUS=4 workers"


def test_a_newline_in_a_status_does_not_begin_another_assignment(manager: socket.socket) -> None:
    assert sd_daemon.notify("STATUS=a\nMAINPID=1", environ=environment(manager))
    assert manager.recv(4096) == b"STATUS=a MAINPID=1"


def test_bytes_that_are_not_text_are_sent_escaped(manager: socket.socket) -> None:
    assert sd_daemon.notify(f"STATUS={os.fsdecode(bytes([0xFF]))}", environ=environment(manager))
    assert manager.recv(4096) == rb"STATUS=\udcff"


@pytest.mark.parametrize(
    "address", [None, "", "relative", "vsock:2:1234", "/nonexistent/notify", "@no such", "/" * 200]
)
def test_without_a_manager_notify_is_silent(address: str | None) -> None:
    environ = {} if address is None else {"NOTIFY_SOCKET": address}
    assert not sd_daemon.notify("READY=1", environ=environ)


def test_a_manager_that_does_not_read_delays_us_for_a_bounded_time(manager: socket.socket) -> None:
    environ = environment(manager)
    started = time.monotonic()
    sent = 0
    while sd_daemon.notify("WATCHDOG=1", environ=environ):
        sent += 1
        assert sent < 100_000, "the queue never filled"
    assert time.monotonic() - started < 10
    manager.recv(4096)
    assert sd_daemon.notify("WATCHDOG=1", environ=environ), "room again"


def test_notify_leaves_no_descriptor_open(manager: socket.socket) -> None:
    before = open_descriptors()
    sd_daemon.notify("READY=1", environ=environment(manager))
    sd_daemon.notify("READY=1", environ={"NOTIFY_SOCKET": "/nonexistent"})
    assert open_descriptors() == before


def test_descriptors_go_to_the_store_under_their_name(manager: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environ = environment(manager)
        assert sd_daemon.notify_with_fds("tcp-1", [listener.fileno()], environ=environ)
        data, [fd] = receive_fds(manager)
        assert data == b"FDSTORE=1\nFDNAME=tcp-1\nFDPOLL=0"
        with socket.socket(fileno=fd) as received:
            assert received.getsockname() == listener.getsockname()


def test_a_name_leaves_the_store(manager: socket.socket) -> None:
    assert sd_daemon.remove_fds("tcp-1", environ=environment(manager))
    assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=tcp-1"


def test_a_barrier_waits_until_the_manager_has_closed_what_it_was_sent(
    manager: socket.socket,
) -> None:
    environ = environment(manager)
    before = open_descriptors()
    assert not sd_daemon.barrier(0.05, environ=environ), "it has not been read yet"
    data, [fd] = receive_fds(manager)
    assert data == b"BARRIER=1"
    os.close(fd)

    def answer() -> None:
        manager.setblocking(True)
        os.close(receive_fds(manager)[1][0])

    thread = threading.Thread(target=answer)
    thread.start()
    assert sd_daemon.barrier(10.0, environ=environ)
    thread.join()
    assert open_descriptors() == before
    assert not sd_daemon.barrier(10.0, environ={})


def test_more_descriptors_than_a_message_takes_go_in_several(manager: socket.socket) -> None:
    with open(os.devnull) as null:  # noqa: PTH123
        fds = [null.fileno()] * 300
        assert sd_daemon.notify_with_fds("many", fds, environ=environment(manager))
    received = [*receive_fds(manager)[1], *receive_fds(manager)[1]]
    assert len(received) == 300
    for fd in received:
        os.close(fd)


@pytest.mark.parametrize(
    "name", ["", "a:b", "a\nb", "\N{LATIN SMALL LETTER U WITH DIAERESIS}", "x" * 256]
)
def test_a_name_that_the_store_would_refuse_is_refused_here(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        sd_daemon.notify_with_fds(name, [0], environ={})


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pass two sockets as descriptors 200 and 201, inheritable as the manager's are."""
    monkeypatch.setattr(sd_daemon, "FIRST_FD", 200)  # 3 belongs to the test runner
    with socket.socket() as sock:
        for number in (200, 201):
            os.dup2(sock.fileno(), number)
    yield
    os.closerange(200, 202)


def listening(count: int, **more: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), **more}


@pytest.mark.usefixtures("passed")
def test_passed_sockets_come_with_their_names_and_close_on_exec() -> None:
    assert os.get_inheritable(200)
    found = sd_daemon.listen_fds(listening(2, LISTEN_FDNAMES="first:second"))
    assert found == [("first", 200), ("second", 201)]
    assert not os.get_inheritable(200)
    assert not os.get_inheritable(201)


@pytest.mark.usefixtures("passed")
def test_sockets_without_names_are_unknown() -> None:
    assert sd_daemon.listen_fds(listening(2)) == [("unknown", 200), ("unknown", 201)]


@pytest.mark.usefixtures("passed")
def test_sockets_for_another_process_are_not_touched() -> None:
    environ = listening(2)
    assert sd_daemon.listen_fds(environ, pid=os.getpid() + 1) == []
    assert sd_daemon.listen_fds({"LISTEN_FDS": "2"}) == []
    assert os.get_inheritable(200)


def test_without_a_manager_there_are_no_sockets() -> None:
    assert sd_daemon.listen_fds({}) == []
    assert sd_daemon.listen_fds(listening(0)) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"LISTEN_PID": "x"}, "LISTEN_PID is not a number: 'x'"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS is not a number: '-1'"),
        ({"LISTEN_FDS": "\N{ARABIC-INDIC DIGIT TWO}"}, "LISTEN_FDS is not a number"),
        ({"LISTEN_FDS": "1_0"}, "LISTEN_FDS is not a number"),
        ({"LISTEN_FDS": "4097"}, "LISTEN_FDS=4097 is more than 4096"),
        ({"LISTEN_FDS": "4096"}, "descriptor 202"),
        ({"LISTEN_FDNAMES": "one"}, "LISTEN_FDNAMES has 1 names for LISTEN_FDS=2"),
        ({"LISTEN_FDS": "3"}, r"descriptor 202 \(unknown\) from the service manager: Bad file"),
    ],
)
@pytest.mark.usefixtures("passed")
def test_garbled_variables_are_a_clear_error(change: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        sd_daemon.listen_fds(listening(2) | change)


@pytest.mark.usefixtures("passed")
def test_a_descriptor_that_is_no_socket_is_a_clear_error() -> None:
    with open(os.devnull) as null:  # noqa: PTH123
        os.dup2(null.fileno(), 201)
    with pytest.raises(ConfigError, match=r"descriptor 201 \(b\).* is not a socket"):
        sd_daemon.listen_fds(listening(2, LISTEN_FDNAMES="a:b"))


def test_the_watchdog_s_period_is_for_the_named_process_only() -> None:
    assert sd_daemon.watchdog_usec({}) is None
    assert sd_daemon.watchdog_usec({"WATCHDOG_USEC": "30000000"}) == 30_000_000
    named = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    assert sd_daemon.watchdog_usec(named) == 30_000_000
    assert sd_daemon.watchdog_usec(named, pid=os.getpid() + 1) is None
    assert sd_daemon.watchdog_usec({"WATCHDOG_USEC": "0"}) is None
    with pytest.raises(ConfigError, match="WATCHDOG_USEC is not a number"):
        sd_daemon.watchdog_usec({"WATCHDOG_USEC": "soon"})
