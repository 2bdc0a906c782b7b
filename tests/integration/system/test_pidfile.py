"""The run lock on real files and processes."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from greeterd.errors import AlreadyRunningError, ConfigError, GreeterdError, ResourceError
from greeterd.system.pidfile import PidLock, running_pid
from greeterd.system.socket_file import file_at

ROOT = Path(__file__).parents[3]
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own files as others")

HOLDER = """
import os, sys
from pathlib import Path
from greeterd.system.pidfile import PidLock
lock = PidLock.acquire(Path(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
lock.release()
"""

# Its worker is left behind on purpose: it lives until its stdin ends.
MASTER_WITH_WORKER = """
import os, subprocess, sys
from pathlib import Path
from greeterd.system.pidfile import PidLock
lock = PidLock.acquire(Path(sys.argv[1]))
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


def test_the_file_holds_the_pid_and_a_newline_and_nothing_else(tmp_path: Path) -> None:
    lock = PidLock.acquire(tmp_path)
    assert (tmp_path / "greeterd.pid").read_bytes() == b"%d\n" % os.getpid()
    assert running_pid(tmp_path) == os.getpid()
    lock.release()


def test_a_file_with_a_start_time_of_an_earlier_version_is_read_and_its_holder_named(
    tmp_path: Path,
) -> None:
    lock = PidLock.acquire(tmp_path)
    (tmp_path / "greeterd.pid").write_text(f"{os.getpid()} 4711\n")
    with pytest.raises(AlreadyRunningError, match=rf"already running as pid {os.getpid()} "):
        PidLock.acquire(tmp_path)
    lock.publish()
    assert (tmp_path / "greeterd.pid").read_bytes() == b"%d\n" % os.getpid()
    lock.release()


def test_the_run_directory_is_made_and_not_open_to_others(tmp_path: Path) -> None:
    lock = PidLock.acquire(tmp_path / "a" / "run")
    assert stat.S_IMODE((tmp_path / "a" / "run").stat().st_mode) & 0o027 == 0
    assert stat.S_IMODE((tmp_path / "a" / "run" / "greeterd.pid").stat().st_mode) & 0o027 == 0
    lock.release()


@pytest.mark.parametrize("content", ["", "1\n", "OURS\n", "99999999\n", "9" * 60])
def test_to_look_for_the_holder_leaves_nothing_open(tmp_path: Path, content: str) -> None:
    (tmp_path / "greeterd.pid").write_text(content.replace("OURS", str(os.getpid())))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    running_pid(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with python(HOLDER, tmp_path) as first:
        assert first.stdout
        pid = first.stdout.readline().strip()
        with pytest.raises(AlreadyRunningError, match=rf"already running as pid {pid}\b"):
            PidLock.acquire(tmp_path)
        first.communicate()
    PidLock.acquire(tmp_path).release()


def test_a_killed_daemon_leaves_a_stale_file_that_hinders_nobody(tmp_path: Path) -> None:
    with python(HOLDER, tmp_path) as first:
        assert first.stdout
        first.stdout.readline()
        first.kill()
    assert (tmp_path / "greeterd.pid").read_text()
    assert running_pid(tmp_path) is None
    lock = PidLock.acquire(tmp_path)
    assert running_pid(tmp_path) == os.getpid()
    lock.release()


@pytest.mark.parametrize(
    "content", ["", "garbage\n", "0\n", "-1 5\n", "9" * 60 + "\n", "\N{SUPERSCRIPT TWO}\n"]
)
def test_garbage_in_a_held_file_is_refused_without_a_pid(tmp_path: Path, content: str) -> None:
    lock = PidLock.acquire(tmp_path)
    (tmp_path / "greeterd.pid").write_text(content)
    with pytest.raises(AlreadyRunningError, match="its file does not name"):
        PidLock.acquire(tmp_path)
    lock.release()


def test_release_takes_the_file_away_and_is_idempotent(tmp_path: Path) -> None:
    lock = PidLock.acquire(tmp_path)
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_release_removes_the_file_before_it_unlocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = PidLock.acquire(tmp_path)
    unlink = Path.unlink
    held = []

    def look(path: Path) -> None:
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(path)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", look)
    lock.release()
    assert held == [tmp_path / "greeterd.pid"]


def test_release_empties_a_file_that_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    PidLock.acquire(tmp_path).release()
    assert (tmp_path / "greeterd.pid").read_bytes() == b""


def test_release_leaves_a_file_that_is_not_ours(tmp_path: Path) -> None:
    lock = PidLock.acquire(tmp_path)
    (tmp_path / "greeterd.pid").unlink()
    second = PidLock.acquire(tmp_path)
    lock.release()
    assert running_pid(tmp_path) == os.getpid()
    second.release()


def test_a_starter_that_opened_the_file_before_it_was_removed_locks_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "greeterd.pid"
    old = PidLock.acquire(tmp_path)
    flock: Callable[[int, int], None] = fcntl.flock

    def release_first(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        old.release()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", release_first)
    lock = PidLock.acquire(tmp_path)
    assert os.path.samestat(os.fstat(lock.fd), path.stat())
    with pytest.raises(AlreadyRunningError):
        PidLock.acquire(tmp_path)
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
            PidLock.acquire(tmp_path).release()
        else:  # why the worker has to
            with pytest.raises(AlreadyRunningError, match="does not name"):
                PidLock.acquire(tmp_path)


def test_release_frees_the_lock_even_if_a_worker_kept_it_and_the_file_must_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(path)

    lock = PidLock.acquire(tmp_path)
    copy = os.dup(lock.fd)
    monkeypatch.setattr(Path, "unlink", refuse)
    lock.release()
    monkeypatch.undo()
    assert (tmp_path / "greeterd.pid").read_text() == ""
    PidLock.acquire(tmp_path).release()
    os.close(copy)


def test_an_upgrade_hands_the_lock_on_without_a_gap(tmp_path: Path) -> None:
    old = PidLock.acquire(tmp_path)
    passed = os.dup(old.fd)
    os.set_inheritable(passed, True)
    new = PidLock.adopt(passed, tmp_path)
    assert not os.get_inheritable(new.fd)
    old.close()
    with pytest.raises(AlreadyRunningError):
        PidLock.acquire(tmp_path)
    new.publish()
    assert running_pid(tmp_path) == os.getpid()
    new.release()
    PidLock.acquire(tmp_path).release()


def test_only_the_run_lock_can_be_adopted(tmp_path: Path) -> None:
    lock = PidLock.acquire(tmp_path)
    with (tmp_path / "other").open("w") as other, pytest.raises(GreeterdError, match="is not the"):
        PidLock.adopt(other.fileno(), tmp_path)
    foreign = os.open(tmp_path / "greeterd.pid", os.O_RDWR)
    with pytest.raises(GreeterdError, match="is not the"):
        PidLock.adopt(foreign, tmp_path)
    os.close(foreign)
    lock.release()


def test_a_shorter_line_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "greeterd.pid").write_text("x" * 500)
    lock = PidLock.acquire(tmp_path)
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
    PidLock.acquire(shared / "greeterd-0").release()
    PidLock.acquire(shared / "greeterd-0").release()


@needs_root
def test_a_stranger_s_directory_is_refused_with_what_to_do(shared: Path, tmp_path: Path) -> None:
    for directory in (shared / "run", tmp_path / "run"):
        directory.mkdir()
        os.chown(directory, NOBODY, NOBODY)
        with pytest.raises(ConfigError, match=r"belongs to uid 65534, .*: chown it to uid 0, "):
            PidLock.acquire(directory)
        assert list(directory.iterdir()) == []


@needs_root
def test_a_directory_above_that_is_a_stranger_s_is_refused_and_nothing_is_made(
    tmp_path: Path,
) -> None:
    (tmp_path / "session").mkdir(mode=0o700)
    os.chown(tmp_path / "session", NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=r"session belongs to uid 65534.*: choose another run_d"):
        PidLock.acquire(tmp_path / "session" / "greeterd")
    assert list((tmp_path / "session").iterdir()) == []


@needs_root
def test_a_stranger_s_file_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "greeterd.pid").write_text("1\n")
    os.chown(tmp_path / "greeterd.pid", NOBODY, NOBODY)
    with (tmp_path / "greeterd.pid").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="belongs to uid 65534: remove it"):
            PidLock.acquire(tmp_path)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(ConfigError, match=rf"can be written by others \(mode {mode:04o}\): chmod"):
        PidLock.acquire(tmp_path / "run")


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_directory_above_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "above").mkdir()
    (tmp_path / "above").chmod(mode)
    with pytest.raises(ConfigError, match=rf"above can be written by others \(mode {mode:04o}\)"):
        PidLock.acquire(tmp_path / "above" / "run")
    assert list((tmp_path / "above").iterdir()) == []


