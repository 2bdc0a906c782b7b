"""EventLoop: what is called in a turn, what waits for the next, and how late turns are."""

import selectors
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from greeterd.master import event_loop as module
from greeterd.master.event_loop import TURN, EventLoop


class Stage:
    """A loop whose selector and clock the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.waits = 0.0
        self.timeouts: list[float] = []
        self.ready: list[int] = []
        self.called: list[tuple[int, int]] = []
        self.costs: dict[int, float] = {}
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(selectors, "DefaultSelector", lambda: self)
        self.loop = EventLoop()
        self.loop.begin()

    def select(self, timeout: float) -> list[tuple[Any, int]]:
        """Return what is ready, after a while."""
        self.timeouts.append(timeout)
        self.now += self.waits
        return [(SimpleNamespace(fd=fd, data=self._callback(fd)), 1) for fd in self.ready]

    def _callback(self, fd: int) -> Callable[[int], None]:
        def call(mask: int) -> None:
            self.called.append((fd, mask))
            self.now += self.costs.get(fd, 0.0)

        return call

    def turn(self, timeout: float = 0.0) -> list[int]:
        """Turn once; return the descriptors whose events were handled."""
        self.called.clear()
        self.loop.turn(timeout)
        return [fd for fd, _ in self.called]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_every_ready_descriptor_is_called_with_its_mask(stage: Stage) -> None:
    stage.ready = [5, 6]
    assert stage.turn(0.5) == [5, 6]
    assert (stage.called, stage.timeouts) == ([(5, 1), (6, 1)], [0.5])


def test_a_turn_that_has_taken_long_leaves_the_rest_to_the_next_which_begins_with_it(
    stage: Stage,
) -> None:
    stage.ready = [5, 6, 7]
    stage.costs = {5: 2 * TURN}
    assert stage.turn() == [5]
    assert stage.turn() == [6, 7, 5]
    assert stage.turn() == [5], "none was left over"


def test_a_turn_may_last_for_a_while_from_when_it_was_due(stage: Stage) -> None:
    stage.ready = [5, 6, 7]
    stage.costs = {5: TURN / 2, 6: TURN / 2 + 0.001}
    assert stage.turn() == [5, 6]
    assert stage.loop.until == pytest.approx(100.0 + TURN)


def test_a_wait_that_ends_early_is_due_when_it_ends(stage: Stage) -> None:
    stage.waits = 0.25
    stage.turn(1.0)
    assert stage.loop.until == pytest.approx(100.25 + TURN)
    assert stage.loop.longest_stall == 0.0


def test_a_wait_that_ends_late_was_due_before(stage: Stage) -> None:
    stage.waits = 3.0
    stage.turn(1.0)
    assert stage.loop.until == pytest.approx(101.0 + TURN)


def test_the_longest_stall_is_the_latest_begin_of_a_wait(stage: Stage) -> None:
    stage.ready = [5]
    stage.costs = {5: 0.5}
    stage.turn()
    assert stage.loop.longest_stall == 0.0
    stage.costs = {5: 0.125}
    stage.turn()
    assert stage.loop.longest_stall == pytest.approx(0.5)
    stage.turn()
    assert stage.loop.longest_stall == pytest.approx(0.5)
