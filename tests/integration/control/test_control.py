"""The control socket in a real selector loop: clients slow, rude, many, gone and not allowed."""

import contextlib
import os
import resource
import selectors
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import LogCapture

from greeterd.control import (
    ControlError,
    ControlServer,
    NoAnswerError,
    NotPermittedError,
    NotRunningError,
    Request,
    ask,
    connect,
    exchange,
    peer_of,
)
from greeterd.control.protocol import MAX_REQUEST_BYTES, parse_answer, render_request
from greeterd.control.server import ACCEPT_PAUSE, MAX_CONNECTIONS, REQUEST_TIMEOUT
from greeterd.errors import AlreadyRunningError, ListenError
from greeterd.system.socket_file import file_at
from tests.support import until

NOBODY = 65534
PING = render_request("ping", {})
STATUS = render_request("status", {})
RELOAD = render_request("reload", {})


class Master:
    """A loop like the master's, turned by the test; it answers at once unless told to hold."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.now = 100.0
        self.selector = selectors.DefaultSelector()
        self.requests: list[Request] = []
        self.hold = False
        self.capture = LogCapture()
        log = structlog.wrap_logger(
            None,
            processors=[self.capture],
            wrapper_class=structlog.make_filtering_bound_logger("debug"),
        )
        self.options = {"allowed_uids": frozenset({os.geteuid()}), "log": log, **options}
        self.path = path
        self.server = self.serve()
        self.clients: list[socket.socket] = []

    def serve(self) -> ControlServer:
        """Return a server at the path; one that is there already stays."""
        return ControlServer(
            self.path, self.selector, self.on_request, clock=lambda: self.now, **self.options
        )

    def on_request(self, request: Request) -> None:
        """Take a request as the master would."""
        self.requests.append(request)
        if not self.hold:
            request.answer(True, command=request.command, arguments=request.arguments)

    def turn(self, timeout: float = 0.0) -> None:
        """Handle what is ready within `timeout`."""
        for key, mask in self.selector.select(timeout):
            key.data(mask)

    def turn_until(self, predicate: Callable[[], Any]) -> None:
        """Turn the loop until a fact is there."""

        def turned() -> Any:
            self.turn(0.001)
            return predicate()

        until(turned)

    def client(self, data: bytes = b"") -> socket.socket:
        """Connect, have the connection accepted, send."""
        client = socket.socket(socket.AF_UNIX)
        self.clients.append(client)
        client.settimeout(10)
        client.connect(str(self.path))
        self.turn()
        if data:
            client.sendall(data)
            self.turn()
        return client

    def read(self, client: socket.socket) -> bytes:
        """Turn the loop until the client has a whole line, or the end of the stream."""
        line = b""
        client.setblocking(False)

        def arrived() -> bool:
            nonlocal line
            data = b""
            with contextlib.suppress(ConnectionResetError):
                try:
                    # A byte of the next line is not taken: two answers may be there at once.
                    data = client.recv(65536, socket.MSG_PEEK)
                    data = client.recv(data.find(b"\n") + 1 or len(data))
                except BlockingIOError:
                    return False
            line += data
            return line.endswith(b"\n") or not data

        self.turn_until(arrived)
        return line

    def answer(self, client: socket.socket) -> dict[str, Any]:
        """Return the next answer."""
        return parse_answer(self.read(client))

    def ended(self, client: socket.socket) -> bool:
        """Tell whether the server closes without another word."""
        return self.read(client) == b""

    def events(self, name: str) -> list[Any]:
        """Return the log records of one event."""
        return [entry for entry in self.capture.entries if entry["event"] == name]

    def close(self) -> None:
        """End the server, the loop and the clients."""
        self.server.close()
        self.selector.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """Return a loop with a control server."""
    running = Master(tmp_path / "control.sock")
    yield running
    running.close()


# Requests and answers


def test_a_request_tells_the_command_its_arguments_and_who_asks(master: Master) -> None:
    client = master.client(render_request("scale", {"workers": 4}))
    assert master.answer(client) == {
        "version": 1, "ok": True, "command": "scale", "arguments": {"workers": 4},
    }  # fmt: skip
    (request,) = master.requests
    assert (request.uid, request.pid) == (os.geteuid(), os.getpid())


def test_a_request_that_arrives_byte_by_byte_is_understood(master: Master) -> None:
    client = master.client()
    for byte in PING:
        assert not master.requests
        client.sendall(bytes([byte]))
        master.turn()
    assert master.answer(client)["ok"]


def test_several_requests_in_sequence_are_answered(master: Master) -> None:
    client = master.client()
    for command in ("ping", "status", "reopen"):
        client.sendall(render_request(command, {}))
        assert master.answer(client)["command"] == command


def test_requests_that_were_sent_together_are_answered_in_order(master: Master) -> None:
    master.hold = True
    client = master.client(STATUS + PING + RELOAD)
    for command in ("status", "ping", "reload"):
        # The next is not read before the one before it is answered.
        assert [each.command for each in master.requests] == [command]
        master.requests.pop().answer(True, command=command)
        assert master.answer(client)["command"] == command


def test_a_thousand_requests_that_were_sent_together_are_answered(master: Master) -> None:
    client = master.client(PING * 1000)
    for _ in range(1000):
        assert master.answer(client)["ok"]


def test_a_client_that_ends_its_sending_without_a_newline_is_answered(master: Master) -> None:
    client = master.client(PING.rstrip())
    client.shutdown(socket.SHUT_WR)
    assert master.answer(client)["ok"]
    assert master.ended(client)


@pytest.mark.parametrize("line", [b"\n", b"hello\n", b'{"version":9}\n', b"\xff\xfe\n"])
def test_nonsense_is_answered_and_the_connection_stays_usable(master: Master, line: bytes) -> None:
    client = master.client(line)
    answer = master.answer(client)
    assert (answer["ok"], answer["code"]) == (False, 2)
    assert answer["error"]
    client.sendall(PING)
    assert master.answer(client)["ok"]
    assert len(master.events("control request refused")) == 1


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_never_harms_the_server(master: Master, pieces: list[bytes]) -> None:
    rude = master.client()
    for piece in pieces:
        rude.sendall(piece)
        master.turn()
    rude.close()
    master.turn()
    assert master.answer(master.client(PING))["ok"]
    master.clients.pop().close()
    master.turn_until(lambda: not master.server.connections)


def test_a_huge_request_is_refused_before_it_has_arrived(master: Master) -> None:
    client = master.client()
    client.setblocking(False)
    sent = 0
    closed = False
    while not closed and sent < 100 * MAX_REQUEST_BYTES:
        try:
            sent += client.send(b"x" * 4096)
        except BlockingIOError:
            master.turn(0.01)
        except (BrokenPipeError, ConnectionResetError):
            closed = True
        master.turn()
    assert closed
    assert sent < 4 * MAX_REQUEST_BYTES + 212_992  # what the kernel holds for a unix socket
    answer = master.answer(client)
    assert str(MAX_REQUEST_BYTES) in answer["error"]
    assert master.ended(client)


def test_an_answer_that_has_no_json_is_an_error_and_not_the_end(master: Master) -> None:
    master.hold = True
    client = master.client(STATUS)
    master.requests.pop().answer(True, run_dir="/tmp/\udcff")
    assert "no JSON" in master.answer(client)["error"]
    assert master.events("control answer has no JSON")
    client.sendall(PING)
    master.turn()
    assert master.requests


# Late answers, clients that go


def test_answers_may_come_late_and_in_any_order(master: Master) -> None:
    master.hold = True
    first, second = master.client(RELOAD), master.client(STATUS)
    reload, status = master.requests
    status.answer(True, who="status")
    assert master.answer(second)["who"] == "status"
    reload.answer(False, error="bad configuration", code=1)
    assert master.answer(first)["error"] == "bad configuration"


def test_a_waiting_client_costs_no_turn_of_the_loop(master: Master) -> None:
    master.hold = True
    client = master.client(RELOAD)
    client.sendall(PING)
    client.shutdown(socket.SHUT_WR)
    assert master.selector.select(0) == []
    assert master.server.deadline() is None


def test_answering_a_client_that_has_gone_is_harmless(master: Master) -> None:
    master.hold = True
    client = master.client(RELOAD)
    (request,) = master.requests
    before = request.gone
    client.close()
    assert (before, request.gone) == (False, True)
    request.answer(True)
    assert not master.server.connections


def test_a_client_that_only_ended_its_sending_is_not_gone(master: Master) -> None:
    master.hold = True
    client = master.client(RELOAD)
    client.shutdown(socket.SHUT_WR)
    master.turn()
    (request,) = master.requests
    assert not request.gone
    request.answer(True, generation=2)
    assert master.answer(client)["generation"] == 2
    assert master.ended(client)


def test_a_large_answer_is_finished_as_the_client_takes_it(master: Master) -> None:
    master.hold = True
    client = master.client(STATUS)
    master.requests.pop().answer(True, text="x" * 5_000_000)
    assert len(master.answer(client)["text"]) == 5_000_000
    client.sendall(PING)
    master.turn_until(lambda: master.requests)


def test_a_client_that_does_not_take_its_answer_is_dropped_in_time(master: Master) -> None:
    master.hold = True
    master.client(STATUS)
    master.requests.pop().answer(True, text="x" * 5_000_000)
    assert master.server.deadline() == 100.0 + REQUEST_TIMEOUT
    master.server.expire(100.0 + REQUEST_TIMEOUT)
    assert not master.server.connections


# Time


def test_a_request_that_trickles_is_ended_in_words_and_delays_nobody(master: Master) -> None:
    slow = master.client()
    for _ in range(4):
        slow.sendall(b"{")
        assert master.answer(master.client(PING))["ok"]
        master.now += 1.2
        master.server.expire(master.now)
        master.turn()
    assert master.server.deadline() == 100.0 + REQUEST_TIMEOUT  # a byte does not extend it
    master.now = 100.0 + REQUEST_TIMEOUT
    master.server.expire(master.now)
    answer = master.answer(slow)
    assert "did not arrive within 5 s" in answer["error"]
    assert answer["code"] == 75
    assert master.ended(slow)


def test_an_idle_connection_is_closed_silently(master: Master) -> None:
    fresh, served = master.client(), master.client(PING)
    assert master.answer(served)["ok"]
    master.server.expire(100.0 + REQUEST_TIMEOUT)
    assert master.ended(fresh)
    assert master.ended(served)
    assert master.server.deadline() is None


def test_a_waiting_request_has_no_deadline(master: Master) -> None:
    master.hold = True
    client = master.client(RELOAD)
    master.now += 3600
    master.server.expire(master.now)
    master.requests.pop().answer(True)
    assert master.answer(client)["ok"]
    assert master.server.deadline() == master.now + REQUEST_TIMEOUT  # for its next request


# Many


def test_eight_clients_at_once_are_all_served(master: Master) -> None:
    answers: list[dict[str, Any]] = []

    def work(workers: int) -> None:
        answers.append(ask(master.path, "scale", 10.0, workers=workers))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    master.turn_until(lambda: len(answers) == 8)
    for thread in threads:
        thread.join()
    assert sorted(each["arguments"]["workers"] for each in answers) == list(range(1, 9))


def test_when_all_places_are_taken_the_longest_idle_makes_room(master: Master) -> None:
    idle = []
    for _ in range(MAX_CONNECTIONS):
        idle.append(master.client())
        master.now += 0.01
    assert master.answer(master.client(PING))["ok"]
    assert master.ended(idle[0])
    idle[1].sendall(PING)
    assert master.answer(idle[1])["ok"]


def test_when_all_places_wait_for_answers_a_new_client_is_turned_away(master: Master) -> None:
    master.hold = True
    waiting = [master.client(RELOAD) for _ in range(MAX_CONNECTIONS)]
    answer = master.answer(master.client())
    assert (answer["ok"], answer["code"]) == (False, 75)
    assert len(master.server.connections) == MAX_CONNECTIONS
    waiting[7].close()
    master.hold = False
    assert master.answer(master.client(PING))["ok"]
    assert master.requests[7].gone
    master.requests[7].answer(True)  # its connection made room, and answering is harmless


def test_accepting_pauses_when_descriptors_are_exhausted(master: Master) -> None:
    client = socket.socket(socket.AF_UNIX)
    master.clients.append(client)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        client.connect(str(master.path))
        client.sendall(PING)
        master.turn()
        assert master.events("control socket pauses")
        assert master.selector.select(0) == []  # else the loop would spin
        assert master.server.deadline() == 100.0 + ACCEPT_PAUSE
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    master.server.expire(100.0 + ACCEPT_PAUSE)
    assert master.server.deadline() is None
    master.server.expire(100.0 + 2 * ACCEPT_PAUSE)  # the pause ends once
    assert master.answer(client)["ok"]


# Who may


def run_as_nobody(code: str, path: Path) -> str:
    """Run a script that becomes nobody once it is loaded: nobody may not read the interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", BECOME_NOBODY + code, str(path)],
        check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return done.stdout.strip()


