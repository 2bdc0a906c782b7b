"""The machine as a room: many tests are in it at a time, or one that is `alone`.

Two file locks (flock(2)) hold for all processes of a session.  A test holds the room, shared or
exclusively; it comes through a turnstile, which it holds only until it is in.  So whoever waits to
be alone stops those behind it, and waits for nothing but those who are in.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_SH, LOCK_UN, flock
from pathlib import Path


class Room:
    """The locks, as one process holds them; `directory` names the room."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._turnstile, self._room = (
            os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o600)
            for name in ("turnstile", "room")
        )

    @contextmanager
    def enter(self, *, alone: bool) -> Iterator[None]:
        """Be in the room for as long as the block, without anyone else if `alone`."""
        flock(self._turnstile, LOCK_EX)
        try:
            flock(self._room, LOCK_EX if alone else LOCK_SH)
        finally:
            flock(self._turnstile, LOCK_UN)
        try:
            yield
        finally:
            flock(self._room, LOCK_UN)

    def close(self) -> None:
        """Close the locks' files."""
        os.close(self._turnstile)
        os.close(self._room)
