"""Input of every kind, good and bad, over real sockets: what becomes of it, and what it harms.

The table of the protocol line by line, random streams in random pieces, and a crowd of clients that
misbehave all at once: 5,000 in each mode, with TEST_SIZE=full 100,000.
"""

import contextlib
import errno
import json
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import until
from tests.system import crowd
from tests.system.books import assert_gap_free, balanced, names, outcomes, quiet_totals
from tests.system.clients import connect, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, Record
from tests.system.sizes import sized

LIMIT = 4096
TIMEOUT = 1.5  # seconds until the daemon has had enough of a silent client

both_modes = pytest.mark.parametrize("mode", ["inherit", "reuseport"])


@dataclass
class Server:
    """A daemon that answers, on an address of each family."""

    daemon: Daemon
    address: dict[str, str]

    def totals(self, connections: int) -> Record:
        """Wait until so many connections have ended; return the totals."""
        return quiet_totals(self.daemon, connections=connections)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    families = {"tcp": "127.0.0.1:0"}
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        families["tcp6"] = "[::1]:0"
    with tempfile.TemporaryDirectory(prefix="greeterd-test-") as directory:
        families["unix"] = f"unix:{directory}/socket"
        binds = [f"--bind={address}" for address in families.values()]
        with Daemon(
            *binds, "--mode=inherit", "--workers=2", "--reply", f"--client-timeout={TIMEOUT}"
        ) as daemon:
            yield Server(daemon, dict(zip(families, daemon.addresses, strict=True)))


@pytest.fixture(params=["tcp", "tcp6", "unix"])
def address(request: pytest.FixtureRequest, server: Server) -> str:
    if request.param not in server.address:
        pytest.skip("this machine has no IPv6 loopback address")
    return server.address[request.param]


@contextlib.contextmanager
def counted(server: Server, **expected: int) -> Iterator[None]:
    """Assert that what is done here has exactly these outcomes."""
    before = Counter(outcomes(server.daemon.status()["totals"]))
    yield
    after = before + Counter(expected)
    assert outcomes(server.totals(after.total())) == after


def talk(address: str, pieces: Sequence[bytes]) -> bytes:
    """Send the pieces, half-close, and return what comes back until end-of-stream."""
    with connect(address) as sock:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as stream:
            return stream.read()


def last_lines(server: Server, count: int) -> list[bytes]:
    """Return the lines that were logged last, `count` of each worker's."""
    files = sorted(server.daemon.log_dir.glob("worker-*.log"))
    return [line for file in files for line in file.read_bytes().splitlines()[-count:]]