BECOME_NOBODY = f"""\
import contextlib, os, socket, sys
from pathlib import Path
from greeterd.control import ControlError, ask
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
"""

SAY_PING = """\
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
with contextlib.suppress(BrokenPipeError):  # refused, and closed already
    sock.sendall(b'{"version":1,"command":"ping"}\\n')
print(sock.makefile().readline())
"""

ASK_PING = """\
try:
    print(ask(Path(sys.argv[1]), "ping", 10.0))
except ControlError as error:
    print(error.exit_code, error)
"""


def serve_while(master: Master, work: Callable[[], str]) -> str:
    """Turn the loop until another thread has its result."""
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    master.turn_until(lambda: results or not thread.is_alive())
    thread.join()
    return results[0]


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a path for a socket in a directory that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="greeterd-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory, "control.sock")


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


@as_root
def test_another_user_is_refused_and_logged(public: Path) -> None:
    master = Master(public)
    try:
        public.chmod(0o666)
        line = serve_while(master, lambda: run_as_nobody(SAY_PING, public))
        answer = parse_answer(line.encode())
        assert (answer["ok"], answer["code"]) == (False, 77)
        assert str(NOBODY) in answer["error"]
        assert not master.requests
        (entry,) = master.events("control request refused")
        assert entry["peer_uid"] == NOBODY
        assert entry["log_level"] == "warning"
    finally:
        master.close()


