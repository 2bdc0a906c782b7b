"""Which steps a start takes, an upgrade, and a preflight; none of them is really taken."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greeterd.config.schema import Config
from greeterd.errors import ConfigError, GreeterdError
from greeterd.master import start
from greeterd.master.generations import fixed_settings
from greeterd.master.systemd.activation import SocketAssignment
from greeterd.master.upgrade.state import InheritedListeners, UpgradeState
from greeterd.system import signals
from tests.unit.master.test_upgrade_state import state

CONFIG = Config(bind=("127.0.0.1:0", "[::1]:0"), umask=0o37)
OWN = InheritedListeners(shared=[10, 11])


class Steps(list[str]):
    """What is done, in its order, in the place of what would really do it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.state: UpgradeState | None = None
        self.preflight = False
        self.sockets = SocketAssignment()
        self.source: Any = None
        self.fails: str | None = None
        monkeypatch.setattr(start, "inherited_state", lambda: self.state)
        monkeypatch.setattr(start, "is_preflight", lambda: self.preflight)
        monkeypatch.setattr(start, "receive", self._receive)
        monkeypatch.setattr(start, "resolve_address", lambda address: address)
        monkeypatch.setattr(start, "launch", self._launch)
        monkeypatch.setattr(os, "chdir", lambda path: self.append(f"chdir {path}"))
        for name in (
            "require_files", "run_preflight", "prepare_run_dir", "prepare_log_dir", "resolve",
        ):  # fmt: skip
            monkeypatch.setattr(start, name, self._note(name))
        monkeypatch.setattr(signals, "hold", self._note("hold"))
        monkeypatch.setattr(start, "PidLock", self._lock())
        monkeypatch.setattr(start, "Master", self._master)

    def _note(self, name: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            self.append(name)
            if self.fails == name:
                raise GreeterdError("why")

        return note

    def _receive(self, _config: Config) -> SocketAssignment:
        self.append("receive")
        return self.sockets

    def _lock(self) -> object:
        lock = SimpleNamespace(
            close=self._note("close lock"),
            publish=self._note("publish"),
            release=self._note("release"),
        )

        def take(how: str, *_: object) -> object:
            self.append(how)
            return lock

        return SimpleNamespace(acquire=partial(take, "acquire"), adopt=partial(take, "adopt"))

    def _launch(self, run: Callable[[object], int], *, detach: bool, umask: int) -> int:
        self.append(f"launch {detach} {umask:o}")
        return run("readiness")

    def _master(
        self, _config: Config, source: object, _readiness: object, **more: object
    ) -> object:
        self.source = source
        self.append(f"master {more['predecessor'] is not None}")

        def run() -> int:
            self.append("run")
            if self.fails == "run":
                raise RuntimeError
            return 42

        return SimpleNamespace(
            run=run, close=self._note("close"), log_crash=self._note("log crash")
        )

    def run(self, config: Config = CONFIG) -> int:
        """Start."""
        return start.run(config, directory=Path("/start"), reload=lambda: config)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def inherited(config: Config = CONFIG) -> UpgradeState:
    """Return what a predecessor with this configuration has left."""
    return state(fixed=dict(fixed_settings(config)), listeners=OWN)


def test_start_takes_its_steps_in_order(steps: Steps) -> None:
    assert steps.run() == 42
    assert steps == [
        "receive", "require_files", "launch False 37", "resolve", "prepare_log_dir", "hold",
        "acquire", "master False", "run", "close", "release",
    ]  # fmt: skip
    assert (steps.source.directory, [*steps.source.resolved]) == (Path("/start"), [*CONFIG.bind])


def test_start_detaches_as_configured(steps: Steps) -> None:
    steps.run(replace(CONFIG, daemonize=True))
    assert "launch True 37" in steps
    assert "chdir /" not in steps, "that is done after it has read its files"


@pytest.mark.parametrize(
    ("shared", "looked_up"), [([10, 11], []), ([10, None], [*CONFIG.bind]), ([], [])]
)
def test_start_looks_up_names_only_if_something_is_to_be_opened(
    steps: Steps, shared: list[int | None], looked_up: list[str]
) -> None:
    steps.sockets = SocketAssignment(listeners=InheritedListeners(shared=shared))
    steps.run()
    assert [*steps.source.resolved] == looked_up


@pytest.mark.parametrize("step", ["require_files", "prepare_log_dir"])
def test_start_is_refused_before_the_pid_file_is_taken(steps: Steps, step: str) -> None:
    steps.fails = step
    with pytest.raises(GreeterdError, match="why"):
        steps.run()
    assert steps[-1] == step


def test_start_logs_a_crash_and_releases_everything(steps: Steps) -> None:
    steps.fails = "run"
    with pytest.raises(RuntimeError):
        steps.run()
    assert steps[-4:] == ["run", "log crash", "close", "release"]


def test_start_of_a_new_image_goes_on_in_place(steps: Steps) -> None:
    steps.state = inherited()
    assert steps.run() == 42
    assert steps == [
        "launch False 37", "resolve", "prepare_log_dir", "hold", "adopt", "publish", "master True",
        "run", "close", "release",
    ]  # fmt: skip
    assert steps.source.sockets.listeners == OWN
    assert steps.source.resolved == {}


def test_start_of_a_new_image_that_is_detached_already_does_not_detach(steps: Steps) -> None:
    config = replace(CONFIG, daemonize=True)
    steps.state = inherited(config)
    steps.run(config)
    assert steps[:2] == ["chdir /", "launch False 37"]


@pytest.mark.parametrize("step", ["prepare_log_dir", "publish"])
def test_start_of_a_new_image_is_not_stopped_by_what_workers_can_do_without(
    steps: Steps, step: str
) -> None:
    steps.state, steps.fails = inherited(), step
    assert steps.run() == 42


@pytest.mark.parametrize("preflight", [False, True])
def test_start_of_a_new_image_with_other_fixed_settings_is_refused(
    steps: Steps, preflight: bool
) -> None:
    steps.state, steps.preflight = inherited(replace(CONFIG, mode="handoff", backlog=7)), preflight
    with pytest.raises(ConfigError, match=r"^only a restart changes backlog, mode$"):
        steps.run(replace(CONFIG, mode="inherit"))
    assert steps == []


def test_start_as_a_preflight_serves_nothing(steps: Steps) -> None:
    steps.state, steps.preflight = inherited(), True
    assert steps.run() == 0
    assert steps == [
        "prepare_run_dir", "adopt", "close lock", "require_files", "run_preflight",
    ]  # fmt: skip


def test_start_binds_to_the_sockets_of_a_unit(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[object] = []

    def bind_by(listeners: object, config: Config, reload: object) -> tuple[Config, object]:
        bound.append(listeners)
        return replace(config, umask=0o7), reload

    monkeypatch.setattr(start, "bind_by", bind_by)
    steps.state = inherited()
    steps.state = state(fixed=dict(fixed_settings(replace(CONFIG, umask=0o7))), listeners=OWN)
    steps.run()
    assert bound == [OWN]
    assert "launch False 7" in steps
