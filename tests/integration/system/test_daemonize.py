"""Real detached daemons, started as a shell starts them."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from greeterd.system.daemonize import Readiness
from greeterd.system.pidfile import running_pid
from tests.support import until

ROOT = Path(__file__).parents[3]

PROGRAM = """
import json, os, select, signal, stat, sys
from pathlib import Path
from greeterd.system.daemonize import launch
from greeterd.errors import ListenError
from greeterd.system.pidfile import PidLock

directory, scenario = Path(sys.argv[1]), sys.argv[2]
if sys.stdin:
    kept = os.open(directory / "kept", os.O_RDWR | os.O_CREAT)
    sys.stdout.write("buffered ")
else:  # started with closed streams: the next descriptor would be 0
    kept = None

def facts():
    return {
        "pid": os.getpid(), "sid": os.getsid(0), "cwd": os.getcwd(),
        "umask": os.umask(0o777),
        "kept": kept and os.path.samestat(os.fstat(kept), os.stat(directory / "kept")),
        "fds": {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{name}")},
        "standard": [os.get_inheritable(fd) for fd in (0, 1, 2)],
        "term": int(signal.getsignal(signal.SIGTERM)), "int": str(signal.getsignal(signal.SIGINT)),
        "blocked": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "uids": os.getresuid(),
    }

def run(readiness):
    match scenario:
        case "ready":
            lock = PidLock.acquire(directory)
            (directory / "facts.new").write_text(json.dumps(facts()))
            (directory / "facts.new").rename(directory / "facts")
            readiness.ready()
            readiness.failed(99, "nobody hears this")
            signal.sigwait([signal.SIGUSR1])
            lock.release()
            return 0
        case "fails":
            raise ListenError("cannot listen on 127.0.0.1:1: because\\nof two lines")
        case "crashes":
            return 1 // 0
        case "dies":
            os.kill(os.getpid(), 9)
        case "leaves":
            return 0
        case "waits":
            signal.sigwait([signal.SIGTERM])
            return 0
        case "hangs":
            signal.signal(signal.SIGTERM, lambda *_: (directory / "term").touch())
            (directory / "pid").write_text(str(os.getpid()))
            while True:
                signal.pause()
    return 3

if "^C while detaching" in sys.argv:
    import daemon.daemon
    detach = daemon.daemon.detach_process_context
    daemon.daemon.detach_process_context = lambda: (os.killpg(0, signal.SIGINT), detach())
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
code = launch(run, detach="detach" in sys.argv, umask=0o027)
if scenario == "ready" and "detach" not in sys.argv:
    sys.stdout.write("after")
sys.exit(code)
"""


SPAWN_AT_A_TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"


@pytest.fixture
def program(tmp_path: Path) -> Iterator[list[str]]:
    """Yield the command line of PROGRAM, which writes into `tmp_path`; end a daemon left over."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    yield [sys.executable, str(script), str(tmp_path)]
    # A detached daemon that a failed test left over is nobody's child: find it by its arguments.
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path) in (process.info["cmdline"] or []):
            with suppress(psutil.NoSuchProcess):  # it was about to end
                process.kill()


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """Run `command` and see to it that a failed test leaves nothing behind."""
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, **options
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def start(
    program: list[str], *arguments: str, **options: Any
) -> "subprocess.CompletedProcess[str]":
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([*program, *arguments], **streams, **options) as process:
        stdout, stderr = process.communicate(timeout=30)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def read_facts(tmp_path: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads((tmp_path / "facts").read_text())
    return facts


def stop(tmp_path: Path) -> None:
    pid = running_pid(tmp_path)
    assert pid is not None
    os.kill(pid, signal.SIGUSR1)
    until(lambda: not (tmp_path / "greeterd.pid").exists(), what="the run lock's file is gone")


def test_the_shell_gets_0_when_the_daemon_is_ready_and_not_before(
    tmp_path: Path, program: list[str]
) -> None:
    done = start(program, "ready", "detach")
    assert (done.returncode, done.stdout, done.stderr) == (0, "buffered ", "")
    assert running_pid(tmp_path) == read_facts(tmp_path)["pid"]
    stop(tmp_path)


def test_the_daemon_is_detached_and_keeps_what_it_opened(
    tmp_path: Path, program: list[str]
) -> None:
    stray, other_end = os.pipe()
    assert start(program, "ready", "detach", pass_fds=[stray]).returncode == 0
    os.close(stray)
    os.close(other_end)
    facts = read_facts(tmp_path)
    assert facts["sid"] not in {os.getsid(0), facts["pid"]}, "could get a terminal again"
    assert (facts["cwd"], facts["umask"], facts["kept"]) == ("/", 0o027, True)
    assert (facts["term"], facts["blocked"]) == (signal.SIG_DFL, [signal.SIGUSR1])
    assert facts["int"] == str(int(signal.SIG_DFL)), "ends it in C, also while it waits"
    assert facts["uids"] == list(os.getresuid())
    fds = facts["fds"]
    assert isinstance(fds, dict)
    assert [fds[name] for name in "012"] == ["/dev/null"] * 3
    assert facts["standard"] == [True] * 3, "they must outlive an exec"
    pipes = [target for target in fds.values() if target.startswith("pipe:")]
    assert len(pipes) == 1, "the readiness pipe, and no stray that was inherited"
    stop(tmp_path)


@pytest.mark.parametrize("detach", [["detach"], []])
def test_closed_standard_streams_are_not_taken_by_descriptors_of_ours(
    tmp_path: Path, program: list[str], detach: list[str]
) -> None:
    shell = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *program, "ready", *detach]
    with started(shell) as process:
        until((tmp_path / "facts").exists)
        facts = read_facts(tmp_path)
        fds = facts["fds"]
        assert isinstance(fds, dict)
        assert [fds[name] for name in "012"] == ["/dev/null"] * 3
        assert facts["standard"] == [True] * 3, "they must outlive an exec"
        stop(tmp_path)
        assert process.wait(timeout=10) == 0


