"""The user of the workers owns the log directory of a daemon that root has started: he means harm.

In the place of greeterd.log he puts what leads elsewhere, or blocks. Root opens it as him or not at
all, at every opportunity: the start, each look, USR1, a reload, an upgrade, a worker's restart.
"""

import os
import pwd
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGHUP, SIGUSR1, SIGUSR2

import pytest

from tests.support import passable_directory, until
from tests.system.clients import greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon
from tests.system.image import Gate, Image
from tests.system.obstacles import exchange

NOBODY = pwd.getpwnam("nobody")
USER = ("--user", "nobody", "--workers", "2", "--reply")
SECRET = "root's own\n"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who is to be misled")

Put = Callable[[Path, Path], None]


def give(path: Path) -> None:
    """Give a file to nobody."""
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)


def put_link_to_his_own(log: Path, _secret: Path) -> None:
    log.touch()
    give(log)
    log.with_name("own").hardlink_to(log)


def put_fifo(log: Path, _secret: Path) -> None:
    os.mkfifo(log)
    give(log)


OBSTACLES: dict[str, tuple[Put, str]] = {
    "link": (lambda log, secret: log.symlink_to(secret), "is a symbolic link"),
    "dangling link": (
        lambda log, secret: log.symlink_to(secret.with_name("new")),
        "is a symbolic link",
    ),
    # The kernel lets nobody make one (protected_hardlinks in proc_sys_fs(5)) where that is set.
    "hard link to root's": (
        lambda log, secret: log.hardlink_to(secret),
        f"Permission denied to uid {NOBODY.pw_uid}, gid {NOBODY.pw_gid}",
    ),
    "hard link to his own": (put_link_to_his_own, "has other names (hard links)"),
    "FIFO": (put_fifo, "not a regular file"),
    "directory": (lambda log, _: log.mkdir(), "Is a directory"),
}


class Victim:
    """Files of root's, which nobody may lead root to change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "victim"
        self.directory.mkdir(mode=0o700)
        self.file = self.directory / "file"
        self.file.write_text(SECRET)
        self.file.chmod(0o600)

    def assert_untouched(self) -> None:
        """See that all is as it was made."""
        found = self.file.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600)
        assert self.file.read_text() == SECRET
        assert [each.name for each in self.directory.iterdir()] == ["file"]


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    return Victim(tmp_path)


@pytest.fixture
def log_dir() -> Iterator[Path]:
    """Return a directory of nobody's, where he can reach it."""
    with passable_directory() as directory:
        give(directory)
        yield directory


@pytest.fixture(params=OBSTACLES)
def obstacle(request: pytest.FixtureRequest) -> tuple[Put, str]:
    return OBSTACLES[request.param]


def detached(daemon: StartDaemon, log_dir: Path, **options: object) -> tuple[Daemon, Path]:
    """Start a detached daemon; return its log as well."""
    server = daemon("--daemonize", *USER, "--log-dir", str(log_dir), wait=False, **options)
    assert server.process.wait(30.0) == 0
    log = log_dir / "greeterd.log"
    assert owner_of(log) == (NOBODY.pw_uid, NOBODY.pw_gid)
    server.log_dir = log_dir
    return server, log


def swap(server: Daemon, log: Path, put: Put, victim: Victim) -> None:
    """Put an obstacle in the log's place, which is never empty; what is told is read elsewhere."""
    away = log.with_name("away") / log.name
    away.parent.mkdir()
    put(away, victim.file)
    server.log_dir = away.parent
    exchange(log, away)


def owner_of(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


@pytest.mark.parametrize("detach", [[], ["--daemonize"]], ids=["foreground", "detached"])
def test_a_start_follows_nothing_and_says_why(
    daemon: StartDaemon,
    log_dir: Path,
    victim: Victim,
    obstacle: tuple[Put, str],
    detach: list[str],
) -> None:
    put, reason = obstacle
    log = log_dir / "greeterd.log"
    put(log, victim.file)
    before = owner_of(log)
    server = daemon(*detach, *USER, "--log-dir", str(log_dir), wait=False)
    if detach:
        assert server.process.wait(30.0) == 78
        assert server.stderr.read_text() == f"greeterd: daemon log {log}: {reason}\n"
    else:
        server.wait_event("ready")
        assert server.stop() == 0
    assert owner_of(log) == before
    victim.assert_untouched()


def test_a_running_daemon_follows_nothing_and_goes_on(
    daemon: StartDaemon, log_dir: Path, victim: Victim, obstacle: tuple[Put, str]
) -> None:
    put, reason = obstacle
    server, log = detached(daemon, log_dir)
    swap(server, log, put, victim)
    before = owner_of(log)
    said = f"{log}: {reason}"
    until(lambda: server.status()["last_error"] == f"daemon log {said}", what="a look")

    server.signal(SIGUSR1)
    server.wait_event("cannot reopen the daemon log", count=2)
    reopened = server.ctl("reopen")
    assert (reopened.returncode, said in reopened.stderr) == (1, True)
    server.signal(SIGHUP)
    assert said in server.wait_event("reload failed")["reason"]
    upgraded = server.ctl("upgrade")
    assert (upgraded.returncode, said in upgraded.stderr) == (1, True)
    assert server.ctl("restart", "1").returncode == 0
    assert greet(server.address, "Alice") == "Hello, Alice\n"

    assert owner_of(log) == before
    victim.assert_untouched()
    log.rename(log.with_name("obstacle"))
    until(lambda: log.exists() and "log reopened" in log.read_text(), what="the next look")
    assert owner_of(log) == (NOBODY.pw_uid, NOBODY.pw_gid)
    server.log_dir = log_dir
    assert server.stop() == 0
    victim.assert_untouched()


def test_a_log_that_is_swapped_while_a_new_image_starts_does_not_end_the_daemon(
    daemon: StartDaemon, image: Image, log_dir: Path, victim: Victim
) -> None:
    server, log = detached(daemon, log_dir, environment=image.environment)
    gate = image.hold_up()
    server.signal(SIGUSR2)
    Gate.wait_reached(server)
    swap(server, log, OBSTACLES["link"][0], victim)
    gate.open()
    server.wait_event("upgrade done")
    until(lambda: str(log) in server.status()["last_error"], what="a look")
    victim.assert_untouched()
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    log.unlink()
    until(log.exists)
    assert server.stop() == 0
