"""What the experiment sees of processes and listeners from outside, and does to them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from greeterd.bench.experiment.faults import Injector
from greeterd.bench.experiment.outside import Watch, queues, tree
from greeterd.bench.experiment.servers import Server, Setup, _command
from greeterd.bench.experiment.trial import _limit
from greeterd.bench.model import Case
from greeterd.sockets.address import parse_address
from tests.support import until

# Answers a line with a line when it has burnt 0.2 s, or had a child do so that it then reaped.
BURNER = """
import os, sys, time
def burn():
    end = time.process_time() + 0.2
    while time.process_time() < end: pass
for line in sys.stdin:
    if line == "child\\n":
        pid = os.fork()
        if not pid:
            burn()
            os._exit(0)
        os.waitpid(pid, 0)
    else:
        burn()
    print("done", flush=True)
"""


@contextmanager
def burner() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", BURNER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        burn(process, "self")  # it has started
        yield process
        process.kill()


def burn(process: subprocess.Popen[str], who: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{who}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_cpu_time_is_what_was_used_since_the_first_look() -> None:
    with burner() as process:
        watch = Watch(process.pid)
        burn(process, "self")
        sleeping = psutil.Process(process.pid)
        until(lambda: sleeping.status() == psutil.STATUS_SLEEPING)
        spent = watch.spent()
    assert 0.2e9 <= spent.user_ns + spent.system_ns < 0.3e9
    assert spent.voluntary is not None
    assert spent.voluntary >= 1
    assert 18 <= spent.ticks <= 30


def test_cpu_time_of_a_child_that_has_died_counts() -> None:
    with burner() as process:
        watch = Watch(process.pid)
        burn(process, "child")
        spent = watch.spent()
    assert spent.voluntary is None
    assert spent.involuntary is None
    assert spent.ticks >= 18
    assert 0.18e9 <= spent.user_ns + spent.system_ns < 0.3e9


def test_what_a_child_had_used_before_the_first_look_does_not_count() -> None:
    with burner() as process:
        watch = Watch(os.getpid())
        total = watch.spent()
        process.kill()
        process.wait()
        after = watch.spent()
    assert after.voluntary is None
    used = after.user_ns + after.system_ns - total.user_ns - total.system_ns
    assert used < 0.1e9


def test_the_tree_of_a_process_has_its_children_and_that_of_a_dead_one_none() -> None:
    with burner() as process:
        assert process.pid in tree(os.getpid())
    assert tree(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGCONT, signal.SIGKILL])
def test_a_stopped_worker_that_does_not_stay_so_is_objected_to(number: int, tmp_path: Path) -> None:
    with burner() as process:
        case = Case(fault="stopped")
        server = Server(case, process, tmp_path, parse_address("127.0.0.1:1"))  # type: ignore[arg-type]
        assert "before the fault" in Injector(server, 0).objection()
        process.send_signal(signal.SIGSTOP)
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        injector = Injector(server, 0, 1, None, process.pid)
        assert injector.objection() == ""
        process.send_signal(number)
        until(lambda: injector.objection() != "")
        assert "did not stay so" in injector.objection()


def test_a_worker_that_will_be_stopped_has_no_timeout_that_matters(tmp_path: Path) -> None:
    stopped = _command(Case(fault="stopped"), Setup(), tmp_path)
    (timeout,) = [word for word in stopped if word.startswith("--worker-timeout=")]
    assert float(timeout.partition("=")[2]) > _limit(Case(fault="stopped", greetings=1_000_000))
    assert not [word for word in _command(Case(), Setup(), tmp_path) if "worker-timeout" in word]


def test_the_queue_of_each_listener_of_a_port_is_seen() -> None:
    with (
        socket.create_server(("127.0.0.1", 0), reuse_port=True) as one,
        socket.socket() as other,
        socket.socket() as client,
    ):
        address = parse_address(f"127.0.0.1:{one.getsockname()[1]}")
        assert queues(address) == [0]
        client.connect(one.getsockname())
        assert queues(address) == [1]
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(one.getsockname())
        other.listen()
        assert sorted(queues(address)) == [0, 1]
