"""Reloader: what is refused, what is fed to the supervisor, and what comes into force."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from greeterd.config.schema import Config
from greeterd.errors import ConfigError
from greeterd.master import reload as module
from greeterd.master.generations import policy_of
from greeterd.master.reload import Reloader
from greeterd.supervisor.events import Reload
from greeterd.supervisor.ids import Generation, Ticket
from tests.unit.master.parts import Parts

OLD = Config(workers=2)
NEW = Config(workers=3, max_age=9)


class Reloading:
    """A Reloader among stand-ins for the parts that it calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[object] = []
        self.found: Config | ConfigError = NEW
        self.parts = Parts(workers=2, config=OLD, escrow=self._escrow())
        monkeypatch.setattr(self.parts.context.generations, "read", self._read)
        monkeypatch.setattr(self.parts.log, "open", self._open)
        monkeypatch.setattr(module, "set_limits", self._limit)
        self.parts.start()
        self.parts.fed.clear()
        mender = SimpleNamespace(look=lambda: self.calls.append("look"))
        self.reloader = Reloader(self.parts.context, cast("Any", mender))

    def _limit(self, config: Config) -> None:
        self.calls.append(("limits", config))

    def _escrow(self) -> SimpleNamespace:
        steer = lambda config: self.calls.append(("steer", config))  # noqa: E731
        return SimpleNamespace(groups=SimpleNamespace(most_slots=8, steer_as=steer))

    def _read(self) -> Config:
        if isinstance(self.found, ConfigError):
            raise self.found
        return self.found

    def _open(self, config: Config) -> SimpleNamespace:
        self.calls.append(("open", config))
        return SimpleNamespace(close=lambda: self.calls.append("close"))


@pytest.fixture
def reloading(monkeypatch: pytest.MonkeyPatch) -> Reloading:
    return Reloading(monkeypatch)


def test_a_reload_is_a_new_generation_with_its_policy(reloading: Reloading) -> None:
    reloading.reloader.begin(Ticket(5))
    [event] = reloading.parts.fed
    assert event == Reload(Generation(2), 3, policy_of(NEW, 8), Ticket(5), "reload")
    assert reloading.parts.context.generations[Generation(2)] is NEW
    assert reloading.parts.context.config is OLD, "until it has succeeded"
    assert reloading.calls == [("open", NEW), "close", "look"]


def test_the_end_of_an_upgrade_is_a_reload_in_its_name(reloading: Reloading) -> None:
    reloading.reloader.replace_workers(OLD, Ticket(6), "upgrade")
    [event] = reloading.parts.fed
    assert event == Reload(Generation(2), 2, policy_of(OLD, 8), Ticket(6), "upgrade")


def test_a_configuration_that_is_wrong_changes_nothing(reloading: Reloading) -> None:
    reloading.found = ConfigError("workers: not a number")
    with pytest.raises(ConfigError, match="workers: not a number"):
        reloading.reloader.begin(Ticket(5))
    assert (reloading.parts.fed, reloading.parts.context.generations.last) == ([], 1)


def test_what_only_a_restart_changes_is_refused_by_name(reloading: Reloading) -> None:
    reloading.found = Config(mode="handoff", bind=("127.0.0.1:1",))
    with pytest.raises(ConfigError, match="only a restart changes mode, bind"):
        reloading.reloader.begin(Ticket(5))
    assert (reloading.parts.fed, reloading.parts.context.generations.last) == ([], 1)


def test_a_log_that_cannot_be_opened_refuses_the_reload(
    reloading: Reloading, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_config: Config) -> None:
        raise ConfigError("daemon log: no")

    monkeypatch.setattr(reloading.parts.log, "open", refuse)
    with pytest.raises(ConfigError, match="daemon log: no"):
        reloading.reloader.begin(Ticket(5))
    assert reloading.parts.fed == []


def test_the_master_follows_a_configuration_that_comes_into_force(
    reloading: Reloading, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[tuple[object, ...]] = []
    outcome: list[Config | None] = [NEW, None]

    def conclude(*given: object) -> Config | None:
        ends.append(given)
        return outcome.pop(0)

    monkeypatch.setattr(reloading.parts.context.generations, "conclude", conclude)
    reloading.reloader.conclude("")
    assert reloading.calls == [("limits", NEW), ("steer", NEW)]
    assert reloading.parts.log.changed == [NEW]
    reloading.reloader.conclude("it broke")
    assert len(reloading.calls) == 2
    assert [reason for _, reason, _ in ends] == ["", "it broke"]
