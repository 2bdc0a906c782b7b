"""What holds for every test: who runs it, and programs that are started as from a terminal."""

import os
import signal

import pytest
from hypothesis import settings

# A shell without job control starts what runs in the background with SIGINT and SIGQUIT ignored,
# which children inherit over exec; the tests send both.
for _number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _handler = signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _handler)  # noqa: TID251 - no daemon here

# An example that takes long has met a stall of the machine, and shows nothing.
settings.register_profile("tests", settings.default, deadline=None)
settings.load_profile("tests")

PROCESSES_PER_CPU = 3
"""Most of a test's time is waiting for processes."""


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes run tests, where no number is given."""
    return PROCESSES_PER_CPU * len(os.sched_getaffinity(0))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep together, in one process, the tests of a module that share a container."""
    if "container" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
