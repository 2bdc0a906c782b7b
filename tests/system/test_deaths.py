"""Workers and masters that die: what each death costs, and what it must not.

A worker that is killed takes with it what it had accepted and not yet answered. All else lives on:
the connections in the queues, the listeners, the log file, the books.
"""

import contextlib
import functools
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import pytest

from greeterd.supervisor.ids import DISPATCHER
from tests.support import until
from tests.system import proc
from tests.system.books import (
    assert_gap_free,
    held_connections,
    names,
    outcomes,
    quiet_totals,
    state_of,
    worker_of,
)
from tests.system.clients import Load, connect, fire, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon

WORKERS = 4
KILLS = 50
# A slot that has served for as long as that is healthy again, so that no back-off builds up.
HEALTHY_AFTER = 0.2
PATIENT = (f"--restart-window={HEALTHY_AFTER}", "--max-restarts=1000")

both_modes = pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])


def stop(pid: int) -> None:
    """Stop a process, and wait until it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T", what=f"{pid} has stopped")


def wait_replaced(daemon: Daemon, slot: int, old: int) -> int:
    """Wait until another worker serves the slot; return its pid."""
    return until(lambda: pid if (pid := worker_of(daemon, slot)) != old else 0, what=f"slot {slot}")


@dataclass
class Killer:
    """Kills workers, slot after slot, and looks at what each had accepted where it is to."""

    daemon: Daemon
    look: bool
    held: int = 0
    inodes: dict[int, int] = field(default_factory=dict)
    listeners: dict[int, set[str]] = field(default_factory=dict)

    def remember(self, slot: int, pid: int) -> None:
        """Assert that the slot's log and listener are those that it has always had."""
        ours = proc.inodes(pid)
        inode = (self.daemon.log_dir / f"worker-{slot}.log").stat().st_ino
        assert self.inodes.setdefault(slot, inode) == inode
        assert self.listeners.setdefault(slot, ours) == ours
        assert len(ours) == (0 if self.daemon.status()["mode"] == "handoff" else 1)

    def healthy(self, slot: int) -> int:
        """Return the pid of the slot's worker if its death will count as the first, else 0."""
        rows = [each for each in self.daemon.status()["workers"] if each["slot"] == slot]
        return int(rows[0]["pid"]) if rows[0]["age"] > HEALTHY_AFTER else 0

    def kill(self, slot: int) -> None:
        """Kill the slot's worker when it is healthy, and wait until another has its place."""
        pid = until(lambda: self.healthy(slot), what=f"a healthy worker in slot {slot}")
        self.remember(slot, pid)
        if self.look:
            stop(pid)
            self.held += held_connections(pid, self.listeners[slot])
        os.kill(pid, signal.SIGKILL)
        self.remember(slot, wait_replaced(self.daemon, slot, pid))


@pytest.mark.shows("signal CHLD", "when a worker crashes or is killed")
@both_modes
@pytest.mark.parametrize("look", [False, True], ids=["in-flight", "looked-at"])
def test_a_killed_worker_costs_no_more_than_it_had_accepted(
    daemon: StartDaemon, mode: str, *, look: bool
) -> None:
    one = daemon(f"--mode={mode}", f"--workers={WORKERS}", "--reply", "--no-rescue", *PATIENT)
    killer = Killer(one, look)
    with Load(one.address, concurrency=16, reply=True) as load:
        load.wait_going()
        for number in range(KILLS):
            killer.kill(number % WORKERS + 1)
        result = load.stop()
    exits = one.events("worker exited")
    assert [each["reason"] for each in exits] == ["killed by SIGKILL"] * KILLS
    greetings, totals = one.greetings(), one.status()["totals"]
    answered, logged = set(result.names["ok"]), names(greetings)
    lost = result.total - len(answered)
    print(f"{mode}: {KILLS} kills, {result.counts}, held {killer.held}, {outcomes(totals)}")
    # A worker counts its greetings once they are in the log, and answers after that.
    assert max(logged.values()) == 1
    assert answered <= set(logged)
    assert len(answered) <= totals["greetings"] <= len(greetings) <= result.total
    assert_gap_free(greetings)
    # Who was not answered was accepted: the end of the stream or a reset, not a refusal, no wait.
    assert set(result.lost) <= {"reset", "silent"}
    assert totals["reset"] == sum(each.get("connections_lost", 0) for each in exits)
    assert totals["connections"] == totals["greetings"] + totals["reset"] <= result.total
    if look:
        assert lost <= killer.held
    assert [each["state"] for each in one.status()["workers"]] == ["ready"] * WORKERS
    assert len(answered) > KILLS


@pytest.mark.shows("when a worker crashes or is killed")
@both_modes
def test_what_is_only_queued_survives_the_death_of_every_worker(
    daemon: StartDaemon, mode: str
) -> None:
    one = daemon(f"--mode={mode}", f"--workers={WORKERS}", "--reply", "--no-rescue", *PATIENT)
    before = {slot: worker_of(one, slot) for slot in range(1, WORKERS + 1)}
    for pid in before.values():
        stop(pid)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(one.address)) for _ in range(200)]
        for number, client in enumerate(clients):
            client.sendall(f"queued {number}\n".encode())
        # In mode handoff one may be on its way from the listener to a worker.
        until(lambda: sum(each["queued"] for each in one.status()["listeners"]) == len(clients))
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        for number, client in enumerate(clients):
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                assert stream.read() == f"Hello, queued {number}\n".encode()
    assert outcomes(quiet_totals(one, connections=200)) == {"greetings": 200}
    assert [each.get("connections_lost") for each in one.events("worker exited")] == [None] * 4


