"""Many control commands at once, under load: each is answered truthfully, the loop stays awake.

`longest_stall` of the status is the master's own heartbeat: the longest time for which its loop did
not look at what had happened. A turn of it may take TURN of CPU time; where others use the machine
so much that this takes longer, for anyone, the master may take longer in proportion.
"""

import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from greeterd.config.loader import load as read_settings
from greeterd.control import NoAnswerError, ask, connect
from tests.support import until
from tests.system.clients import Load, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, Record
from tests.system.metronome import WORK, metronome
from tests.system.sizes import sized

COMMANDS = 200
CLIENTS = 8
MOST = 6  # workers
STALL = 0.1
TURN = 0.03
FORKS = sized(200, 60)
MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport"])


def bar(anyone: float) -> float:
    """Return how long a stall may be where anyone has to wait so long for WORK of CPU time."""
    return max(STALL, TURN / WORK * anyone)


@dataclass(frozen=True, slots=True)
class Told:
    """A command with its answer; instants are monotonic."""

    command: str
    arguments: dict[str, int]
    answer: Record
    began: float
    ended: float


def mix(rng: random.Random) -> tuple[str, dict[str, int]]:
    """Return one command of the mix."""
    match rng.choice(["status", "ping", "scale", "reload", "restart", "restart one", "reopen"]):
        case "scale":
            return "scale", {"workers": rng.randint(1, MOST)}
        case "restart one":
            return "restart", {"slot": rng.randint(1, MOST)}
        case command:
            return command, {}


