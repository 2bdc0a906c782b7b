"""Waits for what no descriptor tells of: asks again and again, for a bounded time."""

import time
from collections.abc import Callable
from select import select
from typing import TypeVar

T = TypeVar("T")


def poll(look: Callable[[], T | None], seconds: float, step: float = 0.02) -> T | None:
    """Return the first answer that is not None; None when there is none after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None or time.monotonic() > deadline:
            return found
        select((), (), (), step)
