"""What every tier shares: waiting for a fact instead of sleeping."""

import contextlib
import errno
import select
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def passable_directory() -> Iterator[Path]:
    """Give a directory that other users can pass, for as long as they like.

    That of pytest is made to keep them out each time that pytest starts, also beside us.
    """
    directory = Path(tempfile.mkdtemp(prefix="greeterd-test-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def remove_tree(directory: Path) -> None:
    """Remove a directory, though processes make files in it meanwhile."""

    def removed() -> bool:
        try:
            shutil.rmtree(directory)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                return False
            raise
        return True

    until(removed, what=f"{directory} removed")


def until(predicate: Callable[[], T], *, timeout: float = 10.0, what: str = "") -> T:
    """Return the first true value of `predicate`; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or predicate}")
        select.select([], [], [], 0.01)
