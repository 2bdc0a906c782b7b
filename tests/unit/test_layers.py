"""The source itself keeps the design: imports point down (pyproject.toml, tool.importlinter)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BREACHES = [
    ("supervisor/state.py", "import os"),
    ("supervisor/state.py", "from greeterd.system import escape"),
    ("system/signals.py", "from greeterd.sockets import listener"),
    ("sockets/listener.py", "from greeterd.control import protocol"),
    ("worker/main.py", "def f():\n    from greeterd.master import start"),
    ("bench/model.py", "from greeterd.worker import counters"),
    ("master/start.py", "from greeterd.cli import greeterd"),
]


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the package in this directory."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_point_down() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("module", "line"), BREACHES)
def test_a_breach_of_the_layers_is_seen(tmp_path: Path, module: str, line: str) -> None:
    shutil.copytree(ROOT / "greeterd", tmp_path / "greeterd")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "greeterd" / module).open("a") as file:
        file.write(f"\n{line}\n")
    assert lint(tmp_path).returncode == 1
