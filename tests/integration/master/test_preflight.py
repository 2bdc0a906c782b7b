"""A preflight: its verdict, what it leaves behind, and the workers that it starts."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from greeterd.master.upgrade.preflight import MAX_REASON_BYTES, PreflightProcess
from greeterd.master.upgrade.reexec import Program
from greeterd.master.upgrade.state import UpgradeState
from tests.support import until
from tests.unit.master.test_upgrade_state import state

Start = Callable[[str], PreflightProcess]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return what starts a shell script as the new image."""

    def start(script: str) -> PreflightProcess:
        program = Program(executable="/bin/sh", argv=("sh", "-c", script), directory=tmp_path)
        return PreflightProcess(real_state(), program)

    return start


def real_state() -> UpgradeState:
    """Return a state whose descriptors are open: standard error, three times."""
    return state(board_fd=2, lock_fd=2, control_fd=2)


def verdict(process: PreflightProcess) -> str:
    """Wait for the verdict."""
    found: list[str] = []

    def ended() -> bool:
        found.extend(one for one in [process.verdict()] if one is not None)
        return bool(found)

    until(ended)
    return found[0]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo said >&2; exit 0", ""),
        ("exit 3", "the new image cannot start (exit status 3): it said nothing"),
        ("kill -9 $$", "the new image cannot start (killed by SIGKILL): it said nothing"),
        (
            "echo first >&2; echo 'greeterd: why' >&2; exit 78",
            "the new image cannot start (exit status 78): why",
        ),
        (r"printf '\377' >&2; exit 1", r"the new image cannot start (exit status 1): \xff"),
    ],
)
def test_preflight_ends_with_a_verdict(start: Start, script: str, reason: str) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert verdict(start(script)) == reason
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_preflight_keeps_the_end_of_what_was_written_to_standard_error(start: Start) -> None:
    process = start("yes 0123456789 | head -c 99990 >&2; echo last >&2; exit 1")
    assert process.stderr == ""
    assert verdict(process).endswith(": last")
    assert MAX_REASON_BYTES - 20 < len(process.stderr) <= MAX_REASON_BYTES
    assert process.stderr.splitlines()[1] == "0123456789"


def test_preflight_says_when_its_directory_has_gone(start: Start, tmp_path: Path) -> None:
    tmp_path.rmdir()
    reason = verdict(start("exit 1"))
    assert reason.endswith(f"it said nothing; the start directory {tmp_path} has gone")
    tmp_path.mkdir()


def test_preflight_has_no_verdict_while_it_runs_and_is_ended_by_kill(start: Start) -> None:
    process = start("exec sleep 60")
    assert process.verdict() is None
    process.kill()
    assert verdict(process) == "the new image cannot start (killed by SIGKILL): it said nothing"


@pytest.mark.parametrize("code", [0, 1])
def test_preflight_that_has_ended_leaves_no_process_of_its_own(
    start: Start, tmp_path: Path, code: int
) -> None:
    process = start(f"sleep 60 & echo $! >pid; exit {code}")
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    assert os.getpgid(child.pid) == process.pid, "so that one signal reaches both"
    assert bool(verdict(process)) == bool(code)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_preflight_is_told_what_it_is_and_reads_nothing(start: Start, tmp_path: Path) -> None:
    script = (
        'echo "$_GREETERD_TRIAL $_GREETERD_ESTATE" >told; wc -c <&0 >read;'
        'cat "/proc/self/fd/$_GREETERD_ESTATE" >state'
    )
    assert verdict(start(script)) == ""
    told, number = (tmp_path / "told").read_text().split()
    assert (told, int(number) > 2) == ("1", True)
    assert (tmp_path / "read").read_text().strip() == "0"
    assert (tmp_path / "state").read_bytes().startswith(b'{"version":1')


DIES = """
import os, sys
from pathlib import Path
from greeterd.master.upgrade.preflight import PreflightProcess
from greeterd.master.upgrade.reexec import Program
from tests.unit.master.test_upgrade_state import state
program = Program(executable="/bin/sleep", argv=("sleep", "60"), directory=Path("/"))
print(PreflightProcess(state(board_fd=2, lock_fd=2, control_fd=2), program).pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_preflight_ends_with_the_master_that_has_started_it() -> None:
    command = [sys.executable, "-c", DIES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as master:
        assert master.stdout is not None
        pid = int(master.stdout.readline())
    assert master.returncode == -signal.SIGKILL
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


# In the child

CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from greeterd.config.schema import Config
from greeterd.master.escrow import Escrow
from greeterd.master.upgrade.preflight import run_preflight
from greeterd.supervisor.supervisor import MAX_SLOTS
from greeterd.worker.scoreboard import Scoreboard
from tests.unit.master.test_upgrade_state import slot, state
import msgspec

mode, directory, spoil = sys.argv[1:]
config = Config(mode=mode, bind=("127.0.0.1:0",), log_dir=Path(directory), start_timeout=30.0)
escrow = Escrow(config)
numbers = [0, 1, 2] if mode == "handoff" else [1, 2]
found = state(
    listeners=escrow.dump(),
    slots=[msgspec.structs.replace(slot(), index=number) for number in numbers],
    board_fd=Scoreboard(MAX_SLOTS).fd,
    last_generation=4,
)
if spoil:
    from greeterd.worker import main
    exec(spoil)
run_preflight(config, found)
print("could serve")
"""


SILENT = "ended, or said nothing, before it was ready"


def run_child(mode: str, directory: Path, spoil: str = "") -> subprocess.CompletedProcess[str]:
    """Run a preflight as the new image does, with workers that are spoilt."""
    return subprocess.run(
        [sys.executable, "-c", CHILD, mode, str(directory), spoil],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])
def test_preflight_starts_a_worker_of_each_slot_that_writes_no_greeting(
    mode: str, tmp_path: Path
) -> None:
    done = run_child(mode, tmp_path)
    assert (done.returncode, done.stdout) == (0, "could serve\n"), done.stderr
    assert not any(path.stat().st_size for path in tmp_path.glob("worker-*"))


HANGS = """
config = replace(config, start_timeout=0.2)
main.main = lambda context: __import__("select").select([context.channel], [], []) and 1
"""
FAILS = """
from greeterd.worker.messages import FailedMessage
main.main = lambda context: context.channel.send(FailedMessage(71, "why")) or 71
"""
SECOND_ENDS = """
before = main.main
main.main = lambda context: before(context) if context.slot == 1 else 1
"""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("main.main = lambda context: 1", f"StartError: worker 1 {SILENT}"),
        (FAILS, "StartError: worker 1 did not start: why"),
        (SECOND_ENDS, f"StartError: worker 2 {SILENT}"),
        (HANGS, f"StartError: worker 1 {SILENT}"),
        ("found = msgspec.structs.replace(found, board_fd=0)", "the predecessor's scoreboard: "),
        ("config = replace(config, log_dir=Path('/proc/none'))", "/proc/none: No such file"),
    ],
)
def test_preflight_fails_with_the_reason_of_what_could_not_start(
    spoil: str, reason: str, tmp_path: Path
) -> None:
    done = run_child("inherit", tmp_path, spoil)
    assert done.returncode == 1
    assert reason in done.stderr.splitlines()[-1], done.stderr


def test_preflight_runs_workers_of_the_next_generation(tmp_path: Path) -> None:
    spoil = (
        "before = main.main\n"
        "right = lambda context: (context.generation, context.rehearsal) == (5, True)\n"
        "main.main = lambda context: before(context) if right(context) else 1"
    )
    assert run_child("inherit", tmp_path, spoil).stdout == "could serve\n"