@as_root
def test_an_allowed_user_is_served(public: Path) -> None:
    master = Master(public, allowed_uids=frozenset({NOBODY}))
    try:
        public.chmod(0o666)
        line = serve_while(master, lambda: run_as_nobody(SAY_PING, public))
        assert parse_answer(line.encode())["ok"]
        assert master.requests[0].uid == NOBODY
    finally:
        master.close()


@as_root
def test_the_file_keeps_another_user_out(public: Path) -> None:
    master = Master(public)
    try:
        assert run_as_nobody(ASK_PING, public).startswith("77 ")
    finally:
        master.close()


@as_root
def test_root_is_always_allowed(tmp_path: Path) -> None:
    master = Master(tmp_path / "control.sock", allowed_uids=frozenset())
    assert master.answer(master.client(PING))["ok"]
    master.close()


def test_commands_are_logged_with_who_sent_them(master: Master) -> None:
    master.answer(master.client(render_request("stop", {"now": True})))
    master.answer(master.client(PING))
    stop, ping = master.events("control request")
    assert (stop["log_level"], stop["command"], stop["now"]) == ("info", "stop", True)
    assert stop["peer_uid"] == os.geteuid()
    assert ping["log_level"] == "debug"


# The file, and the end


def test_the_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        master = Master(tmp_path / "control.sock")
    finally:
        os.umask(before)
    assert master.path.stat().st_mode & 0o777 == 0o600
    master.close()


