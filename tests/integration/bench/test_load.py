"""The load generator against servers that take, answer, reset, keep silent or are not there."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import msgspec
import psutil
import pytest
from hdrh.histogram import HdrHistogram

from greeterd.bench.load.latency import summarise
from greeterd.bench.load.messages import Tally
from greeterd.bench.load.run import LoadOptions, _lasted, _phases, run
from greeterd.bench.model import Arrival, LoadReport
from greeterd.cli.greeter import main
from greeterd.client import UnreachableError
from greeterd.errors import MissingPackageError, UsageError
from tests.integration.server import (
    ANY_PORT,
    Server,
    hold,
    read,
    reply,
    reset,
    serving,
    take,
)
from tests.support import until

PROGRAM = "import sys; from greeterd.cli.greeter import main; sys.exit(main())"


def cut_short(_server: Server, connection: socket.socket) -> None:
    """Answer without an end of line."""
    with connection:
        read(connection)
        connection.sendall(b"Hello")


def babble(_server: Server, connection: socket.socket) -> None:
    """Answer without end."""
    with connection:
        read(connection)
        for _ in range(64):
            connection.sendall(bytes(65536))


def close(_server: Server, connection: socket.socket) -> None:
    """Close before anything was said."""
    connection.close()


def load(server: Server, **options: object) -> LoadReport:
    """Send a load of few processes."""
    return run(LoadOptions(**{"address": str(server.address), "processes": 2, **options}))  # type: ignore[arg-type]


def children() -> set[int]:
    """Return this process's living descendants."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


ARRIVALS: list[tuple[Arrival, float]] = [
    ("closed", 0.0),
    ("constant", 1000.0),
    ("poisson", 1000.0),
    ("burst", 0.0),
    ("seed", 0.0),
]
each_arrival = pytest.mark.parametrize(("arrival", "rate"), ARRIVALS)
loop_and_seed = pytest.mark.parametrize("arrival", ["closed", "seed"])


@pytest.mark.shows(
    "arrival closed", "arrival constant", "arrival poisson", "arrival burst", "arrival seed"
)
@each_arrival
def test_each_greeting_is_sent_once_and_measured_once(arrival: Arrival, rate: float) -> None:
    with serving(take) as server:
        report = load(server, arrival=arrival, rate=rate, count=53, concurrency=8, warmup=5)
    assert (report.sent, report.ok, report.uncertain, report.errors) == (58, 58, 0, {})
    assert len(set(server.names)) == len(server.names) == 58
    assert (report.latency.count, report.latency.missing) == (53, 0)
    assert HdrHistogram.decode(report.latency.histogram).get_total_count() == 53
    assert report.seconds > 0
    assert report.client_cpu_seconds > 0
    assert (report.processes, report.warmup) == (2, 5)


@each_arrival
def test_a_load_ends_when_its_time_is_over(arrival: Arrival, rate: float) -> None:
    with serving(take) as server:
        report = load(server, arrival=arrival, rate=rate, duration=0.1, concurrency=4)
    assert report.ok == report.sent == len(server.names)
    assert report.seconds < 5
    if rate:
        assert report.sent == pytest.approx(rate * 0.1, rel=0.5)


@pytest.mark.shows("arrival seed")
def test_in_seed_each_greeting_has_a_process_of_its_own(tmp_path: Path) -> None:
    with serving(take, str(tmp_path / "s")) as server:
        load(server, arrival="closed", count=20)
        assert len(set(server.senders)) == 2
        server.senders.clear()
        load(server, arrival="seed", count=20)
    assert len(set(server.senders)) == 20


@pytest.mark.shows("arrival burst")
def test_a_burst_has_all_its_connections_at_once() -> None:
    def gather(server: Server, connection: socket.socket) -> None:
        """Let nobody go before six are there."""
        server.held.append(connection)
        if len(server.held) == 6:
            while server.held:
                take(server, server.held.pop())

    with serving(gather) as server:
        report = load(server, arrival="burst", count=18, concurrency=6, timeout=5.0)
    assert (report.ok, report.errors) == (18, {})


