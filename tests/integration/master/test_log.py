"""The daemon log as the master keeps it: whose it is, what is refused, and where it is moved to."""

import errno
import json
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greeterd.config.schema import Config
from greeterd.errors import ConfigError, ResourceError
from greeterd.master.log import MasterLog
from greeterd.system import daemon_log
from greeterd.system.files import Identity
from tests.support import passable_directory
from tests.system.sizes import sized

SOMEBODY = Identity(uid=12345, gid=54321)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as another user")

Start = Callable[..., MasterLog]


@pytest.fixture
def log_dir() -> Iterator[Path]:
    """Return a directory of somebody's, which he can reach."""
    with passable_directory() as directory:
        if os.geteuid() == 0:
            os.chown(directory, SOMEBODY.uid, SOMEBODY.gid)
        yield directory


@pytest.fixture
def start(log_dir: Path) -> Iterator[Start]:
    """Open the log of a detached daemon."""
    started: list[MasterLog] = []

    def start(inherited: int | None = None) -> MasterLog:
        config = Config(daemonize=True, log_dir=log_dir)
        started.append(MasterLog(config, SOMEBODY, inherited))
        return started[-1]

    yield start
    for log in started:
        log.file.close()


def events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


@needs_root
def test_a_log_is_made_by_the_user_of_the_workers(start: Start, log_dir: Path) -> None:
    start()
    found = (log_dir / "greeterd.log").stat()
    assert (found.st_uid, found.st_gid) == (SOMEBODY.uid, SOMEBODY.gid)
    assert stat.S_IMODE(found.st_mode) & ~0o640 == 0


@needs_root
def test_a_log_that_is_root_s_is_refused_in_words_and_stays_root_s(
    start: Start, log_dir: Path
) -> None:
    path = log_dir / "greeterd.log"
    path.touch(mode=0o640)
    path.chmod(0o640)
    with pytest.raises(ConfigError) as refused:
        start()
    assert str(refused.value) == f"daemon log {path}: Permission denied to {SOMEBODY}"
    assert path.stat().st_uid == 0


def test_standard_error_stays_as_it_is(log_dir: Path) -> None:
    before = os.fstat(2)
    config = Config(daemonize=False, log_dir=log_dir)
    log = MasterLog(config, SOMEBODY)
    log.look()
    log.file.close()
    after = os.fstat(2)
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )
    assert list(log_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, ResourceError),
        (errno.EDQUOT, ResourceError),
        (errno.EMFILE, ResourceError),
        (errno.ENFILE, ResourceError),
        (errno.EROFS, ResourceError),
        (errno.EIO, ResourceError),
        (errno.ENOENT, ConfigError),
        (errno.EACCES, ConfigError),
        (errno.EISDIR, ConfigError),
    ],
)
def test_what_may_pass_is_no_error_of_the_configuration(
    start: Start,
    log_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(daemon_log, "open_regular", refuse)
    with pytest.raises(kind) as refused:
        start()
    assert str(refused.value).startswith(
        f"daemon log {log_dir}/greeterd.log: {os.strerror(number)}"
    )


def test_a_log_that_was_moved_is_opened_anew_at_the_next_look(start: Start, log_dir: Path) -> None:
    log = start()
    path, away = log_dir / "greeterd.log", log_dir / "greeterd.log.1"
    log.logger.info("before")
    log.look()
    path.rename(away)
    log.logger.info("between")
    log.look()
    log.look()
    log.logger.info("after")
    path.unlink()
    log.look()
    assert events(away) == ["before", "between"]
    assert events(path) == ["log reopened"]
    assert log.last_error is None


def test_a_log_that_cannot_be_opened_anew_is_told_once_and_stays_in_use(
    start: Start, log_dir: Path
) -> None:
    log = start()
    path, away = log_dir / "greeterd.log", log_dir / "greeterd.log.1"
    path.rename(away)
    path.symlink_to(away)
    for _ in range(3):
        log.look()
    reason = f"{path}: is a symbolic link"
    assert events(away) == ["cannot reopen the daemon log"]
    assert log.last_error == f"daemon log {reason}"
    assert log.reopen() == reason
    path.unlink()
    log.look()
    assert events(path) == ["log reopened"]


def test_a_successor_goes_on_with_the_open_file_until_the_path_can_be_had(
    start: Start, log_dir: Path
) -> None:
    path, away = log_dir / "greeterd.log", log_dir / "greeterd.log.1"
    fd = os.dup(start().file.fd)
    path.rename(away)
    path.mkdir()
    log = start(fd)
    log.logger.info("goes on")
    log.look()
    assert events(away) == ["goes on", "cannot reopen the daemon log"]
    path.rmdir()
    log.look()
    assert events(path) == ["log reopened"]
    assert log.file.fd == fd


def test_a_successor_that_can_have_the_path_leaves_no_descriptor_open(start: Start) -> None:
    fd = os.dup(start().file.fd)
    log = start(fd)
    assert log.file.fd != fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@needs_root
def test_a_look_leaves_us_who_we_were(start: Start, log_dir: Path) -> None:
    log = start()
    before = (os.getresuid(), os.getresgid(), os.getgroups())
    (log_dir / "greeterd.log").unlink()
    log.look()
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
    assert (log_dir / "greeterd.log").stat().st_uid == SOMEBODY.uid


# He puts one thing after the other in the log's place, which is never empty.
ATTACKER = """
import os, sys
log_dir, secret = sys.argv[1:]
os.chdir(log_dir)
os.setgroups([])
os.setresgid(54321, 54321, 54321)
os.setresuid(12345, 12345, 12345)
def own():
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o600))
def linked():
    own()
    if not os.path.exists("other"):
        os.link("new", "other")
puts = (
    own,
    lambda: os.symlink(secret + "/file", "new"),
    lambda: os.symlink(secret + "/missing", "new"),
    lambda: os.mkfifo("new"),
    linked,
)
print("ready", flush=True)
while True:
    for put in puts:
        put()
        os.rename("new", "greeterd.log")
        if put is linked:
            os.unlink("other")
"""


@needs_root
def test_root_writes_to_nothing_that_is_swapped_into_the_log_s_place(
    start: Start, log_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("secret")
    (secret / "file").touch(mode=0o600)
    before = (secret / "file").stat()
    outcomes = Counter[str]()
    log = start()
    with subprocess.Popen(
        [sys.executable, "-c", ATTACKER, log_dir, secret], stdout=subprocess.PIPE, text=True
    ) as attacker:
        try:
            assert attacker.stdout
            assert attacker.stdout.readline() == "ready\n"
            for number in range(sized(10_000, 1_000)):
                if number % 2:
                    log.look()
                outcomes[log.reopen().rpartition(": ")[2]] += 1
                log.logger.info("written")
                assert os.fstat(log.file.fd).st_uid == SOMEBODY.uid
        finally:
            attacker.kill()
    assert (secret / "file").stat() == before
    assert [each.name for each in secret.iterdir()] == ["file"]
    assert {"", "is a symbolic link", "not a regular file"} <= set(outcomes)