def test_the_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    master = Master(path)
    assert master.answer(master.client(PING))["ok"]
    master.close()


def test_the_socket_of_a_living_daemon_is_left_alone(master: Master) -> None:
    before = master.path.stat()
    with pytest.raises(AlreadyRunningError, match=rf"as pid {os.getpid()} \(it answers at"):
        master.serve()
    assert master.path.stat() == before
    assert master.answer(master.client(PING))["ok"]


def test_a_socket_with_a_full_queue_is_left_alone(listener: socket.socket) -> None:
    path = Path(listener.getsockname())
    with contextlib.ExitStack() as clients:
        code = 0
        while not code:
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            code = client.connect_ex(str(path))
        with pytest.raises(AlreadyRunningError, match="already running"):
            Master(path)
    assert path.is_socket()


def test_a_server_that_has_lost_its_name_listens_anew_and_keeps_who_is_there(
    master: Master,
) -> None:
    early, queued = master.client(), socket.socket(socket.AF_UNIX)
    master.clients.append(queued)
    queued.connect(str(master.path))
    master.path.unlink()
    master.server.renew()
    assert master.server.file == file_at(master.path)
    for client in (early, queued, master.client()):
        client.sendall(PING)
        assert master.answer(client)["ok"]
    master.server.close()
    assert not master.path.exists()
    assert not master.selector.get_map()