def test_all_of_a_burst_are_measured_from_its_start() -> None:
    options = LoadOptions(arrival="burst", count=5, concurrency=4, think=0.25)
    phases = list(_phases(options, [2, 2], 5, None, 0))
    assert [[one.greetings for one in phase] for phase in phases] == [[2, 2], [1, 0]]
    assert [phase[0].start_ns for phase in phases] == [0, 250_000_000]
    assert all(one.common_start for phase in phases for one in phase)


def test_bursts_last_as_long_as_all_together_without_the_pauses() -> None:
    spans = [(10, 20), (12, 25), (100, 120), (0, 0), (0, 0), (0, 0)]  # two processes, three bursts
    assert _lasted([Tally(spans=[span]) for span in spans], 2) == 15 + 20
    assert _lasted([Tally(), Tally()], 2) == 0
    with serving(take) as server:
        report = load(server, arrival="burst", count=8, concurrency=2, think=0.2)
    assert 0 < report.seconds < 0.6


def test_sources_and_destinations_are_spread() -> None:
    with serving(take, ("0.0.0.0", 0)) as server:
        report = load(server, count=60, sources=5, destinations=3)
    assert report.ok == 60
    assert len(set(server.sources)) == 5
    assert Counter(server.destinations) == {f"127.0.0.{number}": 20 for number in (1, 2, 3)}


def test_one_source_is_the_plain_one() -> None:
    with serving(take) as server:
        load(server, count=6, sources=1)
    assert set(server.sources) == {"127.0.0.1"}


@loop_and_seed
def test_a_connection_lives_before_its_name_is_sent(arrival: Arrival) -> None:
    with serving(take) as server:
        report = load(server, arrival=arrival, count=4, life=0.05, concurrency=4)
    assert report.ok == 4
    assert report.latency.min >= 50


@loop_and_seed
def test_names_have_the_size_that_is_asked_for_even_beyond_the_socket_buffers(
    arrival: Arrival,
) -> None:
    size = 8 << 20
    with serving(take) as server:
        report = load(server, arrival=arrival, count=2, name_bytes=size)
    assert report.ok == 2
    assert [len(name) for name in server.names] == [size, size]


def test_a_given_name_is_sent_as_it_is() -> None:
    with serving(take) as server:
        load(server, count=2, name="Çağla")
    assert server.names == ["Çağla".encode()] * 2


@loop_and_seed
@pytest.mark.parametrize(
    ("behave", "options", "kind", "uncertain"),
    [
        (take, {"end": "reply"}, "no reply", 4),
        (cut_short, {"end": "reply"}, "no reply", 4),
        (babble, {}, "error", 4),
        (reset, {"name_bytes": 9}, "reset", 4),
        (hold, {"timeout": 0.1}, "timeout", 4),
        (close, {"life": 5.0}, "closed early", 0),
    ],
)
def test_what_does_not_end_in_order_is_counted_by_its_kind(
    arrival: Arrival,
    behave: Callable[[Server, socket.socket], None],
    options: dict[str, object],
    kind: str,
    uncertain: int,
) -> None:
    with serving(behave) as server:
        report = load(server, arrival=arrival, count=4, concurrency=4, **options)
    assert (report.ok, report.errors, report.uncertain) == (0, {kind: 4}, uncertain)
    assert (report.latency.count, report.latency.missing) == (0, 4)


@loop_and_seed
def test_a_whole_reply_is_in_order(arrival: Arrival) -> None:
    with serving(reply) as server:
        report = load(server, arrival=arrival, count=5, end="reply")
    assert (report.ok, report.errors) == (5, {})


@loop_and_seed
def test_who_fires_and_forgets_is_certain_of_nothing(arrival: Arrival) -> None:
    with serving(take) as server:
        report = load(server, arrival=arrival, count=5, end="fire")
        until(lambda: len(server.names) == 5, what="the names that are on their way")
    assert (report.ok, report.uncertain, report.errors) == (5, 5, {})


def test_a_full_unix_queue_is_waited_for(tmp_path: Path) -> None:
    with serving(take, str(tmp_path / "s")) as server:
        server.listener.listen(0)
        assert load(server, count=200, concurrency=20).ok == 200


def test_a_server_that_ends_in_between_is_an_error_and_not_unreachable() -> None:
    def last(server: Server, connection: socket.socket) -> None:
        server.listener.shutdown(socket.SHUT_RDWR)
        take(server, connection)

    with serving(last) as server:
        report = load(server, count=50, concurrency=1, processes=1)
        assert report.ok >= 1
        assert report.errors


