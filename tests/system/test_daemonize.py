"""Detaching, and the run lock.

The shell waits until the daemon is ready, or learns why it is not; one daemon runs at a time.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.support import until
from tests.system.clients import connect, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import COMMAND, Daemon
from tests.system.proc import terminal_of

MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport"])
DETACH = pytest.mark.parametrize("detach", [[], ["--daemonize"]], ids=["foreground", "detached"])


def launch(daemon: StartDaemon, *arguments: str) -> tuple[Daemon, int]:
    """Run the command to its end, as a shell does; return its exit code with the daemon."""
    server = daemon(*arguments, "--daemonize", wait=False)
    return server, server.process.wait(30.0)


@MODES
def test_the_command_returns_when_clients_are_served(daemon: StartDaemon, mode: str) -> None:
    server, code = launch(daemon, "--mode", mode, "--workers", "2", "--reply")
    assert code == 0
    assert server.stderr.read_text() == ""
    assert len(server.events("ready")) == 1
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    assert server.pid != server.process.pid
    assert server.stop() == 0
    assert server.events("stopped")[0]["code"] == 0


def test_the_daemon_has_left_its_terminal_its_directory_and_its_streams(
    daemon: StartDaemon,
) -> None:
    server, _ = launch(daemon, "--workers", "2")
    null = Path(os.devnull)
    for pid in [server.pid, *server.worker_pids()]:
        assert os.getsid(pid) not in {os.getsid(0), server.process.pid, server.pid}
        assert terminal_of(pid) == 0
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        for fd in (0, 1, 2):
            assert Path(f"/proc/{pid}/fd/{fd}").readlink() == null
    assert server.log_dir.joinpath("greeterd.log").stat().st_mode & 0o777 == 0o640


def test_no_pipe_of_the_shell_s_is_held(daemon: StartDaemon, tmp_path: Path) -> None:
    server = daemon("--workers", "1")
    assert server.stop() == 0
    # The same once more, in a pipeline, which ends only when its last writer does.
    command = [*COMMAND, *server.arguments, "--daemonize"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, timeout=30, check=False, text=True
    )
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    finally:
        assert server.ctl("stop", "--now").returncode == 0


def test_a_rotated_daemon_log_is_opened_anew(daemon: StartDaemon) -> None:
    server, _ = launch(daemon, "--workers", "1")
    log = server.log_dir / "greeterd.log"
    log.rename(log.with_suffix(".1"))
    server.signal(signal.SIGUSR1)
    until(log.exists)
    server.wait_event("logs reopened")
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    server.wait_event("worker ready")


def holds(pid: int, path: Path) -> bool:
    """Tell whether a process has the file open that has this name now."""
    with contextlib.suppress(OSError):
        inode = path.stat().st_ino
        return any(fd.stat().st_ino == inode for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.parametrize("away", ["rename", "unlink"])
@pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])
def test_a_daemon_log_that_was_moved_or_removed_is_opened_anew_without_a_signal(
    daemon: StartDaemon, mode: str, away: str
) -> None:
    server, _ = launch(daemon, "--workers", "2", "--mode", mode)
    log = server.log_dir / "greeterd.log"
    if away == "rename":
        log.rename(log.with_suffix(".1"))
    else:
        log.unlink()
    pids = [server.pid, *(one.pid for one in psutil.Process(server.pid).children())]
    assert len(pids) == (4 if mode == "handoff" else 3)
    until(lambda: all(holds(pid, log) for pid in pids))
    assert [one["process"] for one in server.events("log reopened")] == ["master"]


def test_a_daemon_log_that_cannot_be_opened_is_told_to_the_shell(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    (tmp_path / "greeterd.log").mkdir()
    server = daemon("--daemonize", "--log-dir", str(tmp_path), wait=False)
    assert server.process.wait(30.0) == 78
    said = server.stderr.read_text()
    assert said == f"greeterd: daemon log {tmp_path}/greeterd.log: Is a directory\n"


def mounted(path: Path, options: str) -> list[str]:
    """Return what is put before a command that alone has a file system of memory at `path`."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount of the daemon's own needs root and unshare")
    mount = f'mount -t tmpfs -o {options} none {path} && exec "$@"'
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", mount, "sh"]


@DETACH
@pytest.mark.parametrize("there", [True, False], ids=["there", "missing"])
def test_a_log_directory_that_cannot_be_written_for_now_is_exit_71(
    daemon: StartDaemon, tmp_path: Path, detach: list[str], there: bool
) -> None:
    path = tmp_path if there else tmp_path / "logs"
    prefix = mounted(tmp_path, "ro")
    server = daemon(*detach, "--log-dir", str(path), prefix=prefix, wait=False)
    assert server.process.wait(30.0) == 71
    assert server.stderr.read_text() == f"greeterd: directory {path}: Read-only file system\n"


