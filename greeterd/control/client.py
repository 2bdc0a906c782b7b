"""The client's end of the control socket: sends a command, returns its answer.

Every function may block, up to its deadline (an instant of time.monotonic()).
The kernel names the process that answers before anything is sent, and the answer is bounded: in
size, in time, and to one line. Its content is not trusted: escape it before showing it.
"""

import contextlib
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from greeterd.control.protocol import (
    FAILED,
    MAX_ANSWER_BYTES,
    NOT_NOW,
    NOT_PERMITTED,
    parse_answer,
    render_request,
)
from greeterd.errors import GreeterdError
from greeterd.system.socket_file import peer_of, short_name

_READ_BYTES = 65536


class ControlError(GreeterdError):
    """The answer is not one of the control protocol."""

    exit_code = FAILED


class NotRunningError(ControlError):
    """No process listens at the socket, or it closed without an answer (EX_UNAVAILABLE)."""

    exit_code = 69


class NoAnswerError(ControlError):
    """No answer arrived in time (EX_TEMPFAIL)."""

    exit_code = NOT_NOW


class NotPermittedError(ControlError):
    """This user may not use the socket, or an untrusted user listens at it (EX_NOPERM)."""

    exit_code = NOT_PERMITTED


def ask(path: Path, command: str, timeout: float, /, **arguments: object) -> dict[str, Any]:
    """Send one command and return its answer, a refusal (`ok` false) too; blocks.

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
        _require_trusted(peer_of(sock).uid, path)
    except OSError as error:
        sock.close()
        raise _why_not(path, error) from error
    except ControlError:
        sock.close()
        raise
    return sock


def _require_trusted(uid: int, path: Path) -> None:
    """Refuse any user but root, ourselves and, if we are root, the directory's owner.

    The daemon of another user serves only root and that user, so nobody else need trust it; and the
    directory may be one that another user has made in the daemon's place (/tmp/greeterd-UID).
    """
    trusted = {0, os.geteuid()}
    if os.geteuid() == 0:
        trusted.add(path.parent.stat().st_uid)
    if uid not in trusted:
        expected = " or ".join(f"{one}" for one in sorted(trusted))
        raise NotPermittedError(f"user {uid} answers at {path}, and not user {expected}")


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
    try:
        # A refused client finds the connection closed, and still an answer to read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.settimeout(_left(deadline))
            sock.sendall(render_request(command, arguments))
        return parse_answer(_read_line(sock, deadline))
    except TimeoutError:
        raise NoAnswerError("no answer in time; the command may still be under way") from None
    except OSError as error:
        raise NotRunningError(f"greeterd went away before it answered: {error.strerror}") from error
    except ValueError as error:
        raise ControlError(f"what answered is no greeterd: {error}") from error


def _read_line(sock: socket.socket, deadline: float) -> bytes:
    """Return the one line that arrives.  Raises: ValueError for more, OSError, NotRunningError."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if time.monotonic() >= deadline:
            raise TimeoutError  # also where bytes go on arriving
        sock.settimeout(_left(deadline))
        data = sock.recv(_READ_BYTES)
        if not data:
            raise NotRunningError("greeterd went away before it answered")
        if b"\n" in data[:-1]:
            raise ValueError("more than one line")
        line += data
        if len(line) > MAX_ANSWER_BYTES:
            raise ValueError(f"more than {MAX_ANSWER_BYTES >> 20} MiB")
    return bytes(line)


def _left(deadline: float) -> float:
    """Return the seconds until `deadline`, more than 0, which would mean no or endless waiting."""
    return max(1e-3, deadline - time.monotonic())
