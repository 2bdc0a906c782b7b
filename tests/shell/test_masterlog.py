"""The daemon log as the master keeps it: whose it is."""

import os
from pathlib import Path

import pytest

from greeterd.config import Config
from greeterd.files import Identity
from greeterd.masterlog import MasterLog

SOMEBODY = Identity(uid=12345, gid=54321)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Return the files that were given away, and to whom."""
    found: list[tuple[str, int, int]] = []

    def give(fd: int, uid: int, gid: int) -> None:
        found.append((str(Path(f"/proc/self/fd/{fd}").readlink()), uid, gid))

    monkeypatch.setattr(os, "fchown", give)
    return found


def test_a_log_file_is_given_to_the_user_of_the_workers(
    tmp_path: Path, given: list[tuple[str, int, int]]
) -> None:
    MasterLog(Config(daemonize=True, log_dir=tmp_path), SOMEBODY).file.close()
    assert given == [(str(tmp_path / "greeterd.log"), 12345, 54321)]


def test_standard_error_is_given_to_nobody_also_in_a_reload_that_will_be_refused(
    tmp_path: Path, given: list[tuple[str, int, int]]
) -> None:
    log = MasterLog(Config(daemonize=True, log_dir=tmp_path), SOMEBODY)
    given.clear()
    log.open(Config(daemonize=False, log_dir=tmp_path))
    log.file.close()
    assert given == []
