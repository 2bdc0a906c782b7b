"""Fixtures of the system tests: a daemon, a container with systemd, a link with delay and loss.

What a test starts through a fixture ends with the test, and is kept to look at if it failed.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.system.asking import Ask, asking
from tests.system.container import Container
from tests.system.harness import Daemon
from tests.system.image import Image
from tests.system.link import Link
from tests.system.unit import Unit

FAILED = pytest.StashKey[bool]()

StartDaemon = Callable[..., Daemon]
StartUnit = Callable[..., Unit]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember for the fixtures' ends that the test failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture
def daemon(request: pytest.FixtureRequest) -> Iterator[StartDaemon]:
    """Start daemons: the arguments are Daemon's, the result is ready (unless `wait=False`)."""
    started: list[Daemon] = []

    def start(*arguments: str, **options: object) -> Daemon:
        started.append(Daemon(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    failed = request.node.stash.get(FAILED, False)
    with contextlib.ExitStack() as stack:
        for one in started:
            stack.callback(one.close, failed=failed)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """Return a copy of the package, version 1, for a daemon to run from."""
    return Image(tmp_path)


@pytest.fixture
def ask() -> Iterator[Ask]:
    """Start greeterctl on a daemon; tests.system.asking.answer waits for it."""
    with asking() as start:
        yield start


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """Return a container with a running systemd, shared by the tests of a module."""
    with Container() as running:
        yield running


@pytest.fixture
def unit(request: pytest.FixtureRequest, container: Container) -> Iterator[StartUnit]:
    """Install the unit in the container: the arguments are Unit's; it is not started."""
    installed: list[Unit] = []

    def install(config: str, **options: object) -> Unit:
        installed.append(Unit(container, config, **options))  # type: ignore[arg-type]
        return installed[-1]

    yield install
    failed = request.node.stash.get(FAILED, False)
    for one in installed:
        one.close(failed=failed)


@pytest.fixture
def link() -> Iterator[Callable[..., Link]]:
    """Set up links: the arguments are Link's."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(Link(**options))
