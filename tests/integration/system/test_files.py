"""Acting as another user, and opening files where others may write."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from greeterd.system.files import Identity, acting_as, open_regular
from tests.integration.system.users import (
    ANOTHER,
    HIM,
    names,
    needs_root,
    owner_of,
)

ROOT = Path(__file__).parents[3]


# Who acts


def test_an_identity_is_shown_by_its_numbers() -> None:
    assert str(Identity(1, 2)) == "uid 1, gid 2"


@needs_root
def test_who_acts_as_somebody_is_checked_as_he_is_and_comes_back(
    his: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(os.setgroups, os.getgroups()))
    os.setgroups([0, ANOTHER.gid])
    before = (os.getresuid(), os.getresgid(), os.getgroups())
    with acting_as(HIM):
        (his / "file").touch()
        assert os.getgroups() == []
    assert owner_of(his / "file") == (HIM.uid, HIM.gid)
    with pytest.raises(PermissionError, match=f"denied to {ANOTHER}"), acting_as(ANOTHER):
        (his / "other").touch()
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


ACT = """
from pathlib import Path
import sys
from greeterd.errors import GreeterdError
from greeterd.system.files import Identity
from greeterd.system.directories import prepare_directory
try:
    prepare_directory(Path(sys.argv[1]), Identity(54321, 54322), 0o750)
except GreeterdError as error:
    print(error.exit_code, error)
"""


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is missing")
def test_root_without_the_capability_to_act_as_somebody_says_so(his: Path) -> None:
    less = ["setpriv", "--bounding-set=-setuid,-setgid"]
    done = subprocess.run(
        [*less, sys.executable, "-c", ACT, his],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (
        f"78 directory {his}: cannot act as {HIM}: Operation not permitted\n",
        "",
    )


# Files

UNFIT: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "link": (lambda path, other: path.symlink_to(other), "is a symbolic link"),
    "dangling link": (
        lambda path, other: path.symlink_to(other.with_name("missing")),
        "is a symbolic link",
    ),
    "hard link": (lambda path, other: path.hardlink_to(other), "has other names (hard links)"),
    "FIFO": (lambda path, _: os.mkfifo(path), "not a regular file"),
    "directory": (lambda path, _: path.mkdir(), "Is a directory"),
    "device": (lambda path, _: path.symlink_to("/dev/full"), "is a symbolic link"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_is_no_file_of_one_name_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "log", tmp_path / "other"
    other.write_text("other")
    put, reason = UNFIT[kind]
    put(path, other)
    before = names("/proc/self/fd")
    with pytest.raises(OSError, match=re.escape(f"{reason}: '{path}'")):
        open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    assert names("/proc/self/fd") == before
    assert other.read_text() == "other"
    assert not (tmp_path / "missing").exists()


def test_a_fifo_with_a_reader_is_refused_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "log", os.O_WRONLY)
    os.close(reader)
