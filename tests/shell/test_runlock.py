"""The run lock on real files and processes."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from greeterd.errors import AlreadyRunningError, ConfigError, GreeterdError
from greeterd.runlock import RunLock, running_pid

ROOT = Path(__file__).parents[2]
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own files as others")

HOLDER = """
import os, sys
from pathlib import Path
from greeterd.runlock import RunLock
lock = RunLock.acquire(Path(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
lock.release()
"""

# Its worker is left behind on purpose: it lives until its stdin ends.
MASTER_WITH_WORKER = """
import os, subprocess, sys
from pathlib import Path
from greeterd.runlock import RunLock
lock = RunLock.acquire(Path(sys.argv[1]))
if sys.argv[2] == "worker closes":
    preserve = ()
else:
    preserve = (lock.fd,)
subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=preserve)
print("ready", flush=True)
os.kill(os.getpid(), 9)
"""


def python(code: str, *arguments: object, **options: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        | options,
    )


def test_the_file_holds_pid_and_start_time(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path)
    pid, started = (tmp_path / "greeterd.pid").read_text().split()
    assert int(pid) == os.getpid()
    assert started == Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert running_pid(tmp_path) == os.getpid()
    lock.release()


def test_the_run_directory_is_made_and_not_open_to_others(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path / "a" / "run")
    assert stat.S_IMODE((tmp_path / "a" / "run").stat().st_mode) & 0o027 == 0
    assert stat.S_IMODE((tmp_path / "a" / "run" / "greeterd.pid").stat().st_mode) & 0o027 == 0
    lock.release()


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with python(HOLDER, tmp_path) as first:
        assert first.stdout
        pid = first.stdout.readline().strip()
        with pytest.raises(AlreadyRunningError, match=rf"already running as pid {pid}\b"):
            RunLock.acquire(tmp_path)
        first.communicate()
    RunLock.acquire(tmp_path).release()


def test_a_killed_daemon_leaves_a_stale_file_that_hinders_nobody(tmp_path: Path) -> None:
    with python(HOLDER, tmp_path) as first:
        assert first.stdout
        first.stdout.readline()
        first.kill()
    assert (tmp_path / "greeterd.pid").read_text()
    assert running_pid(tmp_path) is None
    lock = RunLock.acquire(tmp_path)
    assert running_pid(tmp_path) == os.getpid()
    lock.release()


def test_a_recycled_pid_is_not_taken_for_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "greeterd.pid").write_text(f"{os.getpid()} 1\n")
    assert running_pid(tmp_path) is None
    RunLock.acquire(tmp_path).release()


@pytest.mark.parametrize(
    "content", ["", "garbage\n", "1\n", "-1 5\n", "9" * 60 + " 1\n", "\N{SUPERSCRIPT TWO} 1\n"]
)
def test_garbage_in_a_held_file_is_refused_without_a_pid(tmp_path: Path, content: str) -> None:
    lock = RunLock.acquire(tmp_path)
    (tmp_path / "greeterd.pid").write_text(content)
    with pytest.raises(AlreadyRunningError, match="its file does not name"):
        RunLock.acquire(tmp_path)
    lock.release()


def test_release_takes_the_file_away_and_is_idempotent(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path)
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_release_leaves_a_file_that_is_not_ours(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path)
    (tmp_path / "greeterd.pid").unlink()
    second = RunLock.acquire(tmp_path)
    lock.release()
    assert running_pid(tmp_path) == os.getpid()
    second.release()


def test_a_starter_that_opened_the_file_before_it_was_removed_locks_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "greeterd.pid"
    old = RunLock.acquire(tmp_path)
    flock: Callable[[int, int], None] = fcntl.flock

    def release_first(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        old.release()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", release_first)
    lock = RunLock.acquire(tmp_path)
    assert os.path.samestat(os.fstat(lock.fd), path.stat())
    with pytest.raises(AlreadyRunningError):
        RunLock.acquire(tmp_path)
    lock.release()


@pytest.mark.parametrize("worker", ["worker closes", "worker keeps"])
def test_the_lock_ends_with_the_master_if_its_workers_closed_it(
    tmp_path: Path, worker: str
) -> None:
    with python(MASTER_WITH_WORKER, tmp_path, worker) as master:
        assert master.stdout
        assert master.stdout.readline() == "ready\n"
        assert master.wait() == -signal.SIGKILL
        if worker == "worker closes":
            RunLock.acquire(tmp_path).release()
        else:  # why the worker has to
            with pytest.raises(AlreadyRunningError, match="does not name"):
                RunLock.acquire(tmp_path)


def test_release_frees_the_lock_even_if_a_worker_kept_it_and_the_file_must_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(path)

    lock = RunLock.acquire(tmp_path)
    copy = os.dup(lock.fd)
    monkeypatch.setattr(Path, "unlink", refuse)
    lock.release()
    monkeypatch.undo()
    assert (tmp_path / "greeterd.pid").read_text() == ""
    RunLock.acquire(tmp_path).release()
    os.close(copy)


def test_an_upgrade_hands_the_lock_on_without_a_gap(tmp_path: Path) -> None:
    old = RunLock.acquire(tmp_path)
    passed = os.dup(old.fd)
    os.set_inheritable(passed, True)
    new = RunLock.adopt(passed, tmp_path)
    assert not os.get_inheritable(new.fd)
    old.close()
    with pytest.raises(AlreadyRunningError):
        RunLock.acquire(tmp_path)
    new.update(os.getppid())
    assert running_pid(tmp_path) == os.getppid()
    new.release()
    RunLock.acquire(tmp_path).release()


def test_only_the_run_lock_can_be_adopted(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path)
    with (tmp_path / "other").open("w") as other, pytest.raises(GreeterdError, match="is not the"):
        RunLock.adopt(other.fileno(), tmp_path)
    foreign = os.open(tmp_path / "greeterd.pid", os.O_RDWR)
    with pytest.raises(GreeterdError, match="is not the"):
        RunLock.adopt(foreign, tmp_path)
    os.close(foreign)
    lock.release()


def test_a_shorter_line_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "greeterd.pid").write_text("x" * 500)
    lock = RunLock.acquire(tmp_path)
    assert (tmp_path / "greeterd.pid").read_text().count("x") == 0
    lock.release()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Make a directory that everybody may write, like /tmp."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


def test_our_own_directory_in_a_shared_one_is_used(shared: Path) -> None:
    RunLock.acquire(shared / "greeterd-0").release()
    RunLock.acquire(shared / "greeterd-0").release()


def test_a_link_in_a_shared_directory_is_refused(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (shared / "run").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="is a link"):
        RunLock.acquire(shared / "run")
    assert list((tmp_path / "target").iterdir()) == []


def test_a_directory_that_others_may_write_in_a_shared_one_is_refused(shared: Path) -> None:
    (shared / "run").mkdir()
    (shared / "run").chmod(0o777)
    with pytest.raises(ConfigError, match="mode 0777"):
        RunLock.acquire(shared / "run")


@needs_root
def test_a_stranger_s_directory_in_a_shared_one_is_refused(shared: Path) -> None:
    (shared / "run").mkdir()
    os.chown(shared / "run", NOBODY, NOBODY)
    with pytest.raises(ConfigError, match="owned by uid 65534"):
        RunLock.acquire(shared / "run")
    RunLock.acquire(shared / "run", owners={NOBODY}).release()


def test_outside_of_shared_directories_the_administrator_decides(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target").chmod(0o777)
    (tmp_path / "run").symlink_to(tmp_path / "target")
    RunLock.acquire(tmp_path / "run").release()


def test_a_lock_file_that_is_a_link_is_never_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "greeterd.pid").symlink_to(victim)
    with pytest.raises(ConfigError, match="run lock"):
        RunLock.acquire(tmp_path)
    assert victim.read_text() == "precious"


def test_a_run_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"greeterd\.pid: (File exists|Not a directory)"):
        RunLock.acquire(tmp_path / "file")
