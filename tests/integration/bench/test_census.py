"""A census says which process has which connections of a port, whatever the server is."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from msgspec.structs import replace

from greeterd.bench import census
from greeterd.cli import census as command
from greeterd.cli.greeter import main
from tests.support import until

SERVER = """
import os, socket, sys
listeners = [socket.create_server(("127.0.0.1", 0), reuse_port=True)]
port = listeners[0].getsockname()[1]
own = sys.argv[1] == "own"
if own:
    listeners.append(socket.create_server(("127.0.0.1", port), reuse_port=True))
for number in range(2):
    if os.fork() == 0:
        listener = listeners[number if own else 0]
        if own:
            listeners[1 - number].close()
        held = []
        os.write(1, f"{port} {os.getpid()}\\n".encode())
        # Its share of the shared queue, or whatever is hashed into its own.
        while own or len(held) < 3 + 2 * number:
            held.append(listener.accept())
        sys.stdin.read()
        os._exit(0)
sys.stdin.read()
"""


@contextmanager
def served(kind: str) -> Iterator[tuple[int, list[int]]]:
    """Run a server of two workers; yield its port and their pids, which accept 3 and 5."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        lines = [process.stdout.readline().split() for _ in range(2)]
        pids = [int(pid) for _, pid in lines]
        try:
            yield int(lines[0][0]), pids
        finally:
            for pid in pids:
                os.kill(pid, 9)
            process.kill()


@contextmanager
def connected(port: int, number: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(number)
        ]


def test_every_connection_is_counted_where_it_is_and_the_rest_in_the_queue() -> None:
    with served("shared") as (port, pids), connected(port, 10):
        until(lambda: sum(census.take(port).workers.values()) == 8, what="all accepts")
        found = census.take(port)
        assert sorted(found.workers.values()) == [3, 5]
        assert set(found.workers) == set(pids)  # the parent listens, too, and takes nothing
        assert found.queued == 2
        (listening,) = found.listening
        assert listening.address == f"127.0.0.1:{port}"
        assert listening.queued == 2
        assert set(pids) < set(listening.pids)
        assert found.balance is not None
        assert found.balance.total == 8
        # Asked of these processes alone, it is the same.
        assert replace(census.take(port, listening.pids), members=found.members) == found


def test_a_listener_of_its_own_is_its_own() -> None:
    with served("own") as (port, pids), connected(port, 20):
        until(lambda: not census.take(port).queued, what="all accepts")
        found = census.take(port)
        assert sum(found.workers.values()) == 20
        assert set(found.workers) == set(pids)
        by_pid = {one.pid: one.listeners for one in found.members}
        assert [len(by_pid[pid]) for pid in pids] == [1, 1]
        assert by_pid[pids[0]] != by_pid[pids[1]]


def test_a_worker_that_has_none_counts_as_one_that_has_none() -> None:
    with served("shared") as (port, pids), connected(port, 1):
        until(lambda: sum(census.take(port).workers.values()) == 1, what="the accept")
        assert sorted(census.take(port).workers.values()) == [0, 1]
        assert set(census.take(port).workers) == set(pids)


def test_a_port_where_nobody_listens_has_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    found = census.take(port)
    assert (found.members, found.listening, found.queued) == ([], [], 0)
    assert found.balance is None
    assert main(["census", str(port)]) == 1
    assert f"nothing listens at port {port}." in capsys.readouterr().out


def test_a_person_gets_tables_and_a_program_json(capsys: pytest.CaptureFixture[str]) -> None:
    with served("shared") as (port, pids), connected(port, 9):
        until(lambda: sum(census.take(port).workers.values()) == 8, what="all accepts")
        assert main(["census", str(port)]) == 0
        shown = capsys.readouterr().out
        assert main(["census", str(port), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
    for pid in pids:
        assert str(pid) in shown
    assert "37.5 %" in shown
    assert "as even as chance allows; 1 wait in accept queues." in shown
    assert (told["port"], told["queued"], told["unseen"]) == (port, 1, 0)
    assert sorted(one["established"] for one in told["processes"] if one["pid"] in pids) == [3, 5]
    assert told["listening"][0]["queued"] == 1


def test_cpu_is_that_since_the_census_before() -> None:
    with served("shared") as (port, _), connected(port, 1):
        until(lambda: sum(census.take(port).workers.values()) == 1, what="the accept")
        found = census.take(port)
        busy = [replace(one, cpu_seconds=one.cpu_seconds + 1) for one in found.members]
        before = command.Moment(found, 10.0)
        after = command.Moment(replace(found, members=busy), 12.0)
        assert {one.cpu_percent for one in command.summarise(before, None).processes} == {None}
        told = command.summarise(after, before).processes
        assert [one.cpu_percent for one in told] == [pytest.approx(50.0)] * len(told)
