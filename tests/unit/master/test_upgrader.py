"""An upgrade, step by step: the preflight, its end, the exec; processes are stand-ins."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from greeterd.master.log import MasterLog
from greeterd.master.upgrade import reexec, upgrader
from greeterd.master.upgrade.upgrader import Upgrader
from greeterd.supervisor.events import Event, PreflightEnded
from greeterd.supervisor.ids import NO_TICKET, Ticket
from greeterd.system import signals


class Stage:
    """An upgrader, and what it does to everything else, in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.steps: list[str] = []
        self.fed: list[Event] = []
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.error: OSError | None = None
        self.processes: list[Process] = []
        note = self.steps.append
        log = lambda event, **fields: self.logged.append((event, fields))  # noqa: E731
        monkeypatch.setattr(upgrader, "PreflightProcess", self._start)
        monkeypatch.setattr(reexec, "execute", self._execute)
        monkeypatch.setattr(signals, "hold", lambda: note("hold"))
        monkeypatch.setattr(signals, "release", lambda: note("release"))
        self.upgrader = Upgrader(
            directory,
            state=lambda ticket: cast("Any", f"state of {ticket}"),
            pipe=cast("Any", SimpleNamespace(put_back=lambda: note("put back"))),
            log=cast("MasterLog", SimpleNamespace(logger=SimpleNamespace(info=log, warning=log))),
            feed=self.fed.append,
        )

    def _start(self, state: str, _program: object) -> "Process":
        self.steps.append(f"preflight of {state}")
        if self.error is not None:
            raise self.error
        self.processes.append(Process(100 + len(self.processes)))
        return self.processes[-1]

    def _execute(self, state: str, _program: object) -> None:
        self.steps.append(f"execute with {state}")
        if self.error is not None:
            raise self.error


class Process:
    """A preflight that ends as the test says."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.end: str | None = None
        self.killed = False
        self.stderr = "what it wrote"

    def verdict(self) -> str | None:
        """Return how it has ended."""
        return self.end

    def kill(self) -> None:
        """Note it."""
        self.killed = True


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)


def test_upgrader_feeds_that_a_preflight_has_passed_once(stage: Stage) -> None:
    stage.upgrader.start_preflight()
    assert stage.steps == [f"preflight of state of {NO_TICKET}"]
    assert stage.logged == [("trying the new image", {"trial_pid": 100})]
    stage.upgrader.reap()
    assert (stage.fed, stage.upgrader.pids()) == ([], [100])
    stage.processes[0].end = ""
    for _ in range(2):
        stage.upgrader.reap()
    assert (stage.fed, stage.upgrader.pids()) == ([PreflightEnded("")], [])
    assert len(stage.logged) == 1, "nothing is refused"


def test_upgrader_logs_what_a_preflight_that_was_refused_has_written(stage: Stage) -> None:
    stage.upgrader.start_preflight()
    stage.processes[0].end = "why"
    stage.upgrader.reap()
    assert stage.fed == [PreflightEnded("why")]
    assert stage.logged[1:] == [("new image refused", {"said": "what it wrote"})]


def test_upgrader_reaps_a_preflight_that_was_given_up_and_says_nothing_of_it(stage: Stage) -> None:
    stage.upgrader.start_preflight()
    stage.upgrader.end_preflight()
    assert (stage.processes[0].killed, stage.upgrader.pids()) == (True, [100])
    stage.upgrader.start_preflight()
    assert stage.upgrader.pids() == [100, 101]
    stage.processes[0].end = "killed"
    stage.upgrader.reap()
    assert (stage.fed, stage.upgrader.pids()) == ([], [101])
    assert not stage.processes[1].killed


def test_upgrader_has_nothing_to_end_without_a_preflight(stage: Stage) -> None:
    stage.upgrader.end_preflight()
    stage.upgrader.reap()
    assert (stage.fed, stage.upgrader.pids()) == ([], [])


def test_upgrader_feeds_why_a_preflight_cannot_be_executed(stage: Stage) -> None:
    stage.error = FileNotFoundError(2, "No such file or directory", "python")
    stage.upgrader.start_preflight()
    reason = "the new image cannot be executed: python: No such file or directory"
    assert (stage.fed, stage.upgrader.pids()) == ([PreflightEnded(reason)], [])


def test_upgrader_has_signals_wait_for_the_new_image(stage: Stage) -> None:
    stage.upgrader.replace(Ticket(3))
    assert stage.steps == ["hold", "put back", "execute with state of 3"]
    assert stage.logged == [("becoming the new image", {})]


def test_upgrader_hears_signals_again_when_the_exec_has_failed(stage: Stage) -> None:
    stage.error = OSError(12, "Cannot allocate memory", "python")
    stage.upgrader.replace(Ticket(3))
    assert stage.steps[-1] == "release"
    reason = "the new image cannot be executed: python: Cannot allocate memory"
    assert stage.fed == [PreflightEnded(reason)]
