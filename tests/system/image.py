"""A copy of the package for a daemon to run from: another version of it, or one that is broken.

Each process shows in its title (ps) which version it has read, so a test sees what code is in
memory. Only the test writes the copy; the byte code of what it leaves as it is comes with it.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import psutil

from tests.support import until
from tests.system.harness import ROOT, Daemon

PACKAGE = "greeterd"


class Image:
    """The package in a directory that goes before all others: pass `environment` to the daemon."""

    def __init__(self, directory: Path) -> None:
        self.package = directory / PACKAGE
        shutil.copytree(ROOT / PACKAGE, self.package)
        self.environment = {"PYTHONPATH": str(directory)}
        latest = max(path.stat().st_mtime for path in self.package.rglob("*.py"))
        self._instant = int(latest)
        self._whole: dict[Path, str] = {}
        self.release("1")

    def release(self, version: str) -> None:
        """Let this be another version."""
        self._edit("__init__.py", r'__version__ = ".*"', f'__version__ = "{version}"')
        self._edit("system/proctitle.py", r'f"greeterd.*?: ', f'f"greeterd-{version}: ')

    def _edit(self, name: str, pattern: str, by: str) -> None:
        path = self.package / name
        text, count = re.subn(pattern, by, path.read_text())
        assert count, f"no {pattern} in {path}"
        self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        # Byte code is taken for up to date by the second in which its source was written.
        self._instant += 1
        os.utime(path, (self._instant, self._instant))

    def spoil(self, name: str, pattern: str, by: str) -> None:
        """Replace what a regular expression finds in a file, until `mend`."""
        path = self.package / name
        self._whole.setdefault(path, path.read_text())
        self._edit(name, pattern, by)

    def hold_up(self) -> "Gate":
        """Let the next image that takes the place, and not its trial, wait for the gate to open."""
        gate = Gate(self.package.parent / "gate")
        self.spoil(
            "master/master.py",
            r"\nTICK: ",
            f"""
import select
from greeterd.system import inheritance
while (
    inheritance.STATE_FD in os.environ
    and inheritance.PREFLIGHT not in os.environ
    and not os.path.exists({str(gate.path)!r})
):
    select.select([], [], [], 0.01)
TICK: """,
        )
        return gate

    def mend(self) -> None:
        """Undo everything that was spoilt."""
        for path, text in self._whole.items():
            self._write(path, text)
        self._whole.clear()


class Gate:
    """What an image waits for, deaf, after it was executed in the daemon's process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def wait_reached(daemon: Daemon) -> None:
        """Wait until the process has become the new image, which waits."""
        daemon.wait_event("becoming the new image")
        # Between the two programs there is no command line.
        until(lambda: sys.executable in psutil.Process(daemon.pid).cmdline())

    def open(self) -> None:
        """Let the image go on."""
        self.path.touch()


def versions(pids: list[int]) -> set[str]:
    """Return the versions that are in the memory of these processes; empty of one that ends."""
    found = set()
    for pid in pids:
        try:
            title = "".join(psutil.Process(pid).cmdline())
        except psutil.NoSuchProcess:
            title = ""
        found.add(title.partition(":")[0].partition("-")[2])
    return found