def test_our_own_links_are_followed_and_what_they_lead_to_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "run").symlink_to("b/../target")
    (tmp_path / "b").mkdir()
    PidLock.acquire(tmp_path / "run").release()
    (tmp_path / "target").chmod(0o777)
    with pytest.raises(ConfigError, match=r"target can be written by others"):
        PidLock.acquire(tmp_path / "run")


@needs_root
def test_a_stranger_s_link_is_not_followed(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (shared / "link").symlink_to(tmp_path / "target")
    os.chown(shared / "link", NOBODY, NOBODY, follow_symlinks=False)
    for run_dir in (shared / "link", shared / "link" / "run"):
        with pytest.raises(ConfigError, match="is a link of uid 65534: remove it"):
            PidLock.acquire(run_dir)
    assert list((tmp_path / "target").iterdir()) == []


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("run")
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        PidLock.acquire(tmp_path / "run")


def test_a_lock_file_that_is_a_link_is_never_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "greeterd.pid").symlink_to(victim)
    with pytest.raises(ConfigError, match="run lock"):
        PidLock.acquire(tmp_path)
    assert victim.read_text() == "precious"


def test_a_run_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for run_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=r"(file|run): Not a directory"):
            PidLock.acquire(run_dir)


# What may pass


@pytest.mark.parametrize(
    ("call", "number"),
    [("open", errno.EMFILE), ("open", errno.EROFS), ("open", errno.ENOSPC), ("flock", errno.ENOLCK),
     ("pwrite", errno.ENOSPC), ("pwrite", errno.EDQUOT)],
)  # fmt: skip
def test_what_the_system_refuses_for_now_is_told_with_the_path_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl if call == "flock" else os, call, refuse)
        with pytest.raises(ResourceError) as caught:
            PidLock.acquire(tmp_path)
    assert str(caught.value) == f"run lock {tmp_path}/greeterd.pid: {os.strerror(number)}"
    PidLock.acquire(tmp_path).release()