def reset(sock: socket.socket) -> None:
    """Close a TCP connection with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, crowd.RESET_AT_CLOSE)
    sock.close()


# The table


@pytest.mark.shows(
    "protocol a name of 1 to max_name_bytes bytes",
    "protocol bytes that are not UTF-8",
    "protocol control characters, quotes, newlines inside the name",
)
@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (b"Alice", "Alice"),
        (b"Alice\n", "Alice"),
        (b"Alice\r\n", "Alice"),
        (b"Alice\n\n", "Alice\n"),
        (b"Alice\r", "Alice\r"),
        (b"\r", "\r"),
        (b" ", " "),
        (b"x", "x"),
        (b"x" * LIMIT, "x" * LIMIT),
        (b"x" * LIMIT + b"\r\n", "x" * LIMIT),
        ("Zoë 漢字 🐍".encode(), "Zoë 漢字 🐍"),
        (b"\xff" * LIMIT, "\\xff" * LIMIT),
        (b"caf\xe9", "caf\\xe9"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
        (b"\x00", "\x00"),
        (b'one\ntwo\ttab "quote" \\ \x1b[31mred\x7f', 'one\ntwo\ttab "quote" \\ \x1b[31mred\x7f'),
        ("\u202egnirts\u2028\ufeff".encode(), "\u202egnirts\u2028\ufeff"),
        (b"exit", "exit"),
        (b"exit\n", "exit"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_name_is_greeted_by_one_line(
    server: Server, address: str, stream: bytes, name: str
) -> None:
    with counted(server, greetings=1):
        assert talk(address, [stream]) == f"Hello, {name}\n".encode()
    line = next(each for each in last_lines(server, 1) if json.loads(each)["name"] == name)
    assert json.loads(line)["greeting"] == f"Hello, {name}"
    text = line.decode()
    assert all(letter.isprintable() for letter in text), (
        "nothing in a log moves a terminal's cursor"
    )


@pytest.mark.shows("protocol nothing, or a lone newline")
@pytest.mark.parametrize("stream", [b"", b"\n", b"\r\n"], ids=ascii)
def test_nothing_is_counted_as_empty(server: Server, address: str, stream: bytes) -> None:
    with counted(server, empty=1):
        assert talk(address, [stream]) == b""


@pytest.mark.shows("protocol a name of more than max_name_bytes bytes", "when a name is too long")
@pytest.mark.parametrize("excess", [1, 3, 100_000])
def test_too_long_a_name_is_reset(server: Server, address: str, excess: int) -> None:
    with counted(server, oversize=1), connect(address) as sock:
        try:
            sock.sendall(b"x" * (LIMIT + excess))
            sock.shutdown(socket.SHUT_WR)
            end = sock.recv(1)
        except OSError as error:
            # The last two are what the sending and the half-close say, if the reset was faster.
            assert error.errno in {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN}  # noqa: PT017
        else:
            assert (sock.family, end) == (socket.AF_UNIX, b""), "only TCP has a reset"


@both_modes
@pytest.mark.parametrize("limit", [1, 255, 256, 257])
def test_the_limit_is_exact_where_one_read_is_enough(
    daemon: StartDaemon, mode: str, limit: int
) -> None:
    one = daemon(f"--mode={mode}", "--workers=1", "--reply", f"--max-name-bytes={limit}")
    for newline in crowd.NEWLINES:
        name = "n" * limit
        assert greet(one.address, name.encode() + newline) == f"Hello, {name}\n"
        with contextlib.suppress(OSError):
            assert greet(one.address, name.encode() + b"n" + newline) == ""
    assert outcomes(quiet_totals(one, connections=6)) == {"greetings": 3, "oversize": 3}


@pytest.mark.shows("protocol no end of the stream within client_timeout")
def test_a_silent_client_is_closed_in_order_after_the_timeout(server: Server, address: str) -> None:
    began = monotonic()
    with counted(server, timeout=2), connect(address) as mute, connect(address) as half:
        half.sendall(b"half a na")
        for sock in (mute, half):
            sock.settimeout(10.0)
            assert sock.recv(1) == b""
        assert TIMEOUT <= monotonic() - began < TIMEOUT + 3.0


@pytest.mark.shows("protocol a reset instead of the end of the stream")
@pytest.mark.parametrize("family", ["tcp", "tcp6"])
@pytest.mark.parametrize("stream", [b"", b"half a na", b"whole\n"], ids=ascii)
def test_a_reset_is_counted_and_harms_nobody(server: Server, family: str, stream: bytes) -> None:
    if family not in server.address:
        pytest.skip("this machine has no IPv6 loopback address")
    with counted(server, reset=30, greetings=1):
        for _ in range(30):
            sock = connect(server.address[family])
            sock.sendall(stream)
            reset(sock)
        assert greet(server.address[family], "after") == "Hello, after\n"


def test_a_client_that_does_not_wait_for_its_answer_is_greeted(
    server: Server, address: str
) -> None:
    with counted(server, greetings=1), connect(address) as sock:
        sock.sendall(b"Impatient")
    assert any(json.loads(line)["name"] == "Impatient" for line in last_lines(server, 1))


@both_modes
def test_exit_is_a_word_of_its_own_where_it_is_allowed(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=1", "--reply", "--allow-exit")
    for name in ("Exit", "exit ", " exit", "exits", "exit\x00"):
        assert greet(one.address, name + "\n") == f"Hello, {name}\n"
    assert greet(one.address, "exit\n\n") == "Hello, exit\n\n"
    with connect(one.address) as sock:
        for letter in (b"e", b"x", b"i", b"t", b"\r", b"\n"):
            sock.sendall(letter)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    assert one.wait() == 0
    assert len(one.greetings()) == 6


# Random streams


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Draw a stream in pieces; the interesting sizes are those around the limit."""
    stream: bytes = draw(
        st.one_of(
            st.binary(max_size=40),
            st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
            st.builds(
                lambda letter, excess, end: letter * (LIMIT + excess) + end,
                st.sampled_from([b"x", b"\xff", b"\n"]),
                st.integers(-3, 4),
                st.sampled_from(crowd.NEWLINES),
            ),
            st.sampled_from([b"exit", b"\n", b"\r\n", b"\r\r\n", *crowd.MEANINGFUL]),
        )
    )
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    return [stream[start:stop] for start, stop in pairwise([0, *cuts, len(stream)])]


def expected(stream: bytes) -> tuple[str, bytes]:
    """Return the outcome of a stream and the answer to it, by the words of the protocol."""
    newline = next((each for each in (b"\r\n", b"\n") if stream.endswith(each)), b"")
    name = stream.removesuffix(newline)
    if not name:
        return "empty", b""
    if len(name) > LIMIT:
        return "oversize", b""
    return "greetings", b"Hello, " + name.decode("utf-8", "backslashreplace").encode() + b"\n"


