"""What holds for every test: who runs it, and programs that are started as from a terminal."""

import os
import signal

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# A shell without job control starts what runs in the background with SIGINT and SIGQUIT ignored,
# which children inherit over exec; the tests send both.
for _number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _handler = signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _handler)  # noqa: TID251 - no daemon here

# An example that takes long has met a stall of the machine, and shows nothing.
settings.register_profile("tests", settings.default, deadline=None)
settings.load_profile("tests")

SHARING = (
    "tests/system/test_container",
    "tests/system/test_logrotate",
    "tests/system/test_systemd",
)
"""Where a container is booted for a whole module."""
PROCESSES_PER_CPU = 3
"""Most of a test's time is waiting for processes."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes run tests, where no number is given."""
    return PROCESSES_PER_CPU * len(os.sched_getaffinity(0))


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Send each test where there is room, but the tests that share a container to one process.

    Not by xdist's own groups: pytest 9 does not take the names by which xdist 3.8 forms them.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.startswith(SHARING) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Return who distributes the tests."""
    return Scheduling(config, log)