def command_all_day(server: Daemon, number: int) -> list[Told]:
    """Ask as one client does, one command after the other, each over a connection of its own."""
    rng = random.Random(number)
    told = []
    for _ in range(COMMANDS // CLIENTS):
        command, arguments = mix(rng)
        began = time.monotonic()
        answer = ask(server.run_dir / "control.sock", command, 120.0, **arguments)
        told.append(Told(command, arguments, answer, began, time.monotonic()))
    return told


def assert_truthful(server: Daemon, told: list[Told]) -> None:
    """Assert that each answer says what was done, as the log and the other answers tell."""
    refused = [one for one in told if not one.answer["ok"]]
    # The only reason there is: nobody can know which slots another client has left.
    for one in refused:
        assert one.answer["error"] == f"there is no worker {one.arguments['slot']}", one
    done = [one for one in told if one.answer["ok"]]
    for one in done:
        if one.command == "scale":
            assert one.answer["workers"] == one.arguments["workers"]
    generations = [one.answer["generation"] for one in done if one.command == "reload"]
    assert len(set(generations)) == len(generations)
    assert max(generations) == 1 + len(generations)
    # What is asked after an answer has come sees at least that generation.
    for before in done:
        for after in done:
            if before.ended < after.began and "generation" in before.answer:
                seen = after.answer.get("status", after.answer).get("generation", 10**6)
                assert seen >= before.answer["generation"], (before, after)
    for command in ("scale", "reload", "restart"):
        count = sum(one.command == command for one in done)
        assert len(server.events(f"{command} done")) == count
    assert len(server.events("logs reopened")) == sum(one.command == "reopen" for one in done)


@pytest.mark.alone
@MODES
def test_two_hundred_commands_of_eight_clients_are_answered_and_never_stall_the_loop(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply")
    with (
        Load(server.address, processes=1, concurrency=16, reply=True) as load,
        metronome() as noise,
    ):
        load.wait_going()
        with ThreadPoolExecutor(CLIENTS) as clients:
            asked = [clients.submit(command_all_day, server, number) for number in range(CLIENTS)]
            told = [one for each in asked for one in each.result()]
        stall = server.status()["longest_stall"]
        anyone = noise()
        result = load.stop()
    quick = max(one.ended - one.began for one in told if one.command in {"ping", "status"})
    print(
        f"{len(told)} answers, {dict(Counter(one.command for one in told))};"
        f" longest stall {1e3 * stall:.0f} ms, anyone's {1e3 * anyone:.0f} ms;"
        f" slowest ping or status {1e3 * quick:.0f} ms;"
        f" served {result.total}, slowest {1e3 * result.slowest:.0f} ms"
    )
    assert len(told) == COMMANDS
    assert_truthful(server, told)
    assert result.lost == {}
    assert stall < bar(anyone)
    workers = ask(server.run_dir / "control.sock", "scale", 60.0, workers=3)
    status = server.status()
    assert (workers["workers"], len(status["counters"])) == (3, 3)
    assert status["generation"] == 1 + sum(one.command == "reload" for one in told)
    until(lambda: len(server.worker_pids()) == 3)


def test_a_command_shows_in_the_status_as_soon_as_it_is_answered(daemon: StartDaemon) -> None:
    server = daemon("--workers", "2")
    path = server.run_dir / "control.sock"
    for workers in (5, 1, 4):
        assert ask(path, "scale", 30.0, workers=workers)["ok"]
        assert len(server.status()["counters"]) == workers
        generation = server.status()["generation"]
        assert ask(path, "reload", 30.0)["generation"] == generation + 1
        assert server.status()["generation"] == generation + 1
        assert len(server.status()["counters"]) == 2


# What could keep the loop busy


@pytest.mark.alone
def test_many_forks_at_once_do_not_stall_the_loop(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    path = server.run_dir / "control.sock"
    scaling = threading.Thread(target=ask, args=(path, "scale", 60.0), kwargs={"workers": FORKS})
    slowest = 0.0
    with metronome() as noise:
        scaling.start()
        while scaling.is_alive():
            began = time.monotonic()
            assert ask(path, "ping", 30.0)["ok"]
            slowest = max(slowest, time.monotonic() - began)
        scaling.join()
        anyone = noise()
    status = server.status()
    print(f"{FORKS} workers; stall {status['longest_stall']:.3f} s, slowest ping {slowest:.3f} s")
    assert len(status["counters"]) == FORKS
    assert status["longest_stall"] < bar(anyone)


def test_workers_that_are_not_forked_yet_are_not_needed_after_a_stop(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    with connect(server.run_dir / "control.sock", time.monotonic() + 10.0) as sock:
        # Both in one turn of the loop, or in two that follow each other.
        sock.sendall(b'{"version":1,"command":"scale","arguments":{"workers":500}}\n')
        assert ask(server.run_dir / "control.sock", "stop", 60.0, now=True)["ok"]
        assert b"the daemon is stopping" in sock.recv(1000)
    assert server.wait() == 0


@pytest.mark.alone
def test_a_thousand_requests_in_one_write_do_not_stall_the_loop(daemon: StartDaemon) -> None:
    server = daemon("--workers", "4")
    deadline = time.monotonic() + 60.0
    with metronome() as noise, connect(server.run_dir / "control.sock", deadline) as sock:
        sock.settimeout(60.0)
        sock.sendall(b'{"version":1,"command":"status"}\n' * 1000)
        answers = 0
        with sock.makefile("rb") as lines:
            for line in lines:
                answers += b'"ok":true' in line
                if answers in {10, 500}:
                    assert ask(server.run_dir / "control.sock", "ping", 5.0)["ok"]
                if answers == 1000:
                    break
        anyone = noise()
    stall = server.status()["longest_stall"]
    print(f"longest stall {stall:.3f} s")
    assert stall < bar(anyone)


@pytest.mark.alone
def test_a_changed_file_is_read_without_a_stall(daemon: StartDaemon, tmp_path: Path) -> None:
    file = tmp_path / "greeterd.toml"
    file.write_text('bind = ["127.0.0.1:0"]\nworkers = 2\n')
    server = daemon("--config", str(file), without={"--bind"})
    path = server.run_dir / "control.sock"
    reading = 0.0
    with metronome() as noise:
        for number in range(5):
            reply = "true" if number % 2 else "false"
            file.write_text(f'bind = ["127.0.0.1:0"]\nworkers = 2\nreply = {reply}\n')
            assert ask(path, "reload", 30.0)["ok"]
            began = time.monotonic()
            read_settings(["--config", str(file)], {}, uid=0)
            reading = max(reading, time.monotonic() - began)
            answer = "Hello, A\n" if number % 2 else ""
            assert greet(server.address, "A") == answer
        anyone = noise()
    stall = server.status()["longest_stall"]
    print(f"longest stall {stall:.3f} s; to read it takes anyone {reading:.3f} s")
    assert stall < max(bar(anyone), 2 * reading)


def test_a_loop_that_does_not_turn_shows_as_a_stall(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    before = server.status()["longest_stall"]
    server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(NoAnswerError):
            ask(server.run_dir / "control.sock", "ping", 2.0)
    finally:
        server.signal(signal.SIGCONT)
    until(lambda: server.status()["longest_stall"] > max(before, 0.5))
