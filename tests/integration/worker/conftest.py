"""Fixtures of the worker's tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.worker.loops import Clock, LoopInTest

StartLoop = Callable[..., LoopInTest]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of the loops in this test."""
    return Clock(monkeypatch)


@pytest.fixture
def start_loop(tmp_path: Path, clock: Clock) -> Iterator[StartLoop]:
    """Return what makes a loop in this process, closed after the test."""
    with ExitStack() as stack:

        def start(**options: Any) -> LoopInTest:
            made = LoopInTest(tmp_path, **options)
            stack.callback(made.close)
            return made

        assert clock.now
        yield start
