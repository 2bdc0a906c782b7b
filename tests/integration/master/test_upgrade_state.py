"""The upgrade state in its file, and the variables that lead to it."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from greeterd.errors import GreeterdError
from greeterd.master.upgrade.reexec import inherited_state, is_preflight
from greeterd.master.upgrade.state import UpgradeState, read_state, write_state
from greeterd.system.inheritance import PREFLIGHT, STATE_FD
from tests.unit.master.test_upgrade_state import state


@pytest.fixture
def real() -> Iterator[UpgradeState]:
    """Return a state whose descriptors are open, and survive an exec."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    for fd in fds:
        os.set_inheritable(fd, True)
    yield state(board_fd=fds[0], lock_fd=fds[1], control_fd=fds[2], idle_fds=[fds[3]])
    for fd in fds:
        os.close(fd)


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


def test_state_is_read_as_it_was_written_and_its_descriptors_stay_here(real: UpgradeState) -> None:
    fd = write_state(real)
    assert not os.get_inheritable(fd)
    assert read_state(fd) == real
    assert not is_open(fd)
    assert not any(map(os.get_inheritable, real.fds())), "workers do not have them"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[" * 100_000, b'{"version":1}', b"\xff",
        msgspec.json.encode(state(board_fd=10**6)), msgspec.json.encode(state(board_fd=2**70)),
    ],
)  # fmt: skip
def test_state_that_cannot_be_understood_is_an_error_in_words(data: bytes) -> None:
    fd = os.memfd_create("state")
    os.write(fd, data)
    with pytest.raises(GreeterdError, match="the predecessor's upgrade state cannot be read: "):
        read_state(fd)
    assert not is_open(fd)


def test_state_of_another_version_is_refused(real: UpgradeState) -> None:
    fd = write_state(msgspec.structs.replace(real, version=2))
    with pytest.raises(GreeterdError, match="the predecessor's upgrade state is of version 2"):
        read_state(fd)


def test_state_that_does_not_fit_leaves_no_file(real: UpgradeState) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    count = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_state(real)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(os.listdir("/proc/self/fd")) == count  # noqa: PTH208


def test_reexec_finds_the_state_by_its_variable_once(
    real: UpgradeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inherited_state() is None
    monkeypatch.setenv(STATE_FD, str(write_state(real)))
    assert inherited_state() == real
    assert STATE_FD not in os.environ, "no worker is to take itself for a new image"
    assert inherited_state() is None


@pytest.mark.parametrize("number", ["", "x", "1000000", "-1", "9" * 30])
def test_reexec_refuses_a_variable_that_leads_to_no_file(
    number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE_FD, number)
    with pytest.raises(GreeterdError, match="the predecessor's upgrade state cannot be read: "):
        inherited_state()


def test_reexec_knows_a_preflight_by_its_variable_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFLIGHT, "1")
    assert (is_preflight(), is_preflight()) == (True, False)
