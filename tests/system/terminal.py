"""A program on a terminal of its own, and what it writes there."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence


def on_terminal(
    arguments: Sequence[str], environment: Mapping[str, str], columns: int, *, code: int = 0
) -> str:
    """Run a command on a terminal of this width, to this exit code; return what it wrote."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        process = subprocess.Popen(
            arguments, env={**environment, "TERM": "xterm-256color"}, stdin=theirs, stdout=theirs,
            stderr=theirs,
        )  # fmt: skip
    finally:
        os.close(theirs)
    written = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while data := terminal.read(65536):
                written += data
        except OSError:  # EIO: the last process has closed its end
            pass
    assert process.wait(timeout=60) == code, written
    return written.decode().replace("\r\n", "\n")


def without_colours(text: str) -> str:
    """Return text less its colour sequences."""
    plain = ""
    for index, piece in enumerate(text.split("\x1b[")):
        plain += piece.partition("m")[2] if index else piece
    return plain
