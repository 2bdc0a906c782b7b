"""What every tier shares: waiting for a fact instead of sleeping."""

import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(predicate: Callable[[], T], *, timeout: float = 10.0, what: str = "") -> T:
    """Return the first true value of `predicate`; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or predicate}")
        select.select([], [], [], 0.01)
