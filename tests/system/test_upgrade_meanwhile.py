"""What happens while an upgrade is under way: commands, signals, deaths, a stop.

Where the new image waits at a gate, it has taken the place and does not turn its loop yet: that is
the time in which nobody hears.
"""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support import until
from tests.system.asking import Ask, answer
from tests.system.books import quiet_totals
from tests.system.clients import greet
from tests.system.conftest import StartDaemon
from tests.system.footprint import Footprint
from tests.system.harness import Daemon
from tests.system.image import Gate, Image, versions
from tests.system.test_lifecycle import finish, terminal, unfinished

MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport"])
LATER = "the daemon was upgraded first: ask again"


def hang(image: Image) -> None:
    """Let trials hang."""
    image.spoil(
        "master/upgrade/preflight.py",
        r"\n    log = ",
        "\n    __import__('signal').pause()\n    log = ",
    )


def begin_upgrade(server: Daemon, image: Image, ask: Ask) -> tuple[subprocess.Popen[str], Gate]:
    """Begin an upgrade to version 2; return it when the new image is executed, with what holds it.

    It is deaf until the gate is opened.
    """
    image.release("2")
    gate = image.hold_up()
    upgrading = ask(server, "upgrade")
    gate.wait_reached(server)
    return upgrading, gate


def test_two_upgrades_at_once_are_carried_out_or_refused_one_by_one(
    daemon: StartDaemon, image: Image, ask: Ask
) -> None:
    server = daemon("--workers", "2", environment=image.environment)
    image.release("2")
    told = [answer(asking) for asking in [ask(server, "upgrade") for _ in range(3)]]
    done = [text for code, text in told if code == 0]
    refused = [(code, text) for code, text in told if code]
    assert len(done) == len(server.events("new image")) >= 1
    assert {text for _, text in refused} <= {f"greeterctl: upgrade: {LATER}\n"}
    until(lambda: versions([server.pid, *server.worker_pids()]) == {"2"})
    until(lambda: len(server.processes()) == 3)


def test_commands_during_a_trial_are_answered_at_once_or_told_to_ask_again(
    daemon: StartDaemon, image: Image, ask: Ask
) -> None:
    server = daemon("--workers", "2", environment=image.environment)
    image.release("2")
    gate = Path(server.directory, "gate")
    image.spoil(
        "master/upgrade/preflight.py",
        r"\n    log = ",
        "\n    import select, pathlib"
        f"\n    while not pathlib.Path({str(gate)!r}).exists(): select.select([], [], [], 0.01)"
        "\n    log = ",
    )
    upgrading = ask(server, "upgrade")
    server.wait_event("trying the new image")
    assert server.status()["state"] == "reloading"
    assert server.ctl("ping").returncode == 0
    assert server.ctl("reopen").returncode == 0
    waiting = [ask(server, *words) for words in (["scale", "3"], ["restart", "1"], ["reload"])]
    until(lambda: len(server.events("control request")) == 5)  # with upgrade and reopen
    gate.touch()
    assert answer(upgrading)[0] == 0
    assert [answer(one) for one in waiting] == [
        (1, f"greeterctl: {name}: {LATER}\n") for name in ("scale", "restart", "reload")
    ]
    assert server.ctl("scale", "3").returncode == 0


def test_commands_that_waited_for_an_upgrade_that_failed_are_carried_out(
    daemon: StartDaemon, image: Image, ask: Ask
) -> None:
    server = daemon("--workers", "2", "--start-timeout", "2", environment=image.environment)
    before = Footprint.of(server)
    hang(image)
    upgrading = [ask(server, "upgrade") for _ in range(2)]
    until(lambda: len(server.events("control request")) == 2)
    scaling = ask(server, "scale", "3")
    for one in upgrading:
        code, told = answer(one)
        assert (code, "not ready within 2 s" in told) == (1, True)
    assert answer(scaling) == (0, "workers: 3\n")
    assert server.ctl("scale", "2").returncode == 0
    before.is_left_by(server)


def test_commands_and_clients_that_come_during_the_exec_are_served(
    daemon: StartDaemon, image: Image, ask: Ask
) -> None:
    server = daemon("--workers", "2", "--reply", environment=image.environment)
    requests = [b'"ping"', b'"ping"', b'"scale","arguments":{"workers":3}', b'"reload"']
    clients = [socket.socket(socket.AF_UNIX) for _ in requests]
    path = str(server.run_dir / "control.sock")
    image.release("2")
    gate = image.hold_up()
    upgrading = ask(server, "upgrade")
    server.wait_event("trying the new image")
    clients[0].connect(path)  # not before: who asks nothing for 5 s is sent away
    gate.wait_reached(server)
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    for client, request in zip(clients, requests, strict=True):
        if client is not clients[0]:
            client.connect(path)
        client.sendall(b'{"version":1,"command":' + request + b"}\n")
        client.settimeout(30.0)
    gate.open()
    assert answer(upgrading)[0] == 0
    for client in clients:
        with client:
            assert b'"ok":true' in client.recv(1000)
    assert len(server.status()["counters"]) == 2  # the reload came after the scaling


def test_signals_that_come_during_the_exec_have_their_effect(
    daemon: StartDaemon, image: Image
) -> None:
    server = daemon("--workers", "2", environment=image.environment)
    image.release("2")
    gate = image.hold_up()
    server.signal(signal.SIGUSR2)
    gate.wait_reached(server)
    for number in [signal.SIGHUP] * 20 + [signal.SIGTTIN, signal.SIGUSR1]:
        server.signal(number)
    gate.open()
    server.wait_event("upgrade done")
    server.wait_event("reload done", timeout=30.0)
    assert server.wait_event("scale done")["workers"] == 3
    server.wait_event("logs reopened")