def test_a_daemon_log_without_room_for_its_name_is_exit_71(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    server = daemon(
        *("--daemonize", "--log-dir", str(tmp_path)),
        prefix=mounted(tmp_path, "nr_inodes=1"),
        wait=False,
    )
    assert server.process.wait(30.0) == 71
    said = server.stderr.read_text()
    assert said == f"greeterd: daemon log {tmp_path}/greeterd.log: No space left on device\n"


def test_a_reload_moves_the_daemon_log_or_is_refused(daemon: StartDaemon, tmp_path: Path) -> None:
    file, first, second = tmp_path / "file", tmp_path / "first", tmp_path / "second"
    file.write_text(f'workers = 1\nlog_dir = "{first}"\n')
    server = daemon("--daemonize", "--config", str(file), without={"--log-dir"}, wait=False)
    assert server.process.wait(30.0) == 0
    server.log_dir = first

    file.write_text(f'workers = 1\nlog_dir = "{second}"\n')
    (second / "greeterd.log").mkdir(parents=True)
    refused = server.ctl("reload")
    assert (refused.returncode, "greeterd.log: Is a directory" in refused.stderr) == (1, True)
    assert server.events("reload failed") != []

    (second / "greeterd.log").rmdir()
    assert server.ctl("reload").returncode == 0
    server.log_dir = second
    assert server.ctl("ping").returncode == 0
    assert server.ctl("restart", "9").returncode == 1
    assert [one["event"] for one in server.events()][-2:] == ["control request", "restart failed"]
    assert server.stop() == 0
    assert server.events("stopped") != []


@DETACH
def test_an_address_in_use_is_told_to_the_shell(daemon: StartDaemon, detach: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        server = daemon("--bind", address, *detach, wait=False)
        assert server.process.wait(30.0) == 69
    assert f"greeterd: cannot listen on {address}" in server.stderr.read_text()


@DETACH
def test_a_bad_configuration_is_told_to_the_shell(
    daemon: StartDaemon, tmp_path: Path, detach: list[str]
) -> None:
    file = tmp_path / "greeterd.toml"
    file.write_text("werkers = 3\n")
    server = daemon("--config", str(file), *detach, wait=False)
    assert server.process.wait(30.0) == 78
    assert f"greeterd: file {file}, key werkers: no such setting" in server.stderr.read_text()


@DETACH
@MODES
def test_a_worker_that_cannot_start_ends_the_start_with_its_reason(
    daemon: StartDaemon, tmp_path: Path, mode: str, detach: list[str]
) -> None:
    (tmp_path / "worker-2.log").mkdir()
    arguments = ("--mode", mode, "--workers", "2", "--log-dir", str(tmp_path), *detach)
    server = daemon(*arguments, wait=False)
    assert server.process.wait(30.0) == 71
    said = server.stderr.read_text()
    assert "greeterd: worker 2 did not start: " in said
    assert "Is a directory" in said
    until(lambda: server.processes() == [])


# The run lock


@pytest.mark.shows("exit 75 greeterd", "when it is started twice")
@DETACH
def test_a_second_start_is_refused_and_names_the_first(
    daemon: StartDaemon, detach: list[str]
) -> None:
    first = daemon("--workers", "1", "--reply")
    second = daemon("--run-dir", str(first.run_dir), *detach, wait=False)
    assert second.process.wait(30.0) == 75
    assert f"greeterd: already running as pid {first.pid}" in second.stderr.read_text()
    assert greet(first.address, "Alice") == "Hello, Alice\n"
    assert first.status()["pid"] == first.pid


@pytest.mark.shows("when it is started twice")
def test_the_lock_is_gone_after_a_stop_and_stale_after_a_kill(daemon: StartDaemon) -> None:
    first = daemon("--workers", "1")
    file = first.run_dir / "greeterd.pid"
    assert file.read_text().split()[0] == str(first.pid)
    assert first.stop() == 0
    assert not file.exists()
    second = daemon("--workers", "1", "--run-dir", str(first.run_dir))
    second.process.kill()
    second.wait()
    assert file.read_text().split()[0] == str(second.pid)
    third = daemon("--workers", "1", "--run-dir", str(first.run_dir))
    assert file.read_text().split()[0] == str(third.process.pid)


@pytest.mark.shows("when it is started twice")
@pytest.mark.parametrize("content", ["{pid} 1\n", "{pid} {started}\n", "{pid}\n", "", "x\0y\n"])
def test_a_file_that_names_a_living_stranger_stops_no_start(
    daemon: StartDaemon, tmp_path: Path, content: str
) -> None:
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    text = content.format(pid=os.getpid(), started=started)
    (tmp_path / "greeterd.pid").write_text(text)
    server = daemon("--workers", "1", "--run-dir", str(tmp_path))
    assert (tmp_path / "greeterd.pid").read_text().split()[0] == str(server.process.pid)


def test_a_start_right_after_the_master_s_death_does_not_wait_for_its_workers(
    daemon: StartDaemon,
) -> None:
    first = daemon("--workers", "1", "--client-timeout", "60", "--reply")
    with connect(first.address) as client:
        client.sendall(b"Al")
        until(lambda: first.status()["totals"]["open"] == 1)
        first.process.kill()
        first.process.wait()
        daemon("--workers", "1", "--run-dir", str(first.run_dir))
        client.sendall(b"ice")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"Hello, Alice\n"
    first.wait()