@both_modes
def test_a_killed_worker_s_unfinished_clients_are_counted_as_reset(
    daemon: StartDaemon, mode: str
) -> None:
    one = daemon(f"--mode={mode}", "--workers=2", *PATIENT)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(one.address)) for _ in range(20)]
        for client in clients:
            client.sendall(b"unfinish")
        until(lambda: one.status()["totals"]["open"] == 20, what="all are accepted")
        pids = one.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for client in clients:
            with contextlib.suppress(ConnectionResetError):  # something was left unread
                assert client.recv(1) == b""
    one.wait_event("worker exited", count=2)
    assert outcomes(one.status()["totals"]) == {"reset": 20}
    assert sum(each.get("connections_lost", 0) for each in one.events("worker exited")) == 20
    assert one.greetings() == []


@pytest.mark.shows("exit 70 greeterd", "when a worker crashes at each start")
@both_modes
def test_too_many_deaths_in_the_window_end_the_daemon_with_70(
    daemon: StartDaemon, mode: str
) -> None:
    one = daemon(f"--mode={mode}", "--workers=2", "--reply", "--max-restarts=3")
    assert greet(one.address, "Alice") == "Hello, Alice\n"
    for number in range(4):
        pid = worker_of(one, 1)
        os.kill(pid, signal.SIGKILL)
        if number < 3:
            wait_replaced(one, 1, pid)
    assert one.wait() == 70
    last = one.events("stopped")[-1]
    assert (last["code"], last["level"]) == (70, "error")
    assert "worker 1 died 4 times within 60 s" in last["reason"]
    other = [each for each in one.events("worker exited") if each["worker"] == 2]
    assert [each["reason"] for each in other] == ["exit status 0"], "the healthy one was drained"