@MODES
def test_a_storm_of_term_during_the_exec_is_a_graceful_stop(
    daemon: StartDaemon, image: Image, ask: Ask, mode: str
) -> None:
    arguments = ("--mode", mode, "--workers", "2", "--reply", "--client-timeout", "60")
    server = daemon(*arguments, environment=image.environment)
    with unfinished(server) as client:
        upgrading, gate = begin_upgrade(server, image, ask)
        for _ in range(200):
            server.signal(signal.SIGTERM)
        gate.open()
        assert answer(upgrading) == (1, "greeterctl: upgrade: the daemon is stopping\n")
        assert finish(client) == b"Hello, Alice\n"
    assert server.wait() == 0


@MODES
def test_signals_all_through_an_upgrade_are_not_fatal(
    daemon: StartDaemon, image: Image, ask: Ask, mode: str
) -> None:
    server = daemon("--mode", mode, "--workers", "2", "--reply", environment=image.environment)
    for version in ("2", "3"):
        image.release(version)
        upgrading = ask(server, "upgrade")
        while upgrading.poll() is None:
            server.signal(signal.SIGHUP)
            server.signal(signal.SIGUSR1)
            assert greet(server.address, "Alice") == "Hello, Alice\n"
        assert answer(upgrading)[0] == 0
    until(lambda: server.status()["state"] == "running", timeout=30.0)
    assert server.ctl("reload").returncode == 0
    until(lambda: versions([server.pid, *server.worker_pids()]) == {"3"})


@MODES
def test_a_worker_that_dies_during_the_exec_is_replaced(
    daemon: StartDaemon, image: Image, ask: Ask, mode: str
) -> None:
    arguments = ("--mode", mode, "--workers", "2", "--reply", "--client-timeout", "60")
    server = daemon(*arguments, environment=image.environment)
    with unfinished(server) as client:
        upgrading, gate = begin_upgrade(server, image, ask)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        gate.open()
        assert answer(upgrading)[0] == 0
        assert client.recv(1) == b""
    until(lambda: versions(server.worker_pids()) == {"2"})
    assert [one["reason"] for one in server.events("worker exited")][:2] == [
        "killed by SIGKILL"
    ] * 2
    assert greet(server.address, "Bob") == "Hello, Bob\n"
    assert quiet_totals(server, connections=2)["reset"] == 1


def test_ctrl_c_during_a_trial_is_a_stop_as_at_any_time(daemon: StartDaemon, image: Image) -> None:
    with terminal() as (keyboard, name):
        server = daemon(
            *("--workers", "2"),
            prefix=("sh", "-c", 'exec "$@" <"$0"', name),
            environment=image.environment,
        )
        hang(image)
        server.signal(signal.SIGUSR2)
        server.wait_event("trying the new image")
        os.write(keyboard, b"\x03")
        assert server.wait() == 0
    assert server.events("upgrade failed")[0]["reason"] == "the daemon is stopping"


def test_a_trial_that_is_killed_is_a_refusal(daemon: StartDaemon, image: Image, ask: Ask) -> None:
    server = daemon("--workers", "2", environment=image.environment)
    hang(image)
    upgrading = ask(server, "upgrade")
    os.kill(server.wait_event("trying the new image")["trial_pid"], signal.SIGKILL)
    code, told = answer(upgrading)
    assert (code, "the new image cannot start (killed by SIGKILL)" in told) == (1, True)
    until(lambda: len(server.processes()) == 3)


@pytest.mark.parametrize("where", ["master/upgrade/preflight.py", "worker/main.py"])
def test_a_stop_ends_a_trial_and_whatever_that_has_started(
    daemon: StartDaemon, image: Image, ask: Ask, where: str
) -> None:
    server = daemon("--workers", "2", environment=image.environment)
    entry = {
        "master/upgrade/preflight.py": r"\n    log = ",
        "worker/main.py": r"\n    title_worker\(",
    }[where]
    image.spoil(where, f"({entry})", r"\n    __import__('signal').pause()\1")
    upgrading = ask(server, "upgrade")
    server.wait_event("trying the new image")
    until(lambda: len(server.processes()) == (4 if where == "master/upgrade/preflight.py" else 5))
    server.signal(signal.SIGTERM)
    assert answer(upgrading) == (1, "greeterctl: upgrade: the daemon is stopping\n")
    assert server.wait() == 0


def test_a_trial_ends_with_its_master(daemon: StartDaemon, image: Image) -> None:
    server = daemon("--workers", "2", environment=image.environment)
    hang(image)
    server.signal(signal.SIGUSR2)
    server.wait_event("trying the new image")
    server.signal(signal.SIGKILL)
    server.wait()


def test_names_that_were_removed_hinder_no_upgrade(daemon: StartDaemon, image: Image) -> None:
    server = daemon("--workers", "1", "--reply", environment=image.environment)
    shutil.rmtree(server.run_dir)
    server.signal(signal.SIGUSR2)
    server.wait_event("upgrade done")
    assert server.ctl("ping").returncode == 0
    assert (server.run_dir / "greeterd.pid").read_bytes() == b"%d\n" % server.process.pid
    assert server.status()["warnings"] == []
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    assert server.stop() == 0
    assert list(server.run_dir.iterdir()) == []
