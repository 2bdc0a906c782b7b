"""What holds for every test: who runs it, when and for how long; programs start as in a terminal.

A test that is marked `alone` measures time: it runs after the others, with no other beside it.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests.room import Room
from tests.system.sizes import sized

# Write bytecode also where the environment forbids it: each of 1,000 starts would compile a daemon,
# and each process that runs tests every test.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Of pytest-timeout: a test that exceeds it fails, with all stacks and the log of its daemon.
os.environ.setdefault("PYTEST_TIMEOUT", str(sized(3600, 300)))

# A shell without job control starts what runs in the background with SIGINT and SIGQUIT ignored,
# which children inherit over exec; the tests send both.
for _number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _handler = signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _handler)  # noqa: TID251 - no daemon here

# An example that takes long has met a stall of the machine, and shows nothing.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

SHARING = (
    "tests/integration/test_package",
    "tests/system/test_container",
    "tests/system/test_hostile_worker",
    "tests/system/test_logrotate",
    "tests/system/test_systemd",
)
"""Where a fixture of the module costs more than most tests: a container, an environment, a load."""
PROCESSES_PER_CPU = 3
"""Most of a test's time is waiting for processes."""

ROOM = pytest.StashKey[Room]()


def pytest_configure(config: pytest.Config) -> None:
    """Open the room of the session, which the processes of xdist share."""
    shared = getattr(config, "workerinput", {}).get("room")
    directory = shared or tempfile.mkdtemp(prefix="greeterd-test-")
    config.stash[ROOM] = Room(Path(directory))
    config.add_cleanup(config.stash[ROOM].close)
    if not shared:
        config.add_cleanup(lambda: shutil.rmtree(directory))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell a process of xdist which room it is."""
    node.workerinput["room"] = str(node.config.stash[ROOM].directory)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that are to be alone at the end."""
    items.sort(key=_is_alone)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the time limit begins
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test in the room."""
    with item.config.stash[ROOM].enter(alone=_is_alone(item)):
        return (yield)


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes run tests, where no number is given."""
    return PROCESSES_PER_CPU * len(os.sched_getaffinity(0))


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Send each test where there is room, but the tests that share a fixture to one process.

    Not by xdist's own groups: pytest 9 does not take the names by which xdist 3.8 forms them.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if not file.startswith(SHARING):
            return nodeid
        mode = nodeid.partition("[")[2].partition("-")[0]
        return file + mode if "hostile_worker" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Return who distributes the tests."""
    return Scheduling(config, log)
