"""Two users who have nothing here but what a test gives them, and what they see."""

import os
import stat
from pathlib import Path

import pytest

from greeterd.system.files import Identity

HIM = Identity(54321, 54322)
ANOTHER = Identity(54323, 54324)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as another user")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path | str | int) -> list[str]:
    return sorted(os.listdir(directory))  # noqa: PTH208 - also of a descriptor


def seen(*files: Path | int) -> list[tuple[int, int, int]]:
    found = [os.stat(file) for file in files]  # noqa: PTH116 - also of a descriptor
    return [(each.st_uid, each.st_gid, stat.S_IMODE(each.st_mode)) for each in found]


def owner_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid
