"""`greeter bench --command` and `greeter load` with a server that is not greeterd's."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greeterd.bench import census
from greeterd.bench.experiment.store import load_results
from greeterd.bench.model import Results
from tests.support import until
from tests.system.harness import clean_environment, program

# A pre-fork HTTP server: a line in `log` for each request, a worker more for each SIGHUP.
SERVER = """
import os, signal, socket, sys
port, workers, log = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
listener = socket.create_server(("127.0.0.1", port), backlog=512)
def serve():
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            try:
                if connection.recv(4096).startswith(b"GET /hello "):
                    with open(log, "a") as file:
                        file.write("hello\\n")
                    connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nhello")
                else:
                    connection.sendall(b"HTTP/1.0 404 Not Found\\r\\n\\r\\n")
            except OSError:
                pass
def spawn():
    if os.fork() == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        serve()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGHUP, lambda *_: (open(log + ".reloads", "a").write("x"), spawn()))
for _ in range(workers):
    spawn()
while True:
    signal.pause()
"""
REQUEST = r"GET /hello HTTP/1.0\r\n\r\n"


@pytest.fixture
def server(tmp_path: Path) -> str:
    """Return the command of a server, but for the name of its log."""
    (tmp_path / "server.py").write_text(SERVER)
    return f"{sys.executable} {tmp_path / 'server.py'} {{port}} {{workers}} {tmp_path}/"


def bench(place: Path, *arguments: str, code: int = 0) -> Results:
    """Run an experiment of a few small trials."""
    done = subprocess.run(
        [program("greeter"), "bench", f"--results={place / 'results'}", "--greetings=60",
         "--workers=2", "--concurrency=4", "--warmup=10", *arguments],
        cwd=place, env=clean_environment({}), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, (done.stdout, done.stderr)
    return load_results(place / "results")


def lines(path: Path) -> int:
    return path.read_text().count("\n")


def test_two_servers_are_compared_and_the_counts_are_those_of_their_own_logs(
    tmp_path: Path, server: str
) -> None:
    found = bench(
        tmp_path, "--command", f"one={server}one", "--command", f"two={server}two", "--pairs=3",
        "--request", REQUEST, "--expect", "^HTTP/1.. 200", "--no-half-close",
    )  # fmt: skip
    assert [(one.invalid, one.lost) for one in found.trials] == [("", 0)] * 6
    assert {one.case.server for one in found.trials} == {"one", "two"}
    for name in ("one", "two"):
        counted = sum(one.counts.client for one in found.trials if one.case.server == name)
        assert lines(tmp_path / name) == counted + 10 == 190
    # CPU time is of each process: the parent and its workers.
    assert {len(one.processes) for one in found.trials} == {3}
    assert all(one.cpu_us > 0 for one in found.trials)


def test_who_has_the_connections_is_counted_by_a_census(tmp_path: Path, server: str) -> None:
    found = bench(
        tmp_path, "--command", f"one={server}one", "--pairs=1", "--request", REQUEST,
        "--no-half-close",
    )  # fmt: skip
    # A blocking worker takes one connection at a time: it does not accept 400 at once.
    (sample,) = found.held
    assert (sample.kind, sample.at_once) == ("sample", 1)
    assert sum(sample.per_process.values()) + sample.queued == 400
    assert len(sample.per_process) == 2


def test_an_answer_that_is_not_expected_is_an_error(tmp_path: Path, server: str) -> None:
    found = bench(
        tmp_path, "--command", f"one={server}one", "--pairs=1",
        "--request", r"GET /other HTTP/1.0\r\n\r\n", "--expect", "^HTTP/1.. 200", "--no-half-close",
    )  # fmt: skip
    (one,) = found.trials
    assert one.load is not None
    assert one.load.errors == {"unexpected answer": 60}
    assert (one.load.ok, one.lost) == (0, 60)


@pytest.mark.parametrize("fault", ["reload", "killed", "stopped"])
def test_a_fault_is_done_to_the_server_of_a_command(
    tmp_path: Path, server: str, fault: str
) -> None:
    found = bench(
        tmp_path, "--command", f"one={server}one", "--pairs=1", "--fault", fault,
        "--arrival=constant", "--rate=40", "--request", REQUEST, "--no-half-close",
    )  # fmt: skip
    (one,) = found.trials
    assert one.invalid == ""
    assert one.faults >= 1
    if fault == "reload":
        assert len((tmp_path / "one.reloads").read_text()) == one.faults
    if fault == "stopped":
        assert one.faults == 1
        assert one.lost <= 3  # what the stopped one had accepted: the other takes the rest


def test_a_server_that_does_not_start_or_detaches_is_told(tmp_path: Path) -> None:
    for command, said in (("/bin/false", "exit code 1"), ("/bin/true", "must stay in the foregr")):
        found = bench(tmp_path, "--command", f"a={command}", "--pairs=1", code=1)
        assert said in found.trials[0].invalid
        (tmp_path / "results").unlink()


@contextmanager
def running(command: str, tmp_path: Path) -> Iterator[int]:
    """Run a server on a port that the kernel chose."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = command.replace("{port}", str(port)).replace("{workers}", "2").split()
    with subprocess.Popen(words, start_new_session=True, cwd=tmp_path) as process:
        try:
            until(lambda: census.listening(port), what="a listener")
            yield port
        finally:
            os.killpg(process.pid, 9)


def test_a_load_has_the_same_options(tmp_path: Path, server: str) -> None:
    request = tmp_path / "request"
    request.write_bytes(b"GET /hello HTTP/1.0\r\n\r\n")
    with running(f"{server}log", tmp_path) as port:
        for expect, ok in (("hello$", 30), ("other", 0)):
            done = subprocess.run(
                [program("greeter"), "load", "--address", f"127.0.0.1:{port}", "--count=30",
                 "--request", str(request), "--expect", expect, "--no-half-close", "--json"],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            report = json.loads(done.stdout)
            assert (report["sent"], report["ok"]) == (30, ok)
            assert report["errors"] == ({} if ok else {"unexpected answer": 30})
            assert done.returncode == (0 if ok else 1)
    assert lines(tmp_path / "log") == 60
