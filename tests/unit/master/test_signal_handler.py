"""SignalHandler: what each of the master's signals asks for."""

import selectors
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from greeterd.master.signal_handler import SignalHandler
from greeterd.supervisor.events import Event, Scale, Stop
from greeterd.system.signals import MASTER_SIGNALS
from tests.unit.master.parts import FakeLog

ASKED: dict[signal.Signals, Event | str | None] = {
    signal.SIGTERM: Stop(),
    signal.SIGINT: Stop(),
    signal.SIGQUIT: Stop(quick=True),
    signal.SIGHUP: "reload_soon",
    signal.SIGUSR1: "reopen",
    signal.SIGUSR2: "upgrade",
    signal.SIGTTIN: Scale(change=1),
    signal.SIGTTOU: Scale(change=-1),
    signal.SIGCHLD: None,
}


class Pipe:
    """Signals that arrive as the test says."""

    def __init__(self) -> None:
        self.arrived: list[signal.Signals] = []

    def read(self) -> list[signal.Signals]:
        """Return them."""
        return self.arrived


class Handled:
    """A handler, and what was asked for."""

    def __init__(self) -> None:
        self.pipe = Pipe()
        self.asked: list[Event | str] = []
        self.log = FakeLog()
        self.registered: list[Any] = []
        names = ("reload_soon", "reopen", "upgrade")
        commands = SimpleNamespace(**{name: lambda n=name: self.asked.append(n) for name in names})
        selector = SimpleNamespace(register=lambda *given: self.registered.append(given))
        context = SimpleNamespace(feed=self.asked.append, logger=self.log, selector=selector)
        self.handler = SignalHandler(
            cast("Any", context), cast("Any", self.pipe), cast("Any", commands)
        )

    def receive(self, *numbers: signal.Signals) -> None:
        """Have these come, as the event loop would find them."""
        self.pipe.arrived = [*numbers]
        [(pipe, mask, call)] = self.registered
        assert (pipe, mask) == (self.pipe, selectors.EVENT_READ)
        call(mask)


def test_each_of_the_masters_signals_has_a_handler_and_no_other_has() -> None:
    handlers = {name for name in dir(SignalHandler) if name.startswith("on_")}
    assert handlers == {f"on_{each.name[3:].lower()}" for each in MASTER_SIGNALS}
    assert set(ASKED) == set(MASTER_SIGNALS)


@pytest.mark.parametrize("number", ASKED, ids=lambda number: number.name)
def test_a_signal_asks_for_one_thing_and_is_logged(number: signal.Signals) -> None:
    handled = Handled()
    handled.receive(number)
    expected = ASKED[number]
    assert handled.asked == ([] if expected is None else [expected])
    logged = [] if number is signal.SIGCHLD else [("info", "signal", {"signal": number.name})]
    assert handled.log.records == logged


def test_the_second_int_stops_at_once() -> None:
    handled = Handled()
    handled.receive(signal.SIGINT, signal.SIGINT)
    handled.receive(signal.SIGINT)
    assert handled.asked == [Stop(), Stop(quick=True), Stop(quick=True)]


def test_signals_are_handled_in_the_order_in_which_they_came() -> None:
    handled = Handled()
    handled.receive(signal.SIGTTIN, signal.SIGHUP, signal.SIGTERM)
    assert handled.asked == [Scale(change=1), "reload_soon", Stop()]