def test_a_second_daemon_tells_the_shell_75_and_the_first_pid(
    tmp_path: Path, program: list[str]
) -> None:
    start(program, "ready", "detach")
    pid = running_pid(tmp_path)
    second = start(program, "ready", "detach")
    assert second.returncode == 75
    assert second.stderr.startswith(f"greeterd: already running as pid {pid} ")
    stop(tmp_path)


@pytest.mark.parametrize("detach", [["detach"], []])
def test_a_failure_before_ready_reaches_the_shell_with_its_code(
    program: list[str], detach: list[str]
) -> None:
    done = start(program, "fails", *detach)
    assert done.returncode == 69
    assert done.stderr == "greeterd: cannot listen on 127.0.0.1:1: because\nof two lines\n"


def test_a_crash_before_ready_reaches_the_shell_with_its_traceback(program: list[str]) -> None:
    done = start(program, "crashes", "detach")
    assert done.returncode == 70
    assert done.stderr.startswith("greeterd: Traceback")
    assert done.stderr.endswith("ZeroDivisionError: integer division or modulo by zero\n")


@pytest.mark.parametrize(("scenario", "reason"), [("dies", "died"), ("leaves", "stopped")])
def test_an_end_without_a_word_is_70(program: list[str], scenario: str, reason: str) -> None:
    done = start(program, scenario, "detach")
    assert done.returncode == 70
    assert done.stderr == f"greeterd: {reason} before it was ready\n"


def test_in_the_foreground_nothing_is_detached(tmp_path: Path, program: list[str]) -> None:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([*program, "ready"], cwd=tmp_path, **streams) as process:
        until((tmp_path / "facts").exists)
        facts = read_facts(tmp_path)
        assert facts["pid"] == process.pid
        assert (facts["cwd"], facts["umask"]) == (str(tmp_path), 0o027)
        process.send_signal(signal.SIGUSR1)
        assert process.communicate(timeout=10) == (
            "buffered after",
            "greeterd: nobody hears this\n",
        )
    assert process.returncode == 0


@pytest.mark.shows("exit 130 greeterd")
def test_an_interrupt_stops_the_daemon_that_is_being_waited_for(
    tmp_path: Path, program: list[str]
) -> None:
    """At a real terminal, whose ^C goes to the whole foreground process group."""
    terminal, slave = pty.openpty()
    with started(
        [sys.executable, "-c", SPAWN_AT_A_TERMINAL, *program, "hangs", "detach"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as launcher:
        os.close(slave)
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        os.write(terminal, b"\x03")
        until((tmp_path / "term").exists, what="the first interrupt sends TERM")
        assert launcher.poll() is None, "the launcher waits for the end"
        os.write(terminal, b"\x03")
        assert launcher.wait(timeout=10) == 130, "the second sends QUIT"
    said = b""
    while select.select([terminal], [], [], 0)[0]:
        try:
            said += os.read(terminal, 4096)
        except OSError:
            break
    assert said.replace(b"\r", b"").endswith(b"greeterd: died before it was ready\n")
    assert b"Traceback" not in said
    os.close(terminal)
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_an_interrupt_before_the_daemon_has_left_the_session_is_the_launcher_s(
    program: list[str],
) -> None:
    done = start(program, "waits", "detach", "^C while detaching", start_new_session=True)
    assert (done.returncode, done.stderr) == (130, "greeterd: stopped before it was ready\n")


def test_a_killed_launcher_leaves_the_start_alone(capsys: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    readiness = Readiness(write)
    readiness.started()
    readiness.ready()
    assert readiness.fd is None
    readiness.failed(70, "too late")
    assert capsys.readouterr().err == "", "what is stderr by now may be the daemon log"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write)
