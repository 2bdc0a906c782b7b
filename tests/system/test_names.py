"""Names that are taken away from under a running daemon: told, made anew, or said to be lost."""

import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import remove_tree, until
from tests.system.clients import greet, run_load
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon

NOBODY = 65534
AGE = 7200
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own files as others")
MODES = pytest.mark.parametrize("mode", ["inherit", "handoff"])


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a path that is short enough for a unix socket."""
    return tmp_path_factory.mktemp("unix") / "socket"


def has_names(server: Daemon) -> bool:
    """Tell whether the daemon can be found, by its pid file and its control socket."""
    file = server.run_dir / "greeterd.pid"
    named = file.exists() and file.read_bytes() == b"%d\n" % server.process.pid
    return named and server.ctl("ping").returncode == 0


def told(server: Daemon) -> list[tuple[str, str]]:
    """Return what the log says of names: the event, and what has the name."""
    events = ("name made anew", "name is lost", "name is back")
    return [(one["event"], one["what"]) for one in server.events() if one["event"] in events]


# The run directory


@pytest.mark.shows("when a file of the daemon is removed")
@pytest.mark.parametrize("name", ["greeterd.pid", "control.sock"])
@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_name_in_the_run_directory_is_made_anew_and_told_once(
    daemon: StartDaemon, name: str, how: str
) -> None:
    server = daemon("--workers", "1")
    file = server.run_dir / name
    before, kind = file.stat().st_ino, file.stat().st_mode
    file.rename(server.directory / "kept")
    if how == "removed":
        (server.directory / "kept").unlink()
    elif how == "replaced" and name == "greeterd.pid":
        file.write_text("1 2\n")
    elif how == "replaced":
        with closing(socket.socket(socket.AF_UNIX)) as dead:
            dead.bind(str(file))
    made = server.wait_event("name made anew")
    assert (made["level"], made["path"]) == ("warning", str(file))
    until(lambda: has_names(server))
    assert file.stat().st_ino != before
    assert stat.S_IFMT(file.stat().st_mode) == stat.S_IFMT(kind)
    assert server.status()["warnings"] == []
    assert len(told(server)) == 1
    assert server.stop() == 0
    assert list(server.run_dir.iterdir()) == []


def test_a_run_directory_that_was_removed_is_made_anew(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    remove_tree(server.run_dir)
    until(lambda: has_names(server))
    assert stat.S_IMODE(server.run_dir.stat().st_mode) & 0o027 == 0
    second = daemon("--run-dir", str(server.run_dir), wait=False)
    assert second.process.wait(30.0) == 75


@pytest.mark.shows("when a file of the daemon is removed")
def test_a_second_start_is_refused_though_the_lock_was_removed(daemon: StartDaemon) -> None:
    first = daemon("--workers", "1", "--reply")
    # Deaf for now, so that it does not renew the lock before the second comes.
    first.process.send_signal(signal.SIGSTOP)
    (first.run_dir / "greeterd.pid").unlink()
    second = daemon("--run-dir", str(first.run_dir), wait=False)
    assert second.process.wait(30.0) == 75
    said = second.stderr.read_text()
    assert f"greeterd: already running as pid {first.process.pid} (it answers at" in said
    assert not (first.run_dir / "greeterd.pid").exists()
    first.process.send_signal(signal.SIGCONT)
    until(lambda: has_names(first))
    assert greet(first.address, "Alice") == "Hello, Alice\n"


def test_a_client_that_had_connected_to_the_old_control_socket_is_answered(
    daemon: StartDaemon,
) -> None:
    server = daemon("--workers", "1")
    file = server.run_dir / "control.sock"
    with closing(socket.socket(socket.AF_UNIX)) as client:
        server.process.send_signal(signal.SIGSTOP)
        client.connect(str(file))
        file.unlink()
        server.process.send_signal(signal.SIGCONT)
        server.wait_event("name made anew")
        client.sendall(b'{"version":1,"command":"ping"}\n')
        client.settimeout(10.0)
        assert b'"ok":true' in client.recv(1000)


def test_what_cannot_be_made_anew_is_in_the_status_until_it_can(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    file = server.run_dir / "greeterd.pid"
    file.unlink()
    file.mkdir()
    server.wait_event("name is lost")
    (warning,) = server.status()["warnings"]
    assert warning.startswith(f"run lock {file}: another file has its name; run lock {file}: Is a")
    assert f"warning: {warning}" in server.ctl("status").stdout
    file.rmdir()
    server.wait_event("name made anew")
    assert len(server.events("name is lost")) == 1
    assert has_names(server)
    assert server.status()["warnings"] == []


def test_names_that_look_forgotten_are_touched(daemon: StartDaemon, path: Path) -> None:
    server = daemon("--workers", "1", "--bind", f"unix:{path}")
    files = [server.run_dir / "greeterd.pid", server.run_dir / "control.sock", path]
    for file in files:
        os.utime(file, (AGE, AGE))
    until(lambda: all(min(one.stat().st_mtime, one.stat().st_atime) > AGE for one in files))
    assert told(server) == []


@pytest.mark.shows("when a file of the daemon is removed")
@as_root
@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="needs systemd-tmpfiles")
def test_systemd_tmpfiles_takes_nothing_of_a_running_daemon(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    server = daemon("--workers", "1")
    stray = server.run_dir / "stray"
    stray.touch()
    for file in server.run_dir.iterdir():
        os.utime(file, (AGE, AGE))
    until(lambda: (server.run_dir / "greeterd.pid").stat().st_mtime > AGE)
    config = tmp_path / "test.conf"
    config.write_text(f"d {server.run_dir} - - - mM:1h\n")
    subprocess.run(["systemd-tmpfiles", "--clean", str(config)], check=True)
    assert not stray.exists()  # it does clean there
    assert has_names(server)
    assert told(server) == []


# Who may change the run directory


@as_root
def test_the_workers_user_cannot_forge_that_a_daemon_runs(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1", wait=False)
    server.wait_event("ready")
    assert server.stop() == 0
    forger = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "flock", "greeterd.pid"]
    os.chown(server.run_dir, NOBODY, NOBODY)
    with subprocess.Popen(
        [*forger, "sh", "-c", "echo 1 >greeterd.pid; echo held; read end"],
        cwd=server.run_dir, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        run_dir = ("--run-dir", str(server.run_dir))
        second = daemon("--user", "nobody", *run_dir, wait=False)
        assert second.process.wait(30.0) == 78
        holder.communicate("\n")
    said = second.stderr.read_text()
    assert f"run_dir {server.run_dir}: belongs to uid {NOBODY}" in said
    assert "chown it to uid 0" in said
    assert "already running" not in said


@as_root
def test_an_upgrade_is_refused_where_the_next_start_would_be(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1", "--reply", "--user", "nobody")
    os.chown(server.run_dir, NOBODY, NOBODY)
    done = server.ctl("upgrade")
    assert done.returncode == 1
    assert f"(exit status 78): run_dir {server.run_dir}: belongs to uid {NOBODY}" in done.stderr
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    os.chown(server.run_dir, 0, 0)
    assert server.ctl("upgrade").returncode == 0


@as_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.parametrize(
    ("options", "reason"),
    [("nr_inodes=1", "No space left on device"), ("ro", "Read-only file system")],
)
def test_a_run_directory_that_takes_nothing_for_now_exits_with_71(
    daemon: StartDaemon, tmp_path: Path, options: str, reason: str
) -> None:
    mount = f'mount -t tmpfs -o mode=0750,{options} run {tmp_path} && exec "$@"'
    prefix = ["unshare", "--mount", "--propagation=private", "sh", "-c", mount, "sh"]
    server = daemon("--run-dir", str(tmp_path), prefix=prefix, wait=False)
    assert server.process.wait(30.0) == 71
    assert server.log_text() == f"greeterd: run lock {tmp_path}/greeterd.pid: {reason}\n"


# Unix listeners


@pytest.mark.shows("when a file of the daemon is removed")
@MODES
def test_a_unix_listener_that_has_lost_its_name_is_opened_anew(
    daemon: StartDaemon, path: Path, mode: str
) -> None:
    server = daemon(
        *("--bind", f"unix:{path}", "--bind", "127.0.0.1:0", "--mode", mode),
        *("--unix-mode", "0640", "--reply", "--workers", "2"),
    )
    path.unlink()
    server.wait_event("name made anew")
    server.wait_event("restart done")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    for address in server.addresses:
        assert run_load(address, 50, reply=True).counts == {"ok": 50}
    assert server.status()["warnings"] == []
    assert server.status()["totals"]["reset"] == 0
    assert server.stop() == 0
    assert not path.exists()


def test_workers_that_do_not_serve_a_new_listener_are_in_the_status_until_they_are_replaced(
    daemon: StartDaemon, path: Path
) -> None:
    server = daemon("--bind", f"unix:{path}", "--workers", "2")
    remove_tree(server.log_dir)
    server.log_dir.touch()  # no worker can start
    server.wait_event("name is lost")
    path.unlink()
    server.wait_event("restart failed")
    waiting = "to be replaced, since a unix listener was opened anew: worker 1, 2"
    assert waiting in server.status()["warnings"]
    server.log_dir.unlink()
    server.wait_event("restart done")
    assert server.status()["warnings"] == []


@pytest.fixture(params=["reload", "restart", "upgrade"])
def command(request: pytest.FixtureRequest) -> str:
    """Return a command that starts workers."""
    return str(request.param)


def test_what_starts_workers_opens_a_listener_anew_first(
    daemon: StartDaemon, path: Path, command: str
) -> None:
    server = daemon("--bind", f"unix:{path}", "--reply", "--workers", "2")
    path.unlink()
    assert server.ctl(command).returncode == 0
    assert run_load(server.address, 50, reply=True).counts == {"ok": 50}


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    """Give a socket of another program."""
    with closing(socket.socket(socket.AF_UNIX)) as other:
        yield other


@pytest.mark.shows("when a file of the daemon is removed")
def test_what_starts_workers_fails_while_somebody_else_has_the_name(
    daemon: StartDaemon, path: Path, command: str, stranger: socket.socket
) -> None:
    server = daemon("--bind", f"unix:{path}", "--reply", "--workers", "1")
    path.unlink()
    stranger.bind(str(path))
    stranger.listen()
    done = server.ctl(command)
    reason = f"unix listener {path}: another file has its name; that is not ours to replace"
    assert (done.returncode, done.stderr) == (1, f"greeterctl: {command}: {reason}\n")
    assert server.status()["warnings"] == [reason]
    assert path.is_socket()
    stranger.close()
    path.unlink()
    server.wait_event("restart done")
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    assert server.status()["warnings"] == []


# The log directory


@pytest.mark.shows("when a file of the daemon is removed")
@pytest.mark.parametrize("words", [["restart"], ["scale", "3"], ["upgrade"], ["reload"]])
def test_a_log_directory_that_was_removed_is_made_anew(
    daemon: StartDaemon, words: list[str]
) -> None:
    server = daemon("--workers", "2", "--reply")
    remove_tree(server.log_dir)
    assert server.ctl(*words).returncode == 0
    assert run_load(server.address, 20, reply=True).counts == {"ok": 20}
    until(lambda: told(server) == [("name made anew", "log directory")])


@as_root
def test_a_log_directory_is_made_anew_for_the_user_of_the_workers(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1", "--user", "nobody")
    remove_tree(server.log_dir)
    server.wait_event("name made anew")
    assert server.log_dir.stat().st_uid == NOBODY
    pid = server.worker_pids()[0]
    os.kill(pid, signal.SIGKILL)
    server.wait_event("worker ready", count=2)