def test_a_server_that_cannot_listen_anew_goes_on(master: Master) -> None:
    client = master.client()
    master.path.unlink()
    master.path.write_text("precious")
    with pytest.raises(ListenError, match="is not a socket"):
        master.server.renew()
    client.sendall(PING)
    assert master.answer(client)["ok"]
    master.server.close()
    assert master.path.read_text() == "precious"


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="is not a socket"):
        Master(path)
    assert path.read_text() == "precious"


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="No such file or directory"):
        Master(tmp_path / "missing" / "control.sock")


def test_a_deep_directory_does_not_matter(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    master = Master(directory / "control.sock")
    answer = serve_while(master, lambda: str(ask(master.path, "ping", 10.0)["ok"]))
    assert answer == "True"
    master.close()
    assert not list(directory.iterdir())


def test_close_removes_the_file(master: Master) -> None:
    master.server.close()
    assert not master.path.exists()
    assert not master.selector.get_map()
    master.server.close()  # again is harmless


def test_close_leaves_a_successors_file(master: Master) -> None:
    old = master.server
    master.path.unlink()
    master.server = master.serve()
    old.close()
    assert master.answer(master.client(PING))["ok"]


def test_close_tells_those_who_still_wait(master: Master) -> None:
    master.hold = True
    client = master.client(RELOAD)
    master.server.close()
    answer = master.answer(client)
    assert (answer["ok"], answer["code"]) == (False, 1)
    assert "ended" in answer["error"]
    assert master.ended(client)


def test_an_answer_that_was_given_before_the_close_arrives(master: Master) -> None:
    master.hold = True
    client = master.client(render_request("stop", {}))
    master.requests.pop().answer(True, stopped=True)
    master.server.close()
    assert master.answer(client)["stopped"]


def test_a_successor_goes_on_with_connections_that_are_idle_or_wait(master: Master) -> None:
    master.hold = True
    idle, begun, waiting = master.client(), master.client(b'{"ver'), master.client(RELOAD)
    (request,) = master.requests
    server = master.server
    (idle_fd,) = server.idle_fds()
    assert request.fd != idle_fd
    successor = ControlServer(
        master.path.with_name("successor.sock"),
        master.selector,
        master.on_request,
        clock=lambda: master.now,
        **master.options,
    )
    connection = successor.adopt(os.dup(idle_fd))
    assert connection.peer.uid == os.geteuid()
    taken = successor.adopt_request(os.dup(request.fd), "reload")
    assert (taken.command, taken.arguments, taken.gone) == ("reload", {}, False)
    assert len(successor.connections) == 2
    assert successor.deadline() == master.now + REQUEST_TIMEOUT  # of the idle one alone
    taken.answer(True, generation=2)
    assert master.answer(waiting)["generation"] == 2
    server.close()
    idle.sendall(PING)
    master.turn_until(lambda: len(master.requests) > 1)
    master.requests[-1].answer(True)
    assert master.answer(idle)["ok"]
    assert master.ended(begun)
    successor.close()


def test_every_descriptor_is_close_on_exec(master: Master) -> None:
    def sockets() -> set[int]:
        found = set()
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names alone
            with contextlib.suppress(OSError):  # the listing's own is closed by now
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    found.add(int(name))
        return found

    before = sockets()
    clients = {master.client().fileno() for _ in range(3)}
    found = sockets() - before - clients
    assert found == {each.sock.fileno() for each in master.server.connections}
    assert len(found) == 3
    assert not any(map(os.get_inheritable, (*found, master.server.listener_fd)))


# The client


def test_ask_returns_also_an_answer_that_says_no(master: Master) -> None:
    master.hold = True
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(ask(master.path, "reload", 10.0)))
    thread.start()
    master.turn_until(lambda: master.requests)
    master.requests[0].answer(False, error="bad", code=1)
    thread.join()
    assert answers == [{"version": 1, "ok": False, "error": "bad", "code": 1}]


