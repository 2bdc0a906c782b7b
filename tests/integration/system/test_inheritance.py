"""What a process takes over from its parent, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from greeterd.system.inheritance import LOST_DIRECTORY, start_directory

ROOT = Path(__file__).parents[3]
PRELUDE = """\
import os, signal, sys
from greeterd.system import inheritance
from greeterd.system import signals
me = lambda number: os.kill(os.getpid(), number)
"""


def run(code: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_timers_of_the_parent_never_come() -> None:
    done = run("""
for timer, seconds in ((signal.ITIMER_REAL, 100.0), (signal.ITIMER_PROF, 100.0)):
    signal.setitimer(timer, seconds)
signal.setitimer(signal.ITIMER_VIRTUAL, 100.0)
inheritance.take_over()
print([signal.getitimer(timer) for timer in range(3)])
""")
    assert done.stdout == f"{[(0.0, 0.0)] * 3}\n", done.stderr


def test_what_asks_something_of_a_daemon_is_held_and_what_ends_one_is_not() -> None:
    done = run("""
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
inheritance.take_over()
print(*sorted(each.name for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])), flush=True)
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGCHLD):
    me(number)
me(signal.SIGTERM)
""")
    assert done.stdout == "SIGCHLD SIGHUP SIGTTIN SIGTTOU SIGUSR1 SIGUSR2\n"
    assert done.returncode == -15


def test_a_successor_goes_on_holding_everything_and_a_trial_does_not() -> None:
    code = """
inheritance.take_over()
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])) == sorted(signals.MASTER_SIGNALS))
"""
    assert run(code, _GREETERD_ESTATE="3").stdout == "True\n"
    assert run(code, _GREETERD_ESTATE="3", _GREETERD_TRIAL="1").stdout == "False\n"


def test_ignored_keys_stay_ignored_until_the_terminal_is_left_and_all_else_does_not() -> None:
    done = run("""
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
ignored = lambda: sorted(signal.Signals(n).name for n in signal.valid_signals()
                         if signal.getsignal(n) is signal.SIG_IGN)
inheritance.take_over()
print(*ignored())
pipe = signals.SignalPipe(signals.MASTER_SIGNALS)
print(*ignored())
signals.leave_terminal()
pipe = signals.SignalPipe(signals.MASTER_SIGNALS)
print(*ignored())
""")
    kept = "SIGINT SIGPIPE SIGQUIT SIGTSTP SIGXFSZ"
    assert done.stdout.splitlines() == [kept, kept, "SIGPIPE SIGXFSZ"], done.stderr


def test_an_interrupt_ends_the_process_without_a_traceback() -> None:
    done = run("inheritance.take_over(); me(signal.SIGINT)")
    assert (done.returncode, done.stderr) == (-2, "")


def test_the_start_directory_has_the_name_that_was_used_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, current = tmp_path / "release", tmp_path / "current"
    release.mkdir()
    current.symlink_to(release)
    monkeypatch.chdir(current)
    monkeypatch.setenv("PWD", str(current))
    assert start_directory() == current
    for wrong in ("/", "release", ""):
        monkeypatch.setenv("PWD", wrong)
        assert start_directory() == release
    monkeypatch.setenv(LOST_DIRECTORY, "/gone")
    assert start_directory() == Path("/gone")


def test_a_start_directory_that_is_gone_still_has_its_name(tmp_path: Path) -> None:
    code = f"""
os.mkdir({str(tmp_path / "gone")!r}); os.chdir({str(tmp_path / "gone")!r}); os.rmdir(os.getcwd())
print(inheritance.start_directory())
"""
    assert run(code, PWD=str(tmp_path / "gone")).stdout == f"{tmp_path}/gone\n"
    assert "current directory: No such file" in run(code, PWD="").stderr
