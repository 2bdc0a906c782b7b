"""The client against servers that greet, reset, keep silent or are not there."""

import errno
import io
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import greeterd
from greeterd.cli import load
from greeterd.cli.greeter import EXIT_CODES, main, show_name
from greeterd.client import Delivery, Failure, Result, UnreachableError, Until, send_all
from greeterd.sockets.address import Address
from tests.integration.server import RESET_ON_CLOSE, Server, hold, read, reply, reset, serving, take
from tests.support import until

SOURCE = Path(greeterd.__file__).parents[1]
PROGRAM = "import sys; from greeterd.cli.greeter import main; sys.exit(main())"


def answer(data: bytes) -> Callable[[Server, socket.socket], None]:
    """Take, and answer `data` whatever the name."""

    def behave(_server: Server, connection: socket.socket) -> None:
        with connection:
            read(connection)
            connection.sendall(data)

    return behave


def hold_mute(server: Server, connection: socket.socket) -> None:
    """Answer all but who is called mute."""
    if connection.recv(4, socket.MSG_PEEK) == b"mute":
        hold(server, connection)
    else:
        reply(server, connection)


@pytest.fixture
def closed() -> Iterator[Address]:
    """Yield an address that is bound, so that nobody else gets it, and not listened on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield Address(*bound.getsockname())


def send(names: list[bytes], delivery: Delivery) -> list[Result]:
    return list(send_all(names, delivery))


def failures(names: list[bytes], delivery: Delivery) -> list[tuple[Failure | None, str]]:
    return [(result.failure, result.reason) for result in send(names, delivery)]


# What arrives


@pytest.mark.parametrize(
    "name", [b"Alice", b"\xff\0\r\n", b" ", b"exit", b"x" * 3_000_000], ids=lambda n: repr(n[:8])
)
def test_a_name_arrives_byte_for_byte(name: bytes) -> None:
    with serving(take) as server:
        assert send([name], Delivery(server.address)) == [Result(name)]
    assert server.names == [name]


def test_an_empty_name_is_a_connection_without_a_byte() -> None:
    with serving(take) as server:
        assert send([b""], Delivery(server.address)) == [Result(b"")]
    assert server.names == [b""]


def test_a_reply_comes_with_its_result() -> None:
    with serving(reply) as server:
        results = send([b"Alice", b"Bob"], Delivery(server.address, Until.REPLY))
    assert [result.reply for result in results] == [b"Hello, Alice\n", b"Hello, Bob\n"]


def test_greetings_go_over_a_unix_socket(tmp_path: Path) -> None:
    with serving(reply, str(tmp_path / "socket")) as server:
        assert server.address.is_unix
        assert send([b"Alice"], Delivery(server.address, Until.REPLY))[0].reply == b"Hello, Alice\n"


def test_greetings_go_over_ipv6() -> None:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(serving(reply, ("::1", 0)))
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        assert server.address.is_v6
        assert send([b"Alice"], Delivery(server.address, Until.REPLY))[0].reply == b"Hello, Alice\n"


def test_a_host_name_is_resolved() -> None:
    with serving(take) as server:
        assert send([b"Alice"], Delivery(Address("localhost", server.address.port))) == [
            Result(b"Alice")
        ]


# Many at once


def test_two_thousand_at_concurrency_fifty_all_arrive() -> None:
    names = [b"%d" % number for number in range(2000)]
    with serving(reply) as server:
        results = send(names, Delivery(server.address, Until.REPLY, concurrency=50))
    assert [result for result in results if result.failure] == []
    assert sorted(server.names) == sorted(names)
    assert {result.reply for result in results} == {b"Hello, %d\n" % n for n in range(2000)}


def test_as_many_as_asked_are_in_flight_and_never_more() -> None:
    taken = ended = most = 0

    def names() -> Iterator[bytes]:
        nonlocal taken, most
        for _ in range(20):
            taken += 1
            most = max(most, taken - ended)
            yield b"x"

    def hold_five(server: Server, connection: socket.socket) -> None:
        server.held.append(connection)
        while len(server.held) == 5:
            for each in server.held:
                each.close()
            server.held.clear()

    with serving(hold_five) as server:
        for result in send_all(names(), Delivery(server.address, Until.HANDED_OVER, concurrency=1)):
            assert result.failure is None
            ended += 1
        assert most == 1
        taken = ended = most = 0
        for _ in send_all(names(), Delivery(server.address, timeout=5, concurrency=5)):
            ended += 1
    assert (ended, most) == (20, 5)


def test_a_name_is_awaited_only_when_nothing_is_in_flight() -> None:
    log = []

    def names() -> Iterator[bytes]:
        for name in (b"Alice", b"Bob"):
            log.append(f"take {name.decode()}")
            yield name

    with serving(take) as server:
        ends = send_all(names(), Delivery(server.address))
        log.extend(f"end {result.name.decode()}" for result in ends)
    assert log == ["take Alice", "end Alice", "take Bob", "end Bob"]


def test_a_silent_connection_delays_no_other() -> None:
    with serving(hold_mute) as server:
        names = [b"mute", b"Alice", b"Bob", b"Carol"]
        results = send(names, Delivery(server.address, Until.REPLY, timeout=0.3, concurrency=2))
    assert [result.name for result in results] == [b"Alice", b"Bob", b"Carol", b"mute"]
    assert [result.failure for result in results] == [None, None, None, Failure.TIMEOUT]


def test_a_full_unix_queue_is_waited_for(tmp_path: Path) -> None:
    with serving(take, str(tmp_path / "socket"), backlog=0) as server:
        results = send([b"x"] * 100, Delivery(server.address, concurrency=20))
    assert [result.failure for result in results] == [None] * 100


def test_room_in_a_full_unix_queue_is_noticed_long_before_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "socket")
    refused = threading.Event()

    class Refused(socket.socket):
        def connect_ex(self, address: Any, /) -> int:
            error = super().connect_ex(address)
            if error == errno.EAGAIN:
                refused.set()
            return error

    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        monkeypatch.setattr("greeterd.client.socket.socket", Refused)
        results: list[Result] = []
        delivery = Delivery(Address(path=path), Until.HANDED_OVER, timeout=20)
        sending = threading.Thread(target=lambda: results.extend(send([b"Alice"], delivery)))
        sending.start()
        assert refused.wait(5)
        listener.accept()[0].close()
        sending.join(5)
        assert results == [Result(b"Alice")]


def test_waiting_costs_no_processor_time() -> None:
    with serving(hold) as server:
        before = time.process_time()
        send([b"Alice"], Delivery(server.address, timeout=0.5))
        assert time.process_time() - before < 0.2


def test_nothing_stays_open_when_the_caller_stops_early() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    with serving(hold_mute) as server:
        names = [b"mute", b"mute", b"Alice"]
        results = send_all(names, Delivery(server.address, Until.REPLY, concurrency=3))
        assert next(results).name == b"Alice"
        results.close()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


# Failures


def test_a_reset_is_a_failure() -> None:
    with serving(reset) as server:
        delivery = Delivery(server.address, concurrency=2)
        assert failures([b"xx"] * 3, delivery) == [(Failure.RESET, "reset by the server")] * 3


def test_a_reset_before_the_first_byte_is_not_taken_for_nobody_listening() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def names() -> Iterator[bytes]:
            yield b"Alice"
            connection, _ = listener.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            connection.close()

        delivery = Delivery(Address(*listener.getsockname()), concurrency=2)
        assert [result.failure for result in send_all(names(), delivery)] == [Failure.RESET]


def test_silence_ends_with_the_timeout_and_says_what_was_awaited() -> None:
    with serving(hold) as server:
        slow = Delivery(server.address, timeout=0.1)
        assert failures([b"Alice"], slow) == [(Failure.TIMEOUT, "no end-of-stream within 0.1 s")]
        assert failures([b"x" * 30_000_000], slow) == [
            (Failure.TIMEOUT, "the name was not taken within 0.1 s")
        ]


def test_a_queue_that_stays_full_ends_with_the_timeout(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)

        def names() -> Iterator[bytes]:
            yield b"Alice"
            half = time.monotonic() + 0.05
            until(lambda: time.monotonic() > half)
            yield b"Bob"  # so its turns go on when Alice's time is over

        results = list(send_all(names(), Delivery(Address(path=path), timeout=0.1, concurrency=2)))
    assert results == [
        Result(name, Failure.TIMEOUT, "no connection within 0.1 s") for name in (b"Alice", b"Bob")
    ]


@pytest.mark.parametrize(
    ("data", "failure", "reason"),
    [
        (b"", Failure.NO_REPLY, "closed without a reply"),
        (b"Hello, Al", Failure.NO_REPLY, "the reply was cut short"),
        (b"x" * 8_000_000, Failure.ERROR, "the reply does not end"),
    ],
    ids=["missing", "cut", "endless"],
)
def test_a_reply_that_is_no_reply_is_a_failure(data: bytes, failure: Failure, reason: str) -> None:
    with serving(answer(data)) as server:
        assert failures([b"Alice"], Delivery(server.address, Until.REPLY)) == [(failure, reason)]


def test_a_reply_that_nobody_asked_for_is_no_failure() -> None:
    with serving(answer(b"Hello, Al")) as server:
        assert failures([b"Alice"], Delivery(server.address)) == [(None, "")]


def test_handing_over_does_not_wait_for_the_server() -> None:
    with serving(hold) as server:
        delivery = Delivery(server.address, Until.HANDED_OVER, timeout=5)
        assert failures([b"Alice"] * 3, delivery) == [(None, "")] * 3
        until(lambda: len(server.held) == 3)
        assert [read(connection) for connection in server.held] == [b"Alice"] * 3


def test_nobody_listening_stops_the_burst_at_once(closed: Address, tmp_path: Path) -> None:
    names = iter([b"x"] * 1000)
    with pytest.raises(UnreachableError, match=f"^nobody listens on {closed}$"):
        list(send_all(names, Delivery(closed, concurrency=10)))
    assert len(list(names)) >= 990
    with pytest.raises(UnreachableError, match=r"^nobody listens on unix:"):
        send([b"x"], Delivery(Address(path=str(tmp_path / "none"))))


def test_a_refusal_after_a_success_is_one_failure_among_others() -> None:
    def close_shop(server: Server, connection: socket.socket) -> None:
        server.listener.close()
        take(server, connection)

    with serving(close_shop) as server:
        delivery = Delivery(server.address)
        assert failures([b"Alice", b"Bob", b"Carol"], delivery) == [
            (None, ""),
            (Failure.REFUSED, "refused: nobody listens"),
            (Failure.REFUSED, "refused: nobody listens"),
        ]


class PortlessSocket(socket.socket):
    """A socket of a host whose ephemeral ports are used up after two connections."""

    left = 2

    def connect_ex(self, address: Any, /) -> int:
        """Connect while there are ports."""
        PortlessSocket.left -= 1
        return errno.EADDRNOTAVAIL if self.left < 0 else super().connect_ex(address)


def test_running_out_of_ports_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PortlessSocket, "left", 2)
    with serving(take) as server:
        monkeypatch.setattr("greeterd.client.socket.socket", PortlessSocket)
        results = send([b"x"] * 4, Delivery(server.address))
    assert [result.failure for result in results] == [None, None, *[Failure.NO_PORT] * 2]
    assert "EADDRNOTAVAIL" in results[-1].reason


# The program


@pytest.fixture
def names_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Set what standard input holds."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.shows("exit 0 greeter")
def test_a_greeting_that_was_sent_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(reply) as server:
        assert main(["send", "Alice", "Bob", "--address", str(server.address)]) == 0
    assert server.names == [b"Alice", b"Bob"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.shows("exit 1 greeter")
def test_a_reply_that_does_not_come_is_exit_1_and_one_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with serving(take) as server:
        assert main(["send", "Alice", "--wait-reply", "--address", str(server.address)]) == 1
    assert capfd.readouterr() == ("", "greeter: 'Alice': closed without a reply\n")


def test_no_wait_is_done_when_the_kernel_has_the_name() -> None:
    with serving(hold) as server:
        options = ["--no-wait", "--timeout", "5", "--address", str(server.address)]
        assert main(["send", "Alice", *options]) == 0


def test_one_failure_among_several_names_adds_a_summary(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with serving(hold_mute) as server:
        options = ["--timeout", "0.2", "--address", str(server.address)]
        assert main(["send", "Alice", "mute", *options]) == 1
    told, summary = capfd.readouterr().err.splitlines()
    assert told == "greeter: 'mute': no end-of-stream within 0.2 s"
    assert summary.startswith("greeter: sent 1, failed 1 (timeout 1), ")


def test_replies_go_to_standard_output_as_they_are(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    with serving(reply) as server:
        name = os.fsdecode(b"\x1b[31m\xff")
        assert main(["send", name, "--wait-reply", "--address", str(server.address)]) == 0
    assert capfdbinary.readouterr() == (b"Hello, \x1b[31m\xff\n", b"")


def test_arguments_are_not_interpreted() -> None:
    names = ["", " a ", "[1,2]", '{"a": 1}', "null", "@x", "a,b", "$HOME", os.fsdecode(b"\xff\n")]
    with serving(take) as server:
        arguments = ["--address", str(server.address), *names, "--", "-", "--count", "--"]
        assert main(["send", *arguments]) == 0
    assert server.names == [*map(os.fsencode, names), b"-", b"--count", b"--"]


@pytest.mark.parametrize("concurrency", ["1", "2"])
@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_lines_of_standard_input_are_names(
    names_in: Callable[[bytes], None], arguments: list[str], concurrency: str
) -> None:
    names_in(b"Alice \n\xff\0 \r\n\r\r\n\nZo\xc3\xab")
    with serving(take) as server:
        options = ["--concurrency", concurrency, "--address", str(server.address)]
        assert main(["send", *arguments, *options]) == 0
    assert sorted(server.names) == sorted([b"Alice ", b"\xff\0 ", b"\r", b"", b"Zo\xc3\xab"])


@pytest.mark.parametrize("options", [["--concurrency", "2"], ["--count", "2"]])
def test_standard_input_is_read_to_its_end_before_a_burst(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(take) as server:
        sent_before_the_end = []

        def lines() -> Iterator[bytes]:
            yield from (b"Alice\n", b"Bob\n", b"Carol\n")
            sent_before_the_end.extend(server.names)

        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines(), isatty=lambda: False))
        assert main(["send", *options, "--address", str(server.address)]) == 0
        assert server.names
    assert sent_before_the_end == []


def test_standard_input_has_its_place_among_the_arguments(
    names_in: Callable[[bytes], None],
) -> None:
    names_in(b"Bob\nCarol\n")
    with serving(take) as server:
        main(["send", "Alice", "-", "Dave", "--address", str(server.address)])
    assert server.names == [b"Alice", b"Bob", b"Carol", b"Dave"]


def test_count_goes_round_the_names_and_ends_with_a_summary(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with serving(take) as server:
        address = str(server.address)
        assert main(["send", "Alice", "Bob", "--count", "5", "--address", address]) == 0
        assert main(["send", "Carol", "Dave", "--count", "1", "--address", address]) == 0
    assert server.names == [b"Alice", b"Bob", b"Alice", b"Bob", b"Alice", b"Carol"]
    assert re.fullmatch(r"greeter: sent 5, failed 0, \d+\.\d\d s, \d+/s\n", capfd.readouterr().err)


def test_failures_are_told_ten_times_and_counted_by_kind(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with serving(reset) as server:
        arguments = ["\x1b[2J" + "x" * 99, "--count", "30", "--address", str(server.address)]
        assert main(["send", *arguments]) == 1
    *told, summary = capfd.readouterr().err.splitlines()
    assert told == [rf"greeter: '\x1b[2J{'x' * 56}'...: reset by the server"] * 10
    assert re.fullmatch(r"greeter: sent 0, failed 30 \(reset 30\), .* s, 0/s", summary)


@pytest.mark.shows("exit 69 greeter")
def test_nobody_listening_is_exit_69_and_one_line(
    closed: Address, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["send", "Alice", "--count", "1000", "--address", str(closed)]) == 69
    assert capfd.readouterr() == ("", f"greeter: nobody listens on {closed}\n")


@pytest.mark.shows("exit 2 greeter")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sned"], 'Unknown command "sned"'),
        (["send", "--bo\x1bgus"], r"Unknown option: --bo\x1bgus"),
        (["send", "x", "--count", "0"], "--count"),
        (["send", "x", "--concurrency", "0"], "--concurrency"),
        (["send", "x", "--concurrency", "99999999999"], "descriptors"),
        (["send", "x", "--timeout", "0"], "--timeout"),
        (["send", "x", "--timeout", "nan"], "--timeout"),
        (["send", "x", "--timeout", "inf"], "--timeout"),
        (["send", "x", "--address", "nowhere"], "--address nowhere: it has no port"),
        (["send", "x", "--address", "\x1b\n"], r"--address \x1b\n: it has no port"),
        (["send", "x", "--wait-reply", "--no-wait"], "exclude each other"),
        (["send"], "no names on standard input"),
        (["send", "--count", "9"], "no names on standard input"),
    ],
)
def test_a_wrong_command_line_is_exit_2_and_one_line(
    arguments: list[str],
    words: str,
    names_in: Callable[[bytes], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    names_in(b"")
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n"), err.startswith("greeter: ")) == ("", 1, True)
    assert words in err


def test_every_command_says_what_it_does(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    commands = re.findall(r"│ (bench|load|send) +([^│]*)", capfd.readouterr().out)
    assert [name for name, about in commands if about.strip()] == ["bench", "load", "send"]


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        (["--help"], EXIT_CODES),
        (["send", "--help"], EXIT_CODES),
        (["load", "--help"], load.EXIT_CODES),
    ],
)
def test_help_lists_every_exit_code(
    capfd: pytest.CaptureFixture[str], arguments: list[str], codes: str
) -> None:
    assert main(arguments) == 0
    shown = capfd.readouterr().out
    listed = re.findall(r"^- (\d+):", codes, re.MULTILINE)
    assert len(listed) > 7
    assert [code for code in listed if not re.search(rf" {code}: ", shown)] == []


def test_the_exit_codes_of_a_command_are_the_program_s() -> None:
    program, command = (set(re.findall(r"^- (\d+):", text, re.MULTILINE)) for text in
                        (EXIT_CODES, load.EXIT_CODES))  # fmt: skip
    assert program == {"0", "1", "2", "66", "69", "70", "71", "74", "75", "130", "141"}
    assert command <= program


def test_version_is_the_package_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"greeter {greeterd.__version__}\n"


def test_a_name_in_a_message_is_one_short_escaped_line() -> None:
    assert show_name("Zoë\n".encode()) == r"'Zoë\n'"
    assert show_name(b"\x1b\xff" + b"x" * 58) == rf"'\x1b\xff{'x' * 58}'"
    assert show_name(b"x" * 61) == f"'{'x' * 60}'..."


# The program as a process


def test_the_descriptor_limit_is_raised_for_the_concurrency_and_never_lowered() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(take) as server:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
            arguments = ["send", "Alice", "--address", str(server.address), "--concurrency"]
            assert main([*arguments, "1"]) == 0
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 64
            assert main([*arguments, "100"]) == 0
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 100
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def start(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "send", *arguments],
        cwd=SOURCE,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
        stderr=subprocess.PIPE,
        **streams,
    )


def test_a_terminal_gets_control_characters_escaped() -> None:
    controller, terminal = pty.openpty()
    with serving(reply) as server, os.fdopen(controller, "rb", buffering=0) as screen:
        arguments = ["\x1b[31mred\nZo\xeb", "--wait-reply", "--address", str(server.address)]
        with start(*arguments, stdout=terminal, stdin=terminal) as program:
            os.close(terminal)
            shown = screen.readline()
            assert program.wait(10) == 0
    assert shown == rb"Hello, \x1b[31mred\nZo" + "ë\r\n".encode()


def test_a_terminal_is_not_read_for_names() -> None:
    controller, terminal = pty.openpty()
    with start(stdin=terminal) as program:
        os.close(terminal)
        assert program.wait(10) == 2
        assert program.communicate()[1].startswith(b"greeter: there is no NAME")
    os.close(controller)


@pytest.mark.shows("exit 141 greeter")
def test_a_reader_that_has_gone_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with serving(reply) as server:
        arguments = ["Alice", "Bob", "--wait-reply", "--address", str(server.address)]
        with start(*arguments, stdout=writing) as program:
            os.close(writing)
            _, err = program.communicate(timeout=10)
    assert (program.returncode, err) == (141, b"")


@pytest.mark.shows("exit 74 greeter")
def test_a_full_disk_is_exit_74_and_one_line() -> None:
    with serving(reply) as server, Path("/dev/full").open("wb") as full:
        arguments = ["Alice", "--wait-reply", "--address", str(server.address)]
        with start(*arguments, stdout=full) as program:
            _, err = program.communicate(timeout=10)
    assert (program.returncode, err) == (
        74,
        b"greeter: standard output: No space left on device\n",
    )


@pytest.mark.shows("exit 130 greeter")
@pytest.mark.parametrize("names", [["Alice", "mute"], ["mute"]], ids=["after one", "at once"])
def test_an_interrupt_is_one_line_and_exit_130(names: list[str]) -> None:
    with (
        serving(hold_mute) as server,
        start(*names, "--address", str(server.address)) as program,
    ):
        until(lambda: server.held)
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=10)
    assert program.returncode == 130
    wanted = rb"interrupted: sent 1, failed 0, .*/s" if len(names) > 1 else rb"interrupted"
    assert re.fullmatch(rb"greeter: " + wanted + rb"\n", err)


def test_an_interrupt_while_names_are_read_is_one_line_and_exit_130(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def lines() -> Iterator[bytes]:
        yield b"Alice\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines(), isatty=lambda: False))
    assert main(["send", "--concurrency", "2"]) == 130
    assert capfd.readouterr() == ("", "greeter: interrupted\n")


def test_names_of_a_pipe_are_sent_as_they_come() -> None:
    with serving(reply) as server:
        options = ["--wait-reply", "--address", str(server.address)]
        with start(*options, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            for name in (b"Alice", b"Bob"):
                program.stdin.write(name + b"\n")
                program.stdin.flush()
                assert program.stdout.readline() == b"Hello, " + name + b"\n"
            program.stdin.close()
            assert program.wait(10) == 0