def test_without_a_socket_no_daemon_is_running(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="no socket at"):
        ask(tmp_path / "control.sock", "ping", 10.0)
    with pytest.raises(NotRunningError, match="no socket at"):
        ask(tmp_path / "missing" / "control.sock", "ping", 10.0)


def test_at_a_dead_daemons_socket_no_daemon_is_running(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunningError, match="nobody listens"):
        ask(path, "ping", 10.0)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Return a listener with room for one connection, which nobody accepts."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control.sock"))
        listening.listen(0)
        yield listening


def test_a_daemon_that_does_not_answer_is_waited_for_in_vain(listener: socket.socket) -> None:
    with pytest.raises(NoAnswerError, match="may still be under way"):
        ask(Path(listener.getsockname()), "ping", 0.1)


def test_a_daemon_that_does_not_accept_is_waited_for_in_vain(listener: socket.socket) -> None:
    path = Path(listener.getsockname())
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        began = time.monotonic()
        with pytest.raises(NoAnswerError, match="did not take the connection"):
            ask(path, "ping", 0.2)
        assert time.monotonic() - began >= 0.2  # it waited for room


def test_what_comes_without_an_end_is_read_until_the_deadline_only() -> None:
    class Dripping(socket.socket):
        drops = 0

        def recv(self, *_: object) -> bytes:
            self.drops += 1
            assert self.drops < 100_000, "it is read on and on"
            return b" "

    ours, theirs = socket.socketpair()
    with ours, theirs, Dripping(fileno=ours.detach()) as dripping, pytest.raises(NoAnswerError):
        exchange(dripping, "ping", time.monotonic() + 0.01)


def exchange_with(listener: socket.socket, reply: bytes) -> dict[str, Any]:
    """Ask a server that says `reply` and closes without reading."""
    deadline = time.monotonic() + 10.0
    with connect(Path(listener.getsockname()), deadline) as sock:
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(reply)
        return exchange(sock, "ping", deadline)


def test_a_daemon_that_closes_without_an_answer_went_away(listener: socket.socket) -> None:
    with pytest.raises(NotRunningError, match="went away"):
        exchange_with(listener, b"")
    with pytest.raises(NotRunningError, match="went away"):
        exchange_with(listener, b'{"version":1,')


def test_an_answer_is_read_although_the_daemon_has_closed_already(listener: socket.socket) -> None:
    assert exchange_with(listener, b'{"version":1,"ok":true}\n')["ok"]


def test_nonsense_is_no_greeterd(listener: socket.socket) -> None:
    with pytest.raises(ControlError, match="no greeterd") as caught:
        exchange_with(listener, b"220 smtp ready\n")
    assert caught.value.exit_code == 1


def test_the_exit_codes_are_those_of_sysexits() -> None:
    assert NotRunningError.exit_code == os.EX_UNAVAILABLE
    assert NoAnswerError.exit_code == os.EX_TEMPFAIL
    assert NotPermittedError.exit_code == os.EX_NOPERM


def test_a_client_learns_which_process_answers(master: Master) -> None:
    peer = peer_of(master.client())
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
