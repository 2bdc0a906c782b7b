"""A try to become the next image that fails leaves everything as it was."""

import os
import sys
from pathlib import Path

import pytest

from greeterd.master.upgrade import reexec
from greeterd.master.upgrade.preflight import PreflightProcess
from greeterd.master.upgrade.reexec import Program
from greeterd.master.upgrade.state import InheritedListeners, UpgradeState
from greeterd.system.inheritance import LOST_DIRECTORY


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
