"""Fixtures of the integration tests: what this process asks the system for."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many bytes each write(2) of this process was for, as they come."""
    sizes: list[int] = []
    write = os.write

    def counted(fd: int, data: bytes) -> int:
        sizes.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", counted)
    return sizes


@pytest.fixture
def lock() -> Iterator[int]:
    """Yield the lock that the master gives to all workers of a slot."""
    fd = os.memfd_create("lock")
    yield fd
    os.close(fd)
