"""Tests that are to be alone are, whoever runs them; all others run beside each other."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

import pytest

from tests.room import Room
from tests.support import until
from tests.system.harness import ROOT

INNER = """
import os, pytest, select
from pathlib import Path
from tests.support import until

def others():
    return [path.name for path in Path("in").iterdir()]

@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    assert others() == []
    here = Path(f"in/alone-{number}")
    here.touch()
    select.select([], [], [], 0.2)
    assert others() == [here.name]
    here.unlink()
    Path(f"alone-{number}").touch()

@pytest.mark.parametrize("number", range(TOGETHER))
def test_beside(number):
    here = Path(f"in/beside-{number}")
    here.touch()
    if TOGETHER > 1:
        Path(f"beside-{number}").touch()
        until(lambda: len([*Path().glob("beside-*")]) == TOGETHER, timeout=60.0)
    assert not [*Path().glob("alone-*")]
    here.unlink()
"""


@pytest.mark.parametrize("processes", [0, 3])
def test_room_has_many_tests_in_it_or_one_that_is_alone(tmp_path: Path, processes: int) -> None:
    for name in ("in", "inner"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "tests/conftest.py", tmp_path / "inner")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "inner/test_inner.py").write_text(f"TOGETHER = {processes or 1}\n{INNER}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"-n{processes}", "inner"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f" {3 + (processes or 1)} passed" in done.stdout, done.stdout + done.stderr


def test_room_lets_nobody_in_before_who_waits_to_be_alone(tmp_path: Path) -> None:
    came: list[str] = []

    def come(name: str, *, alone: bool) -> None:
        with closing(Room(tmp_path)) as room, room.enter(alone=alone):
            came.append(name)

    def waits() -> bool:
        with (tmp_path / "turnstile").open() as turnstile:
            try:
                flock(turnstile, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                return True
        return False

    with ThreadPoolExecutor(2) as pool:
        with closing(Room(tmp_path)) as room, room.enter(alone=False):
            come("beside", alone=False)
            first = pool.submit(come, "alone", alone=True)
            until(waits, what="the one that is to be alone")
            then = pool.submit(come, "behind", alone=False)
            assert came == ["beside"]
        first.result(30.0)
        then.result(30.0)
    assert came == ["beside", "alone", "behind"]
