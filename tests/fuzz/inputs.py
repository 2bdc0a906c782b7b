"""Feeds bytes that a fuzzer invents to all that the master and greeterctl read from others.

Coverage-guided, by atheris (PyPI), which the project does not depend on. From the root of a clone:
  pip install atheris
  python -m tests.fuzz.inputs -max_total_time=600 [CORPUS_DIRECTORY]
An exception that is not allowed for ends it, and the input is kept in a file. The first byte
chooses the reader, the rest is what it reads.
"""

import contextlib
import mmap
import os
import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["greeterd"]):
    from greeterd.control.protocol import Inbox, parse_answer, parse_request
    from greeterd.errors import GreeterdError
    from greeterd.master import children
    from greeterd.master.systemd.fdstore import parse_name
    from greeterd.master.upgrade import reexec
    from greeterd.sockets import rights
    from greeterd.system import inheritance
    from greeterd.worker.counters import CELLS
    from greeterd.worker.row import Claim
    from greeterd.worker.scoreboard import Scoreboard
    from tests.integration.master.parts import heard_child

Read = Callable[[bytes], object]


def read_channel(data: bytes) -> None:
    """Read records of a worker: each a byte for its descriptors, and as long as the next says."""
    with heard_child(listeners=1, ready=bool(data[:1] > b"\x80")) as one:
        while len(data) > 2:
            count, size, data = data[0] % 4, data[1], data[2:]
            with contextlib.suppress(BlockingIOError):
                rights.send(one.theirs, data[:size], [0] * count)
            data = data[size:]
        one.turn()
        one.turn()
        assert len(one.child.killed) <= 1


def read_requests(data: bytes) -> None:
    """Read lines of a control client."""
    inbox = Inbox()
    inbox.feed(data)
    inbox.feed(b"")
    while (line := inbox.take()) is not None:
        if not isinstance(line, bytes):
            return
        parse_request(line)


def read_answer(data: bytes) -> None:
    """Read what whoever listens on control.sock answers."""
    with contextlib.suppress(ValueError):
        parse_answer(data)


def read_upgrade_state(data: bytes) -> None:
    """Read what the image before has left."""
    memory = os.memfd_create("state")
    os.write(memory, data)
    os.environ[inheritance.STATE_FD] = str(memory)
    try:
        reexec.inherited_state()
    except GreeterdError:
        with contextlib.suppress(OSError):
            os.close(memory)


def read_stored_name(data: bytes) -> None:
    """Read a name from the descriptor store, and write it again."""
    if (found := parse_name(data.decode("utf-8", "surrogateescape"))) is not None:
        assert parse_name(found.name) == found


def read_stack(data: bytes) -> None:
    """Read the stack of a worker."""
    memory = os.memfd_create("stack")
    os.write(memory, data)
    text = children._read_stack(memory)
    os.close(memory)
    assert all(line.isprintable() for line in text.split("\n"))


def read_row(data: bytes) -> None:
    """Read rows that a worker writes, one after the other: each cell by its number and a byte."""
    board, memory = Scoreboard(slots=1), os.memfd_create("row")
    os.ftruncate(memory, mmap.PAGESIZE)
    board.adopt(1, 0, Claim(memory))
    while len(data) > 2:
        cell, size, data = data[0] % CELLS, data[1] % 9, data[2:]
        os.pwrite(memory, data[:size].ljust(8, b"\0"), 8 * cell)
        data = data[size:]
        before = board.worker(1, 0)
        if board.look(1, 0):
            assert board.worker(1, 0) == before
    board.total(1)
    board.settle(1, 0)
    os.close(board.fd)


READERS: tuple[Read, ...] = (
    read_channel,
    read_requests,
    read_answer,
    read_upgrade_state,
    read_stored_name,
    read_stack,
    read_row,
)


def read_one(data: bytes) -> None:
    """Let one reader read."""
    if data:
        READERS[data[0] % len(READERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, read_one)
    atheris.Fuzz()
