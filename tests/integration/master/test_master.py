"""Master: its deadlines, its ticks and its end; the loop is turned by the test."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greeterd.config.schema import Config
from greeterd.master import master as module
from greeterd.master.master import RESCUE_TICK, TICK, ConfigSource, Master
from greeterd.master.systemd.activation import SocketAssignment
from greeterd.supervisor.actions import Exit
from greeterd.supervisor.events import Tick
from greeterd.system.pidfile import PidLock, prepare_run_dir
from greeterd.system.signals import MASTER_SIGNALS
from tests.integration.master.parts import free
from tests.support import until

Make = Callable[..., Master]


Logged = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Logged:
    """Return the records of an event that were written since the last call."""

    def read(event: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        return [each for each in records if each["event"] == event]

    return read


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    clock_gettime = staticmethod(lambda _clock: 0.0)
    CLOCK_REALTIME = 0


@pytest.fixture
def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Make]:
    """Make a master that has no worker yet; its signal handlers end with it."""
    handlers = {each: signal.getsignal(each) for each in MASTER_SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    made: list[Master] = []
    locks: list[PidLock] = []

    def make(**settings: Any) -> Master:
        monkeypatch.chdir(tmp_path)
        given: dict[str, Any] = {"bind": ("127.0.0.1:0",), "workers": 2, "log_format": "json"}
        directories = {"run_dir": tmp_path / "run", "log_dir": tmp_path / "logs"}
        config = Config(**(given | directories | settings))
        prepare_run_dir(config.run_dir)
        config.log_dir.mkdir()
        locks.append(PidLock.acquire(config.run_dir))
        source = ConfigSource(lambda: config, None, tmp_path, SocketAssignment(), {})
        readiness: Any = SimpleNamespace(ready=lambda: None, failed=lambda *_: None)
        made.append(
            Master(config, source, readiness, lock=locks[-1], identity=None, predecessor=None)
        )
        return made[-1]

    yield make
    for master in made:
        for child in master._workers._children.values():
            child.end(70, "the test is over")
        until(partial(reaped, master))
        master.close()
        free(master._context.scoreboard)
        master._context.log.file.close()
    for lock in locks:
        lock.release()
    for each, handler in handlers.items():
        signal.signal(each, handler)  # noqa: TID251 - as they were
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    capfd.readouterr()


def reaped(master: Master) -> bool:
    master._workers.reap([])
    return not master._workers._children


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


# Deadlines


@pytest.mark.parametrize(
    ("mode", "tick"), [("inherit", TICK), ("reuseport", RESCUE_TICK), ("handoff", RESCUE_TICK)]
)
def test_a_tick_follows_the_last(make: Make, clock: Clock, mode: str, tick: float) -> None:
    master = make(mode=mode)
    master._tick()
    master._spawner._pending.clear()
    assert master._timeout() == pytest.approx(tick)
    clock.now += tick / 2
    master._tick()
    assert master._timeout() == pytest.approx(tick / 2)
    clock.now += tick
    assert master._timeout() == 0.0


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("supervisor", "next_deadline"),
        ("sweeps", "next_deadline"),
        ("control", "deadline"),
        ("service_manager", "next_deadline"),
    ],
)
def test_the_loop_wakes_for_the_first_deadline_of_any_part(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch, part: str, method: str
) -> None:
    master = make()
    master._tick()
    master._spawner._pending.clear()
    assert master._timeout() == pytest.approx(TICK)
    parts = {"sweeps": master._sweeps, "control": master._control}
    owner = type(parts[part] if part in parts else getattr(master._context, part))
    monkeypatch.setattr(owner, method, lambda _self: clock.now + 0.125)
    assert master._timeout() == pytest.approx(0.125)


def test_a_service_manager_that_watches_is_pinged_in_time_between_ticks(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        master = make(mode="inherit")
        pings: list[float] = []
        while clock.now < 1010.0:
            master._tick()
            master._spawner._pending.clear()
            try:
                while data := manager.recv(4096):
                    pings += [clock.now] * (b"WATCHDOG=1" in data)
            except BlockingIOError:
                pass
            clock.now += max(0.001, master._timeout())
    gaps = [after - before for before, after in pairwise(pings)]
    assert pings[0] == 1000.0
    assert max(gaps) <= 0.4 / 2 + 0.01, "half of the period, though a tick is a second"
    assert clock.now - pings[-1] <= 0.4


def test_workers_that_wait_to_be_forked_let_the_loop_not_sleep(make: Make) -> None:
    master = make()
    master._tick()
    assert len(master._spawner) == 2
    assert master._timeout() == 0.0


# Turns


def test_a_child_that_has_ended_is_found_without_its_signal(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeterd.worker.main.main", lambda _context: 0)
    master = make(workers=1)
    master._tick()
    master._spawner.fork_pending(until=0.0)
    [child] = master._workers._children.values()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    master._pipe.read()
    master._tick()
    assert master._workers._children == {}
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)


def test_events_that_come_of_an_action_wait_until_the_others_are_performed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = make()
    seen: list[str] = []
    actions = {"first": ["a", "b"], "second": ["c"]}

    def handle(_supervisor: object, event: Any, _now: float) -> list[str]:
        seen.append(event)
        return actions[event]

    def perform(action: Any) -> None:
        seen.append(action)
        if action == "a":
            master._feed("second")  # type: ignore[arg-type]

    monkeypatch.setattr(type(master._context.supervisor), "handle", handle)
    monkeypatch.setattr(master._actions, "perform", perform)
    master._feed("first")  # type: ignore[arg-type]
    assert seen == ["first", "a", "b", "second", "c"]


def test_the_supervisors_deadline_is_kept_between_ticks(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = make()
    master._tick()
    fed: list[object] = []
    monkeypatch.setattr(master, "_feed", fed.append)
    supervisor = type(master._context.supervisor)
    monkeypatch.setattr(supervisor, "next_deadline", lambda _: clock.now + 0.1)
    master._tick()
    assert fed == []
    monkeypatch.setattr(supervisor, "next_deadline", lambda _: clock.now)
    master._tick()
    assert fed == [Tick()]


# The end


def test_a_signal_that_came_before_the_loop_turned_is_not_lost(make: Make, logged: Logged) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, MASTER_SIGNALS)
    master = make()
    os.kill(os.getpid(), signal.SIGQUIT)
    assert master.run() == 0
    assert [each["code"] for each in logged("stopped")] == [0]


def test_the_end_is_logged_with_its_reason_and_told_to_the_shell_that_waits(
    make: Make, logged: Logged
) -> None:
    master = make()
    told: list[tuple[int, str]] = []
    readiness: Any = SimpleNamespace(failed=lambda code, reason: told.append((code, reason)))
    master._readiness = readiness
    assert master._end(Exit(70, "it broke")) == 70
    assert told == [(70, "it broke")]
    master._actions.started = True
    assert master._end(Exit(70, "it broke")) == 70
    assert len(told) == 1, "the shell has gone"
    assert [(each["code"], each["reason"]) for each in logged("stopped")] == [(70, "it broke")] * 2
