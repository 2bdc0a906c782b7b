"""Fixtures of the tests that act as another user."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.system.users import HIM
from tests.support import passable_directory


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory of ours that everybody may pass."""
    with passable_directory() as directory:
        yield directory


@pytest.fixture
def his(place: Path) -> Path:
    """Return a directory that belongs to him."""
    his = place / "his"
    his.mkdir(mode=0o755)
    if os.geteuid() == 0:
        os.chown(his, HIM.uid, HIM.gid)
    return his
