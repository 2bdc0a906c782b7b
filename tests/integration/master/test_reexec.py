"""A try to become the next image that fails leaves everything as it was."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from greeterd.master.upgrade import reexec
from greeterd.master.upgrade.preflight import PreflightProcess
from greeterd.master.upgrade.reexec import Program
from greeterd.master.upgrade.state import InheritedListeners, UpgradeState
from greeterd.system.inheritance import LOST_DIRECTORY, STATE_FD


@pytest.fixture
def state() -> UpgradeState:
    """Return the state of a daemon that has three descriptors."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    return UpgradeState(
        program="1", fixed={}, listeners=InheritedListeners(), slots=[], board_fd=fds[0],
        lock_fd=fds[1], control_fd=fds[2], generation=1, last_generation=1, last_worker=0,
        since=0.0, started=0.0,
    )  # fmt: skip


def descriptors() -> dict[str, tuple[str, bool]]:
    """Return what is open, and whether an exec would hand it on."""
    found = {}
    for each in Path("/proc/self/fd").iterdir():
        if each.exists():
            found[each.name] = str(each.readlink()), os.get_inheritable(int(each.name))
    return found


def program(executable: str, directory: Path) -> Program:
    """Return a program."""
    return Program(executable=executable, argv=(executable,), directory=directory)


@pytest.mark.parametrize("attempt", [PreflightProcess, reexec.execute])
@pytest.mark.parametrize("gone", [False, True])
def test_a_program_that_cannot_be_executed_leaks_nothing_and_is_named(
    state: UpgradeState,
    tmp_path: Path,
    attempt: object,
    gone: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert callable(attempt)
    place = tmp_path / "release"
    place.mkdir()
    monkeypatch.chdir(place)
    if gone:
        place.rmdir()
    before = descriptors()
    for _ in range(3):
        with pytest.raises(FileNotFoundError, match="/no/such/program"):
            attempt(state, program("/no/such/program", place))
    assert descriptors() == before
    assert Path("/proc/self/cwd").readlink().name.startswith("release")


def test_an_estate_that_cannot_be_written_leaks_nothing(
    state: UpgradeState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()

    def refuse(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", refuse)
    for attempt in (PreflightProcess, reexec.execute):
        with pytest.raises(OSError, match="No space left"):
            attempt(state, program(sys.executable, tmp_path))
    assert descriptors() == before


def test_a_script_is_executed_itself_where_its_first_line_names_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "greeterd"
    monkeypatch.setattr(sys, "orig_argv", ["/opt/bin/python", "greeterd", "--workers=1"])
    for line, executable, argv in (
        ("#!/opt/bin/python\n", "greeterd", ("greeterd", "--workers=1")),
        (
            "#!/usr/bin/env python3\n",
            sys.executable,
            ("/opt/bin/python", "greeterd", "--workers=1"),
        ),
        ("", sys.executable, ("/opt/bin/python", "greeterd", "--workers=1")),
    ):
        script.write_text(line)
        one = Program.this(tmp_path)
        assert (one.executable, one.argv) == (executable, argv)


def test_the_start_directory_is_told_to_the_next_image_only_when_it_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "release"
    one = program("/bin/true", place)
    assert one.start_directory == Path("/")
    assert one.environment(3)[LOST_DIRECTORY] == str(place)
    assert one.explain("why") == f"why; the start directory {place} has gone"
    place.mkdir()
    assert one.start_directory == place
    assert LOST_DIRECTORY not in one.environment(3)
    assert one.explain("why") == "why"


def test_reexec_hands_on_the_environment_less_what_was_for_this_image_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", LOST_DIRECTORY, "KEPT"):
        monkeypatch.setenv(name, "1")
    found = program("/bin/true", tmp_path).environment(7)
    assert {name for name in os.environ if name not in found} == {
        "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", LOST_DIRECTORY,
    }  # fmt: skip
    assert (found["KEPT"], found[STATE_FD]) == ("1", "7")


BECOMES = """
import os, sys
from pathlib import Path
from greeterd.master.upgrade.reexec import Program, execute
from tests.unit.master.test_upgrade_state import state

reader, writer = os.pipe()
script = f'pwd; test "$$" = {os.getpid()} && cat "/proc/self/fd/$_GREETERD_ESTATE"; : >&{writer}'
program = Program(executable="/bin/sh", argv=("sh", "-c", script), directory=Path(sys.argv[1]))
execute(state(board_fd=writer, lock_fd=reader, control_fd=0), program)
"""


def test_reexec_becomes_the_program_in_its_directory_with_the_state_and_its_descriptors(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BECOMES, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    directory, data = done.stdout.split("\n", 1)
    assert directory == str(tmp_path)
    assert msgspec.json.decode(data, type=UpgradeState).control_fd == 0