@settings(
    max_examples=sized(2_000, 150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(visits=st.lists(streams(), min_size=1, max_size=6))
def test_any_stream_in_any_pieces_has_the_outcome_of_the_table(
    server: Server, visits: list[list[bytes]]
) -> None:
    addresses = list(server.address.values())
    wanted = [expected(b"".join(pieces)) for pieces in visits]
    with counted(server, **Counter(outcome for outcome, _ in wanted)):
        for number, (pieces, (outcome, answer)) in enumerate(zip(visits, wanted, strict=True)):
            where = addresses[number % len(addresses)]
            try:
                heard = talk(where, pieces)
            except OSError:
                assert outcome == "oversize"
            else:
                assert heard == answer


# Many at once


@both_modes
def test_a_crowd_of_bad_clients_is_counted_exactly(daemon: StartDaemon, mode: str) -> None:
    count = sized(100_000, 5_000)
    one = daemon(f"--mode={mode}", "--workers=2", "--reply", "--client-timeout=5")
    before = one.worker_pids()
    began = monotonic()
    visitors = crowd.come(one.address, count, seed=20260101)
    took = monotonic() - began
    assert visitors.wrong == [], one.status()["totals"]
    assert visitors.outcomes.total() == count
    totals = quiet_totals(one, connections=count)
    assert outcomes(totals) == visitors.outcomes
    assert one.worker_pids() == before, "the workers live"
    files = sorted(one.log_dir.glob("worker-*.log"))
    text = b"".join(file.read_bytes() for file in files).decode()
    greetings = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    assert len(greetings) == text.count("\n") == totals["greetings"]
    assert names(greetings) == visitors.names
    assert_gap_free(greetings)
    warnings = one.events("name too long")
    told = len(warnings) + sum(each.get("suppressed", 0) for each in warnings)
    assert 0 < told <= totals["oversize"]
    assert len(warnings) <= 2 * (took + 2), "one a second and worker"
    print(f"{mode}: {count} in {took:.1f} s, {outcomes(totals)}, {len(warnings)} warnings")


@pytest.mark.shows("when a client is silent, or sends its name letter by letter")
@both_modes
def test_slow_clients_delay_no_fast_one(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=2", "--reply")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(one.address)) for _ in range(50)]
        for letter in b"slow\r\n":
            for sock in slow:
                sock.sendall(bytes([letter]))
            for number in range(10):
                assert greet(one.address, f"fast {number}") == f"Hello, fast {number}\n"
        until(lambda: one.status()["totals"]["open"] == len(slow), what="all wait")
        for sock in slow:
            sock.shutdown(socket.SHUT_WR)
        assert {sock.recv(100) for sock in slow} == {b"Hello, slow\n"}
    assert outcomes(quiet_totals(one, connections=110)) == {"greetings": 110}


@pytest.mark.shows("when a load balancer probes the port")
def test_health_probes_leave_no_greeting_and_no_warning(daemon: StartDaemon) -> None:
    one = daemon("--workers=2")
    probes = 500
    for number in range(probes):
        sock = connect(one.address)
        if number % 2:
            sock.close()
        else:
            reset(sock)
    totals = quiet_totals(one, connections=probes)
    assert outcomes(totals) == {"empty": probes // 2, "reset": probes // 2}
    assert one.greetings() == []
    others = {each["event"] for each in one.events() if each["level"] != "info"}
    assert others <= {"workers are root"}


def test_the_books_balance_while_clients_come_and_go(daemon: StartDaemon) -> None:
    one = daemon("--workers=2", "--client-timeout=1")
    with contextlib.ExitStack() as stack:
        for number in range(40):
            stack.enter_context(connect(one.address)).sendall(b"%d" % number)
        totals = until(lambda: (seen := one.status()["totals"])["open"] == 40 and seen)
        assert balanced(totals)
        until(lambda: one.status()["totals"]["timeout"] == 40)
    assert outcomes(quiet_totals(one, connections=40)) == {"timeout": 40}


@pytest.mark.shows("when a name is too long")
def test_logs_of_bad_input_stay_where_they_belong(daemon: StartDaemon) -> None:
    one = daemon("--workers=1", "--reply")
    greet(one.address, b"\x1b]0;title\x07\n\x9b")
    with contextlib.suppress(OSError):
        greet(one.address, b"secret" * 10_000)
    one.wait_event("name too long")
    assert "secret" not in one.log_text()
    assert Path(one.stderr).read_text().isascii()
    assert all(line.isprintable() for line in one.log_lines(1))