@pytest.mark.shows("when all workers are killed at once")
@both_modes
def test_all_workers_killed_at_once_are_replaced(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=24", "--reply")
    old = {slot: worker_of(one, slot) for slot in range(1, 25)}
    for pid in old.values():
        os.kill(pid, signal.SIGKILL)
    for slot, pid in old.items():
        wait_replaced(one, slot, pid)
    assert greet(one.address, "Alice") == "Hello, Alice\n"
    assert one.status()["restarts_in_window"] == 24
    assert one.stop() == 0


@pytest.mark.shows("when a worker crashes at each start")
@pytest.mark.parametrize("daemonize", [False, True])
@both_modes
def test_a_worker_that_cannot_start_ends_the_daemon_with_its_code_and_reason(
    daemon: StartDaemon, tmp_path: Path, mode: str, *, daemonize: bool
) -> None:
    logs = tmp_path / "logs"
    log = logs / "worker-2.log"
    log.mkdir(parents=True)
    options = ["--daemonize"] if daemonize else []
    one = daemon(f"--mode={mode}", "--workers=3", f"--log-dir={logs}", *options, wait=False)
    assert one.wait() == 71
    said = one.stderr.read_text()
    assert f"worker 2 did not start: {log}: Is a directory" in said
    assert one.events("ready") == []


@pytest.mark.shows("when a worker hangs")
@both_modes
def test_a_stopped_worker_is_killed_and_replaced(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=2", "--reply", "--worker-timeout=1", "--no-rescue")
    old = worker_of(one, 2)
    stopped = monotonic()
    stop(old)
    new = wait_replaced(one, 2, old)
    print(f"{mode}: replaced after {monotonic() - stopped:.1f} s")
    ended = one.events("worker is ended")
    # The first is for a process that can write its stack; a stopped one heeds only the second.
    assert [each["signal"] for each in ended] == ["SIGABRT", "SIGKILL"]
    assert {(each["worker"], each["worker_pid"]) for each in ended} == {(2, old)}
    assert "no heartbeat for" in ended[0]["reason"]
    assert one.events("worker exited")[-1]["reason"] == "killed by SIGKILL"
    for number in range(20):
        assert greet(one.address, f"client {number}") == f"Hello, client {number}\n"
    assert new in {each["pid"] for each in one.greetings()} or mode == "inherit"


def test_an_idle_worker_turns_often_enough_for_a_short_timeout(daemon: StartDaemon) -> None:
    one = daemon("--workers=1", "--worker-timeout=0.8")
    # With a turn a second the second look of the master, which looks once a second, would end it.
    until(lambda: one.status()["totals"]["turns"] >= 20, what="4 s at 5 turns a second")
    assert one.events("worker is ended") == []


@contextlib.contextmanager
def blocking_accept(pid: int) -> Iterator[None]:
    """Let accept(2) block on a worker's own listener, as only a debugger could.

    O_NONBLOCK belongs to the file description, so a duplicate of the descriptor can clear it.
    """
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(sock) for _, sock in proc._sockets(pid)]
        (listener,) = (
            sock for sock in found if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )
        listener.setblocking(True)
        try:
            yield
        finally:
            listener.setblocking(False)


@pytest.mark.shows("when a worker hangs")
def test_a_worker_that_hangs_is_aborted_and_its_stack_is_in_the_daemon_log(
    daemon: StartDaemon,
) -> None:
    one = daemon("--mode=reuseport", "--workers=1", "--reply", "--worker-timeout=1")
    old = worker_of(one, 1)
    with blocking_accept(old), connect(one.address) as client:
        # The first accept takes the client, the next waits for one that does not come.
        client.sendall(b"Alice")
        client.shutdown(socket.SHUT_WR)
        exited = one.wait_event("worker exited", timeout=20.0)
        with pytest.raises(ConnectionResetError):  # an end-of-stream would say that it is logged
            client.recv(100)
    assert (exited["worker_pid"], exited["reason"]) == (old, "killed by SIGABRT")
    frames = [line.split(" in ")[-1] for line in exited["stack"].splitlines() if " in " in line]
    assert frames[0] == "burst", exited["stack"]
    assert {"turn", "run"} <= set(frames)
    assert [each["signal"] for each in one.events("worker is ended")] == ["SIGABRT"]
    wait_replaced(one, 1, old)
    assert greet(one.address, "Bob") == "Hello, Bob\n"


@pytest.mark.shows("signal ABRT to a worker")
def test_an_abort_from_outside_leaves_the_stack_too(daemon: StartDaemon) -> None:
    one = daemon("--workers=2")
    pid = worker_of(one, 2)
    os.kill(pid, signal.SIGABRT)
    exited = one.wait_event("worker exited")
    assert (exited["worker"], exited["reason"]) == (2, "killed by SIGABRT")
    assert "Fatal Python error: Aborted" in exited["stack"]
    assert "worker/main.py" in exited["stack"]
    wait_replaced(one, 2, pid)


def start_again(daemon: StartDaemon, dead: Daemon, *arguments: str) -> int:
    """Start a daemon in the place of one that has died; return the number of attempts.

    The dead one's workers serve what is queued before they let the address go, so it may be in use
    for a moment (69); but never the run lock (75), which died with its holder.
    """
    place = (f"--bind={dead.address}", f"--run-dir={dead.run_dir}", f"--log-dir={dead.log_dir}")
    for attempt in range(1, 20):
        one = daemon(*arguments, *place, wait=False)
        until(functools.partial(has_begun, one), timeout=30.0, what="it is ready or has failed")
        if one.process.poll() is None:
            return attempt
        assert one.process.poll() == 69
    raise AssertionError("the address does not become free")


def has_begun(daemon: Daemon) -> bool:
    """Tell whether a daemon has become ready, or has failed."""
    return daemon.process.poll() is not None or bool(daemon.events("ready"))


@pytest.mark.shows("when the master dies")
@both_modes
def test_the_master_s_death_costs_no_client_and_a_new_daemon_takes_over(
    daemon: StartDaemon, mode: str
) -> None:
    arguments = (f"--mode={mode}", f"--workers={WORKERS}", "--reply", "--client-timeout=60")
    one = daemon(*arguments)
    with (
        Load(one.address, reply=True, concurrency=16) as load,
        connect(one.address) as slow,
    ):
        slow.sendall(b"half a na")
        load.wait_going()
        until(lambda: one.status()["totals"]["open"], what="the slow client is accepted")
        one.process.kill()
        died = monotonic()
        one.process.wait()
        attempts = start_again(daemon, one, *arguments)
        took = monotonic() - died
        # The new master answers where the old one did.
        until(lambda: one.status()["totals"]["greetings"] > 100, what="the load goes on")
        slow.sendall(b"me")
        slow.shutdown(socket.SHUT_WR)
        assert slow.recv(100) == b"Hello, half a name\n"
        result = load.stop()
    until(lambda: not one.processes(), timeout=5.0, what="the old workers are gone")
    print(f"{mode}: ready again after {took:.2f} s in {attempts} attempts, {result.counts}")
    assert set(result.lost) <= {"refused"}, "between the two daemons nobody listens"
    logged = names(one.greetings())
    assert max(logged.values()) == 1
    assert set(logged) == {*result.names["ok"], "half a name"}
    orphans = {each["worker"] for each in one.events("the master is gone, draining")}
    assert orphans - {DISPATCHER} == set(range(1, WORKERS + 1))


@pytest.mark.shows("when the master dies")
def test_a_master_that_died_leaves_no_worker_behind_though_clients_are_silent(
    daemon: StartDaemon,
) -> None:
    one = daemon("--workers=2", "--client-timeout=1")
    with connect(one.address) as silent:
        fire(one.address, "Alice")
        until(lambda: one.status()["totals"]["connections"] == 2)
        one.process.kill()
        one.process.wait()
        until(lambda: not one.processes(), timeout=10.0, what="the workers are gone")
        assert silent.recv(1) == b""
    assert names(one.greetings()) == {"Alice": 1}