# A name that is lost


@pytest.mark.parametrize("how", ["removed", "replaced", "renamed"])
def test_a_lock_that_has_lost_its_name_is_renewed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "greeterd.pid"
    lock = PidLock.acquire(tmp_path)
    if how == "renamed":
        path.rename(tmp_path / "other")
    else:
        path.unlink()
    if how == "replaced":
        path.write_text("1\n")
    assert lock.file != file_at(path)
    lock.renew()
    assert lock.file == file_at(path)
    assert path.read_bytes() == b"%d\n" % os.getpid()
    with pytest.raises(AlreadyRunningError, match=rf"as pid {os.getpid()} "):
        PidLock.acquire(tmp_path)
    lock.release()
    assert not path.exists()


def test_a_lock_is_renewed_with_its_directory(tmp_path: Path) -> None:
    lock = PidLock.acquire(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    lock.renew()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) & 0o027 == 0
    lock.release()


def test_a_lock_whose_name_another_daemon_has_taken_is_held_as_it_was(tmp_path: Path) -> None:
    lock = PidLock.acquire(tmp_path)
    before = lock.file
    (tmp_path / "greeterd.pid").unlink()
    with python(HOLDER, tmp_path) as other:
        assert other.stdout
        pid = other.stdout.readline().strip()
        with pytest.raises(AlreadyRunningError, match=rf"already running as pid {pid} "):
            lock.renew()
        other.communicate()
    assert lock.file == before
    lock.renew()
    lock.release()


def test_a_lock_that_cannot_be_written_is_renewed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lock = PidLock.acquire(tmp_path)
    before = lock.file
    (tmp_path / "greeterd.pid").unlink()
    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(ResourceError, match="No space left"):
        lock.renew()
    assert lock.file == before
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    lock.renew()
    lock.release()


def test_a_successor_adopts_a_lock_that_has_lost_its_name(tmp_path: Path) -> None:
    lock = PidLock.acquire(tmp_path)
    (tmp_path / "greeterd.pid").unlink()
    heir = PidLock.adopt(os.dup(lock.fd), tmp_path)
    lock.close()
    heir.renew()
    with pytest.raises(AlreadyRunningError):
        PidLock.acquire(tmp_path)
    heir.release()


def test_a_daemon_without_its_lock_is_found_by_its_control_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(tmp_path / "control.sock"))
        control.listen()
        with pytest.raises(
            AlreadyRunningError, match=rf"already running as pid {os.getpid()} \(it"
        ):
            PidLock.acquire(tmp_path)
        assert not (tmp_path / "greeterd.pid").exists()
    PidLock.acquire(tmp_path).release()
