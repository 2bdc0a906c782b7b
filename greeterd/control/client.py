"""A program's end: one command, one answer, or the reason why there is none.

Every function may block, up to its deadline (an instant of time.monotonic()).
"""

import contextlib
import socket
import struct
import time
from pathlib import Path
from typing import Any

from greeterd.core.requests import (
    FAILED,
    MAX_REQUEST_BYTES,
    NOT_NOW,
    NOT_PERMITTED,
    parse_answer,
    render_request,
)
from greeterd.errors import GreeterdError
from greeterd.socketfiles import short_name


class ControlError(GreeterdError):
    """What answered does not speak the protocol."""

    exit_code = FAILED


class NotRunningError(ControlError):
    """Nobody has the socket, or who had it went away before it answered (EX_UNAVAILABLE)."""

    exit_code = 69


class NoAnswerError(ControlError):
    """No answer came in time (EX_TEMPFAIL)."""

    exit_code = NOT_NOW


class NotPermittedError(ControlError):
    """The file system does not let this user reach the socket (EX_NOPERM)."""

    exit_code = NOT_PERMITTED


def ask(path: Path, command: str, timeout: float, /, **arguments: object) -> dict[str, Any]:
    """Send one command and return its answer, also one that says no (`ok` false); blocks.

    Raises:
        NotRunningError, NotPermittedError, NoAnswerError, ControlError: there is no answer.

    """
    deadline = time.monotonic() + timeout
    with connect(path, deadline) as sock:
        return exchange(sock, command, deadline, **arguments)


def connect(path: Path, deadline: float) -> socket.socket:
    """Return a connection to the daemon that has its socket at `path`; blocks until `deadline`.

    Raises:
        NotRunningError, NotPermittedError, NoAnswerError: there is none.

    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # settimeout() would make connect() fail at once when the accept queue is full; the send
        # timeout makes it wait for room (EAGAIN when it ends).
        patience = struct.pack("ll", *divmod(int(1e6 * _left(deadline)), 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        with short_name(path) as name:
            sock.connect(name)
    except OSError as error:
        sock.close()
        raise _why_not(path, error) from error
    return sock


def _why_not(path: Path, error: OSError) -> ControlError:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return NotRunningError(f"no greeterd is running (no socket at {path})")
        case ConnectionRefusedError():
            return NotRunningError(f"no greeterd is running (nobody listens at {path})")
        case PermissionError():
            return NotPermittedError(f"{path} is another user's; ask as that user or as root")
        case BlockingIOError():
            return NoAnswerError(f"greeterd did not take the connection in time ({path})")
        case _:
            return NotRunningError(f"no greeterd can be reached at {path}: {error.strerror}")


def exchange(
    sock: socket.socket, command: str, deadline: float, /, **arguments: object
) -> dict[str, Any]:
    """Send a command over a connection and return its answer; blocks until `deadline`.

    Raises:
        NotRunningError, NoAnswerError, ControlError: there is no answer.

    """
    line = bytearray()
    try:
        # A refused peer finds the connection closed, and still an answer to read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.settimeout(_left(deadline))
            sock.sendall(render_request(command, arguments))
        while not line.endswith(b"\n"):
            sock.settimeout(_left(deadline))
            data = sock.recv(MAX_REQUEST_BYTES)
            if not data:
                raise NotRunningError("greeterd went away before it answered")
            line += data
        return parse_answer(bytes(line))
    except TimeoutError:
        raise NoAnswerError("no answer in time; the command may still be under way") from None
    except OSError as error:
        raise NotRunningError(f"greeterd went away before it answered: {error.strerror}") from error
    except ValueError as error:
        raise ControlError(f"what answered is no greeterd: {error}") from error


def _left(deadline: float) -> float:
    """Return the seconds until `deadline`, above 0: that means not to wait, or to wait for ever."""
    return max(1e-3, deadline - time.monotonic())