# Refusals -------------------------------------------------------------------------------------


def test_an_address_where_nobody_listens_is_unreachable(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as deaf:
        deaf.bind(ANY_PORT)
        port = deaf.getsockname()[1]
        for arrival in ("closed", "seed", "burst"):
            options = LoadOptions(address=f"127.0.0.1:{port}", arrival=arrival, processes=2)
            with pytest.raises(UnreachableError, match=f"nobody listens on 127.0.0.1:{port}$"):
                run(options)
    assert not children()
    assert capfd.readouterr() == ("", "")  # nor do the processes say anything


def test_destinations_that_nobody_serves_are_explained() -> None:
    with (
        serving(take) as server,
        pytest.raises(UnreachableError, match=r"the server must listen on 0\.0\.0\.0"),
    ):
        load(server, destinations=2)
    assert not server.names


@pytest.mark.parametrize("address", ["192.0.2.1:80", "[2001:db8::1]:80", "0.0.0.0:80"])
def test_a_foreign_address_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing may be started
    assert main(["load", "--address", address]) == 2
    assert "is not this machine's loopback" in capsys.readouterr().err


def test_a_name_that_leads_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    with pytest.raises(UsageError, match=r"localhost:80 is 192\.0\.2\.7, which is not"):
        run(LoadOptions(address="localhost:80"))


def test_who_owns_the_server_may_say_so() -> None:
    """The name resolves to this machine by another address of it: 0.0.0.0."""
    with serving(take) as server:
        port = server.listener.getsockname()[1]
        options = LoadOptions(address=f"0.0.0.0:{port}", count=2, i_own_this_server=True)
        assert run(options).ok == 2
        with pytest.raises(UsageError, match="spread over 127"):
            run(LoadOptions(address=options.address, sources=2, i_own_this_server=True))


def test_too_few_descriptors_are_told_before_anything_is_sent() -> None:
    command = ["prlimit", "--nofile=50:50", sys.executable, "-c", PROGRAM]
    command += ["load", "--concurrency=100", "--processes=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "100 connections for a process, and 50 descriptors allowed" in done.stderr


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdrh", None)
    with pytest.raises(MissingPackageError, match=r"hdrhistogram .* 'greeterd\[bench\]'"):
        run(LoadOptions())


def test_sending_one_greeting_imports_nothing_of_a_load() -> None:
    program = (
        "import sys; import greeterd.cli.greeter;"
        "print([m for m in sys.modules if m.startswith(('hdrh', 'greeterd.bench', 'rich.progress'))"
        " or m == 'greeterd.cli.load'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# Ends before the end --------------------------------------------------------------------------


@each_arrival
def test_an_interrupt_tells_what_was_measured_and_leaves_no_process(
    arrival: Arrival, rate: float
) -> None:
    with serving(take) as server:
        command = ["load", "--json", "--address", str(server.address), "--arrival", arrival]
        command += ["--duration=60", "--processes=2", "--concurrency=4", f"--rate={rate}"]
        sender = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        until(lambda: len(server.names) > 20, timeout=30, what="greetings")
        os.killpg(sender.pid, signal.SIGINT)  # as a terminal does: to all of the group
        said, told = sender.communicate(timeout=30)
    assert (sender.returncode, told) == (130, b"greeter: interrupted\n")
    report = load_report(said)
    assert report.ok > 10
    assert report.ok + sum(report.errors.values()) == report.sent
    assert set(report.errors) <= {"interrupted"}
    until(lambda: not in_group(sender.pid), what="the end of all processes")


@loop_and_seed
def test_a_killed_parent_takes_its_processes_along(arrival: Arrival) -> None:
    with serving(take) as server:
        command = ["load", "--address", str(server.address), "--arrival", arrival, "--duration=60"]
        sender = subprocess.Popen([sys.executable, "-c", PROGRAM, *command], start_new_session=True)
        until(lambda: len(server.names) > 5, timeout=30, what="greetings")
        sender.kill()
        sender.wait()
        until(lambda: not in_group(sender.pid), what="the end of all processes")


def load_report(data: bytes) -> LoadReport:
    """Return what a program has printed."""
    return msgspec.json.decode(data, type=LoadReport)


def in_group(group: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.shows("exit 70 greeter")
def test_a_sending_process_that_dies_is_told_and_takes_the_others_along() -> None:
    with serving(take) as server:
        command = ["load", "--address", str(server.address), "--duration=60", "--processes=2"]
        sender = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        until(lambda: len(server.names) > 5, timeout=30, what="greetings")
        psutil.Process(sender.pid).children()[0].kill()
        _, told = sender.communicate(timeout=30)
    assert sender.returncode == 70
    # Which of the two it was the pids do not tell: they may have begun again from 1 in between.
    assert re.fullmatch(r"greeter: load process [12] ended with status -9\n", told)
    until(lambda: not in_group(sender.pid), what="the end of all processes")


# The client as the limit ------------------------------------------------------------------------


def test_a_client_that_stalls_counts_it_into_the_latencies_and_says_so() -> None:
    with serving(take) as server:
        command = ["load", "--json", "--address", str(server.address), "--processes=1"]
        command += ["--arrival=constant", "--rate=200", "--duration=1.5"]
        sender = subprocess.Popen([sys.executable, "-c", PROGRAM, *command], stdout=subprocess.PIPE)
        until(lambda: len(server.names) > 5, timeout=30, what="greetings")
        (child,) = psutil.Process(sender.pid).children()
        child.suspend()
        stopped = time.monotonic()
        until(lambda: time.monotonic() > stopped + 0.4, what="a stall of the client")
        child.resume()
        report = load_report(sender.communicate(timeout=30)[0])
    assert (report.ok, report.errors) == (300, {})
    assert report.latency.max > 350
    assert re.search(r"the client was the limit: .*% of the starts came .* late", report.bottleneck)


def test_a_client_out_of_descriptors_goes_on_and_says_so() -> None:
    with serving(hold) as server:
        command = ["prlimit", "--nofile=50:50", sys.executable, "-c", PROGRAM, "load", "--json"]
        command += ["--address", str(server.address), "--arrival=constant", "--rate=1000"]
        command += ["--count=100", "--processes=1", "--timeout=0.3"]
        done = subprocess.run(command, capture_output=True, check=False)
    report = load_report(done.stdout)
    assert done.returncode == 1
    assert set(report.errors) == {"timeout", "no descriptor"}
    assert report.sent == 100
    assert "found no free descriptor" in report.bottleneck


# What is shown --------------------------------------------------------------------------------


def test_latencies_are_condensed_to_three_digits_with_exact_ends() -> None:
    millis = [array("Q", [one * 1_000_000 for one in range(1, 501)])]
    millis.append(array("Q", [one * 1_000_000 for one in range(501, 1001)]))
    latency = summarise(millis)
    assert (latency.count, latency.min, latency.max, latency.mean) == (1000, 1, 1000, 500.5)
    assert latency.p50 == pytest.approx(500, rel=1e-3)
    assert latency.p999 == pytest.approx(999, rel=2e-3)
    assert latency.curve == sorted(latency.curve)
    assert latency.curve[-1] == (100.0, 1000.0)


def test_a_person_gets_tables_and_the_failures_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(reset) as server:
        code = main(["load", "--address", str(server.address), "--count=3", "--name-bytes=50"])
    said = capsys.readouterr().out
    assert code == 1
    assert "closed, 16 at once" in said
    assert "reset" in said
    with serving(take) as server:
        assert main(["load", "--address", str(server.address), "--count=3"]) == 0
    assert "p99.9" in capsys.readouterr().out


def test_percentiles_that_the_lost_leave_unknown_are_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    behaviours = cycle((take, hold))

    def every_other(server: Server, connection: socket.socket) -> None:
        next(behaviours)(server, connection)

    with serving(every_other) as server:
        options = ["--count=6", "--concurrency=1", "--timeout=0.1", "--warmup=1"]
        assert main(["load", "--address", str(server.address), *options]) == 1
    said = capsys.readouterr().out
    assert "3 greetings did not end in order and have no latency" in said
    assert "of the other 50.00 %" in said
    rows = [line.split() for line in said.splitlines()]
    (figures,) = [row for row in rows if row[:1] == ["ms"]]
    assert "-" not in figures[1:4]
    assert figures[4:] == ["-"] * 4
